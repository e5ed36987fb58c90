"""Opens the store, new or old. Called by `assembly`, and by tests.

A database of the newest tables is recognised by one row; only else is the migration runner loaded.
"""

from importlib import import_module

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from claudecluster.kit.clock import Clock
from claudecluster.model.errors import NotFound, Refused
from claudecluster.storage.connect import NO_RUNS, Database
from claudecluster.storage.failures import no_table
from claudecluster.storage.migrations import HEAD
from claudecluster.storage.store import SqlStore
from claudecluster.storage.tables import version


async def open_store(url: str, *, clock: Clock, readonly: bool = False) -> SqlStore:
    """Open the store at `sqlite:///PATH` or `postgresql://USER@HOST/NAME`, making or updating its tables first.

    With `readonly` nothing is made or changed, and a store that is not there yet is NotFound. Raises Refused for one
    written by newer code, Unavailable for one that cannot be used: damaged, locked, no disk, no server.
    """
    database = Database(url, clock=clock, readonly=readonly)
    try:
        await _prepare(database)
    except BaseException:
        await database.close()
        raise
    return SqlStore(database, clock=clock)


async def _prepare(database: Database) -> None:
    found = await database.read(_version)
    if found == HEAD:
        return
    if found > HEAD:
        hint = "update ClaudeCluster, or use another folder with CLAUDECLUSTER_HOME"
        raise Refused(
            f"the store at {database.where} was written by a newer ClaudeCluster (tables {found}, this one knows {HEAD})", hint=hint
        )
    if not database.readonly:
        await database.write(import_module("claudecluster.storage.migrate").upgrade)
    elif found:
        hint = "`claudecluster run` or `claudecluster resume` brings it up to date"
        raise Refused(f"the store at {database.where} was written by an older ClaudeCluster (tables {found})", hint=hint)
    else:
        raise NotFound(NO_RUNS, hint="start one with `claudecluster run`")


def _version(connection: sa.Connection) -> str:
    try:
        return connection.execute(sa.select(version.c.version_num)).scalar() or ""
    except DBAPIError as error:
        if no_table(error):
            return ""
        raise
