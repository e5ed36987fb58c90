import asyncio
import errno
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from claudecluster.assembly.taskfile import Wishes, plan
from claudecluster.cli import exits, voice
from claudecluster.cli.main import COMMANDS, built
from claudecluster.cli.result import Outcome
from claudecluster.cli.show.logs import Reader
from claudecluster.cli.text import money, span, table
from claudecluster.cli.watch.phrases import PHRASES, QUIET, phrase
from claudecluster.cli.watch.progress import watching
from claudecluster.cli.work.graph import Drawn
from claudecluster.kit.clock import SystemClock
from claudecluster.model.errors import Conflict, NotFound, Refused, SandboxLost, Unavailable
from claudecluster.model.event import Event
from claudecluster.model.run import GateRun, RunRecord, RunState, TaskRecord, TaskState
from claudecluster.model.task import Gate, Plan, Priority, Task
from claudecluster.model.usage import Usage

RUN = RunRecord("r1", RunState.DONE, "/repo", "b" * 40, "claudecluster/r1", "c" * 40, "a goal", {}, created=100.0, ended=110.5)
TASK = TaskRecord(
    "r1",
    "a",
    0,
    TaskState.DONE,
    attempts=2,
    decision="accept: gates passed",
    commit="d" * 40,
    landed=True,
    gates=(GateRun("tests", "pytest", 0, 1.23456),),
    model="m",
    usage=Usage(3, 10, 20, 30, 40, 50, 0.123456789),
    started=101.0,
    ended=105.0,
)


def outcome(run: RunState = RunState.DONE, *tasks: TaskRecord) -> Outcome:
    return Outcome(replace(RUN, state=run), tasks or (TASK,), now=120.0)


def test_the_result_object_has_exactly_the_published_keys() -> None:
    made = json.loads(json.dumps(outcome().as_json()))
    assert set(made) == {"run", "state", "repo", "base", "branch", "head", "tasks", "duration_s"}
    assert made["tasks"] == [
        {
            "id": "a",
            "state": "done",
            "attempts": 2,
            "decision": "accept: gates passed",
            "commit": "d" * 40,
            "landed": True,
            "gates": [{"name": "tests", "exit_code": 0, "duration_s": 1.235}],
            "model": "m",
            "cost_usd": 0.123457,
            "usage": {
                "requests": 3,
                "input_tokens": 10,
                "output_tokens": 20,
                "cache_read_input_tokens": 30,
                "cache_creation_input_tokens": 90,
                "cache_creation": {"ephemeral_5m_input_tokens": 40, "ephemeral_1h_input_tokens": 50},
            },
            "duration_s": 4.0,
            "error": None,
        }
    ]
    assert made["duration_s"] == 10.5


def test_numbers_are_numbers_before_anything_has_started() -> None:
    task = outcome(RunState.RUNNING, TaskRecord("r1", "a", 0, TaskState.PENDING)).as_json()["tasks"][0]
    assert (task["duration_s"], task["cost_usd"]) == (0.0, 0.0)
    assert isinstance(task["cost_usd"], float)


def test_what_still_goes_on_has_lasted_until_now() -> None:
    assert Outcome(replace(RUN, ended=None), (), now=120.0).as_json()["duration_s"] == 20.0


FAILED = replace(TASK, state=TaskState.FAILED)


def test_a_task_that_lesser_models_have_answered_is_marked_for_reading_and_for_nothing_else() -> None:
    plain = outcome(RunState.DONE, TASK, replace(TASK, id="b", usage=Usage(4)))
    marked = replace(plain, stand_ins={"b": {"qwen3": 1, "llama": 2}})
    assert marked.as_json() == plain.as_json()
    assert "degraded" not in plain.as_text()
    heads, first, second = (line.split() for line in marked.as_text().splitlines()[3:6])
    assert (heads[-1], first[-1], second[-1]) == ("degraded", "$0.12", "3/4")
    assert "b: degraded: 3 of 4 requests were answered by a fallback model (qwen3, llama)" in marked.as_text()


@pytest.mark.parametrize(
    ("code", "state", "tasks"),
    [
        (0, RunState.DONE, (TASK,)),
        (0, RunState.RUNNING, (TASK,)),
        (1, RunState.FAILED, (TASK, FAILED)),
        (1, RunState.FAILED, (replace(TASK, state=TaskState.REJECTED),)),
        (1, RunState.CANCELLED, (replace(TASK, state=TaskState.CANCELLED),)),
        (1, RunState.FAILED, (FAILED, replace(FAILED, infrastructure=True))),
        (1, RunState.FAILED, (TASK,)),
        (3, RunState.WAITING, (replace(TASK, state=TaskState.WAITING),)),
        (4, RunState.FAILED, (TASK, replace(FAILED, infrastructure=True), replace(TASK, state=TaskState.BLOCKED))),
        (130, RunState.INTERRUPTED, (TASK,)),
    ],
)
def test_the_exit_code_says_how_the_run_ended(code: int, state: RunState, tasks: tuple[TaskRecord, ...]) -> None:
    assert outcome(state, *tasks).exit_code() == code


