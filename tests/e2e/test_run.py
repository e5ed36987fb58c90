"""The main job with agent `command`: from a task file to a branch that holds what was tested."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

Tasks = Callable[..., Path]

KEYS = {"run", "state", "repo", "base", "branch", "head", "tasks", "duration_s"}
TASK_KEYS = {
    "id",
    "state",
    "attempts",
    "decision",
    "commit",
    "landed",
    "gates",
    "model",
    "cost_usd",
    "usage",
    "duration_s",
    "error",
}


def git(at: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=at, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def by_id(result: Mapping[str, Any]) -> dict[str, Any]:
    return {task["id"]: task for task in result["tasks"]}


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.05)


def marked(text: str) -> list[int]:
    """Return the processes, other than ours, whose command line holds a text."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text in (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_tasks_land_in_order_of_need_on_a_branch_of_their_own(cli: Any, repo: Path, task_file: Tasks) -> None:
    file = task_file(
        [
            {"id": "one", "run": "echo one > one.txt"},
            {"id": "two", "run": "cat one.txt > two.txt && echo two >> two.txt", "needs": ["one"]},
            {"id": "three", "run": "echo three > three.txt"},
        ],
        gates=[{"name": "readme", "run": "test -f README.md"}],
    )
    answer = cli("run", "--tasks", str(file), "--json", cwd=repo)
    assert answer.code == 0, answer.err
    result = answer.json()
    assert set(result) >= KEYS
    assert result["state"] == "done"
    assert result["branch"] == f"claudecluster/{result['run']}"
    for task in result["tasks"]:
        assert set(task) >= TASK_KEYS
        assert task["state"] == "done"
        assert task["landed"] is True
        assert task["attempts"] == 1
        assert task["gates"][0]["exit_code"] == 0
    assert git(repo, "rev-parse", result["branch"]) == result["head"]
    assert git(repo, "show", f"{result['branch']}:two.txt") == "one\ntwo"
    assert git(repo, "rev-list", "--count", f"main..{result['branch']}") == "3"
    assert git(repo, "status", "--porcelain") == ""
    assert git(repo, "rev-parse", "main") == result["base"]
    verified = cli("receipt", "verify", result["run"], "two", cwd=repo)
    assert verified.code == 0, verified.err + verified.out


def test_a_task_whose_gate_stays_red_is_rejected_and_what_needs_it_is_blocked(cli: Any, repo: Path, task_file: Tasks) -> None:
    file = task_file(
        [
            {"id": "bad", "run": "echo no > answer.txt", "gates": [{"name": "yes", "run": "grep -q yes answer.txt"}], "max_attempts": 2},
            {"id": "after", "run": "echo x > x", "needs": ["bad"]},
            {"id": "good", "run": "echo fine > fine.txt"},
        ]
    )
    answer = cli("run", "--tasks", str(file), "--json", cwd=repo)
    assert answer.code == 1, answer.err
    tasks = by_id(answer.json())
    assert tasks["bad"]["state"] == "rejected"
    assert tasks["bad"]["attempts"] == 2
    assert tasks["bad"]["landed"] is False
    assert tasks["bad"]["gates"][0]["exit_code"] == 1
    assert tasks["after"]["state"] == "blocked"
    assert tasks["good"]["state"] == "done"
    assert git(repo, "ls-tree", "--name-only", answer.json()["branch"]).split() == ["README.md", "fine.txt"]


def test_a_failing_command_is_a_failed_task(cli: Any, repo: Path, task_file: Tasks) -> None:
    file = task_file([{"id": "boom", "run": "echo broken; exit 7", "max_attempts": 1}])
    answer = cli("run", "--tasks", str(file), "--json", cwd=repo)
    assert answer.code == 1
    task = answer.json()["tasks"][0]
    assert task["state"] == "failed"
    assert "7" in task["error"]


def test_tasks_that_touch_the_same_line_both_land_the_second_on_top_of_the_first(cli: Any, make_repo: Any, task_file: Tasks) -> None:
    repo = make_repo("counter", {"count.txt": "0\n"})
    file = task_file([{"id": name, "run": f"n=$(head -c 1 count.txt); sleep 0.5; echo $((n+1)) {name} > count.txt"} for name in "abc"])
    answer = cli("run", "--tasks", str(file), "--json", cwd=repo)
    assert answer.code == 0, answer.err
    result = answer.json()
    assert git(repo, "show", f"{result['branch']}:count.txt").startswith("3")
    assert sum(task["attempts"] for task in result["tasks"]) > 3


