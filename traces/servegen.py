"""ServeGen client pools: windows of rate, gap law and lengths, from which requests are made rather than read."""

import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.random import Generator

from traces.arrival_laws import renewal
from traces.errors import BadTrace, shown
from traces.length_laws import LengthLaw, sample_lengths
from traces.table import decode, parse_json
from traces.trace import NS_PER_S, Array, Trace

WINDOW_LINE = re.compile(r"[\d.]+,[\d.e+-]+,[\d.e+-]*,(Gamma|Weibull|),[\d.e+-]*,[\d.e+-]*\s*(\n|\Z)")
DATASET = re.compile(r'\s*\{\s*"[\d.]+"\s*:\s*\{\s*"[a-z_]+"\s*:\s*"\{')
CHUNK = re.compile(r"chunk-(\d+)-(trace\.csv|dataset\.json)\Z")
DEFAULT_WINDOW_S = 600.0
LEAST_CV = 0.01
PATTERNS = {"Gamma": "gamma", "Weibull": "weibull"}
HINT = "a pool of clients, not requests: traces.servegen.read_pool, or `plan traces synth --pool`, makes requests of it"


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time of one client: its rate, the CV of its gaps and the family of their law ("" is inactive)."""

    start_s: float
    rate_per_s: float
    cv: float
    pattern: str


@dataclass(frozen=True, slots=True)
class LengthTables:
    """What a client sends in one window: token counts and their probabilities, by field (input_tokens, ...)."""

    start_s: float
    tokens: dict[str, tuple[Array, Array]]


@dataclass(frozen=True, slots=True)
class Client:
    """One client: its windows in order of time, and its length tables where the pool has them."""

    name: str
    windows: tuple[Window, ...]
    lengths: tuple[LengthTables, ...]


def refuse_servegen(file: str, text: str) -> None:
    """Raise BadTrace where text is a file of a ServeGen pool, which holds no requests."""
    if WINDOW_LINE.match(text):
        raise BadTrace(file, 1, 1, f"ServeGen windows of one client: {HINT}")
    if DATASET.match(text):
        raise BadTrace(file, 1, 1, f"ServeGen lengths of one client: {HINT}")


def is_pool(path: str | Path) -> bool:
    """Return whether a path is a folder, archive or single file of a ServeGen pool."""
    path = Path(path)
    if path.is_dir():
        return any(CHUNK.search(each.name) for each in path.rglob("chunk-*"))
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            return any(CHUNK.search(each.name) for each in archive)
    with path.open("rb") as file:
        start = file.read(4096).decode("utf-8", "replace")
    return bool(WINDOW_LINE.match(start) or DATASET.match(start))


def read_pool(path: str | Path) -> tuple[Client, ...]:
    """Return the clients of a folder, a tar archive (compressed or not) or one file; raises BadTrace, OSError."""
    windows: dict[str, tuple[Window, ...]] = {}
    lengths: dict[str, tuple[LengthTables, ...]] = {}
    for file, content in _files(Path(path)):
        found = CHUNK.search(PurePosixPath(file).name)
        number = found[1] if found else "0"
        text = decode(file, content)
        if DATASET.match(text) or file.endswith(".json"):
            lengths[number] = read_lengths(file, text)
        else:
            windows[number] = read_windows(file, text)
    if not windows and not lengths:
        raise BadTrace(str(path), 1, 1, "no ServeGen files; expected chunk-N-trace.csv and chunk-N-dataset.json")
    numbers = sorted({*windows, *lengths}, key=int)
    return tuple(Client(number, windows.get(number, ()), lengths.get(number, ())) for number in numbers)


def read_windows(file: str, text: str) -> tuple[Window, ...]:
    """Return the windows in the text of a chunk-N-trace.csv; raises BadTrace."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        cells = line.split(",")
        if not line.strip():
            continue
        if len(cells) != 6:
            raise BadTrace(file, number, 1, f"{len(cells)} fields; expected start, rate, CV, pattern, shape, scale")
        if cells[3] not in ("", *PATTERNS):
            column = len(",".join(cells[:3])) + 2
            raise BadTrace(
                file, number, column, f"pattern {shown(cells[3])}; expected {', '.join(PATTERNS)} or nothing"
            )
        start_s, rate_per_s, cv = (_number(file, number, cells, place) for place in range(3))
        found.append(Window(start_s, rate_per_s, cv, cells[3]))
    return tuple(sorted(found, key=lambda window: window.start_s))


def read_lengths(file: str, text: str) -> tuple[LengthTables, ...]:
    """Return the tables in the text of a chunk-N-dataset.json, windows without data left out; raises BadTrace.

    The values are Python dictionaries written as text; a grammar reads them, nothing is evaluated.
    """
    try:
        parsed = parse_json(text)
    except ValueError as problem:
        raise BadTrace(file, 1, 1, f"invalid JSON: {problem}") from None
    if not isinstance(parsed, dict) or not all(isinstance(each, dict) for each in parsed.values()):
        raise BadTrace(file, 1, 1, "expected an object of windows, each an object of fields")
    found = []
    for start, fields in parsed.items():
        tables = {name: _table(file, f"window {start} {name}", value) for name, value in fields.items()}
        tables = {name: table for name, table in tables.items() if len(table[0])}
        if tables:
            found.append(LengthTables(_number(file, 1, [start], 0), tables))
    return tuple(sorted(found, key=lambda each: each.start_s))


