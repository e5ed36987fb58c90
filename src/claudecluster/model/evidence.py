"""What is known about an attempt, and what was decided from it. Evidence only grows."""

from dataclasses import dataclass, field
from enum import StrEnum

from claudecluster.model.run import GateRun
from claudecluster.model.task import Task


class Outcome(StrEnum):
    """How the agent's own work ended, before anyone judges it."""

    FINISHED = "finished"
    FAILED = "failed"
    STALLED = "stalled"
    TIMED_OUT = "timed-out"


@dataclass(frozen=True, slots=True)
class Report:
    """What the agent says: never proof. `text` is its last answer, `error` why it failed."""

    outcome: Outcome
    text: str = ""
    error: str = ""
    session: str = ""
    model: str = ""
    turns: int = 0
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What an attempt made, already a commit in the hub. `files` are repository paths."""

    base: str
    commit: str
    tree: str
    files: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing differs from the base."""
        return not self.files


class Verdict(StrEnum):
    """A check's answer. `UNKNOWN` is a check that could not look: neither pass nor fail."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's answer and why, in a sentence."""

    check: str
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known about one attempt so far."""

    task: Task
    attempt: int
    report: Report
    changes: Changes
    findings: tuple[Finding, ...] = ()
    gates: tuple[GateRun, ...] = ()


@dataclass(frozen=True, slots=True)
class Accept:
    """Good enough to land."""

    why: str


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again, telling the agent `feedback`."""

    why: str
    feedback: str


@dataclass(frozen=True, slots=True)
class Ask:
    """A person has to decide `question`."""

    why: str
    question: str


@dataclass(frozen=True, slots=True)
class Escalate:
    """Try again with the stronger `model`."""

    why: str
    model: str
    feedback: str = ""


@dataclass(frozen=True, slots=True)
class Reject:
    """Give up on this task. `agent_failed` tells a failing agent from a failing result."""

    why: str
    agent_failed: bool = field(default=False)


Decision = Accept | Retry | Ask | Escalate | Reject
