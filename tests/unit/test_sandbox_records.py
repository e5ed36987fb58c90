"""Records of sandboxes survive us, hold everything, and are swept whole."""

import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from claudecluster.kit.processes import born
from claudecluster.model.errors import Refused, SandboxLost, Unavailable
from claudecluster.model.place import Bind, Layer, Limits, SandboxSpec
from claudecluster.sandboxes.local.paths import inside
from claudecluster.sandboxes.local.records import Record, Records

SPEC = SandboxSpec(
    "run-1/task/1",
    "/repo",
    "/home/agent",
    layers=(Layer((Path("/b"), Path("/a")), Path("/u"), Path("/w"), "/repo"),),
    binds=(Bind(Path("/h"), "/home/agent", writable=True), Bind(Path("/s"), "/s")),
    socket=Path("/x.sock"),
    network="full",
    limits=Limits(memory=None, processes=3),
    env={"A": "ü\n"},
)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "state")


def test_what_is_written_is_read_again(records: Records) -> None:
    record = Record(SPEC, (Path("/sys/fs/cgroup/x"),))
    records.write(record)
    assert records.read(SPEC.name) == record
    plain = Record(SandboxSpec("other", "/w", "/h"))
    records.write(plain)
    assert records.read("other") == plain
    assert records.names("run-1/") == [SPEC.name]


def test_only_this_user_can_read_them(records: Records) -> None:
    records.write(Record(SPEC))
    folder = records.folder(SPEC.name)
    assert [path.stat().st_mode & 0o077 for path in (records.state, folder, folder / "record.json")] == [0, 0, 0]


@pytest.mark.parametrize("name", ["..", ".", "a/../../b", "/etc", "@x", "%2F", "ü", "a b"])
def test_any_name_has_a_folder_of_its_own(records: Records, name: str) -> None:
    records.write(Record(replace(SPEC, name=name)))
    assert records.folder(name).parent == records.state
    assert records.names("") == [name]
    records.remove(name)
    records.remove(name)
    assert records.names("") == []


def test_names_no_folder_can_have_are_refused(records: Records) -> None:
    for name in ("", "x" * 300):
        with pytest.raises(Refused):
            records.folder(name)


def test_an_unfinished_record_is_none_but_its_name_is_known(records: Records) -> None:
    records.write(Record(SPEC))
    path = records.folder(SPEC.name) / "record.json"
    for text in ("", "{", "[]", '{"spec": {}, "groups": []}', '{"groups": []}'):
        path.write_text(text)
        assert records.read(SPEC.name) is None
    path.unlink()
    assert records.names("") == [SPEC.name]


def test_a_state_folder_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable):
        Records(tmp_path / "file").write(Record(SPEC))


def test_what_runs_is_ended_by_its_pid_and_birth(records: Records) -> None:
    records.write(Record(SPEC))
    process = subprocess.Popen(["sleep", "600"])
    with records.running(SPEC.name, process.pid):
        mark = records.folder(SPEC.name) / f"run-{process.pid}"
        mark.write_text(born(process.pid) + "0")  # another process that had this pid before
        records.end_runs(SPEC.name)
        assert process.poll() is None
        mark.write_text(born(process.pid))
        records.end_runs(SPEC.name)
        assert process.wait() == -signal.SIGKILL
        records.end_runs("unknown")
    assert not mark.exists()


def test_running_in_a_sandbox_that_was_removed_is_a_lost_sandbox(records: Records) -> None:
    with pytest.raises(SandboxLost), records.running(SPEC.name, 1):
        pass


def test_paths_stay_inside() -> None:
    assert inside("a/./b", "/repo") == "/repo/a/b"
    assert inside("/home/agent/x", "/repo", "/home/agent") == "/home/agent/x"
    assert inside(".", "/repo") == "/repo"
    for path in ("..", "/repository", "/home/agentx", "a/../../x", "x\0"):
        with pytest.raises(Refused):
            inside(path, "/repo", "/home/agent")
