"""The first tables. Other rooms keep their own beside them, so ours all begin with `cc_`."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

USAGE = (
    "requests",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_5m_input_tokens",
    "cache_creation_1h_input_tokens",
)


def _run(*, key: bool = False) -> sa.Column[str]:
    return sa.Column("run", sa.Text, sa.ForeignKey("cc_runs.id", ondelete="CASCADE"), primary_key=key, nullable=False)


def upgrade() -> None:
    """Create them."""
    _runs_and_tasks()
    _facts()
    _money()
    _roster()


def _runs_and_tasks() -> None:
    op.create_table(
        "cc_runs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("repo", sa.Text, nullable=False),
        sa.Column("base", sa.Text, nullable=False),
        sa.Column("branch", sa.Text, nullable=False),
        sa.Column("head", sa.Text, nullable=False),
        sa.Column("goal", sa.Text, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("ended", sa.Double),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("published", sa.Text, nullable=False),
        sa.Column("cancel", sa.Boolean, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
    )
    op.create_index("cc_runs_created", "cc_runs", ["created"])
    op.create_table(
        "cc_tasks",
        _run(key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("needs", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("commit", sa.Text, nullable=False),
        sa.Column("landed", sa.Boolean, nullable=False),
        sa.Column("gates", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("started", sa.Double),
        sa.Column("ended", sa.Double),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("infrastructure", sa.Boolean, nullable=False),
        sa.Column("cancel", sa.Boolean, nullable=False),
        sqlite_with_rowid=False,
    )


def _facts() -> None:
    op.create_table(
        "cc_events",
        _run(key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sqlite_with_rowid=False,
    )
    op.create_index("cc_events_key", "cc_events", ["run", "key"], unique=True, sqlite_where=sa.text("key IS NOT NULL"))
    op.create_table(
        "cc_notes",
        sa.Column("run", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "cc_logs",
        _run(key=True),
        sa.Column("task", sa.Text, primary_key=True),
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("packed", sa.Boolean, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "cc_receipts",
        sa.Column("id", sa.Integer, primary_key=True),
        _run(),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("receipt", sa.Text, nullable=False),
        sa.UniqueConstraint("run", "task", name="cc_receipts_once"),
    )


def _money() -> None:
    op.create_table(
        "cc_metered",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in USAGE),
        sa.Column("cost_usd", sa.Double, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("degraded", sa.Boolean, nullable=False),
        sa.Column("session", sa.Text, nullable=False),
        sa.Column("user", sa.Text, nullable=False),
    )
    op.create_index("cc_metered_task", "cc_metered", ["run", "task"])
    op.create_index("cc_metered_at", "cc_metered", ["at"])


def _roster() -> None:
    op.create_table(
        "cc_workers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("born", sa.Text, nullable=False),
        sa.Column("seen", sa.Double, nullable=False),
        sa.Column("dead", sa.Boolean, nullable=False),
        sa.Column("forgotten", sa.Boolean, nullable=False),
    )
    op.create_table(
        "cc_leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("until", sa.Double, nullable=False),
    )
