"""The tables as the code sees them today. `migrations/` makes them; a test keeps the two the same.

Ours begin with `cc_`: the engine keeps its own tables in the same database.
"""

from typing import Any

import sqlalchemy as sa

from claudecluster.model.run import RunState, TaskState
from claudecluster.storage.kinds import Gates, Json, Names, State, Words

METADATA = sa.MetaData()


def _text(name: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, Words, primary_key=key, nullable=False)


def _run(*, key: bool = False) -> sa.Column[str]:
    return sa.Column("run", Words, sa.ForeignKey("cc_runs.id", ondelete="CASCADE"), primary_key=key, nullable=False)


def _number(name: str, kind: type[sa.types.TypeEngine[Any]] = sa.Integer, *, key: bool = False) -> sa.Column[Any]:
    return sa.Column(name, kind, primary_key=key, nullable=False, autoincrement=False)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False)


runs = sa.Table(
    "cc_runs",
    METADATA,
    _text("id", key=True),
    sa.Column("state", State(RunState), nullable=False),
    *(_text(name) for name in ("repo", "base", "branch", "head", "goal")),
    sa.Column("spec", Json, nullable=False),
    _number("created", sa.Double),
    sa.Column("ended", sa.Double),
    _text("error"),
    _text("published"),
    _flag("cancel"),
    _number("last_seq", sa.BigInteger),  # of its newest fact; its row is the lock that keeps facts in order
    sa.Index("cc_runs_created", "created"),
)

tasks = sa.Table(
    "cc_tasks",
    METADATA,
    _run(key=True),
    _text("id", key=True),
    _number("position"),
    sa.Column("state", State(TaskState), nullable=False),
    sa.Column("needs", Names, nullable=False),
    _number("attempts"),
    _text("decision"),
    _text("commit"),
    _flag("landed"),
    sa.Column("gates", Gates, nullable=False),
    _text("model"),
    _text("session"),
    sa.Column("started", sa.Double),
    sa.Column("ended", sa.Double),
    _text("error"),
    _flag("infrastructure"),
    _flag("cancel"),
    sqlite_with_rowid=False,
)

events = sa.Table(
    "cc_events",
    METADATA,
    _run(key=True),
    _number("seq", sa.BigInteger, key=True),
    _text("kind"),
    _number("at", sa.Double),
    _text("task"),
    _number("attempt"),
    sa.Column("data", Json, nullable=False),
    sa.Column("key", Words),  # None where the change had no key
    sa.Index("cc_events_key", "run", "key", unique=True, sqlite_where=sa.text("key IS NOT NULL")),
    sqlite_with_rowid=False,
)

notes = sa.Table(
    "cc_notes",
    METADATA,
    _text("run", key=True),  # may be empty: a note for the whole store
    _text("key", key=True),
    sa.Column("value", Json, nullable=False),
    sqlite_with_rowid=False,
)

logs = sa.Table(
    "cc_logs",
    METADATA,
    _run(key=True),
    _text("task", key=True),
    _number("id", sa.BigInteger, key=True),
    _number("attempt"),
    _flag("packed"),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

receipts = sa.Table(
    "cc_receipts",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    _run(),
    _text("task"),
    _text("receipt"),
    sa.UniqueConstraint("run", "task", name="cc_receipts_once"),
)

COUNTS = (
    "requests",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_5m_input_tokens",
    "cache_creation_1h_input_tokens",
)

metered = sa.Table(
    "cc_metered",
    METADATA,
    _text("key", key=True),
    _text("run"),  # may be empty: a gateway that serves no run
    _text("task"),
    _number("attempt"),
    _text("provider"),
    _text("model"),
    *(_number(name, sa.BigInteger) for name in COUNTS),
    _number("cost_usd", sa.Double),
    _number("at", sa.Double),
    _number("status"),
    _flag("degraded"),
    _text("session"),
    _text("user"),
    sa.Index("cc_metered_task", "run", "task"),
    sa.Index("cc_metered_at", "at"),
)

workers = sa.Table(
    "cc_workers",
    METADATA,
    _text("id", key=True),
    _text("run"),
    _text("host"),
    _number("pid"),
    _text("born"),
    _number("seen", sa.Double),
    _flag("dead"),
    _flag("forgotten"),  # off the record, but still dead if it ever comes back
)

leases = sa.Table(
    "cc_leases",
    METADATA,
    _text("name", key=True),
    _text("owner"),
    _number("until", sa.Double),
)

VERSION = "cc_version"  # Alembic's own table
version = sa.table(VERSION, sa.column("version_num", sa.Text))
