"""Blocks of CSV turned into columns by Arrow where every cell is plain; all else is left to the slow, exact way."""

from typing import TYPE_CHECKING, Any

import numpy as np

from traces.cells import MOST_TOKENS, SYNONYMS
from traces.layout import Field, Format
from traces.table import Table, normal
from traces.times import LATEST_NS, UNIT_NS, epoch_unit, has_zone
from traces.trace import MISSING, Array, Column, Labels, Status

if TYPE_CHECKING:
    from traces.reading import Options

DATE_CHARACTERS = len("2024-05-12")
FRACTION_DIGITS = {"s": 9, "ms": 6, "us": 3, "ns": 0}  # a decimal of a unit with so many digits is whole ns


def fast_columns(
    block: bytes, before: int, header: bytes, table: Table, layout: Format, options: "Options"
) -> dict[str, Column] | None:
    """Return the columns of a block of whole lines, or None where the slow way has to look at it.

    before is the number of lines in front of the block; times are absolute, under arrival_ns.
    """
    if not block.isascii() or not block or b"0x" in block or b"0X" in block or b"\0" in block:
        return None
    if block.count(b'"') % 2:
        return None
    fields = {}
    for wanted in layout.fields:
        source = layout.source_of(wanted, table.columns)
        if source is not None and not (wanted.kind == "time" and options.lengths_only):
            fields[wanted] = table.names[source]
    unit = options.time_unit or layout.time_unit
    types = {name: _arrow_type(wanted, unit, block, table, name) for wanted, name in fields.items()}
    if None in types.values() or len(set(fields.values())) < len(fields):
        return None
    arrow = _parsed(block, table, types)
    if arrow is None:
        return None
    rows = block.count(b"\n") + (not block.endswith(b"\n"))
    dates = any(wanted.kind == "time" and unit is None and _is_date(types[name]) for wanted, name in fields.items())
    if arrow.num_rows != rows or (dates and not _plain_dates(block, rows, table, layout)):
        return None
    columns: dict[str, Column] = {"source_line": np.arange(before + 1, before + 1 + rows)}
    for wanted, name in fields.items():
        column = _column(wanted, unit, arrow.column(name).combine_chunks())
        if column is None:
            return None
        columns[wanted.name] = column
    return columns


def _plain_dates(block: bytes, rows: int, table: Table, layout: Format) -> bool:
    """Whether every line begins with a date, a space or T, and a time of day: Arrow takes any character between."""
    source = next(layout.source_of(wanted, table.columns) for wanted in layout.fields if wanted.kind == "time")
    if normal(table.header[0]) != source or block.count(b":") < 2 * rows:
        return False
    characters = np.frombuffer(block, np.uint8)
    starts = np.concatenate([[0], np.flatnonzero(characters == ord("\n")) + 1])[:rows]
    if starts[-1] + DATE_CHARACTERS >= len(characters):
        return False
    between = characters[starts + DATE_CHARACTERS]
    return bool(np.all((between == ord(" ")) | (between == ord("T"))))


def _parsed(block: bytes, table: Table, types: dict[str, Any]) -> Any:
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    names = [normal(name) for name in table.header]
    wanted = {normal(name): kind for name, kind in types.items()}
    try:
        parsed = pa_csv.read_csv(
            pa.py_buffer(block),
            read_options=pa_csv.ReadOptions(use_threads=False, column_names=names, block_size=1 << 22),
            parse_options=pa_csv.ParseOptions(delimiter=table.delimiter, ignore_empty_lines=False),
            convert_options=pa_csv.ConvertOptions(
                include_columns=list(wanted),
                column_types=wanted,
                timestamp_parsers=[pa_csv.ISO8601],
                null_values=["", "null", "NULL"],
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except (pa.ArrowException, ValueError, KeyError):
        return None
    return parsed.rename_columns(list(types))


def _arrow_type(wanted: Field, unit: str | None, block: bytes, table: Table, name: str) -> Any:
    import pyarrow as pa

    if wanted.kind in ("tokens", "count"):
        return pa.int64()
    if wanted.kind in ("label", "status"):
        return pa.dictionary(pa.int32(), pa.string())
    if wanted.kind.startswith("duration_"):
        return pa.decimal128(28, FRACTION_DIGITS[wanted.kind.rpartition("_")[2]])
    if wanted.kind != "time":
        return None
    if unit is not None:
        return pa.decimal128(28, FRACTION_DIGITS[unit])
    cells = block.split(b"\n", 1)[0].decode("utf-8", "replace").split(table.delimiter)
    place = table.header.index(name)
    stamp = cells[place].strip().strip('"') if place < len(cells) else ""
    if stamp.isdecimal():
        return pa.int64()
    return pa.timestamp("ns", "UTC") if has_zone(stamp) else pa.timestamp("ns")


def _is_date(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_timestamp(kind))


def _column(wanted: Field, unit: str | None, array: Any) -> Column | None:
    if wanted.kind in ("label", "status"):
        return _labels(wanted, array)
    missing_may_be = wanted.kind not in ("time", "tokens")
    if array.null_count and not missing_may_be:
        return None
    if wanted.kind == "time" or wanted.kind.startswith("duration_"):
        return _times(wanted, unit, array)
    values: Array = array.fill_null(MISSING).to_numpy(zero_copy_only=False)
    lowest = MISSING if array.null_count else 0
    if len(values) and (values.min() < lowest or values.max() > MOST_TOKENS):
        return None
    if array.null_count and np.count_nonzero(values == MISSING) != array.null_count:
        return None
    return values


def _times(wanted: Field, unit: str | None, array: Any) -> Array | None:
    import pyarrow as pa

    if pa.types.is_timestamp(array.type):
        values = array.cast(pa.int64()).to_numpy()
    elif pa.types.is_decimal(array.type):
        values = _unscaled(array)
    else:
        values = _epochs(array.to_numpy())
    if values is None or not len(values) or values.max() > LATEST_NS or values.min() < -LATEST_NS:
        return None
    if pa.types.is_timestamp(array.type) and values.min() < 0:
        return None
    if wanted.kind != "time" and values.min() < 0:
        return None
    if array.null_count:
        values = np.where(array.is_null().to_numpy(zero_copy_only=False), MISSING, values)
    return np.asarray(values)


def _unscaled(array: Any) -> Array | None:
    """The whole number of ns that a decimal is, from the low half of its 128 bits."""
    halves = np.frombuffer(array.buffers()[1], np.int64)[2 * array.offset : 2 * (array.offset + len(array))]
    low, high = halves[::2], halves[1::2]
    known = ~array.is_null().to_numpy(zero_copy_only=False)
    if np.any((low >> 63 != high)[known]):
        return None
    return np.where(known, low, 0)


def _epochs(values: Array) -> Array | None:
    unit = epoch_unit(float(values[0])) if len(values) else None
    if unit is None or epoch_unit(float(values.min())) != unit or epoch_unit(float(values.max())) != unit:
        return None
    return values * UNIT_NS[unit]


def _labels(wanted: Field, array: Any) -> Column | None:
    names = array.dictionary.to_pylist()
    if any(name != name.strip() for name in names):
        return None
    codes = array.indices.fill_null(MISSING).to_numpy(zero_copy_only=False).astype(np.int32)
    if wanted.kind == "label":
        return Labels(codes, tuple(names))
    known = [SYNONYMS.get(name.upper(), name.upper()) for name in names]
    if not set(known) <= set(Status.__members__):
        return None
    table = np.array([Status[name] for name in known] + [Status.UNKNOWN], np.int8)
    statuses: Array = table[codes]
    return statuses
