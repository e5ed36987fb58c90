"""How the command line ends when the world around it does: late signals, closed and full streams, empty names, what is gone."""

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

Cli = Any
QUICK = ("run", "echo x > x", "--agent", "command", "--sandbox", "none", "--yes", "--json")


def git(at: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=at, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=cwd, check=False, capture_output=True, text=True, timeout=90)


def said(state: Path, kind: str) -> bool:
    try:
        with closing(sqlite3.connect(f"file:{state / 'state.db'}?mode=ro", uri=True)) as store:
            return bool(store.execute("select 1 from cc_events where kind = ?", (kind,)).fetchone())
    except sqlite3.OperationalError:
        return False


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("late", [0.0, 0.1, 0.3])
def test_a_signal_after_the_run_is_over_changes_nothing(cli: Cli, repo: Path, state: Path, number: int, late: float) -> None:
    process = cli.start(*QUICK, cwd=repo)
    until(lambda: said(state, "run.done"))
    time.sleep(late)
    if process.poll() is None:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["state"]) == (0, "done"), err
    assert "Traceback" not in err


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_keep_a_run_from_landing(cli: Cli, repo: Path, closed: str) -> None:
    done = shell(f"'{cli.script}' run 'echo x > x' --agent command --sandbox none --yes --branch landed {closed}", repo)
    assert done.returncode == 0, done.stderr
    assert git(repo, "show", "landed:x") == "x"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_talk_that_cannot_be_written_does_not_end_a_run(cli: Cli, repo: Path) -> None:
    done = shell(f"'{cli.script}' run 'echo x > x' --agent command --sandbox none --yes --branch landed 2> /dev/full", repo)
    assert done.returncode == 0
    assert git(repo, "show", "landed:x") == "x"


def test_a_reader_that_leaves_ends_neither_the_run_nor_hides_how_it_went(cli: Cli, repo: Path) -> None:
    failing = "'exit 7' --agent command --sandbox none --yes --max-attempts 1"
    done = shell(f"'{cli.script}' run {failing} 2>&1 | head -n 1", repo)
    assert done.returncode == 1
    listed = cli("runs", "--json").json()
    assert [run["state"] for run in (listed["runs"] if isinstance(listed, dict) else listed)] == ["failed"]


def test_a_rollback_whose_branch_is_gone_says_how_to_bring_it_back(cli: Cli, repo: Path) -> None:
    run = cli(*QUICK, "--branch", "landed", cwd=repo).json()
    git(repo, "branch", "-D", "landed")
    answer = cli("rollback", run["run"], cwd=repo)
    assert answer.code == 2
    assert answer.err.splitlines() == [
        f"error: {repo} has no branch landed any more",
        f"hint: bring it back with `git branch landed {run['head']}`",
    ]
    git(repo, "branch", "landed", run["head"])
    assert cli("rollback", run["run"], cwd=repo).code == 0


@pytest.mark.parametrize("command", ["cancel", "rollback"])
def test_an_empty_name_never_means_the_newest_run(cli: Cli, command: str) -> None:
    answer = cli(command, "")
    assert (answer.code, answer.err.splitlines()[0]) == (2, "error: no run is named")


def test_a_current_folder_that_is_gone_is_said_plainly(cli: Cli, tmp_path: Path) -> None:
    done = shell(
        f"mkdir '{tmp_path}/gone' && cd '{tmp_path}/gone' && rmdir '{tmp_path}/gone' && exec '{cli.script}' plan something", tmp_path
    )
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: the current folder is gone")


def test_a_task_file_without_end_is_refused(cli: Cli) -> None:
    answer = cli("plan", "--tasks", "/dev/zero")
    assert answer.code == 2
    assert "larger than 64 MiB" in answer.err


def test_hints_name_the_command_as_it_can_be_typed(cli: Cli, repo: Path) -> None:
    path = {"PATH": os.pathsep.join(folder for folder in os.environ["PATH"].split(os.pathsep) if folder != str(Path(cli.script).parent))}
    assert cli(*QUICK, cwd=repo).code == 0
    assert f"hint: `{cli.script} runs` lists them" in cli("status", "nope", cwd=repo, env=path).err


def test_submodules_are_said_to_be_left_out(cli: Cli, repo: Path, make_repo: Callable[..., Path]) -> None:
    library = make_repo("library")
    git(repo, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "vendor/library")
    git(repo, "commit", "--quiet", "--message=Use a library")
    answer = cli(*QUICK, cwd=repo)
    assert answer.code == 0, answer.err
    assert "warning: submodules are empty folders for agents and gates" in answer.err
    assert "vendor/library" in answer.err


def test_a_branch_that_was_rewritten_is_no_longer_what_the_receipts_are_about(cli: Cli, repo: Path) -> None:
    run = cli(*QUICK, "--branch", "landed", cwd=repo).json()
    git(repo, "branch", "onward", run["head"])
    git(repo, "branch", "-f", "landed", git(repo, "commit-tree", "-p", run["head"], "-m", "more", f"{run['head']}^{{tree}}"))
    assert cli("receipt", "verify", run["run"]).code == 0, "work on top of it is fine"
    git(repo, "branch", "-f", "landed", "main")
    rewritten = cli("receipt", "verify", run["run"], "--json")
    assert rewritten.code == 1
    assert rewritten.json()["receipts"][0]["problems"] == ["branch landed does not hold the commit any more: it was rewritten"]
    git(repo, "branch", "-D", "landed")
    assert cli("receipt", "verify", run["run"]).code == 0, "a branch that was merged and deleted is fine"


