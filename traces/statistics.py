"""What a trace is like: its rate and how bursty it is, how long its requests are, how much of them was seen before."""

from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np

from traces.arrivals import quantum_ns
from traces.trace import NS_PER_S, Array, Labels, Ragged, Status, Trace

IDC_WINDOWS_S = (1.0, 10.0, 60.0)
FEWEST_WINDOWS = 10  # an index of dispersion from fewer windows says nothing


@dataclass(frozen=True, slots=True)
class Lengths:
    """The distribution of token counts; at_max is the fraction of requests at the maximum (a clip limit shows here)."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float
    at_max: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """The statistics of a trace; fractions are 0-1; None where a number cannot be had from so few requests."""

    rows: int
    span_s: float
    rate_per_s: float | None
    iat_cv: float | None
    idc: dict[str, float | None]
    peak_to_mean: dict[str, float | None]
    zero_gap_fraction: float | None
    quantum_s: float
    input_tokens: Lengths
    output_tokens: Lengths
    input_to_output: float | None
    rank_correlation: float | None
    status: dict[str, int]
    prefix: dict[str, float] | None
    sessions: dict[str, float] | None
    dropped: dict[str, int]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """Return everything as plain values for JSON."""
        return asdict(self) | {"warnings": list(self.warnings)}


def describe(trace: Trace) -> Statistics:
    """Return the statistics of a trace."""
    gaps_ns = np.diff(trace.arrival_ns)
    total_output = int(trace.output_tokens.sum(dtype=np.int64))
    return Statistics(
        rows=len(trace),
        span_s=trace.span_s,
        rate_per_s=_finite(trace.rate_per_s),
        iat_cv=iat_cv(trace),
        idc={f"{window_s:g}": idc(trace, window_s) for window_s in IDC_WINDOWS_S},
        peak_to_mean={f"{window_s:g}": peak_to_mean(trace, window_s) for window_s in IDC_WINDOWS_S},
        zero_gap_fraction=float(np.mean(gaps_ns == 0)) if len(gaps_ns) else None,
        quantum_s=quantum_s(trace),
        input_tokens=describe_lengths(trace.input_tokens),
        output_tokens=describe_lengths(trace.output_tokens),
        input_to_output=int(trace.input_tokens.sum(dtype=np.int64)) / total_output if total_output else None,
        rank_correlation=rank_correlation(trace.input_tokens, trace.output_tokens),
        status={each.name.lower(): int(np.count_nonzero(trace.status == each)) for each in Status},
        prefix=prefix_reuse(trace),
        sessions=session_turns(trace),
        dropped=dict(cast(dict[str, int], trace.metadata.get("rows_dropped", {}))),
        warnings=tuple(cast(list[str], trace.metadata.get("warnings", []))),
    )


def iat_cv(trace: Trace) -> float | None:
    """Return the coefficient of variation of the gaps between arrivals; a Poisson stream has 1."""
    gaps = np.diff(trace.arrival_ns)
    return float(gaps.std() / gaps.mean()) if len(gaps) > 1 and gaps.any() else None


def counts(trace: Trace, window_s: float) -> Array:
    """Return the arrivals in each whole window of the span, int64[floor(span / window)]."""
    window_ns = round(window_s * NS_PER_S)
    first = int(trace.arrival_ns[0]) if len(trace) else 0
    indices = (trace.arrival_ns - first) // window_ns
    windows = int(indices[-1]) if len(trace) else 0
    return np.bincount(indices[indices < windows], minlength=windows)


def idc(trace: Trace, window_s: float) -> float | None:
    """Return the index of dispersion of counts, variance / mean over windows; Poisson has 1 at every window.

    Source: Cox and Lewis, The Statistical Analysis of Series of Events, 1966, chapter 4. None below ten windows.
    """
    found = counts(trace, window_s)
    return float(found.var(ddof=1) / found.mean()) if len(found) >= FEWEST_WINDOWS and found.any() else None


def idc_curve(trace: Trace, windows_s: Array) -> Array:
    """Return the index of dispersion at each window, float64, nan where there are too few windows."""
    return np.array([np.nan if (found := idc(trace, float(window))) is None else found for window in windows_s])


def peak_to_mean(trace: Trace, window_s: float) -> float | None:
    """Return the busiest window's count divided by the mean count."""
    found = counts(trace, window_s)
    return float(found.max() / found.mean()) if len(found) >= 2 and found.any() else None


def quantum_s(trace: Trace) -> float:
    """Return the step of the clock that wrote the arrivals."""
    return quantum_ns(trace.arrival_ns) / NS_PER_S


def describe_lengths(tokens: Array) -> Lengths:
    """Return mean, quantiles and maximum of token counts."""
    p50, p90, p99 = np.percentile(tokens, [50, 90, 99])
    at_max = float(np.mean(tokens == tokens.max()))
    return Lengths(float(tokens.mean()), float(p50), float(p90), float(p99), float(tokens.max()), at_max)


