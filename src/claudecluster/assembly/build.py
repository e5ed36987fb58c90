"""Opens what a door needs: the store alone for looking, the whole house for working. Only the latter loads the engine."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from claudecluster.assembly.settings import Settings
from claudecluster.kit.clock import SystemClock
from claudecluster.model.errors import Unavailable
from claudecluster.storage.open import open_store
from claudecluster.storage.store import SqlStore


@asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[SqlStore]:
    """Open the store for looking. Raises NotFound if there is none yet, Unavailable if it cannot be used."""
    store = await open_store(settings.database, clock=SystemClock(), readonly=True)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def writing(settings: Settings) -> AsyncIterator[SqlStore]:
    """Open the store, made if need be. Raises Unavailable, Refused."""
    _home(settings.home)
    store = await open_store(settings.database, clock=SystemClock())
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def cluster(
    settings: Settings, *, sandbox: str = "process", network: str = "none", record: Path | None = None, replay: Path | None = None
) -> AsyncIterator[Any]:
    """Open everything and yield a Cluster. Raises Refused for an unknown sandbox, Unavailable."""
    del network  # part of the order: sandboxes take it from their spec
    house = import_module("claudecluster.assembly.house")
    async with writing(settings) as store, house.opened(settings, store, sandbox=sandbox, record=record, replay=replay) as found:
        yield found


def _home(home: Path) -> None:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(
            f"the state folder {home} cannot be used: {error.strerror}", hint="set CLAUDECLUSTER_HOME to a folder you can write"
        ) from None