def test_a_merge_that_turns_a_gate_red_is_made_again_on_the_new_base(cli: Any, make_repo: Any, task_file: Tasks) -> None:
    repo = make_repo("limit", {"keep": ""})
    gate = [{"name": "few", "run": "test $(ls part-* 2>/dev/null | wc -l) -le 1"}]
    file = task_file(
        [
            {"id": "a", "run": "sleep 0.5; rm -f part-*; echo a > part-a"},
            {"id": "b", "run": "sleep 0.5; rm -f part-*; echo b > part-b"},
        ],
        gates=gate,
    )
    answer = cli("run", "--tasks", str(file), "--json", cwd=repo)
    assert answer.code == 0, answer.err
    assert len([name for name in git(repo, "ls-tree", "--name-only", answer.json()["branch"]).split() if name.startswith("part-")]) == 1


def test_a_sandbox_that_is_lost_in_the_middle_of_a_landing_costs_nothing(cli: Any, repo: Path, task_file: Tasks, tmp_path: Path) -> None:
    both = f"touch {tmp_path}/$0; while ! test -e {tmp_path}/one || ! test -e {tmp_path}/two; do sleep 0.05; done; echo x > $0.txt"
    # on the merged tree, the first time: kill the process that started this gate's supervisor, the sandboxes' launcher
    gate = (
        f"if test -e one.txt && test -e two.txt && ! test -e {tmp_path}/lost; then touch {tmp_path}/lost; "
        "kill -9 $(sed -n 's/^PPid:[^0-9]*//p' /proc/$PPID/status); sleep 60; fi"
    )
    tasks = [{"id": name, "run": both.replace("$0", name), "max_attempts": 1} for name in ("one", "two")]
    file = task_file(tasks, gates=[{"name": "both", "run": gate}])
    answer = cli("run", "--tasks", str(file), "--sandbox", "none", "--yes", "--json", cwd=repo)
    assert answer.code == 0, answer.err
    assert (tmp_path / "lost").exists()
    assert [task["attempts"] for task in answer.json()["tasks"]] == [1, 1]
    assert len(git(repo, "rev-list", f"{answer.json()['base']}..{answer.json()['branch']}").split()) == 2


def test_landings_are_tested_at_the_same_time_and_every_commit_is_one_that_passed(
    cli: Any, make_repo: Any, task_file: Tasks, tmp_path: Path
) -> None:
    """Two of the tasks do not go together: the later one is sent back, and nobody lands on what never landed."""
    repo = make_repo("queue", {"keep": ""})
    rule = "test $(ls part-* 2>/dev/null | wc -l) -le 1"
    gate = (
        f"date +%s.%N >> {tmp_path}/$(ls | cksum | tr ' ' -)-$$; sleep 0.7; date +%s.%N >> {tmp_path}/$(ls | cksum | tr ' ' -)-$$; {rule}"
    )
    both = "sleep 0.3; rm -f part-*; echo {0} > part-{0}"
    tasks = [{"id": name, "run": f"sleep 0.3; echo {name} > {name}.txt"} for name in "cdef"]
    tasks += [{"id": name, "run": both.format(name)} for name in "ab"]
    file = task_file(tasks, gates=[{"name": "few", "run": gate}])
    answer = cli("run", "--tasks", str(file), "--workers", "6", "--sandbox", "none", "--yes", "--json", cwd=repo)
    assert answer.code == 0, answer.err
    result = answer.json()
    commits = git(repo, "rev-list", "--reverse", f"{result['base']}..{result['branch']}").split()
    assert {task["commit"] for task in result["tasks"]} == set(commits)
    for commit in commits:
        git(repo, "checkout", "--quiet", commit)
        subprocess.run(["sh", "-c", rule], cwd=repo, check=True)
    assert cli("receipt", "verify", result["run"], cwd=repo).code == 0
    spans = sorted([float(line) for line in path.read_text().split()] for path in tmp_path.glob("*-*-*") if path.is_file())
    spans = [span for span in spans if len(span) == 2]
    assert len(spans) >= 10  # six attempts, and all but the first landing
    last = spans[6:]
    assert any(later[0] < earlier[1] for earlier, later in pairwise(last))


def test_what_changes_nothing_is_done_without_a_landing(cli: Any, repo: Path, task_file: Tasks) -> None:
    answer = cli("run", "--tasks", str(task_file([{"id": "look", "run": "ls"}])), "--json", cwd=repo)
    assert answer.code == 0, answer.err
    task = answer.json()["tasks"][0]
    assert (task["state"], task["landed"], task["commit"] or None) == ("done", False, None)


