"""Blocks of text turned into rows, checked and counted; what cannot be told from blocks alone needs the whole file."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from traces import reading
from traces.errors import BadTrace
from traces.fast_csv import fast_columns
from traces.formats import FORMATS, choose, mapped
from traces.joining import joined
from traces.layout import Format
from traces.nested import is_nested
from traces.reading import Options
from traces.selection import chosen
from traces.servegen import refuse_servegen
from traces.source import PARQUET_MAGIC, refuse_binary, refuse_what_is_no_data
from traces.table import Problem, Table, csv_table, decode, json_lines, looks_like_json, normal, renamed_columns
from traces.trace import Array, Column, take_column


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


class NeedsTheWhole(Exception):
    """This file cannot be imported in blocks."""


class BlockReader:
    """Blocks of text turned into rows of one format, the format and its columns told from the first block."""

    def __init__(self, file: str, first: bytes, format: str | None, options: Options) -> None:
        self.file, self.options = file, options
        self.rows_read, self.kept, self.dropped, self.left_out = 0, 0, Counter[str](), Counter[str]()
        self._since_ns: int | None = None
        self._seen_bytes = 0
        self.examples: dict[str, list[str]] = {}
        self._first_problem: tuple[Table, Problem] | None = None
        if first.startswith(PARQUET_MAGIC):
            raise NeedsTheWhole
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
        refuse_binary(self.file, block, before_bytes=self._seen_bytes)
        self._seen_bytes += len(block)
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
        times = columns.pop("arrival_ns", None)
        if count and self.layout.derive is not None:
            columns = self.layout.derive(columns)
        wanted = self._wanted(columns, cast(Array | None, times), count)
        self.kept += len(wanted)
        if not len(wanted):
            return Rows(np.zeros(0, np.int64), {})
        if len(wanted) < count:
            count = len(wanted)
            columns = {name: take_column(column, wanted) for name, column in columns.items()}
            times = None if times is None else take_column(times, wanted)
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
        if not self.kept and self.left_out:
            raise BadTrace(self.file, 1, 1, reading.nothing_left(self.dropped + self.left_out).words)
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
                raise NeedsTheWhole
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
            raise NeedsTheWhole
        if is_nested(table):
            raise NeedsTheWhole
        return renamed_columns(table, self.options.rename) if self.options.rename else table

    def _layout(self, table: Table, format: str | None) -> Format:
        options = self.options
        try:
            layout = mapped(table, options.columns) if options.columns else choose(table, format, options.lengths_only)
        except BadTrace:
            if self.is_json:
                raise NeedsTheWhole from None  # later lines may have the keys that these lack
            raise
        constants = any(isinstance(wish, dict) and "constant" in wish for _, wish in options.columns)
        if not layout.row_by_row or layout.interleaved or constants:
            raise NeedsTheWhole
        return layout

    def _header(self, first: bytes) -> bytes:
        return first.split(b"\n")[self._lines_to_header(first) - 1].removesuffix(b"\r")

    def _lines_to_header(self, first: bytes) -> int:
        for number, line in enumerate(first.split(b"\n", 1000), 1):
            if line.removeprefix(b"\xef\xbb\xbf").strip():
                return number
        raise NeedsTheWhole

    def _wanted(self, columns: dict[str, Column], times_ns: Array | None, count: int) -> Array:
        """The rows of a block that are wanted and within the limit."""
        rows, options = np.arange(count), self.options
        if count and (options.where or options.time_range is not None):
            if self._since_ns is None and times_ns is not None:
                self._since_ns = 0 if self.layout.keeps_origin else int(times_ns[0])
            since = None if times_ns is None else times_ns - self._since_ns
            rows, left_out = chosen(columns, options.where, options.time_range, since)
            self.left_out.update(left_out)
        return rows if options.limit is None else rows[: options.limit - self.kept]

    def _same_columns(self, columns: dict[str, Column]) -> None:
        """Blocks must agree on their columns: a JSON key that comes or goes between them needs the whole file."""
        if self.names is None:
            self.names = tuple(columns)
        elif set(columns) != set(self.names):
            raise NeedsTheWhole


def _decoded(file: str, before: int, block: bytes) -> str:
    try:
        return decode(file, block)
    except BadTrace as problem:
        raise BadTrace(file, problem.line + before, problem.column, problem.problem) from None
