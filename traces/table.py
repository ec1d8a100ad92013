"""Text cut into named columns of raw cells, each cell still knowing its place in the file."""

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

from traces.errors import BadTrace, shown

DELIMITERS = ",;\t"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one row: where, a short reason to count by, and the words for the person who reads it."""

    line: int
    field: str
    reason: str
    words: str


@dataclass(slots=True)
class Table:
    """Columns of raw cells by normalised name (text from CSV, values from JSON), and the line of each row."""

    file: str
    kind: str  # "csv" or "json"
    header: tuple[str, ...]
    columns: dict[str, list[Any]]
    lines: list[int]
    problems: list[Problem] = field(default_factory=list)
    text_lines: list[str] = field(default_factory=list)
    delimiter: str = ","
    form: str | None = None  # the format that nested objects told of, where they did
    about: dict[str, Any] = field(default_factory=dict)  # metadata that only nested objects know
    lines_before: int = 0  # of the file, where the table is one block of it

    @property
    def names(self) -> dict[str, str]:
        """Return the name as written in the file for each normalised name."""
        return {normal(name): name for name in reversed(self.header)}

    @property
    def rows_read(self) -> int:
        """Return the number of data rows, bad ones included."""
        return len(self.lines) + len(self.problems)

    def error(self, problem: Problem) -> BadTrace:
        """Return the error that points at a problem."""
        return BadTrace(self.file, problem.line, self._column(problem), problem.words)

    def _column(self, problem: Problem) -> int:
        place = problem.line - 1 - self.lines_before
        text = self.text_lines[place] if 0 <= place < len(self.text_lines) else ""
        name = self.names.get(problem.field)
        if problem.field.isdecimal():
            return int(problem.field)
        if name is None:
            return 1
        if self.kind == "json":
            return text.find(json.dumps(name)) + 1 or 1
        before = text.split(self.delimiter)[: self.header.index(name)]
        return sum(len(cell) + 1 for cell in before) + 1


def normal(name: str) -> str:
    """Return a column name as compared: lower case, spaces and hyphens as underscores."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def decode(file: str, content: bytes) -> str:
    """Return UTF-8 text without byte-order mark; raises BadTrace at the first byte that is not text."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line_start = content.rfind(b"\n", 0, problem.start) + 1
        line = content.count(b"\n", 0, problem.start) + 1
        raise BadTrace(file, line, problem.start - line_start + 1, "not UTF-8 text: save the file as UTF-8") from None


def looks_like_json(text: str) -> bool:
    """Return whether text starts as JSON."""
    return text.lstrip()[:1] in ("{", "[")


def csv_table(file: str, text: str) -> Table:
    """Return the columns of CSV text, delimiter told from the header; raises BadTrace for a header that cannot be."""
    lines = text.replace("\r\n", "\n").split("\n")
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    delimiter = max(DELIMITERS, key=lines[first].count)
    rows, numbers = _quoted_rows(file, lines, first, delimiter) if '"' in text else _plain_rows(lines, first, delimiter)
    if not rows:
        raise BadTrace(file, 1, 1, "empty file: nothing to read")
    header, rows, numbers = tuple(cell.strip() for cell in rows[0]), rows[1:], numbers[1:]
    _check_header(file, header, first + 1)
    fits = [len(row) == len(header) for row in rows]
    problems = [] if all(fits) else _ragged(header, rows, numbers, fits)
    good = list(compress(rows, fits))
    cells = [list(column) for column in zip(*good, strict=True)] if good else [[] for _ in header]
    columns = {normal(name): column for name, column in zip(header, cells, strict=True)}
    return Table(file, "csv", header, columns, list(compress(numbers, fits)), problems, lines, delimiter)


def json_lines(file: str, text: str) -> Table:
    """Return one row a line of JSON objects; a line that is none becomes a problem of the table."""
    lines = text.split("\n")
    objects, numbers, problems = [], [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            parsed = _json_object(number, line)
            if isinstance(parsed, Problem):
                problems.append(parsed)
            else:
                objects.append(parsed)
                numbers.append(number)
    return object_table(file, objects, numbers, problems, lines)


def document_table(file: str, text: str) -> Table | None:
    """Return the rows of one JSON document over several lines, or None where each line is a document of its own.

    A list of objects is a row each; an object is one row. Raises BadTrace where the text is neither.
    """
    first = text.lstrip().split("\n", 1)[0]
    if _parses(first) and not first.startswith("["):
        return None
    try:
        parsed = parse_json(text)
    except json.JSONDecodeError as problem:
        if _holds_json_lines(text.strip().split("\n")):
            return None
        raise BadTrace(file, problem.lineno, problem.colno, f"invalid JSON (truncated file?): {problem.msg}") from None
    except ValueError as problem:
        raise BadTrace(file, 1, 1, f"invalid JSON: {problem}") from None
    objects = parsed if isinstance(parsed, list) else [parsed]
    if not objects or not all(isinstance(each, dict) for each in objects):
        raise BadTrace(file, 1, 1, "a JSON document without objects; expected one object a line, or a list of objects")
    lines = element_lines(text, len(objects)) if isinstance(parsed, list) else [1]
    return object_table(file, objects, lines, (), text.split("\n"))


def _holds_json_lines(lines: list[str]) -> bool:
    """Whether text that is no document may be an object a line, some of them broken."""
    if len(lines) == 1:
        return True
    return lines[0].startswith("{") and any(line.startswith("{") and _parses(line) for line in lines)


def element_lines(text: str, count: int) -> list[int]:
    """Return the line on which each element of a JSON list begins."""
    place, line, seen, lines = text.index("[") + 1, 1, 0, []
    for _ in range(count):
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
        line += text.count("\n", seen, place)
        seen = place
        lines.append(line)
        place = _DECODER.raw_decode(text, place)[1]
    return lines


def renamed_columns(table: Table, names: Iterable[tuple[str, str]]) -> Table:
    """Return a table whose columns of the file are called as a known format calls them; raises BadTrace."""
    wanted = {normal(old): new for old, new in names}
    absent = [old for old in wanted if old not in table.columns]
    if absent:
        known = ", ".join(table.header[:12])
        raise BadTrace(table.file, 1, 1, f"no column {shown(absent[0])} to rename; the file has {known}")
    table.header = tuple(wanted.get(normal(name), name) for name in table.header)
    table.columns = {normal(wanted.get(name, name)): column for name, column in table.columns.items()}
    return table


def object_table(
    file: str,
    objects: list[dict[str, Any]],
    numbers: list[int],
    problems: Iterable[Problem] = (),
    lines: Iterable[str] = (),
) -> Table:
    """Return objects as columns; a key that an object lacks is None in its row; a.b is key b of the object under a."""
    objects = [flat(each) for each in objects]
    header = tuple(dict.fromkeys(key for each in objects for key in each))
    columns: dict[str, list[Any]] = {}
    for name in header:
        columns.setdefault(normal(name), [each.get(name) for each in objects])
    return Table(file, "json", header, columns, numbers, list(problems), list(lines))


def flat(nested: dict[str, Any]) -> dict[str, Any]:
    """Return an object whose values are no objects: the key of a value within a value is a.b."""
    if not any(isinstance(value, dict) for value in nested.values()):
        return nested
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            found.update({f"{key}.{inner}": each for inner, each in flat(value).items()})
        else:
            found[key] = value
    return found


def parse_json(text: str) -> Any:
    """Return a JSON value; raises ValueError also for NaN, infinities, absurd depth and absurd numbers."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _parses(line: str) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _json_object(number: int, line: str) -> dict[str, Any] | Problem:
    try:
        parsed = parse_json(line)
    except json.JSONDecodeError as problem:
        words = f"invalid JSON (truncated file?): {problem.msg}; expected one object a line"
        return Problem(number, str(problem.colno), "invalid JSON", words)
    except ValueError as problem:
        return Problem(number, "1", "invalid JSON", f"invalid JSON: {problem}; expected one object a line")
    if not isinstance(parsed, dict):
        return Problem(number, "1", "not an object", f"{shown(parsed)}: expected a JSON object, one a line")
    return parsed


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