def test_the_text_names_tasks_errors_and_the_sum() -> None:
    text = outcome(RunState.FAILED, TASK, replace(FAILED, id="b", error="tests are red", landed=False)).as_text()
    assert "1 of 2 tasks done, 1 landed" in text
    assert "b: tests are red" in text
    assert "dddddddddd" in text


def test_an_interrupted_run_says_how_it_goes_on() -> None:
    assert outcome(RunState.INTERRUPTED).hints() == ["claudecluster resume r1"]


def test_a_run_that_nobody_serves_says_so() -> None:
    running = outcome(RunState.RUNNING)
    assert running.hints() == []
    assert replace(running, servers=["process 7 on here"]).hints() == []
    assert "served by process 7 on here" in replace(running, servers=["process 7 on here"]).as_text()
    assert replace(running, servers=[]).hints() == ["nobody serves it: claudecluster resume r1"]


def test_what_a_waiting_task_asks_is_shown() -> None:
    assert "a: ask: which one?" in outcome(RunState.WAITING, replace(TASK, state=TaskState.WAITING, decision="ask: which one?")).as_text()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("no", hint="do"), 2),
        (NotFound("no", hint="do"), 2),
        (Conflict("no", hint="do"), 2),
        (Unavailable("no", hint="do"), 4),
        (SandboxLost("no", hint="do"), 4),
        (ExceptionGroup("several", [ValueError("x"), Unavailable("no", hint="do")]), 4),
    ],
)
def test_errors_are_two_lines_and_an_exit_code(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise error

    assert exits.guarded(work) == code
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "error: no\nhint: do\n")