def test_kill_9_and_resume_ends_as_if_nothing_had_happened(cli: Any, repo: Path, task_file: Tasks, state: Path) -> None:
    marker = f"sleep 1.{os.getpid():08d}"
    file = task_file(
        [{"id": f"t{n}", "run": f"{marker}; echo {n} >> file-{n}; test $(wc -l < file-{n}) = 1"} for n in range(4)],
        gates=[{"name": "ok", "run": "true"}],
    )
    process = cli.start("run", "--tasks", str(file), "--json", "--workers", "2", cwd=repo)
    wait_until(lambda: marked(marker))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not marked(marker), 10)
    answer = cli("resume", "--json", cwd=repo)
    assert answer.code == 0, answer.err
    result = answer.json()
    assert all(task["state"] == "done" for task in result["tasks"])
    assert git(repo, "rev-list", "--count", f"main..{result['branch']}") == "4"
    again = cli("resume", result["run"], "--json", cwd=repo)
    assert again.code == 0
    assert again.json()["head"] == result["head"]
    assert not [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(state) in line]


def test_ctrl_c_stops_agents_keeps_state_and_resume_goes_on(cli: Any, repo: Path, task_file: Tasks) -> None:
    marker = f"sleep 31.{os.getpid()}"
    file = task_file([{"id": "quick", "run": "echo 1 > quick"}, {"id": "long", "run": f"test -f go || {marker}; echo 2 > long"}])
    process = cli.start("run", "--tasks", str(file), "--json", cwd=repo)
    wait_until(lambda: marked(marker))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "resume" in err
    assert json.loads(out)["state"] == "interrupted"
    assert not marked(marker)


def test_a_task_is_cancelled_from_another_terminal_and_the_others_go_on(cli: Any, repo: Path, task_file: Tasks) -> None:
    marker = f"sleep 32.{os.getpid()}"
    file = task_file([{"id": "stuck", "run": marker}, {"id": "fine", "run": "echo 1 > fine"}])
    process = cli.start("run", "--tasks", str(file), "--json", cwd=repo)
    wait_until(lambda: marked(marker))
    run = cli("runs", "--json").json()
    run_id = (run["runs"] if isinstance(run, dict) else run)[0]["run"]
    cancelled = cli("cancel", run_id, "stuck")
    assert cancelled.code == 0, cancelled.err
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1, err
    tasks = by_id(json.loads(out))
    assert tasks["stuck"]["state"] == "cancelled"
    assert tasks["fine"]["state"] == "done"
    assert not marked(marker)


def test_a_second_resume_while_the_first_lives_runs_nothing_twice(cli: Any, repo: Path, task_file: Tasks, tmp_path: Path) -> None:
    marker = f"sleep 5.{os.getpid():08d}"
    file = task_file([{"id": "once", "run": f"{marker}; date +%N > once"}])
    first = cli.start("run", "--tasks", str(file), "--json", cwd=repo)
    wait_until(lambda: marked(marker))
    second = cli("resume", "--json", cwd=repo)
    out, err = first.communicate(timeout=30)
    assert first.returncode == 0, err
    assert second.code == 0, second.err
    assert json.loads(out)["head"] == second.json()["head"]
    assert second.json()["tasks"][0]["attempts"] == 1


def test_rollback_is_a_revert_commit_on_the_same_branch(cli: Any, repo: Path, task_file: Tasks) -> None:
    file = task_file(
        [{"id": "one", "run": "echo 1 > one"}, {"id": "two", "run": "echo 2 > two"}], gates=[{"name": "t", "run": "test -f README.md"}]
    )
    result = cli("run", "--tasks", str(file), "--json", cwd=repo).json()
    answer = cli("rollback", result["run"], "one", cwd=repo)
    assert answer.code == 0, answer.err
    assert git(repo, "ls-tree", "--name-only", result["branch"]).split() == ["README.md", "two"]
    assert git(repo, "rev-list", "--count", f"main..{result['branch']}") == "3"
    whole = cli("run", "--tasks", str(file), "--json", "--branch", "other", cwd=repo).json()
    answer = cli("rollback", whole["run"], cwd=repo)
    assert answer.code == 0, answer.err
    assert git(repo, "rev-parse", "other^{tree}") == git(repo, "rev-parse", "main^{tree}")


def test_a_gate_whose_program_is_missing_is_infrastructure(cli: Any, repo: Path, task_file: Tasks) -> None:
    file = task_file([{"id": "one", "run": "echo 1 > one"}], gates=[{"name": "g", "run": "no-such-program-here --all"}])
    answer = cli("run", "--tasks", str(file), cwd=repo)
    assert answer.code == 4
    assert "no-such-program-here" in answer.err
    assert "hint:" in answer.err


