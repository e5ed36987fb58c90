"""What is remembered. Every state change and its fact are one transaction."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from claudecluster.model.event import Change, Event
from claudecluster.model.run import RunRecord, TaskRecord, WorkerRecord
from claudecluster.model.usage import Metered, Usage


class Store(Protocol):
    """The single source of truth. Raises NotFound for unknown ids, Unavailable if the database cannot be reached."""

    async def add_run(self, run: RunRecord, tasks: Sequence[TaskRecord]) -> None:
        """Add a run with all its tasks and the fact `run.created`, or nothing at all. An equal id is a Conflict."""
        ...

    async def run(self, run: str) -> RunRecord:
        """Return one run."""
        ...

    async def runs(self, limit: int = 100) -> list[RunRecord]:
        """Return the newest runs first."""
        ...

    async def tasks(self, run: str) -> list[TaskRecord]:
        """Return a run's tasks in the order of the task file, usage summed in."""
        ...

    async def task(self, run: str, task: str) -> TaskRecord:
        """Return one task, usage summed in."""
        ...

    async def change(self, *changes: Change) -> bool:
        """Apply state and facts in one transaction; False if an `unless_over` change was skipped."""
        ...

    async def note(self, run: str, key: str, value: object) -> object:
        """Keep `value` (JSON data) under `key` unless one is kept already; return what is kept. For decisions that must not change."""
        ...

    async def events(self, run: str, after: int = 0, limit: int = 1000) -> list[Event]:
        """Return facts with seq > after, oldest first."""
        ...

    def since(self, run: str, seq: int) -> AsyncIterator[Event]:
        """Yield facts as they come, without end and without gaps."""
        ...

    async def write_log(self, run: str, task: str, attempt: int, chunk: bytes) -> None:
        """Append a chunk (many lines) of an agent's output."""
        ...

    async def read_log(self, run: str, task: str, after: int = 0) -> list[tuple[int, int, bytes]]:
        """Return chunks with id > after as (id, attempt, bytes), oldest first."""
        ...

    async def meter(self, metered: Metered) -> None:
        """Count one request; the same key counts once (the last wins)."""
        ...

    async def usage(self, run: str) -> Usage:
        """Return what a run used so far."""
        ...

    async def add_receipt(self, run: str, task: str, receipt: str) -> None:
        """Keep a landing's receipt (signed JSON text). The first one stays."""
        ...

    async def receipts(self, run: str, task: str = "") -> list[tuple[str, str]]:
        """Return (task, receipt) pairs, oldest first."""
        ...


class Roster(Protocol):
    """Who serves, and who is dead. Kept by the engine, read by `resume` and `status`."""

    async def beat(self, worker: WorkerRecord) -> bool:
        """Say that this worker lives. False: it was declared dead and must stop at once."""
        ...

    async def workers(self, run: str = "") -> list[WorkerRecord]:
        """Return the workers on record (of one run)."""
        ...

    async def bury(self, worker: str) -> None:
        """Declare a worker dead: its next beat answers False, its leases are free. For ever."""
        ...

    async def forget(self, worker: str) -> None:
        """Remove a dead worker from the record, once nothing of it is pending."""
        ...

    async def lease(self, name: str, owner: str, seconds: float) -> bool:
        """Take or renew a lease; False while somebody else holds it."""
        ...
