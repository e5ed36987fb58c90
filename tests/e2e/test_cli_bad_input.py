"""What people get wrong is answered in one clear line and a hint, with exit code 2 or 4; nothing is written, nothing is half done."""

import contextlib
import json
import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
PLAIN = ("--agent", "command", "--sandbox", "none")


def refused(answer: Any, code: int = 2) -> tuple[str, str]:
    """Check the shape of a refusal and return its error and its hint."""
    assert answer.code == code, f"{answer.out}\n{answer.err}"
    assert answer.out == ""
    assert "Traceback" not in answer.err
    lines = [line for line in answer.err.splitlines() if not line.startswith(("warning: ", "note: "))]
    assert lines[0].startswith("error: "), answer.err
    assert len(lines) <= 2, answer.err
    assert all(line.startswith("hint: ") for line in lines[1:]), answer.err
    return lines[0], lines[1] if len(lines) > 1 else ""


def refs(repo: Path) -> str:
    return subprocess.run(["git", "for-each-ref"], cwd=repo, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def nothing_written(repo: Path, state: Path) -> Callable[[], None]:
    """Return what checks that the repository has not changed and that the store, if there is one, has no run."""
    before = refs(repo)

    def check() -> None:
        assert refs(repo) == before
        if (state / "state.db").exists():
            with closing(sqlite3.connect(state / "state.db")) as store:
                assert store.execute("select count(*) from cc_runs").fetchone() == (0,)

    return check


def tasks(tmp_path: Path, text: str | bytes, name: str = "tasks.yaml") -> str:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


FILES: Mapping[str, tuple[str | bytes, str, str]] = {
    "cycle": ("tasks: [{id: a, run: x, needs: [b]}, {id: b, run: x, needs: [a]}]", "a -> b -> a", ""),
    "unknown need": ("tasks:\n- id: first\n  run: x\n- id: b\n  run: x\n  needs: [frist]", "line 6: task `b` needs `frist`", "`first`"),
    "duplicate id": ("tasks:\n- {id: a, run: x}\n- {id: a, run: y}", "line 3: task id `a` is used twice (first on line 2)", ""),
    "bad yaml": ("tasks:\n- id: a\n  run: [x\n", "tasks.yaml line 4: ", ""),
    "unknown key": ("tasks:\n- id: a\n  rum: x", "line 3: unknown key `rum` in task `a`", "`run`"),
    "wrong type": ("tasks:\n- id: a\n  run: x\n  timeout: soon", "line 4: `timeout` in task `a` must be a number", ""),
    "empty": ("", "tasks.yaml is empty", "tasks"),
    "twice the same key": ("goal: a\ngoal: b", "line 2: key `goal` is given twice", ""),
    "not utf-8": (b"goal: \xff", "line 1: not UTF-8", "UTF-8"),
    "unknown agent": ("tasks: [{id: a, prompt: x, agent: cluade-code}]", "no agent named 'cluade-code'", "`claude-code`"),
    "unknown check": ("gates: [{name: a, check: tidy}]\ntasks: [{id: a, run: x}]", "no check named 'tidy'", ""),
}


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("case", FILES)
def test_a_task_file_with_a_mistake(
    cli: Cli, repo: Path, tmp_path: Path, nothing_written: Callable[[], None], command: str, case: str
) -> None:
    text, said, hint = FILES[case]
    error, advice = refused(cli(command, "--tasks", tasks(tmp_path, text), cwd=repo))
    assert said in error
    assert hint in advice
    nothing_written()


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_task_file_that_is_not_there_or_a_folder(cli: Cli, repo: Path, tmp_path: Path, command: str) -> None:
    assert "there is no task file" in refused(cli(command, "--tasks", str(tmp_path / "none.yaml"), cwd=repo))[0]
    assert "is a folder" in refused(cli(command, "--tasks", str(tmp_path), cwd=repo))[0]


@pytest.mark.parametrize("command", ["plan", "run"])
def test_nothing_to_do(cli: Cli, repo: Path, command: str) -> None:
    error, hint = refused(cli(command, cwd=repo))
    assert "nothing to do" in error
    assert "--tasks" in hint


@pytest.mark.parametrize(
    ("arguments", "said", "hint"),
    [
        (["--repo", "/nowhere/at/all"], "no repository at /nowhere/at/all", "--repo"),
        (["--repo", "/etc/passwd"], "is a file", "--repo"),
        (["--base", "no-such-branch"], "no-such-branch", ""),
        (["--base", "--upload-pack=x"], "", ""),
        (["--branch", "bad..name"], "bad..name", ""),
        (["--branch", "main"], "main", ""),
        (["--agent", "claude"], "no agent named 'claude'", "`claude-code`"),
        (["--sandbox", "proces"], "no sandbox named 'proces'", "`process`"),
        (["--network", "some"], "--network", ""),
        (["--workers", "0"], "--workers", ""),
        (["--workers", "many"], "--workers", ""),
        (["--max-attempts", "0"], "--max-attempts", ""),
        (["--max-attempts", "x"], "--max-attempts", ""),
        (["--timeout", "-1"], "--timeout", ""),
        (["--timeout", "nan"], "--timeout", ""),
        (["--budget-usd", "0"], "--budget-usd", ""),
        (["--budget-usd", "nan"], "--budget-usd", ""),
        (["--gate", " "], "--gate", ""),
        (["--replay", "/nowhere/cassette"], "no cassette", "--record"),
        (["--record", "/nowhere/cassette"], "/nowhere/cassette cannot be written", ""),
        (["--record", "a", "--replay", "b"], "--record and --replay", ""),
        (["--frobnicate"], "--frobnicate", "--help"),
        (["more", "words"], "", "--help"),
    ],
)
def test_an_option_that_makes_no_sense(
    cli: Cli, repo: Path, nothing_written: Callable[[], None], arguments: list[str], said: str, hint: str
) -> None:
    error, advice = refused(cli("run", "true", *PLAIN, *arguments, cwd=repo))
    assert said in error
    assert hint in advice
    nothing_written()


def test_a_folder_that_is_no_repository(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for answer in (cli("run", "true", *PLAIN, cwd=folder), cli("run", "true", *PLAIN, "--repo", str(folder))):
        error, hint = refused(answer)
        assert "not a git repository" in error
        assert hint


def test_a_repository_without_a_commit(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "fresh"
    folder.mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    error, hint = refused(cli("run", "true", *PLAIN, cwd=folder))
    assert "commit" in error
    assert hint


def test_a_gate_whose_command_is_missing_is_infrastructure_not_a_red_test(
    cli: Cli, repo: Path, nothing_written: Callable[[], None]
) -> None:
    error, hint = refused(cli("run", "true", *PLAIN, "--gate", "no-such-program --now", cwd=repo), code=4)
    assert "no-such-program" in error
    assert hint
    nothing_written()


def test_no_bubblewrap_is_said_with_the_way_to_get_it(cli: Cli, repo: Path, tmp_path: Path, nothing_written: Callable[[], None]) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("git", "sh", "bash", "env"):
        found = next(folder / name for folder in map(Path, os.environ["PATH"].split(os.pathsep)) if (folder / name).exists())
        (tools / name).symlink_to(found)
    error, hint = refused(cli("run", "true", "--agent", "command", cwd=repo, env={"PATH": str(tools)}), code=4)
    assert "bubblewrap" in error or "bwrap" in error
    assert "install" in hint
    assert "--sandbox none" in hint
    nothing_written()


def test_no_model_is_said_before_anything_starts(cli: Cli, repo: Path, nothing_written: Callable[[], None]) -> None:
    error, hint = refused(cli("run", "Fix it", "--sandbox", "none", cwd=repo), code=4)
    assert "model" in error
    assert "ANTHROPIC_API_KEY" in hint
    nothing_written()


def test_a_state_folder_that_cannot_be_written(cli: Cli, repo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = str(tmp_path / "file" / "state")
    error, hint = refused(cli("run", "true", *PLAIN, cwd=repo, env={"CLAUDECLUSTER_HOME": home}), code=4)
    assert home in error
    assert hint


def test_a_disk_without_room(cli: Cli, repo: Path) -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("needs /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([cli.script, "config", "show"], check=False, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)  # type: ignore[attr-defined]
    assert done.returncode == 4
    assert done.stderr.splitlines()[0] == "error: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("status", "rnowhere"),
        ("logs", "rnowhere"),
        ("resume",),
        ("resume", "rnowhere"),
        ("cancel", "rnowhere"),
        ("rollback", "rnowhere"),
        ("receipt", "show", "rnowhere"),
        ("receipt", "verify", "rnowhere"),
    ],
)
def test_looking_before_there_is_anything_starts_nothing_and_makes_nothing(cli: Cli, state: Path, arguments: tuple[str, ...]) -> None:
    error, hint = refused(cli(*arguments))
    assert "no runs yet" in error
    assert hint
    assert not state.exists()


def test_an_empty_list_of_runs_is_an_answer(cli: Cli, state: Path) -> None:
    answer = cli("runs", "--json")
    assert (answer.code, answer.json()) == (0, {"runs": []})
    assert cli("runs").out == ""
    assert not state.exists()


def test_unknown_runs_and_tasks_are_named(cli: Cli, repo: Path) -> None:
    run = cli("run", "echo x > x", *PLAIN, "--json", cwd=repo).json()["run"]
    for command in ("status", "resume", "logs", "cancel", "rollback"):
        assert "rnowhere" in refused(cli(command, "rnowhere"))[0]
    assert "rnowhere" in refused(cli("receipt", "verify", "rnowhere"))[0]
    for command in ("logs", "cancel", "rollback"):
        error, hint = refused(cli(command, run, "other"))
        assert "other" in error
        assert "task" in hint
    assert "over: done" in refused(cli("cancel", run))[0]


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"CLAUDE_CODE_FALLBACK_THRESHOLD": "lots"}, "CLAUDE_CODE_FALLBACK_THRESHOLD"),
        ({"CLAUDE_CODE_TIMEOUT": "-5"}, "CLAUDE_CODE_TIMEOUT"),
        ({"OLLAMA_BASE_URL": "localhost"}, "OLLAMA_BASE_URL"),
        ({"ANTHROPIC_BASE_URL": "api"}, "ANTHROPIC_BASE_URL"),
        ({"CLAUDECLUSTER_DATABASE_URL": "mysql://x"}, "mysql"),
    ],
)
def test_a_variable_that_does_not_fit(cli: Cli, repo: Path, env: dict[str, str], said: str) -> None:
    error, hint = refused(cli("run", "true", *PLAIN, cwd=repo, env=env))
    assert said in error
    assert hint