def rank_correlation(first: Array, second: Array) -> float | None:
    """Return Spearman's rank correlation, ties at their mean rank; None where one side is constant."""
    ranks = [_ranks(first), _ranks(second)]
    if min(each.std() for each in ranks) == 0:
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def prefix_hit_tokens(trace: Trace) -> Array:
    """Return the input tokens of each request that an infinite prefix cache would hold already, int64[n]; zeros
    where the trace has no blocks.

    A block hits if an earlier request had it; only the leading run of hits counts.
    """
    blocks, block_tokens = trace.columns.get("prefix_blocks"), trace.metadata.get("block_tokens")
    if not isinstance(blocks, Ragged) or not isinstance(block_tokens, int) or not len(blocks.values):
        return np.zeros(len(trace), np.int64)
    hit_blocks = _leading_hits(blocks, block_ids(trace, blocks))
    hit_tokens: Array = np.minimum(hit_blocks * block_tokens, trace.input_tokens)
    return hit_tokens


def prefix_reuse(trace: Trace) -> dict[str, float] | None:
    """Return how much of the prompts an infinite prefix cache would hold, by tokens and blocks; None without blocks."""
    blocks = trace.columns.get("prefix_blocks")
    if not isinstance(blocks, Ragged) or not len(blocks.values):
        return None
    ids = block_ids(trace, blocks)
    unique, uses = np.unique(ids, return_counts=True)
    hits = _leading_hits(blocks, ids)
    input_tokens = max(int(trace.input_tokens.sum(dtype=np.int64)), 1)
    return {
        "token_hit_infinite": float(prefix_hit_tokens(trace).sum() / input_tokens),
        "block_hit_infinite": float(hits.sum() / len(ids)),
        "block_refs": len(ids),
        "unique_blocks": len(unique),
        "single_use_fraction": float(np.mean(uses == 1)),
    }


def lru_token_hit(trace: Trace, fraction: float) -> float:
    """Return the fraction of input tokens found by a cache with room for a fraction of the different blocks.

    It forgets what was not used for longest, of a prompt its end first; only the leading run counts. nan without any.
    """
    blocks, block_tokens = trace.columns.get("prefix_blocks"), trace.metadata.get("block_tokens")
    if not isinstance(blocks, Ragged) or not isinstance(block_tokens, int) or not len(blocks.values):
        return float("nan")
    ids = block_ids(trace, blocks).tolist()
    room = max(int(fraction * len(set(ids))), 1)
    held: OrderedDict[int, None] = OrderedDict()
    hits = []
    for first, last in zip(blocks.offsets[:-1].tolist(), blocks.offsets[1:].tolist(), strict=True):
        prompt = ids[first:last]
        hits.append(next((place for place, block in enumerate(prompt) if block not in held), len(prompt)))
        for block in reversed(prompt):
            held[block] = None
            held.move_to_end(block)
            if len(held) > room:
                held.popitem(last=False)
    hit_tokens = np.minimum(np.array(hits, np.int64) * block_tokens, trace.input_tokens)
    return float(hit_tokens.sum() / max(int(trace.input_tokens.sum(dtype=np.int64)), 1))


def session_turns(trace: Trace) -> dict[str, float] | None:
    """Return the number of sessions and the mean, median and largest number of turns; None without sessions."""
    turns = turns_of(trace)
    if not len(turns):
        return None
    mean, p50, most = float(turns.mean()), float(np.median(turns)), float(turns.max())
    return {"count": len(turns), "turns_mean": mean, "turns_p50": p50, "turns_max": most}


def turns_of(trace: Trace) -> Array:
    """Return the number of requests of each session, int64[sessions]; none without sessions."""
    sessions = trace.columns.get("session_id")
    if not isinstance(sessions, Labels) or not (sessions.codes >= 0).any():
        return np.zeros(0, np.int64)
    turns = np.bincount(sessions.codes[sessions.codes >= 0])
    return turns[turns > 0]


def block_ids(trace: Trace, blocks: Ragged) -> Array:
    """Dense ids of all block references; where ids are local to a session, the pair is the id."""
    sessions = trace.columns.get("session_id")
    ids: Array = np.unique(blocks.values, return_inverse=True)[1]
    if trace.metadata.get("block_scope") != "session" or not isinstance(sessions, Labels):
        return ids
    keys = np.repeat(sessions.codes.astype(np.int64), blocks.lengths) * (int(ids.max()) + 1) + ids
    pairs: Array = np.unique(keys, return_inverse=True)[1]
    return pairs


def _leading_hits(blocks: Ragged, ids: Array) -> Array:
    rows = np.repeat(np.arange(len(blocks)), blocks.lengths)
    first_row = np.full(int(ids.max()) + 1, len(blocks))
    np.minimum.at(first_row, ids, rows)
    missed_at = np.where(first_row[ids] < rows, np.iinfo(np.int64).max, np.arange(len(ids)))
    hits = blocks.lengths.copy()
    filled = np.flatnonzero(hits)
    first_miss = np.minimum.reduceat(missed_at, blocks.offsets[filled])
    hits[filled] = np.minimum(hits[filled], first_miss - blocks.offsets[filled])
    return hits


def _ranks(values: Array) -> Array:
    _, inverse, repeats = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = np.cumsum(repeats) - (repeats - 1) / 2
    return ranks[inverse]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
