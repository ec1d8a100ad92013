"""What taking nested objects apart needs: their cells by name, numbers that are numbers, and the rows put together."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from traces.errors import BadTrace, shown
from traces.table import Table, object_table
from traces.times import UNIT_NS, date_time_ns, number_ns

CHARACTERS_PER_TOKEN = 4  # English text under common tokenizers, when no tokenizer is at hand
ESTIMATED = f"token counts estimated from texts, {CHARACTERS_PER_TOKEN} characters a token: count_tokens= counts them"
CountTokens = Callable[[str], int]
Row = dict[str, Any]


def estimate_tokens(text: str) -> int:
    """Return the tokens that a text would have at four characters each."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def made_of(table: Table, rows: list[Row], lines: Sequence[int], form: str, about: Row) -> Table:
    if not rows:
        raise BadTrace(table.file, table.lines[0], 1, f"no requests in this {form} file; a trace needs at least one")
    made = object_table(table.file, rows, list(lines), table.problems, table.text_lines)
    made.form, made.about = form, about
    return made


def objects(table: Table, index: int, name: str, value: Any) -> list[Row]:
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return value
    raise BadTrace(table.file, table.lines[index], 1, f"{name} is {shown(value)}; expected a list of objects")


def cell_of(table: Table, name: str, row: int) -> Any:
    column = table.columns.get(name)
    return None if column is None else column[row]


def item_of(values: Any, place: int) -> Any:
    return values[place] if isinstance(values, list) and place < len(values) else None


def first_of(row: Row, names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def lower_keys(span: Row) -> Row:
    return {name.lower(): value for name, value in span.items()}


def finite(value: Any) -> float | None:
    """A finite number, or None for whatever is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and abs(found) < 1e18 else None


def plus(start: Any, more: int) -> Any:
    if isinstance(start, bool) or not isinstance(start, int | float):
        return start
    return start + more


def seconds_between(start: Any, end: Any) -> float | None:
    times = [_instant_ns(each) for each in (start, end)]
    if times[0] is None or times[1] is None or times[1] < times[0]:
        return None
    return (times[1] - times[0]) / UNIT_NS["s"]


def _instant_ns(stamp: Any) -> int | None:
    try:
        if isinstance(stamp, str) and not stamp.strip().isdecimal():
            return date_time_ns(stamp.strip(), {})
        return number_ns(str(stamp).strip(), 1) if isinstance(stamp, str | int | float) else None
    except ValueError:
        return None


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
