"""Facts: what happened, in the order the store wrote it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """One fact. `seq` grows without reuse; `at` is seconds since the epoch; `data` is plain JSON data."""

    seq: int
    run: str
    kind: str
    at: float
    task: str = ""
    attempt: int = 0
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """A state change and its fact, written in one transaction.

    `set` names fields of RunRecord (where `task` is empty) or of TaskRecord. `key` makes it idempotent:
    the second change with the same run and key writes the state again but adds no second fact.
    `unless_over` skips the whole change, fact included, where the task or run has already ended.
    """

    run: str
    kind: str
    task: str = ""
    attempt: int = 0
    set: Mapping[str, object] = field(default_factory=dict)
    data: Mapping[str, object] = field(default_factory=dict)
    key: str = ""
    unless_over: bool = False
