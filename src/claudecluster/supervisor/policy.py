"""What is decided from the evidence of an attempt. Pure; called by the engine before and after the gates, and by landing.

The order of judgement: how the agent ended, whether anything changed, what the checks found, how the gates went.
"""

from collections.abc import Sequence
from typing import assert_never

from claudecluster.model.evidence import Accept, Ask, Evidence, Finding, Outcome, Reject, Report, Retry, Verdict
from claudecluster.model.run import GateRun
from claudecluster.model.task import Category, Task
from claudecluster.supervisor import feedback
from claudecluster.supervisor.judgement import Bounce, Conflicted, Judgement, Red, Undecided

BOUNCES = 5  # landings that may send a task back before a person is asked
COMMAND = "command"
HOW = {
    Outcome.FAILED: "The agent failed",
    Outcome.STALLED: "The agent stopped making progress",
    Outcome.TIMED_OUT: "The agent ran out of time",
}


def decide(task: Task, evidence: Evidence, *, spent: int | None = None) -> Judgement:
    """Judge an attempt whose gates have all been tried. `Undecided`: some could not run and none that ran failed; run them again.

    `spent` is how many attempts count against `task.max_attempts`, this one included (default: its number).
    """
    early = before_gates(task, evidence, spent=spent)
    if early is not None:
        return early
    failed = next((gate for gate in evidence.gates if gate.exit_code not in {0, None}), None)
    if failed is not None:
        why = f"Gate {failed.name!r} failed with exit code {failed.exit_code}."
        return _again(task, evidence, Retry(why, feedback.gate_failed(failed)), spent=spent)
    stuck = tuple(gate for gate in evidence.gates if gate.exit_code is None)
    if stuck:
        return Undecided(_stuck(stuck), tuple(gate.name for gate in stuck))
    return Accept(_praise(evidence))


def before_gates(task: Task, evidence: Evidence, *, spent: int | None = None) -> Retry | Reject | None:
    """Judge what is known before any gate runs; None if the gates have to decide. Gates cost minutes, so ask this first."""
    report = evidence.report
    if report.outcome is not Outcome.FINISHED:
        why = f"{HOW[report.outcome]}{_because(report)}."
        return _again(task, evidence, Retry(why, feedback.agent_failed(report)), agent_failed=True, spent=spent)
    if evidence.changes.empty and not _may_change_nothing(task, report):
        return _again(task, evidence, Retry("The agent finished, but nothing changed.", feedback.nothing_changed()), spent=spent)
    objections = [finding for finding in evidence.findings if finding.verdict is Verdict.FAIL]
    if objections:
        return _again(task, evidence, Retry(_objection(objections), feedback.findings_failed(objections)), spent=spent)
    return None


def after_bounce(bounce: Bounce, times: int, *, limit: int = BOUNCES) -> Retry | Ask:
    """Decide what follows when landing sent an accepted attempt back, now for the `times`-th time."""
    match bounce:
        case Conflicted(files):
            why = f"The change conflicts with what landed meanwhile in {_some(files)}."
            told = feedback.conflicted(files)
        case Red(gate):
            why = f"Gate {gate.name!r} failed with exit code {gate.exit_code} on the merged tree."
            told = feedback.red_tree(gate)
        case _:
            assert_never(bounce)
    if times < limit:
        return Retry(why, told)
    return Ask(f"Landing sent it back {times} times; last: {why}", f"{why} It was sent back {times} times. Try again, or give it up?")


def _again(task: Task, evidence: Evidence, retry: Retry, *, agent_failed: bool = False, spent: int | None = None) -> Retry | Reject:
    tried = evidence.attempt if spent is None else spent
    if tried < task.max_attempts:
        return retry
    count = "the only attempt" if tried == 1 else f"{tried} attempts"
    return Reject(f"Given up after {count}: {retry.why}", agent_failed=agent_failed)


def _may_change_nothing(task: Task, report: Report) -> bool:
    return task.category is Category.ANALYZE or (task.agent == COMMAND and report.exit_code == 0)


def _because(report: Report) -> str:
    lines = feedback.tail(report.error, 300).splitlines()
    last = lines[-1].strip().rstrip(".") if lines else ""
    code = f" with exit code {report.exit_code}" if report.exit_code is not None else ""
    return f"{code}: {last}" if last else code


def _objection(findings: Sequence[Finding]) -> str:
    first = findings[0]
    others = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
    return f"Check {first.check!r} objects: {(first.why or 'no reason given').rstrip('.')}{others}."


def _stuck(gates: Sequence[GateRun]) -> str:
    first = gates[0]
    reason = f": {first.reason.rstrip('.')}" if first.reason else ""
    others = f" (and {len(gates) - 1} more)" if len(gates) > 1 else ""
    return f"Gate {first.name!r} could not run{reason}{others}."


def _praise(evidence: Evidence) -> str:
    files = len(evidence.changes.files)
    did = "changed nothing, which is right here" if not files else f"changed {files} file{'s' * (files != 1)}"
    gates = len(evidence.gates)
    if not gates:
        return f"The agent finished and {did}; there is no gate."
    return f"The agent finished and {did}; {'the gate' if gates == 1 else f'all {gates} gates'} passed."


def _some(files: Sequence[str]) -> str:
    if not files:
        return "the same places"
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
