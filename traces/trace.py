"""The trace: one row a request, kept as columns."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

NS_PER_S = 1_000_000_000
MISSING = -1  # in optional integer columns; never in arrival_ns, input_tokens, output_tokens

Array = NDArray[Any]


class Status(IntEnum):
    """How the source says a request ended."""

    OK = 0
    FAILED = 1
    CANCELLED = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True, eq=False)
class Ragged:
    """A list of integers a row: row i is `values[offsets[i]:offsets[i + 1]]`; offsets int64[n + 1], values int[m]."""

    offsets: NDArray[np.int64]
    values: Array

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Array:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the number of values in each row."""
        return np.diff(self.offsets)

    def take(self, rows: Array) -> "Ragged":
        """Return the given rows, in the given order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        positions = np.repeat(self.offsets[:-1][rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(offsets, self.values[positions])

    def heads(self, most: Array) -> "Ragged":
        """Return the first `most[i]` values of each row i."""
        lengths = np.minimum(self.lengths, most)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        positions = np.repeat(self.offsets[:-1] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Ragged(offsets, self.values[positions])


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """A name a row: row i is called `names[codes[i]]`; codes int32[n], -1 where the source says nothing."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> str | None:
        return self.names[self.codes[row]] if self.codes[row] >= 0 else None

    def take(self, rows: Array) -> "Labels":
        """Return the given rows, in the given order; the names stay."""
        return Labels(self.codes[rows], self.names)


Column = Array | Ragged | Labels


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests in order of arrival.

    arrival_ns int64[n] since the start of the trace, sorted; input_tokens and output_tokens int32[n] >= 0; status
    int8[n] of `Status`; columns: what else the source knows; metadata: where it comes from and what was done to it.
    Raises ValueError where the columns do not fit together.
    """

    name: str
    arrival_ns: NDArray[np.int64]
    input_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    status: NDArray[np.int8]
    columns: Mapping[str, Column] = field(default_factory=dict)
    metadata: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, dtype in CORE_DTYPES.items():
            array = np.ascontiguousarray(getattr(self, name), dtype=dtype).view()
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        _check(self)

    def __len__(self) -> int:
        return len(self.arrival_ns)

    def __repr__(self) -> str:
        return f"Trace({self.name!r}, {len(self)} requests, {self.span_s:.0f} s, {self.rate_per_s:.3g}/s)"

    def _repr_html_(self) -> str:
        """Return the trace as a notebook shows it: what it is, and its rate over time."""
        from traces.card import html_card

        return html_card(self)

    @property
    def span_s(self) -> float:
        """Return the time between the first and the last arrival."""
        return float(self.arrival_ns[-1] - self.arrival_ns[0]) / NS_PER_S if len(self) else 0.0

    @property
    def rate_per_s(self) -> float:
        """Return requests divided by span; nan where all arrive at once."""
        return len(self) / self.span_s if self.span_s > 0 else float("nan")

    @property
    def identity(self) -> str:
        """Return the sha256 hex of the source's sha256 and the chain of operations: equal identity, equal workload."""
        about = [self.metadata.get("sha256"), self.chain]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    @property
    def chain(self) -> Sequence[Mapping[str, object]]:
        """Return the operations done so far, the first being how it was read or generated."""
        return self.metadata.get("chain", ())  # type: ignore[return-value]


CORE_DTYPES = {"arrival_ns": np.int64, "input_tokens": np.int32, "output_tokens": np.int32, "status": np.int8}


def take(trace: Trace, rows: Array) -> Trace:
    """Return the given rows (int[m], in order of arrival) of a trace, all columns with them."""
    return replace(
        trace,
        **{name: getattr(trace, name)[rows] for name in CORE_DTYPES},
        columns={name: take_column(column, rows) for name, column in trace.columns.items()},
    )


def take_column(column: Column, rows: Array) -> Column:
    """Return the given rows of a column of any kind."""
    return column[rows] if isinstance(column, np.ndarray) else column.take(rows)


def content_sha256(trace: Trace) -> str:
    """Return the sha256 hex of all columns: equal for equal rows, whatever file they came in."""
    content = ContentHash()
    content.update({name: getattr(trace, name) for name in CORE_DTYPES} | dict(trace.columns))
    return content.hexdigest()


class ContentHash:
    """The sha256 of columns that come in blocks of rows."""

    def __init__(self) -> None:
        self._digests: dict[str, Any] = {}

    def update(self, columns: Mapping[str, Column]) -> None:
        """Take in the next rows."""
        for name, column in columns.items():
            for part, content in _parts(column).items():
                self._digests.setdefault(f"{name}{part}", hashlib.sha256()).update(content)

    def hexdigest(self) -> str:
        """Return the sha256 of the names and digests of all columns."""
        about = [(name, digest.hexdigest()) for name, digest in sorted(self._digests.items())]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _parts(column: Column) -> dict[str, bytes]:
    if isinstance(column, Ragged):
        values = column.values[column.offsets[0] : column.offsets[-1]]
        return {".lengths": column.lengths.astype(np.int64).tobytes(), ".values": values.astype(np.int64).tobytes()}
    if isinstance(column, Labels):
        return {"": "".join(f"{column[row] or ''}\0" for row in range(len(column))).encode()}
    return {"": np.ascontiguousarray(column).astype(np.int64).tobytes()}


def _check(trace: Trace) -> None:
    count = len(trace.arrival_ns)
    lengths = {name: len(getattr(trace, name)) for name in CORE_DTYPES}
    lengths |= {name: len(column) for name, column in trace.columns.items()}
    for name, length in lengths.items():
        if length != count:
            raise ValueError(f"trace {trace.name!r}: column {name} has {length} rows, arrival_ns has {count}")
    if np.any(np.diff(trace.arrival_ns) < 0):
        raise ValueError(f"trace {trace.name!r}: arrival_ns is not sorted")
    for name in ("input_tokens", "output_tokens"):
        if np.any(getattr(trace, name) < 0):
            raise ValueError(f"trace {trace.name!r}: {name} has negative values")
