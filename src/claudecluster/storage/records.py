"""How rows become records, and records rows. Used by the store and the roster."""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from claudecluster.model.event import Event
from claudecluster.model.run import RunRecord, TaskRecord, WorkerRecord
from claudecluster.model.usage import Metered, Usage
from claudecluster.storage.tables import COUNTS, events, metered, runs, tasks, workers

SMALL = 512  # bytes below which packing gains nothing

RUN = [runs.c[field.name] for field in fields(RunRecord)]
TASK = [tasks.c[field.name] for field in fields(TaskRecord) if field.name != "usage"]
EVENT = [events.c[field.name] for field in fields(Event)]
WORKER = [workers.c[field.name] for field in fields(WorkerRecord)]
USED = (*COUNTS, "cost_usd")
OF_REQUEST = tuple(field.name for field in fields(Metered) if field.name != "usage")
METERED_ROW = [*(metered.c[name] for name in OF_REQUEST), *(metered.c[name] for name in USED)]
SUMS = [sa.func.coalesce(sa.func.sum(metered.c[name]), 0).label(name) for name in USED]


def row_of(record: RunRecord | TaskRecord | WorkerRecord) -> dict[str, object]:
    """Return a record's columns. A task's usage is not one: it is summed from what was metered."""
    return {field.name: getattr(record, field.name) for field in fields(record) if field.name != "usage"}


def run_of(row: Iterable[Any]) -> RunRecord:
    """Return the run of a row of `RUN`."""
    return RunRecord(*row)


def task_of(row: sa.Row[*tuple[Any, ...]], usage: Mapping[str, Usage]) -> TaskRecord:
    """Return the task of a row of `TASK` with its usage."""
    return TaskRecord(**row._mapping, usage=usage.get(row.id, Usage()))  # noqa: SLF001 - a Row's public names begin so


def event_of(row: Iterable[Any]) -> Event:
    """Return the fact of a row of `EVENT`."""
    return Event(*row)


def worker_of(row: Iterable[Any]) -> WorkerRecord:
    """Return the worker of a row of `WORKER`."""
    return WorkerRecord(*row)


def usage_of(sums: tuple[Any, ...]) -> Usage:
    """Return the usage of a row of `SUMS`."""
    return Usage(**{name: int(count) for name, count in zip(COUNTS, sums, strict=False)}, cost_usd=float(sums[-1]))


def row_of_metered(request: Metered) -> dict[str, object]:
    """Return one request's columns."""
    row: dict[str, object] = {field.name: getattr(request, field.name) for field in fields(request) if field.name != "usage"}
    return row | {name: getattr(request.usage, name) for name in USED}


def metered_of(row: tuple[Any, ...]) -> Metered:
    """Return the request of a row of `METERED_ROW`."""
    given = dict(zip(OF_REQUEST, row, strict=False))
    given |= {"at": float(given["at"]), "degraded": bool(given["degraded"])}
    return Metered(**given, usage=usage_of(row[len(OF_REQUEST) :]))


def sum_of(row: tuple[Any, ...]) -> Metered:
    """Return many requests of one task to one model as one record."""
    provider, model, run, task, user, degraded, at, *sums = row
    key = "/".join((provider, model, run, task, user, str(bool(degraded))))
    return Metered(key, run, task, 0, provider, model, usage_of(tuple(sums)), float(at), degraded=bool(degraded), user=user)


def pack(chunk: bytes) -> tuple[bool, bytes]:
    """Return whether it was worth compressing, and what to store."""
    if len(chunk) < SMALL:
        return False, chunk
    packed = zlib.compress(chunk, 1)
    return (True, packed) if len(packed) < len(chunk) else (False, chunk)


def unpack(packed: bool, data: bytes) -> bytes:
    """Return the chunk as it was."""
    return zlib.decompress(data) if packed else bytes(data)
