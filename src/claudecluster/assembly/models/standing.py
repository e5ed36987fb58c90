"""What the last gateway knew of limits, kept in a file of the state folder, so that `usage` can tell once no gateway runs.

Whoever opens a gateway keeps it; `claudecluster usage` reads it. It says nothing to gateways: they hear of limits from the servers.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

EVERY = 10.0  # seconds between looks; written only where something was answered in between


@asynccontextmanager
async def keeping(home: Path, usage: Callable[[], dict[str, Any]]) -> AsyncIterator[None]:
    """Write down what `usage` returns (the document of `GET /usage`) now and then while the context lasts, and at its end."""
    written = [0]

    def write() -> None:
        document = usage()
        asked = document["total"]["requests"]
        if asked == written[0] and all(provider["state"] == "open" for provider in document["providers"]):
            return
        with contextlib.suppress(OSError):  # a full disk must not end a gateway
            fresh = _file(home).with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps({"at": document["at"], "providers": document["providers"], "advice": document["advice"]}))
            fresh.replace(_file(home))
            written[0] = asked

    async def now_and_then() -> None:
        while True:
            await asyncio.sleep(EVERY)
            write()

    task = asyncio.create_task(now_and_then())
    try:
        yield
    finally:
        task.cancel()
        write()


def remembered(home: Path, document: dict[str, Any], now: float) -> dict[str, Any]:
    """Return a usage document with the limits as they were last known; `as_of` says when. What has been reset since is left out."""
    try:
        kept = json.loads(_file(home).read_text(encoding="utf-8"))
        providers = [_current(provider, now) for provider in kept["providers"]]
        advice = [*document["advice"], *(said for said in kept["advice"] if said not in document["advice"] and "window" in said)]
        return {**document, "providers": providers, "advice": advice, "as_of": str(kept["at"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return document


def _current(provider: dict[str, Any], now: float) -> dict[str, Any]:
    windows = [window for window in provider["windows"] if not _past(window["resets"], now)]
    past = {"state": "open", "why": "", "returns": None} if _past(provider["returns"], now) else {}
    return {**provider, "in_flight": 0, "windows": windows, **past}


def _past(at: str | None, now: float) -> bool:
    return at is not None and datetime.fromisoformat(at).timestamp() <= now


def _file(home: Path) -> Path:
    return home / "limits.json"
