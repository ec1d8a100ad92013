"""Sessions and agents in a closed loop: a request comes some time after those it follows from have ended."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from traces import Ragged, Trace

NS_PER_S = 1e9


class Families(NamedTuple):
    """Who follows from whom: rows of parents by row, none for those that open a session, and the delays after them."""

    parents: Ragged
    delay_s: npt.NDArray[np.float64]


def families(trace: Trace) -> Families | None:
    """Return what a trace says of parents and delays, None where it says nothing.

    A parent outside the trace is left out. Where the delay is not told it is the time between the arrivals, which the
    trace's own service had a part in.
    """
    named = trace.columns.get("parent_ids")
    if not isinstance(named, Ragged) or not len(named.values):
        return None
    ids = np.asarray(trace.columns.get("request_id", np.arange(len(trace))))
    order = np.argsort(ids, kind="stable")
    places = np.searchsorted(ids, named.values, sorter=order).clip(max=len(ids) - 1)
    rows = order[places]
    children = np.repeat(np.arange(len(trace)), named.lengths)
    known = (ids[rows] == named.values) & (rows < children)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(children[known], minlength=len(trace)))]).astype(np.int64)
    parents = Ragged(offsets, rows[known])
    told = np.asarray(trace.columns.get("release_delay_ns", np.full(len(trace), -1)), np.float64) / NS_PER_S
    return Families(parents, np.where(told >= 0, told, _gaps_s(trace, parents)))


def _gaps_s(trace: Trace, parents: Ragged) -> npt.NDArray[np.float64]:
    """Return the time from the last parent's arrival to a request's own."""
    last = np.maximum.reduceat(np.append(parents.values, 0), parents.offsets[:-1])
    gaps_ns = trace.arrival_ns - trace.arrival_ns[last]
    return np.where(parents.lengths > 0, gaps_ns / NS_PER_S, 0.0)
