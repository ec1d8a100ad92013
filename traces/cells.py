"""Raw cells turned into numbers, times and names; what cannot be turned is a fault that names its row."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from traces.errors import shown
from traces.times import UNIT_NS, date_time_ns, epoch_unit, number_ns
from traces.trace import MISSING, Array, Column, Labels, Ragged, Status

MOST_TOKENS = 2**31 - 1
A_TIME = "a date with a time, or epoch s/ms/us/ns; lengths_only=True reads the token columns alone"
Faults = dict[int, tuple[str, str]]  # row -> (reason to count by, words to show)
Cells = Sequence[Any]


def tokens(cells: Cells) -> tuple[Array, Faults]:
    """Return whole numbers >= 0 as int64; a missing one is a fault."""
    return _whole_numbers(cells, missing_is_fault=True)


def counts(cells: Cells) -> tuple[Array, Faults]:
    """Return whole numbers >= 0 as int64, -1 where the cell is empty."""
    return _whole_numbers(cells, missing_is_fault=False)


def times(cells: Cells, unit: str | None) -> tuple[Array, Faults]:
    """Return int64 ns: numbers of `unit`, or, where it is None, dates with times or epoch numbers of any unit."""
    if unit is None and len(cells):
        unit = _epoch_unit_of(cells[0])
        if unit is None:
            return _dates(cells)
        return _each(cells, lambda text: _epoch_ns(text, unit), f"an epoch time in {unit}, like the first row")
    return _each(cells, lambda text: number_ns(text, UNIT_NS[unit or "s"]), f"a number of {unit}")


def durations(cells: Cells, unit: str) -> tuple[Array, Faults]:
    """Return int64 ns, -1 where the cell is empty."""
    present = [row for row, cell in enumerate(cells) if not is_missing(cell)]
    values = np.full(len(cells), MISSING, np.int64)
    given = [cells[row] for row in present]
    found, faults = _each(given, lambda text: number_ns(text, UNIT_NS[unit]), f"a number of {unit}")
    values[present] = found
    return values, {present[row]: fault for row, fault in faults.items()}


def labels(cells: Cells) -> tuple[Labels, Faults]:
    """Return names as codes in order of first appearance, -1 where the cell is empty."""
    names: dict[str, int] = {}
    codes = [MISSING if is_missing(cell) else names.setdefault(str(cell).strip(), len(names)) for cell in cells]
    return Labels(np.array(codes, np.int32), tuple(names)), {}


def blocks(cells: Cells) -> tuple[Ragged, Faults]:
    """Return lists of whole numbers (JSON lists, or text with spaces between) as one ragged column."""
    faults: Faults = {}
    lists = [_block_list(row, cell, faults) for row, cell in enumerate(cells)]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in lists])]).astype(np.int64)
    return Ragged(offsets, _narrow(np.fromiter(chain.from_iterable(lists), np.int64, int(offsets[-1])))), faults


def statuses(cells: Cells) -> tuple[Array, Faults]:
    """Return status codes from their names (ok, failed, cancelled, unknown); an empty cell is unknown."""
    values, faults = np.full(len(cells), Status.UNKNOWN, np.int8), {}
    for row, cell in enumerate(cells):
        name = "UNKNOWN" if is_missing(cell) else str(cell).strip().upper()
        name = SYNONYMS.get(name, name)
        if name in Status.__members__:
            values[row] = Status[name]
        else:
            faults[row] = ("bad status", f"is {shown(cell)}; expected ok, failed, cancelled or unknown")
    return values, faults


SYNONYMS = {"SUCCESS": "OK", "ERROR": "FAILED", "FAILURE": "FAILED", "TIMEOUT": "CANCELLED", "ABORTED": "CANCELLED"}
KINDS: dict[str, Callable[[Cells], tuple[Column, Faults]]] = {
    "tokens": tokens,
    "count": counts,
    "label": labels,
    "blocks": blocks,
    "status": statuses,
    "duration_s": lambda cells: durations(cells, "s"),
    "duration_ms": lambda cells: durations(cells, "ms"),
    "duration_us": lambda cells: durations(cells, "us"),
    "duration_ns": lambda cells: durations(cells, "ns"),
}


def is_missing(cell: Any) -> bool:
    """Return whether a cell says nothing: empty text or null (missing is not zero)."""
    return cell is None or (isinstance(cell, str) and cell.strip() in ("", "null", "NULL"))


def _whole_numbers(cells: Cells, missing_is_fault: bool) -> tuple[Array, Faults]:
    fast = _all_digits(cells)
    if fast is not None:
        return fast, {}
    values, faults = np.full(len(cells), MISSING, np.int64), {}
    for row, cell in enumerate(cells):
        if is_missing(cell):
            if missing_is_fault:
                faults[row] = ("missing", "is missing; expected a whole number of tokens (missing is not zero)")
            continue
        try:
            values[row] = _whole_number(cell)
        except ValueError as problem:
            faults[row] = (str(problem), f"is {shown(cell)}: {problem}; expected a whole number >= 0")
    return values, faults


def _all_digits(cells: Cells) -> Array | None:
    kinds = set(map(type, cells))
    if kinds == {str} and (text := "".join(cells)).isascii() and text.isdigit() and min(map(len, cells)) > 0:
        values = list(map(int, cells)) if max(map(len, cells)) <= 10 else None
    else:
        values = list(cells) if kinds == {int} else None
    if values is None or min(values) < 0 or max(values) > MOST_TOKENS:
        return None
    return np.array(values, np.int64)


def _whole_number(cell: Any) -> int:
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise ValueError("not a number")
    try:
        value = float(cell)
        text_is_number = not isinstance(cell, str) or (cell.isascii() and "_" not in cell)
    except (ValueError, OverflowError):
        text_is_number = False
    if not text_is_number or value != value:
        raise ValueError("not a number")
    if value < 0:
        raise ValueError("negative")
    if value > MOST_TOKENS:
        raise ValueError("too large")
    if value != int(value):
        raise ValueError("not whole")
    return int(value)


def _each(cells: Cells, convert: Callable[[str], int], expected: str) -> tuple[Array, Faults]:
    values, faults = [], {}
    for row, cell in enumerate(cells):
        try:
            values.append(convert(_number_text(cell)))
        except ValueError:
            values.append(0)
            faults[row] = ("bad time", f"is {shown(cell)}; expected {expected}")
    return np.array(values, np.int64), faults


def _dates(cells: Cells) -> tuple[Array, Faults]:
    minutes: dict[str, int] = {}
    values, faults = [], {}
    for row, cell in enumerate(cells):
        try:
            values.append(date_time_ns(cell.strip() if isinstance(cell, str) else "", minutes))
        except ValueError:
            values.append(0)
            faults[row] = ("bad time", f"is not a time: {shown(cell)}; expected {A_TIME}")
    return np.array(values, np.int64), faults


def _number_text(cell: Any) -> str:
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise ValueError
    return cell.strip() if isinstance(cell, str) else repr(cell)


def _epoch_unit_of(cell: Any) -> str | None:
    try:
        return epoch_unit(float(_number_text(cell)))
    except (ValueError, OverflowError):
        return None


def _epoch_ns(text: str, unit: str) -> int:
    if epoch_unit(float(text)) != unit:
        raise ValueError
    return number_ns(text, UNIT_NS[unit])


def _block_list(row: int, cell: Any, faults: Faults) -> list[int]:
    if is_missing(cell):
        return []
    if isinstance(cell, list) and all(type(each) is int and abs(each) < 2**63 for each in cell):
        return cell
    try:
        if isinstance(cell, str) and cell.isascii() and "_" not in cell:
            return [int(each) for each in cell.split() if abs(int(each)) < 2**63]
    except ValueError:
        pass
    faults[row] = ("bad blocks", f"is {shown(cell)}; expected a list of whole numbers")
    return []


def _narrow(values: Array) -> Array:
    fits = not len(values) or (values.min() >= -(2**31) and values.max() < 2**31)
    return values.astype(np.int32) if fits else values
