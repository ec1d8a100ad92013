"""The trace formats in the wild: which one a table is in, and what to say where it is in none."""

from collections.abc import Mapping

from traces.errors import BadTrace
from traces.formats_csv import CSV_FORMATS, OPTIONAL
from traces.formats_json import JSON_FORMATS
from traces.layout import Field, Format, arrival, lengths
from traces.table import Table, normal
from traces.times import UNIT_NS

LENGTHS_HINT = "lengths_only=True reads the token columns alone"


def choose(table: Table, asked: str | None, lengths_only: bool = False) -> Format:
    """Return the format asked for, or the one the columns look like; raises BadTrace where they do not fit."""
    names = dict.fromkeys(table.columns)
    if table.form is not None:
        return _nested(table, table.form, asked)
    same_shape = [each for each in FORMATS.values() if each.shape == table.kind]
    found = next((each for each in same_shape if each.recognises(names, lengths_only)), None)
    if asked is None:
        return found or _refuse(table, _nearest(table))
    if asked not in FORMATS:
        raise ValueError(f"unknown trace format {asked!r}; known: {', '.join(FORMATS)}")
    wanted = FORMATS[asked]
    if wanted.shape == table.kind and not wanted.nested and not wanted.missing(names, lengths_only):
        return wanted
    if found is not None:
        raise _at_header(table, f"columns look like {found.name}; asked for {asked}: name it, or no format")
    return _refuse(table, wanted)


def mapped(table: Table, columns: tuple[tuple[str, object], ...]) -> Format:
    """Return the format that a map of our fields to columns of the table declares; raises ValueError, BadTrace.

    A field is mapped to a column name, to {"column": ..., "unit": ...} or to {"constant": ...}; arrival_s or
    arrival_ns may name a column of dates ({"unit": "date"}) or numbers of any unit.
    """
    known = {each.name: each for each in (*OPTIONAL, *lengths("", ""))}
    fields, unit = [], None
    for name, wish in columns:
        wish = {"column": wish} if isinstance(wish, str) else wish
        if not isinstance(wish, dict) or not set(wish) <= {"column", "unit", "constant"} or len(wish) == 0:
            raise ValueError(f"map of {name}: {wish!r}; expected a column, or an object of column, unit, constant")
        column = str(wish.get("column", f"constant {name}"))
        if "constant" in wish:
            table.columns[normal(column)] = [wish["constant"]] * len(table.lines)
        elif normal(column) not in table.columns:
            raise _at_header(table, f"no column {column!r} for {name}; the file has {', '.join(table.header[:12])}")
        if name in ("arrival", "arrival_s", "arrival_ns"):
            unit = _unit(name, wish, "date" if name == "arrival" else name.rpartition("_")[2])
            fields.append(arrival(column))
        elif name.removesuffix("_ns") in DURATIONS or name.removesuffix("_s") in DURATIONS:
            kind = f"duration_{_unit(name, wish, name.rpartition('_')[2])}"
            fields.append(Field(f"{name.rpartition('_')[0]}_ns", (column,), kind))
        elif name in known:
            fields.append(Field(name, (column,), known[name].kind, required=True))
        else:
            raise ValueError(f"unknown field {name!r} in the map; known: arrival_s, arrival_ns, {', '.join(known)}")
    lacking = {"arrival_ns", "input_tokens", "output_tokens"} - {each.name for each in fields}
    if lacking:
        raise ValueError(f"the map lacks {', '.join(sorted(lacking))}; it has {', '.join(name for name, _ in columns)}")
    return Format("mapped", table.kind, "columns declared by a map", tuple(fields), time_unit=unit)


DURATIONS = ("release_delay", "source_ttft", "source_e2e")


def _unit(name: str, wish: dict[str, object], default: str) -> str | None:
    unit = wish.get("unit", default)
    if unit not in (*UNIT_NS, "date"):
        raise ValueError(f"map of {name}: unknown unit {unit!r}; known: date, {', '.join(UNIT_NS)}")
    return None if unit == "date" else str(unit)


def _nested(table: Table, form: str, asked: str | None) -> Format:
    if asked is not None and asked != form:
        if asked not in FORMATS:
            raise ValueError(f"unknown trace format {asked!r}; known: {', '.join(FORMATS)}")
        raise _at_header(table, f"objects look like {form}; asked for {asked}: name it, or no format")
    found = FORMATS[form]
    lacking = found.missing(dict.fromkeys(table.columns))
    if lacking:
        raise _at_header(table, f"no request has {', '.join(lacking)} (read as {form})")
    return found


def _nearest(table: Table) -> Format | None:
    names = dict.fromkeys(table.columns)
    flat = [each for each in FORMATS.values() if each.shape == table.kind and not each.nested]
    scored = [(_matches(each, names), each) for each in flat]
    best = max(scored, key=lambda pair: pair[0], default=None)
    return best[1] if best is not None and best[0] >= 2 else None


def _matches(candidate: Format, names: Mapping[str, object]) -> int:
    return sum(each.required and candidate.source_of(each, names) is not None for each in candidate.fields)


def _refuse(table: Table, nearest: Format | None) -> Format:
    seen = ", ".join(table.header[:12])
    for marks, hint in NO_REQUESTS.items():
        if marks <= set(table.columns):
            raise _at_header(table, hint)
    if nearest is None or nearest.shape != table.kind:
        known = ", ".join(FORMATS)
        raise _at_header(table, f"no known trace format has the columns {seen}; known: {known}; rename= maps others")
    lacking = nearest.missing(dict.fromkeys(table.columns))
    hint = f"; {LENGTHS_HINT}" if lacking == [nearest.fields[0].sources[0]] else ""
    raise _at_header(table, f"missing column {', '.join(lacking)} (read as {nearest.name}); the file has {seen}{hint}")


def _at_header(table: Table, words: str) -> BadTrace:
    first = next((number for number, line in enumerate(table.text_lines, 1) if line.strip()), 1)
    return BadTrace(table.file, first, 1, words)


NO_REQUESTS: dict[frozenset[str], str] = {
    frozenset({"requests_est", "hour_index"}): "requests per hour, not requests: a rate profile for generate.nhpp",
    frozenset({"day", "requests", "tokens"}): "requests per day, not requests: a rate profile for generate.nhpp",
    frozenset({"minute", "total_tokens_est"}): "tokens per minute, not requests: there is nothing to replay",
}

FORMATS: dict[str, Format] = {each.name: each for each in (*CSV_FORMATS, *JSON_FORMATS)}
