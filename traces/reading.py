"""Reading a trace file: found out by its content, checked cell by cell, and reported to the last row."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np

from traces import cells
from traces.arrivals import Arrivals, in_order
from traces.doubts import doubts
from traces.errors import BadTrace
from traces.formats import choose, mapped
from traces.layout import Format
from traces.nested import unnest
from traces.selection import TimeRange, check_time_range, chosen, condition
from traces.servegen import refuse_servegen
from traces.source import PARQUET_MAGIC, Source, load
from traces.table import Problem, Table, csv_table, decode, document_table, json_lines, looks_like_json, renamed_columns
from traces.times import UNIT_NS
from traces.trace import Array, Column, Status, Trace, content_sha256, take, take_column
from traces.writing import metadata_path

RESTARTS = (
    "time restarts here: two files glued together? "
    "restarts='append' puts the parts end to end, restarts='sort' lays them over each other"
)
LARGE_BYTES = 64 << 20
EXAMPLES = 3  # of each reason for which rows were dropped
SAMPLE = Path(__file__).parent / "samples" / "chat.csv.gz"


@dataclass(frozen=True, slots=True)
class Options:
    """How to read what a file leaves open; the defaults assume nothing and stop at the first bad row."""

    strict: bool = True
    time_unit: str | None = None
    restarts: str = "error"
    lengths_only: bool = False
    block_tokens: int | None = None
    rename: tuple[tuple[str, str], ...] = ()
    columns: tuple[tuple[str, object], ...] = ()
    context: str | None = None
    count_tokens: Callable[[str], int] | None = None
    limit: int | None = None
    max_bad_fraction: float = 0.001
    where: tuple[str, ...] = ()
    time_range: TimeRange | None = None

    def changed(self) -> dict[str, object]:
        """Return the options that differ from the defaults, for the record."""
        default = Options()
        names = [name for name in self.__slots__ if getattr(self, name) != getattr(default, name)]
        return {name: getattr(self, name) if name != "count_tokens" else "given" for name in names}


def read(
    path: str | Path,
    format: str | None = None,
    strict: bool = True,
    *,
    time_unit: str | None = None,
    restarts: str = "error",
    lengths_only: bool = False,
    block_tokens: int | None = None,
    rename: Mapping[str, str] | None = None,
    columns: Mapping[str, object] | None = None,
    context: str | None = None,
    count_tokens: Callable[[str], int] | None = None,
    limit: int | None = None,
    max_bad_fraction: float = 0.001,
    where: Sequence[str] = (),
    time_range: TimeRange | None = None,
) -> Trace:
    """Return the trace in a file of any known format, plain or compressed, both told apart by content.

    strict stops at the first bad row; otherwise bad rows are dropped, counted by reason, and refused above
    max_bad_fraction. time_unit (s, ms, us, ns) overrides the format's; restarts (error, append, sort) says what to do
    with files glued together; lengths_only reads tokens where times are absent; block_tokens overrides the format's;
    rename maps column names of the file to those of a known format; columns says where our fields are in a file of no
    known format, each a column name or {"column": ..., "unit": ...} or {"constant": ...}; context ("cumulative" or
    "delta") says whether a turn's input tokens hold the turns before; count_tokens counts those of texts (four
    characters a token without); where keeps the rows of which every condition holds, as "model=gpt-4" or
    "input_tokens<=4096"; time_range those that arrive in [from, to) seconds after the file's first good row (after
    zero in our own formats); limit the first rows of what is left.
    Raises BadTrace for bad data (its text begins FILE:LINE:COLUMN), ValueError for bad options, OSError.
    """
    options = with_options(
        strict,
        {
            "time_unit": time_unit, "restarts": restarts, "lengths_only": lengths_only, "block_tokens": block_tokens,
            "rename": rename, "columns": columns, "context": context, "count_tokens": count_tokens, "limit": limit,
            "max_bad_fraction": max_bad_fraction, "where": where, "time_range": time_range,
        },
    )  # fmt: skip
    if _is_large_text(path):
        return _by_blocks(path, format, strict, options)
    source = load(path)
    found = _parquet(source) if source.content.startswith(PARQUET_MAGIC) else table_of(source)
    if isinstance(found, Trace):
        return _selected(found, options)
    trace = from_table(source, renamed_columns(found, options.rename), format, options)
    return _with_own_metadata(trace, path) if trace.metadata["format"] == "fleetplan" else trace


def with_options(strict: bool, wishes: Mapping[str, Any]) -> Options:
    """Return the options of `read` from its keywords; raises ValueError for an unknown one or an unknown value."""
    known = set(Options.__slots__) - {"strict"}
    if unknown := set(wishes) - known:
        raise ValueError(f"unknown option {sorted(unknown)[0]!r}; known: {', '.join(sorted(known))}")
    pairs = {name: tuple(sorted((wishes.get(name) or {}).items())) for name in ("rename", "columns")}
    pairs["where"] = tuple(wishes.get("where") or ())
    options = Options(strict=strict, **{**wishes, **pairs})
    _check_options(options)
    return options


def sample() -> Trace:
    """Return the bundled trace: about an hour of generated chat traffic, 19 thousand requests at 5.5/s."""
    return read(SAMPLE)


def table_of(source: Source) -> Table:
    """Return the raw cells of a text file: CSV, JSON lines, or one JSON document."""
    text = decode(source.file, source.content)
    refuse_servegen(source.file, text)
    if not looks_like_json(text):
        return csv_table(source.file, text)
    return document_table(source.file, text) or json_lines(source.file, text)


def from_table(source: Source, table: Table, asked: str | None, options: Options) -> Trace:
    """Return the trace that raw cells hold; raises BadTrace."""
    if table.problems and not table.lines:
        raise table.error(table.problems[0])
    table = unnest(table, options.count_tokens, options.context)
    layout = mapped(table, options.columns) if options.columns else choose(table, asked, options.lengths_only)
    columns, faults = columns_of(table, layout, options)
    kept = _kept(table, faults, options)
    problems = (*table.problems, *faults.values())
    dropped = Counter(each.reason for each in problems)
    wanted, left_out = _wanted(columns, kept, layout, options)
    dropped.update(left_out)
    kept = kept[wanted][: options.limit]
    if not len(kept):
        raise table.error(nothing_left(dropped))
    arrivals = _arrivals(table, layout, columns.pop("arrival_ns", None), kept, options)
    columns = {name: take_column(column, kept[arrivals.order]) for name, column in columns.items()}
    if layout.derive is not None:
        columns = layout.derive(columns)
    examples: dict[str, list[str]] = {}
    keep_examples(examples, table, problems)
    about = About(source, table, layout, options, table.rows_read, dropped, examples)
    return _trace(about, columns, arrivals)


def columns_of(table: Table, layout: Format, options: Options) -> tuple[dict[str, Column], dict[int, Problem]]:
    """Return the columns of a layout that raw cells hold, and what is wrong with which row."""
    unit = options.time_unit or layout.time_unit
    columns: dict[str, Column] = {"source_line": np.array(table.lines, np.int64)}
    problems: dict[int, Problem] = {}
    for wanted in layout.fields:
        source = layout.source_of(wanted, table.columns)
        if source is None or (wanted.kind == "time" and options.lengths_only):
            continue
        raw = table.columns[source]
        if not wanted.required and all(cell is None for cell in raw):
            continue
        columns[wanted.name], faults = (
            cells.times(raw, unit) if wanted.kind == "time" else cells.KINDS[wanted.kind](raw)
        )
        for row, (reason, words) in faults.items():
            name = table.names.get(source, source)
            problems.setdefault(row, Problem(table.lines[row], source, f"{name}: {reason}", f"{name} {words}"))
    return columns, problems


def _kept(table: Table, faults: Mapping[int, Problem], options: Options) -> Array:
    problems = sorted((*table.problems, *faults.values()), key=lambda each: each.line)
    if problems and options.strict:
        raise table.error(problems[0])
    if len(problems) > options.max_bad_fraction * table.rows_read:
        share = (
            f"{len(problems)} of {table.rows_read} rows are bad, more than max_bad_fraction {options.max_bad_fraction}"
        )
        raise table.error(replace(problems[0], words=f"{share}; the first: {problems[0].words}"))
    kept = np.array([row for row in range(len(table.lines)) if row not in faults], np.int64)
    if not len(kept):
        words = "no data rows: a trace needs at least one request"
        raise table.error(Problem(len(table.text_lines) or 1, "", "", words))
    return kept


def _wanted(
    columns: Mapping[str, Column], kept: Array, layout: Format, options: Options
) -> tuple[Array, dict[str, int]]:
    """Which of the good rows are wanted, and how many are not, by reason."""
    if not options.where and options.time_range is None:
        return np.arange(len(kept)), {}
    good = {name: take_column(column, kept) for name, column in columns.items()}
    times_ns = good.pop("arrival_ns", None)
    if layout.derive is not None:
        good = layout.derive(good)
    since_ns = None if times_ns is None else cast(Array, times_ns) - (0 if layout.keeps_origin else times_ns[0])
    return chosen(good, options.where, options.time_range, since_ns)


def nothing_left(dropped: Mapping[str, int]) -> Problem:
    """Return the problem of a file of which no row is wanted."""
    reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.items())
    return Problem(1, "", "", f"no row is kept ({reasons})")


def _selected(trace: Trace, options: Options) -> Trace:
    """The wanted rows of a trace that is one already."""
    if not options.where and options.time_range is None and options.limit is None:
        return trace
    columns = {**trace.columns, **{name: getattr(trace, name) for name in ("input_tokens", "output_tokens", "status")}}
    rows, left_out = chosen(columns, options.where, options.time_range, trace.arrival_ns)
    kept = rows[: options.limit]
    if not len(kept):
        raise BadTrace(trace.name, 1, 1, nothing_left(left_out).words)
    left_out |= {"beyond limit": len(rows) - len(kept)} if len(rows) > len(kept) else {}
    dropped = Counter(cast(dict[str, int], trace.metadata.get("rows_dropped", {})))
    dropped.update(left_out)
    step = {"operation": "select", "parameters": options.changed()}
    about = {"rows_kept": len(kept), "rows_dropped": dict(dropped), "chain": [*trace.chain, step]}
    return replace(take(trace, kept), metadata={**trace.metadata, **about})


def keep_examples(examples: dict[str, list[str]], table: Table, problems: Iterable[Problem]) -> None:
    """Add to the examples of each reason, three at most, what a message would say of these problems."""
    for each in sorted(problems, key=lambda each: each.line):
        found = examples.setdefault(each.reason, [])
        if len(found) < EXAMPLES:
            found.append(str(table.error(each)))


def _arrivals(table: Table, layout: Format, times_ns: Column | None, kept: Array, options: Options) -> Arrivals:
    if times_ns is None:
        times_ns = np.zeros(len(table.lines), np.int64)
    assert isinstance(times_ns, np.ndarray)
    policy = "sort" if layout.interleaved else options.restarts
    arrivals = in_order(times_ns[kept], policy, layout.keeps_origin)
    if layout.interleaved:
        return replace(arrivals, inversions=0, restarts=())
    if arrivals.restarts and options.restarts == "error":
        row = kept[arrivals.restarts[0]]
        raise table.error(
            Problem(
                table.lines[row],
                "timestamp",
                "",
                RESTARTS,
            )
        )
    return arrivals


@dataclass(frozen=True, slots=True)
class About:
    """What a reading knows beside the rows it kept: file, layout, options, rows read and rows dropped by reason."""

    source: Source
    table: Table
    layout: Format
    options: Options
    rows_read: int
    dropped: Counter[str]
    examples: dict[str, list[str]]

    def metadata(self, columns: Mapping[str, Column], arrivals: Arrivals, rows: int) -> dict[str, object]:
        """Return the metadata of a trace of so many rows with these columns, all but its warnings."""
        options, layout, table = self.options, self.layout, self.table
        used = {layout.source_of(each, table.columns) for each in layout.fields}
        size = options.block_tokens or table.about.get("block_tokens") or layout.block_tokens
        blocks = size if "prefix_blocks" in columns else None
        limited = self.rows_read - sum(self.dropped.values()) - rows
        unit = options.time_unit or layout.time_unit or "date"
        return {
            "source": Path(self.source.file).name,
            "sha256": self.source.sha256,
            "bytes": self.source.size_bytes,
            "format": layout.name,
            "rows_read": self.rows_read,
            "rows_kept": rows,
            "rows_dropped": dict(self.dropped) | ({"beyond limit": limited} if limited else {}),
            **({"dropped_examples": self.examples} if self.examples else {}),
            "time_unit": "none" if options.lengths_only or layout.timeless else unit,
            "time_quantum_ns": arrivals.quantum_ns,
            "t0_ns": arrivals.t0_ns,
            "tz": layout.tz,
            "inversions": arrivals.inversions,
            "restarts": len(arrivals.restarts),
            "block_tokens": blocks,
            "block_scope": layout.block_scope if blocks else None,
            "context": table.about.get("context", layout.context),
            "unknown_columns": [table.names[name] for name in table.columns if name not in used],
            "chain": [{"operation": "read", "parameters": {"format": layout.name} | options.changed()}],
        }


def _trace(about: About, columns: dict[str, Column], arrivals: Arrivals) -> Trace:
    metadata = about.metadata(columns, arrivals, len(arrivals.ns))
    columns = dict(columns)
    core: dict[str, Any] = {name: columns.pop(name) for name in ("input_tokens", "output_tokens")}
    core["status"] = columns.pop("status", np.full(len(arrivals.ns), Status.UNKNOWN, np.int8))
    trace = Trace(stem(about.source.file), arrivals.ns, columns=columns, metadata=metadata, **core)
    forced = about.options.time_unit is not None
    warnings = [*about.layout.notes, *about.table.about.get("notes", ()), *doubts(trace, about.table.file, forced)]
    return replace(trace, metadata=metadata | {"warnings": warnings})


def _is_large_text(path: str | Path) -> bool:
    if not Path(path).is_file() or Path(path).stat().st_size < LARGE_BYTES:
        return False
    with Path(path).open("rb") as file:
        return file.read(4) != PARQUET_MAGIC


def _by_blocks(path: str | Path, format: str | None, strict: bool, options: Options) -> Trace:
    """The trace of a file too large for its text to be held: by way of Parquet on disk, if it can be streamed."""
    from traces.streaming import stream_to_parquet

    with TemporaryDirectory() as folder:
        beside = Path(folder) / "trace.parquet"
        if stream_to_parquet(Path(path), beside, format, options) is None:
            source = load(path)
            return from_table(source, renamed_columns(table_of(source), options.rename), format, options)
        trace = _parquet(load(beside))
        assert isinstance(trace, Trace)
        return trace


def _parquet(source: Source) -> Trace | Table:
    from traces.parquet import from_parquet

    return from_parquet(source)


def _with_own_metadata(trace: Trace, path: str | Path) -> Trace:
    """The metadata written beside a CSV of ours, where they still belong to its rows."""
    beside = metadata_path(path)
    if not beside.is_file():
        return trace
    try:
        about = json.loads(beside.read_text())
        metadata, name, sha256 = dict(about["metadata"]), str(about["name"]), about["content_sha256"]
        columns = set(about["columns"])
    except (ValueError, KeyError, TypeError):
        raise BadTrace(str(beside), 1, 1, "not the metadata of a trace: write the trace again, or delete it") from None
    written = replace(trace, columns={each: column for each, column in trace.columns.items() if each in columns})
    if sha256 == content_sha256(written):
        return replace(written, name=name, metadata=metadata)
    warnings = [*_warnings(trace), f"{beside.name} belongs to other rows: not used"]
    return replace(trace, metadata={**trace.metadata, "warnings": warnings})


def _warnings(trace: Trace) -> list[str]:
    return list(cast(list[str], trace.metadata["warnings"]))


def stem(file: str) -> str:
    """Return the name of a trace read from a file."""
    name = Path(file).name
    for ending in (".gz", ".xz", ".zst", ".bz2", ".csv", ".jsonl", ".json", ".parquet"):
        name = name.removesuffix(ending)
    return name


def _check_options(options: Options) -> None:
    for name, value, known in (
        ("time_unit", options.time_unit, (None, *UNIT_NS)),
        ("restarts", options.restarts, ("error", "append", "sort")),
        ("context", options.context, (None, "cumulative", "delta")),
    ):
        if value not in known:
            raise ValueError(f"unknown {name} {value!r}; known: {', '.join(map(str, known))}")
    for text in options.where:
        condition(text)
    check_time_range(options.time_range)
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"limit {options.limit} keeps no row; expected at least 1")
