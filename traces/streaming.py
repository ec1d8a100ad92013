"""Trace files larger than memory: imported block by block into Parquet, told, checked and reported as by `read`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from traces import reading
from traces.arrivals import Arrivals, restarts_in
from traces.block_reader import BlockReader, NeedsTheWhole, Rows
from traces.doubts import refuse_absurd_rate
from traces.errors import BadTrace
from traces.reading import About, Options, with_options
from traces.source import Source
from traces.tally import Tally
from traces.trace import NS_PER_S, Array, Status
from traces.unpacking import Unpacked

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
        with Unpacked(path) as unpacked:
            blocks = unpacked.blocks(BLOCK_BYTES)
            before, first = next(blocks, (0, b""))
            reader = BlockReader(str(path), first, format, options)
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
    except NeedsTheWhole:
        return None


class _Writer:
    """Rows put in order through a buffer of one block and written as row groups."""

    def __init__(self, target: Path, reader: BlockReader) -> None:
        from traces.parquet import BlockWriter

        self._reader, self._tally = reader, Tally()
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
            source, reader.table, reader.layout, reader.options, reader.rows_read, reader.dropped + reader.left_out,
            reader.examples,
        )  # fmt: skip
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
