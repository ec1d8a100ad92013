"""Traces without what could tell whose they are: names, ids, dates and lines replaced, statistics kept."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from traces.trace import MISSING, Array, Column, Labels, Ragged, Trace, content_sha256

KEPT_METADATA = ("time_unit", "time_quantum_ns", "block_tokens", "block_scope", "context", "sessions")
IDS = ("request_id", "parent_ids")
DROPPED = ("source_line", "prefix_segments")


def anonymise(trace: Trace, keep: Sequence[str] = (), token_step: int = 1) -> Trace:
    """Return the trace under new names: labels, request ids and block ids numbered anew, dates, lines and source gone.

    Times since the start, lengths and who shares what with whom stay, so that rate, dispersion, lengths, sessions and
    prefix reuse do. `keep` names label columns that stay (say model); token_step above one rounds lengths up to whole
    steps, to hide rare ones, and drops the blocks. Raises ValueError for a column that is not there.
    """
    absent = set(keep) - set(trace.columns)
    if absent:
        raise ValueError(f"no column {sorted(absent)[0]!r} to keep; known: {', '.join(trace.columns)}")
    if token_step < 1:
        raise ValueError(f"token_step {token_step} is below 1")
    left_out = {*DROPPED, *(["prefix_blocks"] if token_step > 1 else [])}
    columns = {name: column for name, column in trace.columns.items() if name not in left_out}
    columns = {name: column if name in keep else _renamed(name, column) for name, column in columns.items()}
    columns |= _renumbered_requests(columns)
    start_ns = int(trace.arrival_ns[0]) if len(trace) else 0
    made = replace(
        trace,
        name="anonymous",
        arrival_ns=trace.arrival_ns - start_ns,
        input_tokens=_rounded(trace.input_tokens, token_step),
        output_tokens=_rounded(trace.output_tokens, token_step),
        columns=columns,
    )
    return replace(made, metadata=_metadata(trace, made, keep, token_step))


def _renamed(name: str, column: Column) -> Column:
    if isinstance(column, Labels):
        used = np.unique(column.codes[column.codes >= 0])
        place = np.full(len(column.names) + 1, MISSING, np.int32)
        place[_first_seen(column.codes, used)] = np.arange(len(used), dtype=np.int32)
        return Labels(place[column.codes], tuple(f"{name}-{number}" for number in range(len(used))))
    if isinstance(column, Ragged) and name == "prefix_blocks":
        ids, first, inverse = np.unique(column.values, return_index=True, return_inverse=True)
        ranks = np.empty(len(ids), np.int64)
        ranks[np.argsort(first, kind="stable")] = np.arange(len(ids))
        return Ragged(column.offsets, ranks[inverse])
    return column


def _first_seen(codes: Array, used: Array) -> Array:
    """The codes in order of their first row: the order of names must not tell what they were."""
    found, first = np.unique(codes, return_index=True)
    first = first[np.isin(found, used)]
    return used[np.argsort(first, kind="stable")]


def _renumbered_requests(columns: dict[str, Column]) -> dict[str, Column]:
    ids, parents = (columns.get(name) for name in IDS)
    if not isinstance(ids, np.ndarray):
        return {"parent_ids": parents} if isinstance(parents, Ragged) else {}
    order = np.argsort(ids, kind="stable")
    found: dict[str, Column] = {"request_id": np.arange(len(ids))}
    if isinstance(parents, Ragged):
        places = np.searchsorted(ids, parents.values, sorter=order).clip(max=len(ids) - 1)
        known = ids[order[places]] == parents.values
        rows = np.repeat(np.arange(len(parents)), parents.lengths)[known]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(parents)))]).astype(np.int64)
        found["parent_ids"] = Ragged(offsets, order[places][known])
    return found


def _rounded(tokens: Array, step: int) -> Array:
    rounded: Array = -(-tokens.astype(np.int64) // step) * step
    return np.minimum(rounded, 2**31 - 1).astype(np.int32)


def _metadata(trace: Trace, made: Trace, keep: Sequence[str], token_step: int) -> dict[str, object]:
    kept = {name: trace.metadata[name] for name in KEPT_METADATA if name in trace.metadata}
    source = hashlib.sha256(content_sha256(made).encode()).hexdigest()
    chain = [{"operation": "anonymise", "parameters": {"keep": list(keep), "token_step": token_step}}]
    rows: dict[str, object] = {"rows_read": len(made), "rows_kept": len(made), "rows_dropped": {}}
    about = {"source": "anonymised", "sha256": source, "format": "anonymised", "t0_ns": None, "tz": None}
    return {**about, **rows, **kept, "warnings": [], "chain": chain}
