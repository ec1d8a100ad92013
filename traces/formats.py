"""The trace formats in the wild: which one a table is in, and what to say where it is in none."""

from collections.abc import Mapping

from traces.errors import BadTrace
from traces.formats_csv import CSV_FORMATS
from traces.formats_json import JSON_FORMATS
from traces.layout import Format
from traces.table import Table

LENGTHS_HINT = "lengths_only=True reads the token columns alone"


def choose(table: Table, asked: str | None, lengths_only: bool = False) -> Format:
    """Return the format asked for, or the one the columns look like; raises BadTrace where they do not fit."""
    names = dict.fromkeys(table.columns)
    same_shape = [each for each in FORMATS.values() if each.shape == table.kind]
    found = next((each for each in same_shape if each.recognises(names, lengths_only)), None)
    if asked is None:
        return found or _refuse(table, _nearest(table))
    if asked not in FORMATS:
        raise ValueError(f"unknown trace format {asked!r}; known: {', '.join(FORMATS)}")
    wanted = FORMATS[asked]
    if wanted.shape == table.kind and not wanted.missing(names, lengths_only):
        return wanted
    if found is not None:
        raise _at_header(table, f"columns look like {found.name}; asked for {asked}: name it, or no format")
    return _refuse(table, wanted)


def _nearest(table: Table) -> Format | None:
    names = dict.fromkeys(table.columns)
    scored = [(_matches(each, names), each) for each in FORMATS.values() if each.shape == table.kind]
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
