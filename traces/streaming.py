"""Trace files larger than memory: imported block by block into Parquet, told, checked and reported as by `read`."""

import bz2
import gzip
import hashlib
import io
import lzma
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from traces import reading
from traces.arrivals import Arrivals, quantum_ns, restarts_in
from traces.doubts import refuse_absurd_rate
from traces.errors import BadTrace
from traces.fast_csv import fast_columns
from traces.formats import FORMATS, choose, mapped
from traces.joining import joined
from traces.layout import Format
from traces.nested import is_nested
from traces.reading import About, Options, with_options
from traces.servegen import refuse_servegen
from traces.source import PARQUET_MAGIC, Source, refuse_what_is_no_data
from traces.table import Problem, Table, csv_table, decode, json_lines, looks_like_json, normal, renamed_columns
from traces.trace import NS_PER_S, Array, Column, Status, take_column

BLOCK_BYTES = 8 << 20
TAIL_ROWS = 1000  # kept of the block before, to see whether time restarts


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did: rows read = kept + dropped (by reason), and the metadata written with them."""

    target: Path
    rows_read: int
    rows_kept: int
    dropped: dict[str, int]
    span_s: float
    warnings: tuple[str, ...]
    metadata: dict[str, object]

    @property
    def rate_per_s(self) -> float | None:
        """Return rows kept divided by the span; None where all arrive at once."""
        return self.rows_kept / self.span_s if self.span_s > 0 else None


def import_to_parquet(
    path: str | Path, target: str | Path, format: str | None = None, strict: bool = True, **wishes: Any
) -> ImportReport:
    """Write a trace file of any known format as our Parquet and return the report; options as in `read`.

    CSV and JSON lines go through block by block, in bounded memory, if their rows need only local reordering; what
    needs the whole (JSON documents, sessions to be put together, restarts to be joined) is read into memory.
    Raises BadTrace, ValueError, OSError as `read` does; nothing is left at the target then.
    """
    options = with_options(strict, wishes)
    target = Path(target)
    beside = target.with_name(target.name + ".part")
    try:
        report = stream_to_parquet(Path(path), beside, format, options) or _whole(path, beside, format, strict, wishes)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return replace(report, target=target)


@dataclass(slots=True)
class Rows:
    """Some rows in file order: absolute times, and every other column."""

    times_ns: Array
    columns: dict[str, Column]

    def __len__(self) -> int:
        return len(self.times_ns)

    def take(self, rows: Array) -> "Rows":
        """Return the given rows."""
        return Rows(self.times_ns[rows], {name: take_column(column, rows) for name, column in self.columns.items()})

    def joined_to(self, later: "Rows") -> "Rows":
        """Return these rows with the later ones behind them."""
        sizes = [len(self), len(later)]
        columns = {name: joined([column, later.columns[name]], sizes) for name, column in self.columns.items()}
        return Rows(np.concatenate([self.times_ns, later.times_ns]), columns)


class _NeedsTheWhole(Exception):
    """This file cannot be imported in blocks."""


def _whole(path: str | Path, target: Path, format: str | None, strict: bool, wishes: dict[str, Any]) -> ImportReport:
    from traces.parquet import to_parquet

    trace = reading.read(path, format, strict, **wishes)
    to_parquet(trace, target)
    metadata = dict(trace.metadata)
    dropped, warnings = cast(dict[str, int], metadata["rows_dropped"]), cast(list[str], metadata["warnings"])
    read, kept = cast(int, metadata["rows_read"]), len(trace)
    return ImportReport(target, read, kept, dropped, trace.span_s, tuple(warnings), metadata)


def stream_to_parquet(path: Path, target: Path, format: str | None, options: Options) -> ImportReport | None:
    """Write a file in blocks and return the report, or None where the file needs the whole."""
    if options.restarts != "error":
        return None
    try:
        with _Unpacked(path) as unpacked:
            blocks = unpacked.blocks()
            before, first = next(blocks, (0, b""))
            reader = _Reader(str(path), first, format, options)
            writer = _Writer(target, reader)
            try:
                writer.add(reader.rows(before, first))
                for before, block in blocks:
                    writer.add(reader.rows(before, block))
                    if reader.is_full:
                        reader.count_the_rest(blocks)
                return writer.finish(unpacked.source())
            finally:
                writer.close()
    except _NeedsTheWhole:
        return None


class _Unpacked:
    """A file read once: its unpacked bytes in blocks of whole lines, and the hash of its packed ones."""

    def __init__(self, path: Path) -> None:
        self._hashed = _Hashed(path)
        self._file = str(path)

    def __enter__(self) -> "_Unpacked":
        return self

    def __exit__(self, *_: object) -> None:
        self._hashed.close()

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """Yield (lines before, block) until the end; every block but the last ends with a line."""
        packed = io.BufferedReader(self._hashed, 1 << 16)
        stream = self._open(packed)
        rest, lines = b"", 0
        while True:
            more = self._read(stream)
            if not more:
                break
            cut = more.rfind(b"\n") + 1
            if not cut:
                rest += more
                continue
            block = rest + more[:cut] if rest else more[:cut]
            rest = more[cut:]
            yield lines, block
            lines += block.count(b"\n")
        if rest:
            yield lines, rest
        while packed.read(1 << 20):
            pass

    def source(self) -> Source:
        """Return name, hash and size, once all has been read."""
        return Source(self._file, self._hashed.sha256.hexdigest(), self._hashed.size_bytes, b"")

    def _read(self, stream: BinaryIO) -> bytes:
        try:
            return stream.read(BLOCK_BYTES)
        except (EOFError, ValueError, OSError, lzma.LZMAError) as problem:
            raise BadTrace(self._file, 1, 1, f"damaged file ({problem}): fetch it again") from None

    def _open(self, packed: Any) -> BinaryIO:
        start = packed.peek(8)[:8]
        opened = next((each for magic, each in OPENERS.items() if start.startswith(magic)), None)
        return cast(BinaryIO, packed if opened is None else opened(packed))


class _Hashed(io.RawIOBase):
    def __init__(self, path: Path) -> None:
        self._opened = path.open("rb", buffering=0)
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._opened.readinto(buffer) or 0
        self.sha256.update(memoryview(buffer)[:count])
        self.size_bytes += count
        return count

    def close(self) -> None:
        self._opened.close()
        super().close()


def _zstd(packed: Any) -> BinaryIO:
    import pyarrow as pa

    return cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(packed, "r"), "zstd"))


OPENERS: dict[bytes, Callable[[Any], BinaryIO]] = {
    b"\x1f\x8b": lambda packed: cast(BinaryIO, gzip.GzipFile(fileobj=packed)),
    b"\xfd7zXZ\x00": lambda packed: cast(BinaryIO, lzma.LZMAFile(packed)),  # noqa: SIM115
    b"BZh": lambda packed: cast(BinaryIO, bz2.BZ2File(packed)),
    b"\x28\xb5\x2f\xfd": _zstd,
}


class _Reader:
    """Blocks of text turned into rows of one format, the format and its columns told from the first block."""

    def __init__(self, file: str, first: bytes, format: str | None, options: Options) -> None:
        self.file, self.options = file, options
        self.rows_read, self.kept, self.dropped = 0, 0, Counter[str]()
        self.examples: dict[str, list[str]] = {}
        self._first_problem: tuple[Table, Problem] | None = None
        if first.startswith(PARQUET_MAGIC):
            raise _NeedsTheWhole
        refuse_what_is_no_data(file, first)
        text = _decoded(file, 0, first)
        refuse_servegen(file, text)
        self.is_json = looks_like_json(text)
        self.header = b"" if self.is_json else self._header(first)
        table = self._json_example(text) if self.is_json else self._table(0, self.header)
        self.table = replace(table, columns={name: [] for name in table.columns}, lines=[], problems=[], text_lines=[])
        self.layout = self._layout(table, format)
        self.names: tuple[str, ...] | None = None

    @property
    def is_full(self) -> bool:
        """Return whether as many rows are kept as were asked for."""
        return self.options.limit is not None and self.kept >= self.options.limit

    def rows(self, before: int, block: bytes) -> Rows:
        """Return the good rows of a block, the bad ones counted; raises BadTrace where strict."""
        if before == 0 and not self.is_json:
            skipped = self._lines_to_header(block)
            lines = block.split(b"\n", skipped)
            before, block = skipped, lines[skipped] if len(lines) > skipped else b""
        found = (
            None if self.is_json else fast_columns(block, before, self.header, self.table, self.layout, self.options)
        )
        columns = self._slow(before, block) if found is None else found
        count = len(cast(Array, columns["source_line"]))
        if found is not None:
            self.rows_read += count
        columns = self._limited(columns, count)
        times = columns.pop("arrival_ns", None)
        count = len(cast(Array, columns["source_line"]))
        self.kept += count
        if not count:
            return Rows(np.zeros(0, np.int64), {})
        if self.layout.derive is not None:
            columns = self.layout.derive(columns)
        self._same_columns(columns)
        return Rows(np.zeros(count, np.int64) if times is None else cast(Array, times), columns)

    def count_the_rest(self, blocks: Iterator[tuple[int, bytes]]) -> None:
        """Count the lines that a limit leaves unread."""
        for _, block in blocks:
            self.rows_read += sum(1 for line in block.split(b"\n") if line.strip())

    def refuse_too_many_bad(self) -> None:
        """Raise BadTrace where more rows were bad than may be, or none was good."""
        bad = sum(self.dropped.values())
        if self._first_problem is not None and bad > self.options.max_bad_fraction * self.rows_read:
            table, problem = self._first_problem
            most = self.options.max_bad_fraction
            share = f"{bad} of {self.rows_read} rows are bad, more than max_bad_fraction {most}"
            raise table.error(replace(problem, words=f"{share}; the first: {problem.words}"))
        if not self.kept:
            raise BadTrace(self.file, 1, 1, "no data rows: a trace needs at least one request")

    def _slow(self, before: int, block: bytes) -> dict[str, Column]:
        table = self._table(before, block)
        self.rows_read += table.rows_read
        columns, faults = reading.columns_of(table, self.layout, self.options)
        problems = sorted((*table.problems, *faults.values()), key=lambda each: each.line)
        if problems and self.options.strict:
            raise table.error(problems[0])
        if problems and self._first_problem is None:
            self._first_problem = (table, problems[0])
        self.dropped.update(each.reason for each in problems)
        reading.keep_examples(self.examples, table, problems)
        kept = np.array([row for row in range(len(table.lines)) if row not in faults], np.int64)
        return {name: take_column(column, kept) for name, column in columns.items()}

    def _table(self, before: int, block: bytes) -> Table:
        """The raw cells of a block, their lines those of the file."""
        text = _decoded(self.file, before, block)
        if self.is_json:
            table, added = json_lines(self.file, text), 0
        else:
            header = _decoded(self.file, 0, self.header)
            table, added = self._csv(before, header if block is self.header else header + "\n" + text)
        shift = before - added
        table.lines = [line + shift for line in table.lines]
        table.problems = [replace(each, line=each.line + shift) for each in table.problems]
        table.lines_before = shift
        if self.is_json:
            if is_nested(table) or self._names_another_format(table):
                raise _NeedsTheWhole
            self._with_known_columns(table)
        return renamed_columns(table, self.options.rename) if self.options.rename else table

    def _names_another_format(self, table: Table) -> bool:
        """Whether a block has keys that the first had not and that tell formats apart."""
        telling = {name for each in FORMATS.values() for name in (*each.marks, *each.forbidden)}
        telling |= {normal(name) for each in FORMATS.values() for wanted in each.fields for name in wanted.sources}
        return bool((set(table.columns) - set(self.table.columns)) & telling)

    def _with_known_columns(self, table: Table) -> None:
        """A key that no object of this block has is missing in all of them."""
        lacking = [name for name in self.table.columns if name not in table.columns]
        table.columns.update({name: [None] * len(table.lines) for name in lacking})
        table.header = (*table.header, *(self.table.names[name] for name in lacking))

    def _csv(self, before: int, text: str) -> tuple[Table, int]:
        added = 1 if before else 0
        try:
            return csv_table(self.file, text), added
        except BadTrace as problem:
            line = problem.line + before - added
            raise BadTrace(problem.file, line, problem.column, problem.problem) from None

    def _json_example(self, text: str) -> Table:
        """The raw cells of the first block, if it holds JSON lines that stand each for itself."""
        first = text.lstrip()[:1]
        table = json_lines(self.file, text)
        if first == "[" or not table.lines:
            raise _NeedsTheWhole
        if is_nested(table):
            raise _NeedsTheWhole
        return renamed_columns(table, self.options.rename) if self.options.rename else table

    def _layout(self, table: Table, format: str | None) -> Format:
        options = self.options
        try:
            layout = mapped(table, options.columns) if options.columns else choose(table, format, options.lengths_only)
        except BadTrace:
            if self.is_json:
                raise _NeedsTheWhole from None  # later lines may have the keys that these lack
            raise
        constants = any(isinstance(wish, dict) and "constant" in wish for _, wish in options.columns)
        if not layout.row_by_row or layout.interleaved or constants:
            raise _NeedsTheWhole
        return layout

    def _header(self, first: bytes) -> bytes:
        return first.split(b"\n")[self._lines_to_header(first) - 1].removesuffix(b"\r")

    def _lines_to_header(self, first: bytes) -> int:
        for number, line in enumerate(first.split(b"\n", 1000), 1):
            if line.removeprefix(b"\xef\xbb\xbf").strip():
                return number
        raise _NeedsTheWhole

    def _limited(self, columns: dict[str, Column], count: int) -> dict[str, Column]:
        if self.options.limit is None or self.kept + count <= self.options.limit:
            return columns
        rows = np.arange(self.options.limit - self.kept)
        return {name: take_column(column, rows) for name, column in columns.items()}

    def _same_columns(self, columns: dict[str, Column]) -> None:
        """Blocks must agree on their columns: a JSON key that comes or goes between them needs the whole file."""
        if self.names is None:
            self.names = tuple(columns)
        elif set(columns) != set(self.names):
            raise _NeedsTheWhole


@dataclass(slots=True)
class _Tally:
    """What the report needs to know of all rows, gathered block by block."""

    rows: int = 0
    inversions: int = 0
    no_output: int = 0
    no_input: int = 0
    duplicates: int = 0
    zero_gaps: int = 0
    gap_divisor_ns: int = 0
    sample_ns: list[Array] = field(default_factory=list)
    histograms: dict[str, Array] = field(default_factory=dict)
    last: tuple[int, int, int] | None = None

    def add(self, arrival_ns: Array, columns: dict[str, Column]) -> None:
        """Take in the next rows, in their order of arrival."""
        lengths = [cast(Array, columns[name]) for name in ("input_tokens", "output_tokens")]
        before = np.array([] if self.last is None else [self.last], np.int64).reshape(-1, 3)
        rows = [np.concatenate([before[:, place], each]) for place, each in enumerate((arrival_ns, *lengths))]
        gaps = np.diff(rows[0])
        same = gaps == 0
        self.zero_gaps += int(np.count_nonzero(same))
        self.duplicates += int(np.count_nonzero(same & (np.diff(rows[1]) == 0) & (np.diff(rows[2]) == 0)))
        self.gap_divisor_ns = int(np.gcd.reduce(gaps, initial=self.gap_divisor_ns))
        if self.rows < SAMPLE_ROWS:
            self.sample_ns.append(arrival_ns[: SAMPLE_ROWS - self.rows].copy())
        self.no_input += int(np.count_nonzero(lengths[0] == 0))
        self.no_output += int(np.count_nonzero(lengths[1] == 0))
        for name, values in zip(("input_tokens", "output_tokens"), lengths, strict=True):
            self._count(name, values)
        self.rows += len(arrival_ns)
        self.last = (int(arrival_ns[-1]), int(lengths[0][-1]), int(lengths[1][-1]))

    @property
    def quantum_ns(self) -> int:
        """Return the step of the clock: that of the first rows, or what divides all gaps where it divides theirs."""
        sample = np.concatenate(self.sample_ns)
        step = quantum_ns(sample)
        exact = self.rows <= SAMPLE_ROWS or (len(sample) > 1 and step != int(np.gcd.reduce(np.diff(sample))))
        return step if exact else self.gap_divisor_ns

    def warnings(self) -> list[str]:
        """Return the warnings of `doubts`, from counts."""
        found = []
        if self.no_input == self.rows:
            found.append("all input lengths are 0: the source did not record them")
        zero, step_ns = self.zero_gaps / max(self.rows - 1, 1), self.quantum_ns
        if step_ns >= NS_PER_S // 100 and self.rows > 100 and zero >= 0.05:
            step = f"{step_ns / NS_PER_S:g} s ({zero:.0%} of gaps are zero)"
            found.append(f"time moves in steps of {step}: dequantise before fitting gaps")
        if self.inversions:
            found.append(f"{self.inversions} rows came before the row above them: sorted by time")
        if self.no_output:
            found.append(f"{self.no_output} requests have no output tokens ({self.no_output / self.rows:.1%})")
        found.append("; ".join(filter(None, map(self._clip, self.histograms))))
        if self.duplicates:
            found.append(f"{self.duplicates} rows equal the row above them: kept")
        return [each for each in found if each]

    def _count(self, name: str, values: Array) -> None:
        counts = np.bincount(np.minimum(values, MOST_COUNTED))
        known = self.histograms.get(name, np.zeros(0, np.int64))
        longer, shorter = (counts, known) if len(counts) > len(known) else (known, counts)
        longer = longer.copy()
        longer[: len(shorter)] += shorter
        self.histograms[name] = longer

    def _clip(self, name: str) -> str:
        counts = self.histograms[name]
        most = len(counts) - 1
        near_top = float(counts[int(np.ceil(0.999 * most)) :].sum() / self.rows)
        if self.rows < 1000 or most == 0 or most == MOST_COUNTED or near_top <= 0.005:
            return ""
        return f"{name} stops at {most} ({near_top:.1%} of requests): clipped by the source"


MOST_COUNTED = 1 << 20
SAMPLE_ROWS = 200_000


class _Writer:
    """Rows put in order through a buffer of one block and written as row groups."""

    def __init__(self, target: Path, reader: _Reader) -> None:
        from traces.parquet import BlockWriter

        self._reader, self._tally = reader, _Tally()
        self._parquet = BlockWriter(target)
        self._pending: Rows | None = None
        self._tail = np.zeros(0, np.int64)
        self._lowest: int | None = None
        self._t0_ns: int | None = None
        self._written_ns: int | None = None

    def add(self, rows: Rows) -> None:
        """Take in rows in file order; write what no later row can come before, one block later."""
        if not len(rows):
            return
        self._look_for_restarts(rows)
        pending = self._pending
        if pending is None:
            self._pending = _sorted(rows)
        elif int(rows.times_ns.min()) >= int(pending.times_ns[-1]):
            self._write(pending)
            self._pending = _sorted(rows)
        else:
            both = _sorted(pending.joined_to(rows))
            cut = len(pending)
            self._write(both.take(np.arange(cut)))
            self._pending = both.take(np.arange(cut, len(both)))

    def finish(self, source: Source) -> ImportReport:
        """Write what is left and the metadata; return the report."""
        reader, tally = self._reader, self._tally
        reader.refuse_too_many_bad()
        assert self._pending is not None
        self._write(self._pending)
        assert self._t0_ns is not None
        assert tally.last is not None
        reader.table.file = source.file
        arrivals = Arrivals(np.zeros(0), np.zeros(0), self._t0_ns, tally.inversions, (), tally.quantum_ns)
        about = About(
            source, reader.table, reader.layout, reader.options, reader.rows_read, reader.dropped, reader.examples
        )
        columns = self._parquet.columns
        metadata = about.metadata(columns, arrivals, tally.rows)
        timeless = metadata["time_unit"] == "none"
        notes = ["no arrival times in this file: all requests at once; only lengths mean anything"] if timeless else []
        unknown = cast(list[str], metadata["unknown_columns"])
        last = [f"columns not used: {', '.join(unknown)}"] if unknown else []
        metadata["warnings"] = [*reader.layout.notes, *notes, *tally.warnings(), *last]
        span_s = (tally.last[0] - self._parquet.first_ns) / NS_PER_S
        if reader.options.time_unit is None:
            refuse_absurd_rate(tally.rows, span_s, metadata["time_unit"], source.file)
        self._parquet.finish(reading.stem(source.file), metadata)
        dropped = cast(dict[str, int], metadata["rows_dropped"])
        warnings = tuple(cast(list[str], metadata["warnings"]))
        return ImportReport(Path(), reader.rows_read, tally.rows, dropped, span_s, warnings, metadata)

    def close(self) -> None:
        """Close the file, finished or not."""
        self._parquet.close()

    def _write(self, rows: Rows) -> None:
        first_ns = int(rows.times_ns[0])
        if self._t0_ns is None:
            self._t0_ns = min(first_ns, 0) if self._reader.layout.keeps_origin else first_ns
        if self._written_ns is not None and first_ns < self._written_ns:
            line = int(cast(Array, rows.columns["source_line"])[0])
            back_s = (self._written_ns - first_ns) / NS_PER_S
            words = (
                f"this row comes {back_s:.6g} s before rows {BLOCK_BYTES >> 20} MB above it, too far to put in order"
            )
            raise BadTrace(self._reader.file, line, 1, f"{words}; restarts='sort' or 'append' reads all into memory")
        self._written_ns = int(rows.times_ns[-1])
        arrival_ns = rows.times_ns - self._t0_ns
        columns = dict(rows.columns)
        columns.setdefault("status", np.full(len(rows), Status.UNKNOWN, np.int8))
        self._tally.add(arrival_ns, columns)
        self._parquet.write(arrival_ns, columns)

    def _look_for_restarts(self, rows: Rows) -> None:
        times = rows.times_ns
        lowest = int(times.min())
        if len(self._tail):
            self._tally.inversions += int(times[0] < self._tail[-1])
        steps_back = np.diff(times) < 0
        self._tally.inversions += int(np.count_nonzero(steps_back))
        if steps_back.any() or (len(self._tail) and times[0] < self._tail[-1]):
            known = [] if self._lowest is None else [self._lowest]
            context = np.concatenate([np.array(known, np.int64), self._tail, times])
            restarts = restarts_in(context)
            if restarts:
                row = restarts[0] - len(context) + len(times)
                line = int(cast(Array, rows.columns["source_line"])[max(row, 0)])
                raise BadTrace(self._reader.file, line, 1, reading.RESTARTS)
        self._lowest = lowest if self._lowest is None else min(self._lowest, lowest)
        self._tail = times[-TAIL_ROWS:]


def _sorted(rows: Rows) -> Rows:
    if np.all(np.diff(rows.times_ns) >= 0):
        return rows
    return rows.take(np.argsort(rows.times_ns, kind="stable"))


def _decoded(file: str, before: int, block: bytes) -> str:
    try:
        return decode(file, block)
    except BadTrace as problem:
        raise BadTrace(file, problem.line + before, problem.column, problem.problem) from None