@pytest.mark.parametrize("empty", [False, True])
def test_a_repository_that_is_away_ends_no_run(cli: Cli, repo: Path, state: Path, *, empty: bool) -> None:
    process = cli.start("run", "test -e go || sleep 60; echo x > x", *QUICK[2:], cwd=repo)
    until(lambda: said(state, "attempt.started"))
    process.kill()
    process.communicate()
    repo.rename(repo.with_name("away"))
    if empty:
        repo.mkdir()  # as a disk that is not mounted leaves it
    answer = cli("resume", cwd=repo.parent)
    assert (answer.code, answer.err.splitlines()[0]) == (4, f"error: the repository {repo} is not there")
    assert cli("status", "--json", cwd=repo.parent).json()["state"] == "running"


def test_a_rollback_of_a_checked_out_branch_says_what_to_do(cli: Cli, repo: Path) -> None:
    run = cli(*QUICK, "--branch", "landed", cwd=repo).json()
    git(repo, "switch", "--quiet", "landed")
    answer = cli("rollback", run["run"], cwd=repo)
    assert answer.code == 2
    assert answer.err.splitlines()[-1] == "hint: check out another branch there, then roll back"


def left(state: Path, run: str) -> list[Path]:
    """Return what a run left of its work in the state folder."""
    return [
        *state.glob(f"repositories/*/workspaces/{run}.*"),
        *state.glob(f"repositories/*/homes/{run}.*"),
        *state.glob(f"sandboxes/*/@{run}.*"),
    ]


def killed(cli: Cli, repo: Path, file: Path, state: Path) -> str:
    """Start a run, kill -9 it while its agent works; return its id."""
    process = cli.start("run", "--tasks", str(file), "--json", cwd=repo)
    until(lambda: said(state, "task.started"))
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=60)
    listed = cli("runs", "--json").json()
    return str((listed["runs"] if isinstance(listed, dict) else listed)[0]["run"])


def test_a_run_that_was_killed_and_is_then_cancelled_leaves_nothing(cli: Cli, repo: Path, task_file: Any, state: Path) -> None:
    run = killed(cli, repo, task_file([{"id": "long", "run": "sleep 50"}]), state)
    assert left(state, run)
    assert cli("cancel", run, cwd=repo).code == 0
    assert left(state, run) == []
    assert cli("resume", run, cwd=repo).code == 1


def test_a_task_cancelled_while_nobody_serves_its_run_does_not_start_again(cli: Cli, repo: Path, task_file: Any, state: Path) -> None:
    file = task_file([{"id": "long", "run": "sleep 50"}, {"id": "short", "run": "sleep 1; echo x > x"}])
    run = killed(cli, repo, file, state)
    assert cli("cancel", run, "long", cwd=repo).code == 0
    resumed = cli("resume", run, "--json", cwd=repo)
    assert resumed.code == 1, resumed.err
    assert {task["id"]: task["state"] for task in resumed.json()["tasks"]} == {"long": "cancelled", "short": "done"}
    assert "long: goes on" not in resumed.err
    assert left(state, run) == []


def test_a_repository_that_goes_away_under_a_run_that_is_resumed_costs_nothing(cli: Cli, repo: Path, task_file: Any, state: Path) -> None:
    file = task_file([{"id": "one", "run": "sleep 2; echo x > x"}])
    run = killed(cli, repo, file, state)
    away = repo.with_name("away")
    served = len(served_by(state))
    process = cli.start("resume", run, "--json", cwd=repo.parent)
    until(lambda: len(served_by(state)) > served or process.poll() is not None)
    repo.rename(away)
    _, err = process.communicate(timeout=60)
    away.rename(repo)
    if process.returncode:  # it had not opened the repository yet: the time to hit is short
        assert process.returncode in {3, 4}, err
        assert "internal" not in err
        assert cli("resume", run, "--json", cwd=repo).code == 0
    assert git(repo, "show", f"claudecluster/{run}:x") == "x"


def served_by(state: Path) -> list[Any]:
    with closing(sqlite3.connect(f"file:{state / 'state.db'}?mode=ro", uri=True)) as store:
        return store.execute("select 1 from cc_events where kind = 'run.serving'").fetchall()


@pytest.mark.slow
def test_a_process_that_did_not_answer_for_long_leaves_its_run_to_another(cli: Cli, repo: Path, task_file: Any, state: Path) -> None:
    process = cli.start("run", "--tasks", str(task_file([{"id": "one", "run": "sleep 25; echo x >> x"}])), "--json", cwd=repo)
    until(lambda: said(state, "task.started"))
    process.send_signal(signal.SIGSTOP)
    second = cli.start("resume", "--json", cwd=repo)
    until(lambda: len(served_by(state)) > 1)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "another process took over" in err
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert git(repo, "show", f"{json.loads(out)['branch']}:x") == "x"