@pytest.mark.parametrize("workers", ["1", "3"])
def test_no_more_attempts_run_at_once_than_there_are_workers(cli: Any, repo: Path, task_file: Tasks, tmp_path: Path, workers: str) -> None:
    file = task_file([{"id": f"t{n}", "run": f"date +%s%N > s{n}; sleep 0.7; date +%s%N > e{n}"} for n in range(4)])
    result = cli("run", "--tasks", str(file), "--json", "--workers", workers, cwd=repo).json()
    spans = [tuple(int(git(repo, "show", f"{result['branch']}:{kind}{n}")) for kind in "se") for n in range(4)]
    most = max(sum(start <= begin < end for start, end in spans) for begin, _ in spans)
    assert most <= int(workers)
    assert most == int(workers) or workers != "1"


def test_a_branch_that_moved_meanwhile_needs_a_person_and_resume_goes_on(cli: Any, repo: Path, task_file: Tasks) -> None:
    marker = f"sleep 5.{os.getpid():08d}"
    file = task_file([{"id": "one", "run": f"{marker}; echo 1 > one"}])
    process = cli.start("run", "--tasks", str(file), "--json", "--branch", "result", cwd=repo)
    wait_until(lambda: marked(marker))
    other = git(repo, "commit-tree", "-m", "somebody else's", "main^{tree}")
    git(repo, "branch", "result", other)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert json.loads(out)["state"] == "waiting"
    assert git(repo, "rev-parse", "result") == other, "never a forced push"
    still = cli("resume", "--json", cwd=repo)
    assert still.code == 3, still.err
    git(repo, "branch", "-D", "result")
    answer = cli("resume", "--json", cwd=repo)
    assert answer.code == 0, answer.err
    assert git(repo, "show", "result:one") == "1"


def test_two_runs_in_two_terminals_do_not_touch_each_other(cli: Any, repo: Path, task_file: Tasks) -> None:
    marker = f"sleep 20.{os.getpid():08d}"
    slow = cli.start("run", "--tasks", str(task_file([{"id": "slow", "run": f"{marker}; echo 1 > slow"}])), "--json", cwd=repo)
    wait_until(lambda: marked(marker))
    quick = cli("run", "--tasks", str(task_file([{"id": "quick", "run": "echo 1 > quick"}])), "--json", cwd=repo)
    assert quick.code == 0, quick.err
    assert marked(marker), "the other run's agent is still at work"
    out, err = slow.communicate(timeout=60)
    assert slow.returncode == 0, err
    assert {task["id"] for task in json.loads(out)["tasks"]} == {"slow"}


def test_a_whole_run_is_cancelled_from_another_terminal(cli: Any, repo: Path, task_file: Tasks) -> None:
    marker = f"sleep 33.{os.getpid()}"
    file = task_file(
        [{"id": "a", "run": f"true; {marker}"}, {"id": "b", "run": "echo b > b", "needs": ["a"]}, {"id": "c", "run": f"true; {marker}"}]
    )
    process = cli.start("run", "--tasks", str(file), "--json", "--workers", "1", cwd=repo)
    wait_until(lambda: marked(marker))
    listed = cli("runs", "--json").json()
    run = (listed["runs"] if isinstance(listed, dict) else listed)[0]["run"]
    assert cli("cancel", run).code == 0
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    result = json.loads(out)
    assert result["state"] == "cancelled"
    assert {task["state"] for task in result["tasks"]} <= {"cancelled", "blocked"}
    assert not marked(marker)


def test_setup_commands_run_once_and_lie_under_every_task(cli: Any, repo: Path, task_file: Tasks, tmp_path: Path) -> None:
    file = task_file(
        [{"id": "a", "run": "cat tool/version > a.txt"}, {"id": "b", "run": "cat tool/version > b.txt"}],
        setup=["mkdir -p tool && date +%s%N > tool/version && echo tool > .gitignore"],
        gates=[{"name": "there", "run": "test -f tool/version"}],
    )
    (repo / ".gitignore").write_text("tool\n")
    git(repo, "add", ".gitignore")
    git(repo, "commit", "-qm", "ignore the tool")
    answer = cli("run", "--tasks", str(file), "--json", cwd=repo)
    assert answer.code == 0, answer.err
    branch = answer.json()["branch"]
    assert git(repo, "show", f"{branch}:a.txt") == git(repo, "show", f"{branch}:b.txt")
    assert "tool" not in git(repo, "ls-tree", "--name-only", branch).split()
