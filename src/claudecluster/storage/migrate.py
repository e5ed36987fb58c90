"""Brings a database to the newest tables. Loaded by name, and only when one is new or old: it brings Alembic with it.

Called by `open.py`. Everything is one transaction under one lock, so of several processes one does it and the others find it done.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from claudecluster.storage.tables import VERSION

FOLDER = Path(__file__).with_name("migrations")
LOCK = 0x63636C75  # any number that is only ours


def upgrade(connection: sa.Connection) -> None:
    """Bring the tables to the newest revision; the caller's transaction makes it all or nothing."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))  # SQLite's writers queue by themselves
    script = ScriptDirectory(str(FOLDER), version_locations=[str(FOLDER)])

    def steps(revision: Any, _context: MigrationContext) -> Iterable[Any]:
        return script._upgrade_revs("head", revision)  # noqa: SLF001 - the call Alembic's own documentation gives for this

    context = MigrationContext.configure(connection, opts={"version_table": VERSION, "fn": steps})
    with Operations.context(context):
        context.run_migrations()
