"""Tables in plain text, for terminals and mails."""

from collections.abc import Sequence

from almanac.text import truncate

GAP = "  "
Cell = str | int | float


def render(header: Sequence[str], rows: Sequence[Sequence[Cell]], widest: int = 24) -> str:
    """Return a table as lines of text: a header, a rule, the rows.

    Columns are as wide as their widest cell, at most `widest`; longer cells are truncated. Numbers stand to the right
    (and so do their headers), text to the left. No line ends in blanks.
    """
    cells = [[truncate(_written(cell), widest) for cell in row] for row in rows]
    titles = [truncate(title, widest) for title in header]
    widths = [max(len(line[column]) for line in [titles, *cells]) for column in range(len(titles))]
    lines = [_line(titles, widths), _line(["-" * width for width in widths], widths)]
    lines += [_line(row, widths) for row in cells]
    return "\n".join(lines)


def _written(cell: Cell) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
