"""Values as people read them: times, money, tables. Called by whatever prints."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from claudecluster.cli.voice import one_line


def span(seconds: float) -> str:
    """Return a duration such as `0.4 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def money(usd: float) -> str:
    """Return an amount such as `$1.25`; four places below ten cents."""
    return f"${usd:.4f}" if 0 < usd < 0.1 else f"${usd:.2f}"


def moment(at: float) -> str:
    """Return a time of day in the reader's own zone."""
    return f"{local(at):%H:%M:%S}"


def local(at: float) -> datetime:
    """Return seconds since the epoch as a time in the reader's own zone."""
    return datetime.fromtimestamp(at, UTC).astimezone()


def iso(at: float | None) -> str | None:
    """Return seconds since the epoch as ISO 8601 in UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return lines of columns that align without colour or frames; columns that are empty throughout are left out."""
    cells = [[one_line(cell) for cell in row] for row in rows]
    used = [i for i in range(len(heads)) if any(row[i] for row in cells)]
    lines = [[heads[i] for i in used], *[[row[i] for i in used] for row in cells]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(used))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
