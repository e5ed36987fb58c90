"""How a batch of changes becomes rows: state and facts of one transaction. Used by the store alone.

The run's row is locked first, so facts are numbered in the order in which they are committed: a reader that has seen fact n
has seen all before it, on PostgreSQL too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import sqlalchemy as sa

from claudecluster.model.errors import NotFound, Refused
from claudecluster.model.event import Change
from claudecluster.model.run import RunRecord, RunState, TaskRecord, TaskState
from claudecluster.storage.tables import events, runs, tasks

RUN_FIELDS = frozenset(entry.name for entry in fields(RunRecord)) - {"id"}
TASK_FIELDS = frozenset(entry.name for entry in fields(TaskRecord)) - {"run", "id", "usage"}

LOCK = sa.select(runs.c.state, runs.c.last_seq).where(runs.c.id == sa.bindparam("run_id")).with_for_update(key_share=True)
TASK_STATE = sa.select(tasks.c.state).where(tasks.c.run == sa.bindparam("run_id"), tasks.c.id == sa.bindparam("task_id"))
KEY = sa.select(events.c.seq).where(events.c.run == sa.bindparam("run_id"), events.c.key == sa.bindparam("wanted"))


def validate(changes: Iterable[Change]) -> None:
    """Raise Refused for a field that is not there or not to be set, and for a state that is none."""
    for change in changes:
        noun, known, states = ("task", TASK_FIELDS, TaskState) if change.task else ("run", RUN_FIELDS, RunState)
        unknown = sorted(set(change.set) - known)
        if unknown:
            raise Refused(f"a {noun} has no field {unknown[0]!r} to set")
        if "state" in change.set and change.set["state"] not in set(states):
            raise Refused(f"a {noun} has no state {change.set['state']!r}")


def apply(connection: sa.Connection, changes: Sequence[Change], at: float) -> bool:
    """Write them in order. False if an `unless_over` change was skipped that had not been applied before."""
    locked = {run: _Locked.take(connection, run) for run in sorted({change.run for change in changes})}  # one order: no deadlock
    applied = [locked[change.run].apply(connection, change, at) for change in changes]
    for run in locked.values():
        run.release(connection)
    return all(applied)


def first_fact(run: str, kind: str, at: float, data: Mapping[str, object]) -> dict[str, object]:
    """Return the row of a run's first fact."""
    return {"run": run, "seq": 1, "kind": kind, "at": at, "task": "", "attempt": 0, "data": data, "key": None}


@dataclass(slots=True)
class _Locked:
    """One run while its row is locked by us, and what is to be written of it."""

    id: str
    state: RunState
    seq: int
    rows: list[dict[str, object]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    set: dict[str, object] = field(default_factory=dict)

    @classmethod
    def take(cls, connection: sa.Connection, run: str) -> "_Locked":
        row = connection.execute(LOCK, {"run_id": run}).one_or_none()
        if row is None:
            raise NotFound(f"there is no run {run!r}", hint="`claudecluster runs` lists them")
        return cls(run, row.state, row.last_seq)

    def apply(self, connection: sa.Connection, change: Change, at: float) -> bool:
        known = self._known(connection, change.key)
        if change.unless_over and self._over(connection, change.task):
            return known  # what was applied before has ended it, or came before the end: not a refusal
        if change.task:
            self._set_task(connection, change)
        else:
            self.set |= change.set
            self.state = RunState(str(change.set.get("state", self.state)))
        if not known:
            self.seq += 1
            self.keys.add(change.key)
            self.rows.append(self._row(change, at))
        return True

    def release(self, connection: sa.Connection) -> None:
        if self.rows:
            connection.execute(events.insert(), self.rows)
        if self.rows or self.set:
            connection.execute(runs.update().where(runs.c.id == self.id).values(**self.set, last_seq=self.seq))

    def _row(self, change: Change, at: float) -> dict[str, object]:
        return {
            "run": self.id,
            "seq": self.seq,
            "kind": change.kind,
            "at": at,
            "task": change.task,
            "attempt": change.attempt,
            "data": change.data,
            "key": change.key or None,
        }

    def _known(self, connection: sa.Connection, key: str) -> bool:
        if not key:
            return False
        return key in self.keys or connection.execute(KEY, {"run_id": self.id, "wanted": key}).first() is not None

    def _over(self, connection: sa.Connection, task: str) -> bool:
        if not task:
            return self.state.over
        state: TaskState | None = connection.execute(TASK_STATE, {"run_id": self.id, "task_id": task}).scalar()
        if state is None:
            raise no_task(self.id, task)
        return state.over

    def _set_task(self, connection: sa.Connection, change: Change) -> None:
        where = (tasks.c.run == self.id, tasks.c.id == change.task)
        if change.set:
            found: bool = connection.execute(tasks.update().where(*where).values(**change.set)).rowcount > 0
        else:
            found = connection.execute(sa.select(tasks.c.id).where(*where)).first() is not None
        if not found:
            raise no_task(self.id, change.task)


def no_task(run: str, task: str) -> NotFound:
    """Return the error for a task that is not there."""
    return NotFound(f"run {run!r} has no task {task!r}", hint=f"`claudecluster status {run}` lists them")