_BETWEEN = re.compile(r"[\s,]*")
_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _plain_rows(lines: list[str], first: int, delimiter: str) -> tuple[list[list[str]], list[int]]:
    numbers = [number for number, line in enumerate(lines[first:], first + 1) if line and not line.isspace()]
    return [lines[number - 1].split(delimiter) for number in numbers], numbers


def _quoted_rows(file: str, lines: list[str], first: int, delimiter: str) -> tuple[list[list[str]], list[int]]:
    reader = csv.reader((line + "\n" for line in lines[first:]), delimiter=delimiter, strict=True)
    rows, numbers, start = [], [], first + 1
    try:
        for row in reader:
            if row and not (len(row) == 1 and not row[0].strip()):
                rows.append(row)
                numbers.append(start)
            start = first + reader.line_num + 1
    except csv.Error as problem:
        raise BadTrace(file, start, 1, f"broken CSV quoting ({problem})") from None
    return rows, numbers


def _check_header(file: str, header: tuple[str, ...], line: int) -> None:
    names = [normal(name) for name in header]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadTrace(file, line, 1, f"column {shown(twice)} appears twice in the header")
    if all(re.fullmatch(r"-?[\d.]*", name) for name in names):
        raise BadTrace(file, line, 1, "no header: the first line holds numbers; expected column names")


def _ragged(header: tuple[str, ...], rows: list[list[str]], numbers: list[int], fits: list[bool]) -> list[Problem]:
    return [
        Problem(number, "1", "wrong number of fields", f"{len(row)} fields, the header has {len(header)}")
        for row, number, fit in zip(rows, numbers, fits, strict=True)
        if not fit
    ]