def test_a_full_disk_is_infrastructure(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.told(OSError(errno.ENOSPC, "No space left on device", "/some/file")) == 4
    assert capsys.readouterr().err == "error: No space left on device: /some/file\nhint: free some disk space\n"


def test_an_unexpected_error_is_one_line_and_its_traceback_a_file(state: object, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise KeyError("boo\nhoo")

    assert exits.guarded(work) == 70
    said = capsys.readouterr().err.splitlines()
    assert said[0] == r"error: internal: KeyError: 'boo\nhoo'"
    assert len(said) == 2
    assert "Traceback" in Path(said[1].rpartition(" ")[2]).read_text()


def test_a_person_who_interrupts_gets_130(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        raise KeyboardInterrupt

    assert exits.guarded(work) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    voice.error("a\x1b[2Jb\r\nc", "d\x07e")
    assert capsys.readouterr().err == "error: a[2Jb c\nhint: de\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_has_the_help_of_the_list(name: str) -> None:
    command = built(name, COMMANDS[name])
    assert command.name == name
    assert command.help or command.callback.__doc__


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (0.44, "0.4 s"), (42, "42 s"), (59.7, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(("usd", "text"), [(0, "$0.00"), (0.0123, "$0.0123"), (1.254, "$1.25")])
def test_small_amounts_keep_their_digits(usd: float, text: str) -> None:
    assert money(usd) == text


def test_a_table_leaves_out_empty_columns() -> None:
    assert table(("a", "b", "c"), [("1", "", "3"), ("11", "", "")]) == ["a   c", "1   3", "11"]


def test_a_fact_of_an_unknown_kind_is_still_shown() -> None:
    assert phrase(Event(1, "r", "task.flew_away", 0.0, task="a", data={"how": "fast", "much": {}})) == "a: task flew away (how fast)"


@pytest.mark.parametrize("kind", sorted(PHRASES))
def test_every_phrase_does_without_data(kind: str) -> None:
    assert phrase(Event(1, "r", kind, 0.0))


def test_a_decision_says_how_the_gates_went() -> None:
    data = {"decision": "retry", "why": "tests are red", "gates": [["tests", 1, 2.0], ["lint", 0, 0.1], ["slow", None, 0]]}
    said = phrase(Event(1, "r", "attempt.decided", 0.0, task="a", attempt=2, data=data))
    assert said.startswith("a: retry: tests are red [tests failed with exit code 1 in 2.0 s, lint passed in 0.1 s, slow could not run")
    assert said.endswith("(attempt 2)")


def test_facts_that_others_say_better_are_quiet() -> None:
    assert {phrase(Event(1, "r", kind, 0.0)) for kind in QUIET} == {""}


GRAPH = Plan(
    (
        Task("a", prompt="x", files=("src/**",)),
        Task("b", prompt="x", files=("src/b.py",), priority=Priority.HIGH),
        Task("c", prompt="x", needs=("a",)),
    ),
    gates=(Gate("tests", "true"),),
)


def test_a_drawn_graph_has_levels_order_critical_path_and_overlaps() -> None:
    drawn = Drawn(GRAPH).as_json()
    assert drawn["levels"] == [["b", "a"], ["c"]]
    assert drawn["order"] == ["b", "a", "c"]
    assert drawn["critical_path"] == ["a", "c"]
    assert drawn["overlaps"] == [{"tasks": ["a", "b"], "files": ["src/**", "src/b.py"]}]
    assert [task["critical"] for task in drawn["tasks"]] == [False, True, True]
    assert "critical path (2): a -> c" in Drawn(GRAPH).as_text()


def test_a_graph_without_gates_is_warned_about() -> None:
    assert any("no gates" in warning for warning in Drawn(plan(None, Wishes(goal="x"))).warnings())
    assert not any("no gates" in warning for warning in Drawn(GRAPH).warnings())


class FactStore:
    """A store that has facts and logs, and gets more of them."""

    def __init__(self) -> None:
        self.facts: list[Event] = []
        self.chunks: list[tuple[int, int, bytes]] = []

    async def since(self, run: str, seq: int) -> AsyncIterator[Event]:
        while True:
            for event in list(self.facts):
                if event.seq > seq:
                    seq = event.seq
                    yield event
            await asyncio.sleep(0.001)

    async def events(self, run: str, after: int = 0, limit: int = 1000) -> list[Event]:
        return [event for event in self.facts if event.seq > after][:limit]

    async def read_log(self, run: str, task: str, after: int = 0) -> list[tuple[int, int, bytes]]:
        return [chunk for chunk in self.chunks if chunk[0] > after]


async def test_progress_says_every_fact_even_those_of_the_last_moment(capsys: pytest.CaptureFixture[str]) -> None:
    store = FactStore()
    async with watching(store, "r1", SystemClock()):  # type: ignore[arg-type]  # the part of a store that is used
        store.facts += [Event(n, "r1", "task.landed", 0.0, task=f"t{n}", data={"commit": "abc"}) for n in range(1, 4)]
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.partition("  ")[2] for line in said.err.splitlines()] == [f"t{n}: landed as abc" for n in range(1, 4)]


async def test_logs_are_in_order_of_time_and_go_on_where_they_stopped() -> None:
    store = FactStore()
    reader = Reader(store, "r1", ["a"], everything=True)  # type: ignore[arg-type]  # the part of a store that is used
    store.facts = [Event(1, "r1", "attempt.started", 1.0, task="a", attempt=1), Event(2, "r1", "task.rejected", 3.0, task="a", attempt=1)]
    store.chunks = [(1, 1, b'{"at": 2.0, "kind": "text", "text": "two\\nlines\\u001b[2J"}\nnot json\n')]
    first = [line.partition("  ")[2] for line in await reader.more()]
    assert first == ["a: started", "a#1 | text: two", "a#1 | text: lines[2J", "a#1 | not json", "a: rejected"]
    assert await reader.more() == []


async def test_logs_of_one_task_leave_out_the_others_facts() -> None:
    store = FactStore()
    store.facts = [Event(1, "r1", "attempt.started", 1.0, task="a"), Event(2, "r1", "attempt.started", 1.0, task="b")]
    reader = Reader(store, "r1", ["b"], everything=False)  # type: ignore[arg-type]  # the part of a store that is used
    assert [line.partition("  ")[2] for line in await reader.more()] == ["b: started"]


def test_the_second_ctrl_c_ends_the_process_at_once() -> None:
    code = """
import asyncio
from claudecluster.cli.serving import Interruption

async def main():
    stop = Interruption(asyncio.create_task(asyncio.sleep(60)))
    stop.ask()
    stop.ask()
    print("still here")

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.count("stopping agents") == 1


def test_an_agent_nobody_knows_is_refused_even_where_no_task_wants_it(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text("tasks: [{id: a, run: x}]\n")
    answer = cli("plan", "--tasks", str(tmp_path / "tasks.yaml"), "--agent", "claude-kode")
    assert answer.code == 2
    assert "did you mean `claude-code`?" in answer.err
