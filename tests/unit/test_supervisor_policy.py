"""The decision table: what is known about an attempt, and what follows from it."""

from dataclasses import dataclass, replace

import pytest

from claudecluster.model.evidence import Accept, Ask, Changes, Evidence, Finding, Outcome, Reject, Report, Retry, Verdict
from claudecluster.model.run import GateRun
from claudecluster.model.task import Category, Task
from claudecluster.supervisor.judgement import Conflicted, Red, Undecided
from claudecluster.supervisor.policy import after_bounce, before_gates, decide

TASK = Task("a", prompt="Mend it", max_attempts=3)
ANALYZE = replace(TASK, category=Category.ANALYZE)
COMMAND = Task("a", run="make", agent="command", max_attempts=3)
FINISHED = Report(Outcome.FINISHED, "Done.", exit_code=0)
CHANGED = Changes("b", "c", "t", ("src/a.py", "src/b.py"))
NOTHING = Changes("b", "b", "t")
GREEN = GateRun("lint", "ruff check", 0, 1.0)
RED = GateRun("tests", "pytest -q", 1, 2.5, "E   assert 1 == 2\n1 failed")
RED_TOO = GateRun("types", "mypy", 2, 2.5, "error: no")
STUCK = GateRun("build", "make", None, 0.0, reason="the sandbox was lost")
PASS, FAIL, UNKNOWN = (Finding("scope", verdict, f"{verdict} it is") for verdict in Verdict)


@dataclass(frozen=True)
class Row:
    task: Task = TASK
    report: Report = FINISHED
    changes: Changes = CHANGED
    findings: tuple[Finding, ...] = ()
    gates: tuple[GateRun, ...] = (GREEN,)
    attempt: int = 1

    @property
    def evidence(self) -> Evidence:
        return Evidence(self.task, self.attempt, self.report, self.changes, self.findings, self.gates)


def failed(outcome: Outcome, error: str = "") -> Report:
    return Report(outcome, error=error, exit_code=7)


TABLE = {
    "all is well": (Row(), Accept, "changed 2 files; the gate passed"),
    "one file": (Row(changes=replace(CHANGED, files=("x",)), gates=(GREEN, GREEN)), Accept, "changed 1 file; all 2 gates passed"),
    "no gate": (Row(gates=()), Accept, "there is no gate"),
    "agent failed": (Row(report=failed(Outcome.FAILED, "credit is out.")), Retry, "The agent failed with exit code 7: credit is out."),
    "agent failed wordlessly": (Row(report=failed(Outcome.FAILED)), Retry, "The agent failed with exit code 7."),
    "agent stalled": (Row(report=failed(Outcome.STALLED)), Retry, "stopped making progress"),
    "agent timed out": (Row(report=failed(Outcome.TIMED_OUT)), Retry, "ran out of time"),
    "agent before all else": (
        Row(report=failed(Outcome.FAILED), changes=NOTHING, findings=(FAIL,), gates=(RED,)),
        Retry,
        "The agent failed",
    ),
    "nothing changed": (Row(changes=NOTHING), Retry, "nothing changed"),
    "nothing before findings": (Row(changes=NOTHING, findings=(FAIL,), gates=(RED,)), Retry, "nothing changed"),
    "nothing, analyze": (Row(ANALYZE, changes=NOTHING), Accept, "changed nothing, which is right here"),
    "nothing, analyze, red": (Row(ANALYZE, changes=NOTHING, gates=(RED,)), Retry, "Gate 'tests' failed"),
    "nothing, command": (Row(COMMAND, changes=NOTHING), Accept, "changed nothing"),
    "nothing, command, no code": (Row(COMMAND, report=Report(Outcome.FINISHED), changes=NOTHING), Retry, "nothing changed"),
    "nothing, other agent with code 0": (Row(replace(COMMAND, agent="aider"), changes=NOTHING), Retry, "nothing changed"),
    "a check objects": (Row(findings=(PASS, FAIL)), Retry, "Check 'scope' objects: fail it is."),
    "two checks object": (Row(findings=(FAIL, FAIL)), Retry, "(and 1 more)"),
    "findings before gates": (Row(findings=(FAIL,), gates=(RED,)), Retry, "Check 'scope'"),
    "a check could not look": (Row(findings=(UNKNOWN, PASS)), Accept, "passed"),
    "a gate is red": (Row(gates=(GREEN, RED)), Retry, "Gate 'tests' failed with exit code 1."),
    "the first red gate counts": (Row(gates=(RED, RED_TOO)), Retry, "'tests'"),
    "a gate could not run": (Row(gates=(GREEN, STUCK)), Undecided, "Gate 'build' could not run: the sandbox was lost."),
    "red is red, run or not the others": (Row(gates=(STUCK, RED)), Retry, "'tests'"),
    "killed by a signal is red": (Row(gates=(replace(RED, exit_code=137),)), Retry, "exit code 137"),
    "last attempt, red": (Row(gates=(RED,), attempt=3), Reject, "Given up after 3 attempts: Gate 'tests' failed with exit code 1."),
    "last attempt, nothing": (Row(changes=NOTHING, attempt=3), Reject, "nothing changed"),
    "last attempt, finding": (Row(findings=(FAIL,), attempt=3), Reject, "Check 'scope'"),
    "last attempt, agent": (Row(report=failed(Outcome.TIMED_OUT), attempt=3), Reject, "ran out of time"),
    "last attempt, good": (Row(attempt=3), Accept, "passed"),
    "last attempt, gate could not run": (Row(gates=(STUCK,), attempt=3), Undecided, "could not run"),
    "only attempt": (Row(replace(TASK, max_attempts=1), gates=(RED,)), Reject, "Given up after the only attempt:"),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_table(name: str) -> None:
    row, kind, why = TABLE[name]
    decision = decide(row.task, row.evidence)
    assert type(decision) is kind
    assert why in decision.why
    assert "\n" not in decision.why
    assert decision.why.endswith(".")
    if isinstance(decision, Retry):
        assert decision.feedback


@pytest.mark.parametrize("name", TABLE)
def test_before_the_gates_nothing_is_said_that_they_could_change(name: str) -> None:
    row, _, _ = TABLE[name]
    early = before_gates(row.task, replace(row.evidence, gates=()))
    full = decide(row.task, row.evidence)
    assert early == full or (early is None and (isinstance(full, Accept | Undecided) or "Gate" in full.why))


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.STALLED, Outcome.TIMED_OUT])
def test_a_failing_agent_is_told_from_a_failing_result(outcome: Outcome) -> None:
    agent = Row(report=failed(outcome), attempt=3).evidence
    result = Row(gates=(RED,), attempt=3).evidence
    assert [decide(TASK, evidence).agent_failed for evidence in (agent, result)] == [True, False]


