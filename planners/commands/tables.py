"""Tables for people: columns that line up, cut to the width of the screen, the same without colour or box art."""

import os
import shutil
from collections.abc import Sequence

NARROWEST = 60


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = (), indent: str = "") -> str:
    """Return rows as lines of aligned columns, the first row being the header; `right` columns align right.

    >>> print(table([["name", "usd"], ["a", "12.5"]], right=[1]))
    name   usd
    a     12.5
    """
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(fit(indent + "  ".join(cells).rstrip()))
    return "\n".join(lines)


def fit(line: str) -> str:
    """Return a line cut to the screen, marked where it was cut; whole where nobody's screen is known."""
    width = screen_width()
    return line if width is None or len(line) <= width else line[: width - 3] + "..."


def screen_width() -> int | None:
    """Return the columns of the terminal that COLUMNS or stdout tell of; None where stdout is a file or pipe."""
    if "COLUMNS" in os.environ or os.isatty(1):
        return max(NARROWEST, shutil.get_terminal_size().columns)
    return None


def quantity(value: float | None, digits: int = 3) -> str:
    """Return a number with a thousands suffix, `-` for none.

    >>> quantity(8.03e9), quantity(0.25), quantity(None)
    ('8.03G', '0.25', '-')
    """
    if value is None:
        return "-"
    for factor, suffix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.{digits}g}{suffix}"
    return f"{value:.{digits}g}"


def seconds(value: float | None) -> str:
    """Return a time for people, in s or ms, `-` for none.

    >>> seconds(0.0314), seconds(2.5), seconds(float("inf"))
    ('31.4 ms', '2.50 s', 'never')
    """
    if value is None or value != value:
        return "-"
    if value == float("inf"):
        return "never"
    return f"{value:,.0f} s" if value >= 100 else f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"
