"""The store: runs, tasks, facts, notes, logs, receipts and usage on SQLite or PostgreSQL. Made by `open.py`.

It keeps what it is told and judges nothing. Who follows facts of another process sees them within about 60 ms.
"""

import os
import sqlite3
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from claudecluster.kit.clock import Clock
from claudecluster.model.errors import Conflict, NotFound, Refused, Unavailable
from claudecluster.model.event import Change, Event
from claudecluster.model.run import RunRecord, TaskRecord
from claudecluster.model.usage import Metered, Usage
from claudecluster.storage import changing
from claudecluster.storage.bell import Bell
from claudecluster.storage.connect import Database
from claudecluster.storage.records import (
    EVENT,
    METERED_ROW,
    RUN,
    SUMS,
    TASK,
    event_of,
    metered_of,
    pack,
    row_of,
    row_of_metered,
    run_of,
    sum_of,
    task_of,
    unpack,
    usage_of,
)
from claudecluster.storage.roster import SqlRoster
from claudecluster.storage.tables import events, logs, metered, notes, receipts, runs, tasks

SOON, LATE = 0.02, 0.06  # seconds between looks for facts of other processes: after news, and after none for a while

ONE_RUN = sa.select(*RUN).where(runs.c.id == sa.bindparam("run_id"))
RUNS = sa.select(*RUN).order_by(runs.c.created.desc(), runs.c.id.desc()).limit(sa.bindparam("most"))
TASKS = sa.select(*TASK).where(tasks.c.run == sa.bindparam("run_id")).order_by(tasks.c.position, tasks.c.id)
ONE_TASK = sa.select(*TASK).where(tasks.c.run == sa.bindparam("run_id"), tasks.c.id == sa.bindparam("task_id"))
FACTS = (
    sa.select(*EVENT)
    .where(events.c.run == sa.bindparam("run_id"), events.c.seq > sa.bindparam("after"))
    .order_by(events.c.seq)
    .limit(sa.bindparam("most"))
)
USAGE = sa.select(metered.c.task, *SUMS).where(metered.c.run == sa.bindparam("run_id")).group_by(metered.c.task)
USAGE_OF_RUN = sa.select(*SUMS).where(metered.c.run == sa.bindparam("run_id"))
USAGE_OF_TASK = USAGE_OF_RUN.where(metered.c.task == sa.bindparam("task_id"))
OF_WHOM = (metered.c.provider, metered.c.model, metered.c.run, metered.c.task, metered.c.user, metered.c.degraded)
SPENT = (
    sa.select(*OF_WHOM, sa.func.max(metered.c.at), *SUMS)
    .where(metered.c.at > sa.bindparam("since"), metered.c.at <= sa.bindparam("until"))
    .group_by(*OF_WHOM)
    .order_by(sa.func.max(metered.c.at))
)
METERED = sa.select(*METERED_ROW).where(metered.c.at > sa.bindparam("since")).order_by(metered.c.at)
STAND_INS = (
    sa.select(metered.c.task, metered.c.model, sa.func.sum(metered.c.requests), sa.func.max(metered.c.at))
    .where(metered.c.run == sa.bindparam("run_id"), metered.c.degraded.is_(True))
    .group_by(metered.c.task, metered.c.model)
    .order_by(sa.func.max(metered.c.at))
)
NOTE = sa.select(notes.c.value).where(notes.c.run == sa.bindparam("run_id"), notes.c.key == sa.bindparam("wanted"))
IN_LOG = (logs.c.run == sa.bindparam("run_id"), logs.c.task == sa.bindparam("task_id"))
LAST_CHUNK = sa.select(sa.func.coalesce(sa.func.max(logs.c.id), 0)).where(*IN_LOG)
CHUNKS = (
    sa.select(logs.c.id, logs.c.attempt, logs.c.packed, logs.c.data).where(*IN_LOG, logs.c.id > sa.bindparam("after")).order_by(logs.c.id)
)
RECEIPTS = sa.select(receipts.c.task, receipts.c.receipt).where(receipts.c.run == sa.bindparam("run_id")).order_by(receipts.c.id)