def test_attempts_that_do_not_count_are_not_counted() -> None:
    evidence = Row(gates=(RED,), attempt=7).evidence
    assert isinstance(decide(TASK, evidence, spent=2), Retry)
    assert isinstance(decide(TASK, evidence, spent=3), Reject)
    assert isinstance(before_gates(TASK, Row(changes=NOTHING, attempt=7).evidence, spent=2), Retry)


def test_undecided_names_the_gates_to_run_again() -> None:
    decision = decide(TASK, Row(gates=(GREEN, STUCK, replace(STUCK, name="e2e", reason=""))).evidence)
    assert isinstance(decision, Undecided)
    assert decision.gates == ("build", "e2e")
    assert "(and 1 more)" in decision.why


def test_a_red_gate_is_explained_to_the_agent() -> None:
    decision = decide(TASK, Row(gates=(RED,)).evidence)
    assert isinstance(decision, Retry)
    for part in ("'tests'", "pytest -q", "exit code 1", "assert 1 == 2"):
        assert part in decision.feedback


@pytest.mark.parametrize(
    ("bounce", "why"),
    [
        (Conflicted(("a.py", "b.py")), "conflicts with what landed meanwhile in a.py, b.py."),
        (Conflicted(("a", "b", "c", "d", "e")), "a, b, c and 2 more."),
        (Conflicted(()), "the same places."),
        (Red(RED), "Gate 'tests' failed with exit code 1 on the merged tree."),
    ],
)
def test_a_bounce_is_tried_again_until_a_person_is_asked(bounce: Conflicted | Red, why: str) -> None:
    for times in range(1, 5):
        decision = after_bounce(bounce, times)
        assert isinstance(decision, Retry)
        assert why in decision.why
        assert decision.feedback
    asked = after_bounce(bounce, 5)
    assert isinstance(asked, Ask)
    assert why in asked.why
    assert "5 times" in asked.question
    assert asked.question.endswith("?")
    assert isinstance(after_bounce(bounce, 2, limit=2), Ask)
