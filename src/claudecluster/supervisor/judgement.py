"""The values a judgement is made with, beyond the decisions themselves: what could not be judged, and why a landing bounced."""

from dataclasses import dataclass

from claudecluster.model.evidence import Accept, Ask, Escalate, Reject, Retry
from claudecluster.model.run import GateRun


@dataclass(frozen=True, slots=True)
class Undecided:
    """Gates could not run: that is the infrastructure's fault. Run them again; the attempt is neither good nor bad."""

    why: str
    gates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Conflicted:
    """Landing found changes by others in the same places. `files` are repository paths."""

    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Red:
    """The merge was clean, but this gate failed on the merged tree."""

    gate: GateRun


Bounce = Conflicted | Red
Judgement = Accept | Retry | Ask | Escalate | Reject | Undecided