class SqlStore:
    """The `Store` port. `roster` is the `Roster` port on the same connections."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self.roster = SqlRoster(database, clock=clock)
        self._db = database
        self._clock = clock
        self._bell = Bell()

    async def close(self) -> None:
        """Finish what was begun. Followers and later calls get Unavailable."""
        await self._db.close()
        self._bell.ring()

    async def add_run(self, run: RunRecord, tasks_of_run: Sequence[TaskRecord]) -> None:
        """Add a run with all its tasks and the fact `run.created`, or nothing at all. An equal id is a Conflict."""
        strange = next((task for task in tasks_of_run if task.run != run.id), None)
        if strange is not None:
            raise Refused(f"task {strange.id!r} belongs to run {strange.run!r}, not {run.id!r}")
        rows = [row_of(task) for task in tasks_of_run]
        fact = changing.first_fact(run.id, "run.created", self._clock.now(), {"tasks": len(rows)})

        def work(connection: sa.Connection) -> None:
            try:
                connection.execute(runs.insert(), {**row_of(run), "last_seq": 1})
            except IntegrityError as error:
                raise Conflict(f"there is a run {run.id!r} already", hint="choose a new id") from error
            if rows:
                connection.execute(tasks.insert(), rows)
            connection.execute(events.insert(), fact)

        await self._db.write(work)
        self._bell.ring()

    async def run(self, run: str) -> RunRecord:
        """Return one run."""
        return await self._db.read(lambda connection: _run(connection, run))

    async def runs(self, limit: int = 100) -> list[RunRecord]:
        """Return the newest runs first."""
        return await self._db.read(lambda connection: [run_of(row) for row in connection.execute(RUNS, {"most": limit})])

    async def tasks(self, run: str) -> list[TaskRecord]:
        """Return a run's tasks in the order of the task file, usage summed in."""

        def work(connection: sa.Connection) -> list[TaskRecord]:
            usage = {task: usage_of(tuple(sums)) for task, *sums in connection.execute(USAGE, {"run_id": run})}
            found = [task_of(row, usage) for row in connection.execute(TASKS, {"run_id": run})]
            return found or _none(connection, run)

        return await self._db.read(work)

    async def task(self, run: str, task: str) -> TaskRecord:
        """Return one task, usage summed in."""

        def work(connection: sa.Connection) -> TaskRecord:
            which = {"run_id": run, "task_id": task}
            row = connection.execute(ONE_TASK, which).one_or_none()
            if row is None:
                _run(connection, run)
                raise changing.no_task(run, task)
            return task_of(row, {task: usage_of(tuple(connection.execute(USAGE_OF_TASK, which).one()))})

        return await self._db.read(work)

    async def change(self, *changes: Change) -> bool:
        """Apply state and facts in one transaction; False if an `unless_over` change was skipped.

        `unless_over` looks at what the change names: its task, else the run. A change whose key is on record already
        was applied before, so it counts as applied even where it has ended since: steps may run twice.
        """
        changing.validate(changes)
        if not changes:
            return True
        at = self._clock.now()
        applied = await self._db.write(lambda connection: changing.apply(connection, changes, at))
        self._bell.ring()
        return applied

    async def note(self, run: str, key: str, value: object) -> object:
        """Keep `value` (JSON data) under `key` unless one is kept already; return what is kept. An empty run is the store itself."""
        row = {"run": run, "key": key, "value": value}

        def work(connection: sa.Connection) -> object:
            if run:
                _run(connection, run)
            connection.execute(self._db.insert(notes).on_conflict_do_nothing(), row)
            return connection.execute(NOTE, {"run_id": run, "wanted": key}).scalar_one()

        return await self._db.write(work)

    async def events(self, run: str, after: int = 0, limit: int = 1000) -> list[Event]:
        """Return facts with seq > after, oldest first. A run's facts are numbered 1, 2, 3 without gaps."""
        found = await self._facts(run, after, limit)
        if not found:
            await self.run(run)
        return found

    async def since(self, run: str, seq: int) -> AsyncIterator[Event]:
        """Yield facts as they come, without end and without gaps. Raises Unavailable once the store is closed."""
        await self.run(run)
        pause = SOON
        while True:
            rings = self._bell.rings
            found = await self._facts(run, seq, 1000)
            for event in found:
                yield event
                seq = event.seq
            pause = SOON if found else min(pause * 1.5, LATE)
            if not found:
                await self._bell.wait(rings, pause)

    async def write_log(self, run: str, task: str, attempt: int, chunk: bytes) -> None:
        """Append a chunk (many lines) of an agent's output. Chunks of a task are numbered 1, 2, 3 without gaps."""
        append = self._db.insert(logs).on_conflict_do_nothing()
        packed, data = await self._db.compute(lambda: pack(chunk)) if len(chunk) > 16384 else pack(chunk)

        def work(connection: sa.Connection) -> None:
            _run(connection, run)
            added = 0
            while not added:  # another writer's chunk may take the number: then it is committed, and the next one is free
                last: int = connection.execute(LAST_CHUNK, {"run_id": run, "task_id": task}).scalar_one()
                row = {"run": run, "task": task, "id": last + 1, "attempt": attempt, "packed": packed, "data": data}
                added = connection.execute(append, row, execution_options={"preserve_rowcount": True}).rowcount

        await self._db.write(work)

    async def read_log(self, run: str, task: str, after: int = 0) -> list[tuple[int, int, bytes]]:
        """Return chunks with id > after as (id, attempt, bytes), oldest first."""

        def work(connection: sa.Connection) -> list[tuple[int, int, bytes]]:
            found = connection.execute(CHUNKS, {"run_id": run, "task_id": task, "after": after})
            return [(row.id, row.attempt, unpack(row.packed, row.data)) for row in found] or _none(connection, run)

        return await self._db.read(work)

    async def meter(self, request: Metered) -> None:
        """Count one request; the same key counts once (the last wins). An empty run is a gateway that serves none."""
        row = row_of_metered(request)
        values = {name: value for name, value in row.items() if name != "key"}
        statement = self._db.insert(metered).values(row).on_conflict_do_update(index_elements=["key"], set_=values)
        await self._db.write(lambda connection: connection.execute(statement).rowcount)

    async def usage(self, run: str) -> Usage:
        """Return what a run used so far."""

        def work(connection: sa.Connection) -> Usage:
            used = usage_of(tuple(connection.execute(USAGE_OF_RUN, {"run_id": run}).one()))
            if run and not used.requests:
                _run(connection, run)
            return used

        return await self._db.read(work)

    async def spent(self, since: float = 0.0, until: float = sys.float_info.max) -> list[Metered]:
        """Return what was metered after `since` and up to `until`, summed by provider, model, run, task and user: the longest unused first."""
        given = {"since": since, "until": until}
        return await self._db.read(lambda connection: [sum_of(tuple(row)) for row in connection.execute(SPENT, given)])

    async def metered(self, since: float) -> list[Metered]:
        """Return the single requests metered after a moment, oldest first."""
        return await self._db.read(lambda connection: [metered_of(tuple(row)) for row in connection.execute(METERED, {"since": since})])

    async def stand_ins(self, run: str) -> dict[str, dict[str, int]]:
        """Return how many requests of each task lesser models have answered, by model: the one that answered last comes last."""

        def work(connection: sa.Connection) -> dict[str, dict[str, int]]:
            found: dict[str, dict[str, int]] = {}
            for task, model, requests, _ in connection.execute(STAND_INS, {"run_id": run}):
                found.setdefault(task, {})[model] = int(requests)
            return found

        return await self._db.read(work)

    async def add_receipt(self, run: str, task: str, receipt: str) -> None:
        """Keep a landing's receipt (signed JSON text). The first one stays."""
        row = {"run": run, "task": task, "receipt": receipt}

        def work(connection: sa.Connection) -> None:
            _run(connection, run)
            connection.execute(self._db.insert(receipts).on_conflict_do_nothing(), row)

        await self._db.write(work)

    async def receipts(self, run: str, task: str = "") -> list[tuple[str, str]]:
        """Return (task, receipt) pairs, oldest first."""
        statement = RECEIPTS.where(receipts.c.task == task) if task else RECEIPTS

        def work(connection: sa.Connection) -> list[tuple[str, str]]:
            return [(row.task, row.receipt) for row in connection.execute(statement, {"run_id": run})] or _none(connection, run)

        return await self._db.read(work)

    async def snapshot(self, path: Path) -> None:
        """Write a consistent copy of the whole database to a new file, while others go on writing. SQLite only (else Refused)."""
        if not self._db.is_sqlite:
            raise Refused("snapshots are for SQLite", hint="use pg_dump")
        if path.exists():
            raise Conflict(f"{path} exists already", hint="choose a new name")
        try:
            await self._db.read(lambda connection: _copy(connection, path))
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(f"the snapshot {path} cannot be written: {error}", hint="check that folder and its free space") from error

    async def _facts(self, run: str, after: int, limit: int) -> list[Event]:
        which = {"run_id": run, "after": after, "most": limit}
        return await self._db.read(lambda connection: [event_of(row) for row in connection.execute(FACTS, which)])


def _run(connection: sa.Connection, run: str) -> RunRecord:
    row = connection.execute(ONE_RUN, {"run_id": run}).one_or_none()
    if row is None:
        raise NotFound(f"there is no run {run!r}", hint="`claudecluster runs` lists them")
    return run_of(row)


def _none(connection: sa.Connection, run: str) -> list[Any]:
    _run(connection, run)
    return []


def _copy(connection: sa.Connection, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        target = sqlite3.connect(part)
        try:
            source: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]  # the pool's type says any driver
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
        finally:
            target.close()
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
