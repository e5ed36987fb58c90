"""Orders, errands and verdicts as plain JSON data and back: what the store and the workflows carry."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import TypeAdapter

from claudecluster.model.evidence import Changes, Report
from claudecluster.model.order import Order
from claudecluster.model.run import GateRun

Data = dict[str, object]


@dataclass(frozen=True, slots=True)
class Errand:
    """One attempt's order to the agent. `base` is the commit its result will be merged from; `at` the tree it starts on, if another.

    `fresh` makes the workspace anew. `spent` is how many attempts count against the task's limit, this one included: being
    sent back by landing is nobody's fault. `conflicts` are files that hold conflict markers at the start.
    """

    run: str
    task: str
    attempt: int
    spent: int
    text: str
    base: str
    at: str = ""
    fresh: bool = True
    resumed: bool = False
    model: str = ""
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Worked:
    """What came out of an agent's work: a report, or why it could not work at all (`trouble`).

    `delay` is the seconds to wait, if known; `refused` says that no waiting will help: the request is to be mended.
    """

    report: Report | None = None
    trouble: str = ""
    hint: str = ""
    delay: float | None = None
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided of an attempt, for the task's workflow."""

    kind: Literal["accept", "retry", "ask", "escalate", "reject", "trouble"]
    why: str = ""
    feedback: str = ""
    model: str = ""
    changes: Changes | None = None
    gates: tuple[GateRun, ...] = ()
    delay: float | None = None
    final: bool = False
    refused: bool = False
    agent_failed: bool = False


@dataclass(frozen=True, slots=True)
class Intent:
    """A landing about to happen. Recorded before the branch moves; With `bounce` it cannot land: files conflict, or a gate is red.

    `head` is the branch before, `commit` after. `tree` is the tested tree (with conflict markers where `conflicts`).
    """

    head: str
    tree: str
    commit: str = ""
    bounce: bool = False
    trouble: str = ""
    conflicts: tuple[str, ...] = ()
    gates: tuple[GateRun, ...] = ()
    receipt: str = ""
    nothing: bool = False


ORDER = TypeAdapter(Order)
ERRAND = TypeAdapter(Errand)
WORKED = TypeAdapter(Worked)
VERDICT = TypeAdapter(Verdict)
CHANGES = TypeAdapter(Changes)
INTENT = TypeAdapter(Intent)


def pack(adapter: TypeAdapter[Any], value: object) -> Data:
    """Return plain JSON data."""
    return cast("Data", adapter.dump_python(value, mode="json"))


def order_of(spec: Mapping[str, object]) -> Order:
    """Return the order a run was made with."""
    return ORDER.validate_python(dict(spec))
