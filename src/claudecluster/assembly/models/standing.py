"""What gateways knew of limits, kept in a file of the state folder, so that `usage` can tell once none runs.

Every process with a gateway keeps it, several at a time: each adds what it has heard, under a lock. `claudecluster usage` reads it.
It says nothing to gateways: they hear of limits from the servers.
"""

import asyncio
import fcntl
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from claudecluster.limits.merge import claims, current, lasting, merged
from claudecluster.limits.summary import forecasts

EVERY = 10.0  # seconds between looks; written only where something was heard in between
TRIES, BETWEEN = 20, 0.05  # for the lock; whoever holds it for longer is stopped, and must not stop us
SPOILT = (OSError, ValueError, KeyError, TypeError, AttributeError)


@asynccontextmanager
async def keeping(home: Path, usage: Callable[[], dict[str, Any]]) -> AsyncIterator[None]:
    """Write down what `usage` returns (the document of `GET /usage`) now and then while the context lasts, and at its end."""
    written: list[Any] = []

    async def write() -> None:
        document = usage()
        told = claims(document["providers"])
        known = [(row["ways"], row["windows"]) for row in told]
        if known == written:
            return
        for _ in range(TRIES):
            try:
                with _locked(home):
                    _add(home, told, document["at"])
            except BlockingIOError:
                await asyncio.sleep(BETWEEN)
                continue
            except OSError:  # a full disk must not end a gateway
                return
            written[:] = known
            return

    async def now_and_then() -> None:
        while True:
            await asyncio.sleep(EVERY)
            await write()

    task = asyncio.create_task(now_and_then())
    try:
        yield
    finally:
        task.cancel()
        await write()


def remembered(home: Path, document: dict[str, Any], now: float) -> dict[str, Any]:
    """Return a usage document with the limits as they were last known; `as_of` says when. What has been reset since is left out."""
    try:
        at, rows = _read(home)
        providers = [current(row, now) for row in rows]
        advice = [*document["advice"], *(said for said in forecasts(providers) if said not in document["advice"])]
    except SPOILT:
        return document
    return {**document, "providers": providers, "advice": advice, "as_of": at}


def _add(home: Path, told: list[dict[str, Any]], at: str) -> None:
    """Put what one process has heard to what is known. The lock is held."""
    now = datetime.fromisoformat(at).timestamp()
    try:
        before, known = _read(home)
        rows = [row for row in (current(row, now) for row in merged(known, told)) if lasting(row, now)]
        at = max(at, before)
    except SPOILT:
        rows = told
    fresh = _file(home).with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({"at": at, "providers": rows}), encoding="utf-8")
    fresh.replace(_file(home))  # readers take no lock: they see the old file or the new one


def _read(home: Path) -> tuple[str, list[dict[str, Any]]]:
    kept = json.loads(_file(home).read_text(encoding="utf-8"))
    return str(kept["at"]), list(kept["providers"])


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Hold the lock. Raises BlockingIOError if somebody else does."""
    handle = os.open(home / "limits.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _file(home: Path) -> Path:
    return home / "limits.json"