def describe_pool(clients: Sequence[Client]) -> dict[str, Any]:
    """Return what a pool promises, under the names of a trace's statistics: rows are windows, the gap CV is the median
    weighted by rate, and dispersion is not known before requests are made."""
    step_s = window_s(tuple(clients))
    windows = [window for client in clients for window in client.windows]
    starts = [window.start_s for window in windows]
    span_s = max(starts) - min(starts) + step_s if starts else 0.0
    expected = sum(window.rate_per_s for window in windows) * step_s
    return {
        "format": "servegen",
        "rows": len(windows),
        "clients": len(clients),
        "clients_with_lengths": sum(bool(client.lengths) for client in clients),
        "active_window_fraction": sum(bool(window.pattern) for window in windows) / max(len(windows), 1),
        "span_s": span_s,
        "rate_per_s": expected / span_s if span_s else None,
        "iat_cv": _weighted_median([(window.cv, window.rate_per_s) for window in windows if window.pattern]),
        "idc": {},
        "prefix": None,
        "dropped": {},
        "warnings": [HINT],
    }


def _weighted_median(pairs: list[tuple[float, float]]) -> float | None:
    ordered = sorted(pairs)
    weights = np.cumsum([weight for _, weight in ordered])
    return ordered[int(np.searchsorted(weights, weights[-1] / 2))][0] if len(ordered) and weights[-1] > 0 else None


def window_s(clients: tuple[Client, ...]) -> float:
    """Return the length of a window: the smallest step between starts."""
    steps = [
        later.start_s - earlier.start_s
        for client in clients
        for earlier, later in zip(client.windows, client.windows[1:], strict=False)
    ]
    return min((step for step in steps if step > 0), default=DEFAULT_WINDOW_S)


def sample_client(
    client: Client,
    start_s: float,
    end_s: float,
    step_s: float,
    factor: float,
    rng: Generator,
    lengths: LengthLaw | Trace | None = None,
) -> tuple[Array, Array, Array]:
    """Return arrivals (int64 ns since start_s) and the input and output tokens of one client between two times.

    Counts are not forced to their expectation; each field is drawn by itself, in its own window's table or, where the
    window has none, the nearest window's; `lengths` serves clients without tables. Raises ValueError where there is
    nothing to draw from.
    """
    times = [np.zeros(0, np.int64)]
    inputs, outputs = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for window in client.windows:
        first_s, last_s = max(window.start_s, start_s), min(window.start_s + step_s, end_s)
        if last_s <= first_s or not window.pattern or window.rate_per_s <= 0:
            continue
        cv = max(window.cv, LEAST_CV)
        found = renewal(window.rate_per_s * factor, cv, last_s - first_s, rng, PATTERNS[window.pattern])
        times.append(found + round((first_s - start_s) * NS_PER_S))
        first, second = _lengths(client, window.start_s, len(found), rng, lengths)
        inputs.append(first)
        outputs.append(second)
    return np.concatenate(times), np.concatenate(inputs), np.concatenate(outputs)


def _lengths(
    client: Client, start_s: float, count: int, rng: Generator, otherwise: LengthLaw | Trace | None
) -> tuple[Array, Array]:
    fields = ("input_tokens", "output_tokens")
    if otherwise is not None and not all(any(field in each.tokens for each in client.lengths) for field in fields):
        return sample_lengths(otherwise, count, rng)
    return _draw(client, start_s, fields[0], count, rng), _draw(client, start_s, fields[1], count, rng)


def _draw(client: Client, start_s: float, field: str, count: int, rng: Generator) -> Array:
    tables = [each for each in client.lengths if field in each.tokens]
    if not tables:
        raise ValueError(f"client {client.name} has no table of {field}: lengths must come from elsewhere")
    nearest = min(tables, key=lambda each: abs(each.start_s - start_s))
    values, probabilities = nearest.tokens[field]
    return rng.choice(values, size=count, p=probabilities)


def _table(file: str, what: str, value: object) -> tuple[Array, Array]:
    try:
        tokens, weights = _pairs(value)
    except ValueError:
        words = f"{what} is {shown(value)}; expected text like '{{9: 0.5, 163: 0.5}}'"
        raise BadTrace(file, 1, 1, words) from None
    if not len(tokens):
        return tokens.astype(np.int64), weights
    if weights.min() < 0 or not 0 < weights.sum() < np.inf or not 0 <= tokens.min() <= tokens.max() < 2**31:
        raise BadTrace(file, 1, 1, f"{what}: weights must be at least zero and not all zero, tokens 0 to 2147483647")
    return np.round(tokens).astype(np.int64), weights / weights.sum()


def _pairs(value: object) -> tuple[Array, Array]:
    """The numbers of {number: number, ...}; raises ValueError for any other text."""
    text = value.strip() if isinstance(value, str) else ""
    if not (text.startswith("{") and text.endswith("}")) or "_" in text:
        raise ValueError
    parts = text[1:-1].split(",") if text[1:-1].strip() else []
    if any(part.count(":") != 1 for part in parts):
        raise ValueError
    numbers = list(map(float, ",".join(parts).replace(":", ",").split(","))) if parts else []
    found = np.array(numbers, np.float64).reshape(-1, 2)
    if not np.all(np.isfinite(found)):
        raise ValueError
    return found[:, 0], found[:, 1]


def _number(file: str, line: int, cells: list[str], place: int) -> float:
    text = cells[place].strip()
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if 0 <= value < np.inf and "_" not in text:
        return value
    column = len(",".join(cells[:place])) + 1 + (place > 0)
    raise BadTrace(file, line, column, f"{shown(text)} is no number >= 0")


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for each in sorted(path.rglob("chunk-*")):
            if CHUNK.search(each.name):
                yield str(each), each.read_bytes()
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and CHUNK.search(member.name):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    yield f"{path}!{member.name}", stream.read()
        return
    except tarfile.ReadError:
        pass
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as problem:
        raise BadTrace(str(path), 1, 1, f"damaged archive ({problem}): fetch it again") from None
    yield str(path), path.read_bytes()