def test_a_repository_cannot_send_the_key_elsewhere(cli: Cli, repo: Path) -> None:
    (repo / "claudecluster.toml").write_text('anthropic_base_url = "http://evil.example"\n')
    error, _ = refused(cli("run", "true", *PLAIN, cwd=repo, env={"ANTHROPIC_API_KEY": "k"}))
    assert "claudecluster.toml may not set `anthropic_base_url`" in error


def test_a_command_that_does_not_exist(cli: Cli) -> None:
    assert "rnu" in refused(cli("rnu"))[0]
    assert cli().code == 2
    assert cli("receipt").code == 2


def test_ten_thousand_tasks_are_planned_in_two_seconds(cli: Cli, tmp_path: Path) -> None:
    entries = [f"- id: t{n}\n  run: 'true'\n  needs: [{f't{n // 2}' if n else ''}]\n  files: ['src/{n}/**']\n" for n in range(10_000)]
    file = tasks(tmp_path, "tasks:\n" + "".join(entries))
    before = os.times()
    answer = cli("plan", "--tasks", file, "--json", cwd=tmp_path)
    after = os.times()
    assert answer.code == 0
    assert len(json.loads(answer.out)["order"]) == 10_000
    assert (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    ) < 2  # others use this machine too


@pytest.mark.parametrize("size", ["160k", "1m"])  # room for less than the database, and for less than the repository
def test_a_disk_that_is_full_from_the_start_is_said_in_two_lines(
    cli: Cli, make_repo: Callable[..., Path], tmp_path: Path, size: str
) -> None:
    repo = make_repo("large", {"large.bin": random.Random(1).randbytes(3_000_000).hex()})
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        answer = cli("run", "true", "--agent", "command", "--sandbox", "none", cwd=repo, env={"CLAUDECLUSTER_HOME": str(disk / "state")})
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert "full" in refused(answer, 4)[0]


def test_a_disk_that_fills_up_in_the_middle_ends_the_run_in_two_lines_and_resume_goes_on(cli: Cli, repo: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", disk], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        env = {"CLAUDECLUSTER_HOME": str(disk / "state")}
        process = cli.start("run", "sleep 6; echo 1 > one", "--agent", "command", *PLAIN, cwd=repo, env=env)
        end = time.monotonic() + 60
        while not (disk / "state" / "repositories").exists() or not list((disk / "state" / "repositories").glob("*/workspaces/*")):
            assert time.monotonic() < end
            time.sleep(0.05)
        with contextlib.suppress(OSError), (disk / "fill").open("wb", buffering=0) as fill:
            while True:
                fill.write(b"x" * 65536)
        _, err = process.communicate(timeout=90)
        assert process.returncode == 4, err
        assert "disk is full" in err
        assert "Traceback" not in err
        (disk / "fill").unlink()
        assert cli("resume", cwd=repo, env=env).code == 0
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
