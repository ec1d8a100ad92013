"""Traces laid over each other: rows merged by arrival, ids of different copies kept apart."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from traces.trace import CORE_DTYPES, MISSING, Array, Column, Labels, Ragged, Trace, take, take_column

OWN_IDS = ("request_id", "parent_ids")  # numbers that name requests of one trace
SYSTEM_SHARE = 0.05  # a block in more than this fraction of requests is a shared system prompt: copies share it too


def merge(traces: Sequence[Trace]) -> Trace:
    """Return the rows of all traces in order of arrival, equal times in the order given.

    Name and metadata are those of the first; a column that some lack is missing there. Raises ValueError where block
    sizes differ.
    """
    sizes = {size for each in traces if (size := each.metadata.get("block_tokens")) is not None}
    if len(sizes) > 1:
        raise ValueError(f"cannot merge traces with blocks of different sizes: {sorted(map(str, sizes))} tokens")
    names = dict.fromkeys(name for each in traces for name in each.columns)
    core = {name: np.concatenate([getattr(each, name) for each in traces]) for name in CORE_DTYPES}
    columns = {name: joined([each.columns.get(name) for each in traces], [*map(len, traces)]) for name in names}
    order = np.argsort(core["arrival_ns"], kind="stable")
    core = {name: values[order] for name, values in core.items()}
    columns = {name: take_column(column, order) for name, column in columns.items()}
    metadata = dict(traces[0].metadata) | ({"block_tokens": sizes.pop()} if sizes else {})
    return Trace(traces[0].name, **core, columns=columns, metadata=metadata)


def with_arrivals(trace: Trace, arrival_ns: Array) -> Trace:
    """Return the rows of a trace at other times int64[n], put in order."""
    order = np.argsort(arrival_ns, kind="stable")
    return replace(take(replace(trace, arrival_ns=np.zeros(len(trace), np.int64)), order), arrival_ns=arrival_ns[order])


def copied(trace: Trace, copy: int) -> Trace:
    """Return a trace whose sessions, requests and blocks have ids of their own; copy 0 is the trace itself.

    Blocks of a shared system prompt stay shared.
    """
    if copy == 0:
        return trace
    columns = dict(trace.columns)
    sessions, blocks = columns.get("session_id"), columns.get("prefix_blocks")
    if isinstance(sessions, Labels):
        columns["session_id"] = Labels(sessions.codes, tuple(f"{name}#{copy}" for name in sessions.names))
    if isinstance(blocks, Ragged) and len(blocks.values):
        stride = int(blocks.values.max()) + 1
        moved = np.where(system_blocks(trace, blocks), blocks.values.astype(np.int64), blocks.values + copy * stride)
        columns["prefix_blocks"] = Ragged(blocks.offsets, moved)
    for name in OWN_IDS:
        column = columns.get(name)
        if isinstance(column, Ragged):
            columns[name] = Ragged(column.offsets, column.values + copy * _id_stride(trace))
        elif isinstance(column, np.ndarray):
            columns[name] = np.where(column == MISSING, MISSING, column + copy * _id_stride(trace))
    return replace(trace, columns=columns)


def system_blocks(trace: Trace, blocks: Ragged) -> Array:
    """Return which block references, bool[m], are to blocks in more than 5 % of all requests (at least three)."""
    ids = np.unique(blocks.values, return_inverse=True)[1]
    uses = np.bincount(ids)
    shared: Array = (uses > max(SYSTEM_SHARE * len(trace), 2))[ids]
    return shared


def groups_of(trace: Trace, by: str | None) -> Array:
    """Return the group of each row, int64[n], dense from 0: what is kept, dropped or copied together.

    by: None (each request alone), "session", "prefix" (requests sharing their first block beyond the system prompt),
    the name of a column of labels, or "auto": session or prefix where the trace has them. Raises ValueError.
    """
    name = _automatic(trace) if by == "auto" else by
    column = trace.columns.get({"session": "session_id", "prefix": "prefix_blocks"}.get(name or "", name or ""))
    if name is None:
        return np.arange(len(trace))
    if isinstance(column, Labels):
        alone = np.arange(len(trace)) + len(column.names)
        keys = np.where(column.codes >= 0, column.codes, alone)
    elif isinstance(column, Ragged) and name == "prefix":
        keys = _families(trace, column)
    else:
        known = [each for each, values in trace.columns.items() if isinstance(values, Labels)]
        raise ValueError(f"trace {trace.name!r} has no {name!r} to group by; it has {', '.join(known) or 'no labels'}")
    groups: Array = np.unique(keys, return_inverse=True)[1]
    return groups


def _automatic(trace: Trace) -> str | None:
    if isinstance(trace.columns.get("session_id"), Labels):
        return "session"
    return "prefix" if isinstance(trace.columns.get("prefix_blocks"), Ragged) else None


def _families(trace: Trace, blocks: Ragged) -> Array:
    """The first block that is not of a system prompt; a request without one is a family of its own."""
    own = ~system_blocks(trace, blocks)
    rows = np.repeat(np.arange(len(blocks)), blocks.lengths)[own]
    families = -1 - np.arange(len(trace))
    first_rows, first_places = np.unique(rows, return_index=True)
    families[first_rows] = blocks.values[own][first_places]
    return families


def _id_stride(trace: Trace) -> int:
    ids = trace.columns.get("request_id")
    return int(ids.max()) + 1 if isinstance(ids, np.ndarray) and len(ids) else len(trace)


def joined(parts: Sequence[Column | None], lengths: Sequence[int]) -> Column:
    """Return columns end to end, one that is None missing for as many rows as `lengths` says."""
    example = next(part for part in parts if part is not None)
    filled = [_missing(example, length) if part is None else part for part, length in zip(parts, lengths, strict=True)]
    if isinstance(example, Labels):
        return _joined_labels([part for part in filled if isinstance(part, Labels)])
    if isinstance(example, Ragged):
        ragged = [part for part in filled if isinstance(part, Ragged)]
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in ragged]))]).astype(np.int64)
        return Ragged(offsets, np.concatenate([part.values for part in ragged]))
    return np.concatenate([part for part in filled if isinstance(part, np.ndarray)])


def _joined_labels(parts: Sequence[Labels]) -> Labels:
    names = {name: code for code, name in enumerate(dict.fromkeys(name for part in parts for name in part.names))}
    codes = []
    for part in parts:
        table = np.array([names[name] for name in part.names] + [MISSING], np.int32)
        codes.append(table[part.codes])
    return Labels(np.concatenate(codes), tuple(names))


def _missing(example: Column, length: int) -> Column:
    if isinstance(example, Labels):
        return Labels(np.full(length, MISSING, np.int32), ())
    if isinstance(example, Ragged):
        return Ragged(np.zeros(length + 1, np.int64), np.zeros(0, example.values.dtype))
    return np.full(length, MISSING, example.dtype)
