"""One trace made into another: each operation pure, seeded where it draws, and recorded in the chain.

The law that each keeps is in its docstring; IDC(w) is the index of dispersion of counts in windows of w seconds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from traces.joining import copied, groups_of, merge, with_arrivals
from traces.statistics import quantum_s as clock_step_s
from traces.trace import MISSING, NS_PER_S, Array, Labels, Ragged, Trace, take

LEAST_JITTER_S = 5.0


def thin(trace: Trace, keep_fraction: float, seed: int, by: str | None = "auto") -> Trace:
    """Return a random fraction of the requests, whole groups of them where `by` says so (see `groups_of`).

    By request: IDC'(w) = 1 + p (IDC(w) - 1), and prefix reuse is lost. By session or prefix: reuse is kept.
    """
    _check(0 < keep_fraction <= 1, f"keep_fraction {keep_fraction} is not in (0, 1]")
    groups = groups_of(trace, by)
    kept = np.random.default_rng(seed).random(int(groups.max()) + 1) < keep_fraction
    rows = np.flatnonzero(kept[groups])
    _check(len(rows) > 0, f"keep_fraction {keep_fraction} keeps none of {len(trace)} requests")
    return recorded(take(trace, rows), "thin", {"keep_fraction": keep_fraction, "by": by}, seed)


def amplify(trace: Trace, factor: float, seed: int, jitter_s: float | None = None, by: str | None = "auto") -> Trace:
    """Return each request (or group) a Poisson(factor) number of times, each copy moved by up to jitter_s either way.

    A count N becomes Poisson(factor N), so IDC'(w) = 1 + factor IDC(w) for windows well above the jitter; the rate
    keeps its shape, as if factor times as many users had one driver. Copies have sessions and blocks of their own.
    """
    _check(factor > 0, f"factor {factor} is not above 0")
    jitter_s = max(LEAST_JITTER_S, 2 * clock_step_s(trace)) if jitter_s is None else jitter_s
    rng = np.random.default_rng(seed)
    groups = groups_of(trace, by)
    numbers = rng.poisson(factor, int(groups.max()) + 1)
    _check(bool(numbers.any()), f"factor {factor} keeps none of {len(trace)} requests")
    parts = []
    for copy in range(int(numbers.max())):
        rows = np.flatnonzero(numbers[groups] > copy)
        moves_ns = np.round(rng.uniform(-jitter_s, jitter_s, len(numbers)) * NS_PER_S).astype(np.int64)
        part = take(copied(trace, copy), rows)
        moved_ns = part.arrival_ns + moves_ns[groups[rows]]
        parts.append(with_arrivals(part, _reflected(moved_ns, int(trace.arrival_ns[-1]))))
    return recorded(merge(parts), "amplify", {"factor": factor, "jitter_s": jitter_s, "by": by}, seed)


def scale_rate(trace: Trace, factor: float, seed: int, jitter_s: float | None = None, by: str | None = "auto") -> Trace:
    """Return the trace at factor times its rate with the same relative bursts: thinned below 1, amplified above."""
    if factor == 1:
        return trace
    return thin(trace, factor, seed, by) if factor < 1 else amplify(trace, factor, seed, jitter_s, by)


def time_scale(trace: Trace, factor: float) -> Trace:
    """Return the same requests in 1 / factor of the time: gap CV equal, IDC'(w) = IDC(factor w).

    Think times shrink with it.
    """
    _check(factor > 0, f"factor {factor} is not above 0")
    columns = dict(trace.columns)
    delays = columns.get("release_delay_ns")
    if isinstance(delays, np.ndarray):
        columns["release_delay_ns"] = np.where(delays < 0, delays, np.round(delays / factor).astype(np.int64))
    scaled = np.round(trace.arrival_ns / factor).astype(np.int64)
    return recorded(replace(trace, arrival_ns=scaled, columns=columns), "time_scale", {"factor": factor})


def superpose(trace: Trace, copies: int, seed: int) -> Trace:
    """Return copies of a trace laid over each other, each turned around the span by a random shift.

    IDC(w) about equal, relative peaks fall as 1 / sqrt(copies), gaps tend to exponential: independent services.
    """
    _check(copies >= 1, f"copies {copies} is below 1")
    rng = np.random.default_rng(seed)
    period_ns = _period_ns(trace)
    parts = [trace]
    for copy in range(1, copies):
        turned = (trace.arrival_ns + int(rng.integers(period_ns))) % period_ns
        parts.append(with_arrivals(copied(trace, copy), turned))
    return recorded(merge(parts), "superpose", {"copies": copies}, seed)


def mix(traces: Sequence[Trace], seed: int, weights: Sequence[float] | None = None, align: str = "start") -> Trace:
    """Return traces laid over each other, each at `weight` times its rate; ids kept apart.

    align says what falls together: "start" their starts, "date" their dates, "week" the hours of their weeks (for the
    last two every trace must know its date; the result begins with the earliest). Raises ValueError.
    """
    weights = [1.0] * len(traces) if weights is None else weights
    _check(len(traces) > 0, "nothing to mix")
    _check(len(traces) == len(weights), f"{len(traces)} traces but {len(weights)} weights")
    pairs = enumerate(zip(traces, weights, strict=True))
    parts = [scale_rate(each, weight, seed + row) for row, (each, weight) in pairs]
    parts = [_later(part, by_ns) for part, by_ns in zip(parts, _offsets_ns(traces, align), strict=True)]
    stride = max(map(_highest_block, parts)) + 1
    apart = [_named_apart(part, row, stride) for row, part in enumerate(parts)]
    about = {"weights": list(weights), "align": align, "of": [each.identity for each in traces]}
    return recorded(merge(apart), "mix", about, seed)


def restamp_poisson(trace: Trace, seed: int) -> Trace:
    """Return the same requests in the same order at Poisson times over the same span: IDC = 1. Only for comparison:
    this destroys the bursts that decide how much hardware is needed."""
    first, last = int(trace.arrival_ns[0]), int(trace.arrival_ns[-1])
    times = np.sort(np.random.default_rng(seed).integers(first, last + 1, len(trace)))
    return recorded(replace(trace, arrival_ns=times), "restamp_poisson", {}, seed)


def slice_time(trace: Trace, start_s: float, end_s: float | None = None) -> Trace:
    """Return the requests that arrive in [start_s, end_s), time counted from start_s.

    A prefix cache starts cold: metadata has warm_from_s, the time cut off in front, and left_censored_sessions, the
    number of sessions of which only the rest is here.
    """
    return sliced(trace, start_s, end_s, frozenset())


def sliced(trace: Trace, start_s: float, end_s: float | None, sessions_before: frozenset[str]) -> Trace:
    """Return `slice_time` of a trace of which rows in front, holding the given sessions, may be left out already."""
    start_ns = round(start_s * NS_PER_S)
    end_ns = int(trace.arrival_ns[-1]) + 1 if end_s is None else round(end_s * NS_PER_S)
    first, last = np.searchsorted(trace.arrival_ns, [start_ns, end_ns])
    _check(first < last, f"no request arrives between {start_s} s and {end_s} s of {trace.name}")
    part = take(trace, np.arange(first, last))
    t0_ns = trace.metadata.get("t0_ns")
    metadata = {**part.metadata, "t0_ns": t0_ns + start_ns if isinstance(t0_ns, int) else None, "warm_from_s": start_s}
    metadata["left_censored_sessions"] = _sessions_cut(trace, int(first), int(last), sessions_before)
    moved = replace(part, arrival_ns=part.arrival_ns - start_ns, metadata=metadata)
    return recorded(moved, "slice_time", {"start_s": start_s, "end_s": end_s})


def repeat(trace: Trace, copies: int) -> Trace:
    """Return copies end to end, a mean gap between them; sessions do not cross; metadata has the jump at the seam.

    The seam is the rate in the last twentieth of the span divided by that in the first.
    """
    _check(copies >= 1, f"copies {copies} is below 1")
    period_ns = _period_ns(trace)
    copied_parts = [copied(trace, copy) for copy in range(copies)]
    parts = [replace(each, arrival_ns=each.arrival_ns + copy * period_ns) for copy, each in enumerate(copied_parts)]
    edge = trace.arrival_ns[0] + (trace.arrival_ns[-1] - trace.arrival_ns[0]) / 20
    other_edge = trace.arrival_ns[-1] - (edge - trace.arrival_ns[0])
    seam = float(np.mean(trace.arrival_ns >= other_edge) / np.mean(trace.arrival_ns <= edge))
    joined = merge(parts)
    joined = replace(joined, metadata={**joined.metadata, "seam_rate_ratio": seam})
    return recorded(joined, "repeat", {"copies": copies})


def resample(trace: Trace, seed: int, block_s: float = 60.0) -> Trace:
    """Return as many blocks of block_s as the span has, drawn with replacement: IDC kept up to the block's length.

    For confidence intervals: a bootstrap by rows would kill the bursts. Each draw has ids of its own.
    """
    block_ns = round(block_s * NS_PER_S)
    blocks = int(trace.arrival_ns[-1] // block_ns)
    _check(blocks >= 2, f"blocks of {block_s} s leave fewer than two in {trace.span_s:.6g} s")
    parts = []
    for place, block in enumerate(np.random.default_rng(seed).integers(blocks, size=blocks).tolist()):
        first, last = np.searchsorted(trace.arrival_ns, [block * block_ns, (block + 1) * block_ns])
        part = take(copied(trace, place), np.arange(first, last))
        parts.append(replace(part, arrival_ns=part.arrival_ns + (place - block) * block_ns))
    _check(any(map(len, parts)), "the blocks drawn hold no request")
    return recorded(merge(parts), "resample", {"block_s": block_s}, seed)


def dequantise(trace: Trace, seed: int, quantum_s: float | None = None) -> Trace:
    """Return each arrival moved by a uniform part of the clock's step: IDC(w) unchanged for windows above the step."""
    step_s = clock_step_s(trace) if quantum_s is None else quantum_s
    moves_ns = np.round(np.random.default_rng(seed).uniform(0.0, step_s, len(trace)) * NS_PER_S).astype(np.int64)
    return recorded(with_arrivals(trace, trace.arrival_ns + moves_ns), "dequantise", {"quantum_s": step_s}, seed)


def filter_rows(trace: Trace, keep: Callable[[Trace], Array], because: str) -> Trace:
    """Return the rows for which keep(trace), bool[n], is true; `because` names the rule in the chain."""
    rows = np.flatnonzero(keep(trace))
    _check(len(rows) > 0, f"{because!r} keeps none of {len(trace)} requests")
    return recorded(take(trace, rows), "filter_rows", {"because": because})


def scale_lengths(
    trace: Trace, input_factor: float = 1.0, output_factor: float = 1.0, most_output_tokens: int | None = None
) -> Trace:
    """Return longer or shorter requests, ranks kept, none below one token where it had one; blocks are dropped where
    inputs change."""
    most = 2**31 - 1
    kept = {name: column for name, column in trace.columns.items() if input_factor == 1 or name != "prefix_blocks"}
    changed = replace(
        trace,
        input_tokens=_scaled(trace.input_tokens, input_factor, most),
        output_tokens=_scaled(trace.output_tokens, output_factor, most_output_tokens or most),
        columns=kept,
    )
    about = {"input_factor": input_factor, "output_factor": output_factor, "most_output_tokens": most_output_tokens}
    return recorded(changed, "scale_lengths", about)


def clamp(trace: Trace, most_input_tokens: int | None = None, most_output_tokens: int | None = None) -> Trace:
    """Return the trace with lengths above a limit brought down to it, as a gateway would; blocks beyond it are cut."""
    limits = {"input_tokens": most_input_tokens, "output_tokens": most_output_tokens}
    cut = {name: np.minimum(getattr(trace, name), most) for name, most in limits.items() if most is not None}
    columns = dict(trace.columns)
    blocks, size = columns.get("prefix_blocks"), trace.metadata.get("block_tokens")
    if isinstance(blocks, Ragged) and isinstance(size, int) and "input_tokens" in cut:
        columns["prefix_blocks"] = blocks.heads(-(-cut["input_tokens"].astype(np.int64) // size))
    return recorded(replace(trace, columns=columns, **cut), "clamp", limits)


def common_prefix(trace: Trace, fraction: float, block_tokens: int = 16) -> Trace:
    """Return the trace with the first `fraction` of every prompt one common text, in whole blocks, and nothing else
    shared: what an infinite prefix cache finds of the input tokens tends to that fraction. Blocks there were are gone.
    """
    _check(0 <= fraction < 1, f"fraction {fraction} is not in [0, 1)")
    counts = (trace.input_tokens * fraction).astype(np.int64) // block_tokens
    offsets = np.concatenate([[0], np.cumsum(counts)])
    values = (np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)).astype(np.int32)
    columns = {**trace.columns, "prefix_blocks": Ragged(offsets, values)}
    metadata = {**trace.metadata, "block_tokens": block_tokens, "block_scope": "global"}
    about = {"fraction": fraction, "block_tokens": block_tokens}
    return recorded(replace(trace, columns=columns, metadata=metadata), "common_prefix", about)


def shift(trace: Trace, by_s: float) -> Trace:
    """Return the trace moved later by by_s >= 0: its first arrival no longer at zero."""
    _check(by_s >= 0, f"by_s {by_s} is below 0")
    moved = trace.arrival_ns + round(by_s * NS_PER_S)
    return recorded(replace(trace, arrival_ns=moved), "shift", {"by_s": by_s})


def inject_burst(trace: Trace, start_s: float, length_s: float, factor: float, seed: int) -> Trace:
    """Return the trace with the requests of [start_s, start_s + length_s) factor >= 1 times as many.

    What is added are rows of that stretch, drawn with replacement, at uniform times in it and with ids of their own.
    """
    _check(factor >= 1, f"factor {factor} is below 1")
    bounds_ns = [round(start_s * NS_PER_S), round((start_s + length_s) * NS_PER_S)]
    first, last = np.searchsorted(trace.arrival_ns, bounds_ns)
    _check(first < last, f"no request arrives between {start_s} s and {start_s + length_s} s of {trace.span_s} s")
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.integers(first, last, rng.poisson((factor - 1) * (last - first))))
    times = rng.integers(bounds_ns[0], min(bounds_ns[1], int(trace.arrival_ns[-1]) + 1), len(rows))
    added = with_arrivals(take(copied(trace, 1), rows), times)
    about = {"start_s": start_s, "length_s": length_s, "factor": factor}
    return recorded(merge([trace, added]), "inject_burst", about, seed)


def spread_sessions(trace: Trace, span_s: float, seed: int) -> Trace:
    """Return the trace with each session begun at a uniform time of a span, its own times kept: for sessions recorded
    without a common clock. Rows without a session stay. Starts are then a Poisson stream, its count given."""
    _check(span_s > 0, f"span_s {span_s} is not above 0")
    sessions = trace.columns.get("session_id")
    if not isinstance(sessions, Labels):
        raise ValueError(f"trace {trace.name!r} has no sessions to spread")
    starts_ns = np.random.default_rng(seed).integers(0, round(span_s * NS_PER_S), len(sessions.names) + 1)
    starts_ns[-1] = 0  # where rows without a session look
    moved = with_arrivals(trace, trace.arrival_ns + starts_ns[sessions.codes])
    return recorded(moved, "spread_sessions", {"span_s": span_s}, seed)


def jitter(trace: Trace, width_s: float, seed: int) -> Trace:
    """Return each arrival moved by a uniform time of up to width_s either way: IDC(w) stays for windows far above."""
    _check(width_s >= 0, f"width_s {width_s} is below 0")
    moves = np.random.default_rng(seed).uniform(-width_s, width_s, len(trace)) * NS_PER_S
    moved = _reflected(trace.arrival_ns + np.round(moves).astype(np.int64), int(trace.arrival_ns[-1]))
    return recorded(with_arrivals(trace, moved), "jitter", {"width_s": width_s}, seed)


def without(trace: Trace, column: str, names: Sequence[str]) -> Trace:
    """Return the trace without the requests of the given names of a column of labels, say of one client."""
    labels = _labels(trace, column, names)
    gone = [code for code, name in enumerate(labels.names) if name in names]
    rows = np.flatnonzero(~np.isin(labels.codes, gone))
    _check(len(rows) > 0, f"no request is left without {', '.join(names)}")
    return recorded(take(trace, rows), "without", {"column": column, "names": list(names)})


def relabel(trace: Trace, column: str, names: Mapping[str, str]) -> Trace:
    """Return the trace with names of a column of labels replaced, several by one if need be: say a model by another."""
    labels = _labels(trace, column, list(names))
    renamed = [names.get(name, name) for name in labels.names]
    known = tuple(dict.fromkeys(renamed))
    places = np.array([known.index(name) for name in renamed] + [MISSING], np.int32)
    columns = {**trace.columns, column: Labels(places[labels.codes], known)}
    return recorded(replace(trace, columns=columns), "relabel", {"column": column, "names": dict(names)})


def map_lengths(trace: Trace, like: Trace) -> Trace:
    """Return the trace with the lengths of another: each takes the length at its own quantile, so that ranks stay and
    only the distributions change. Blocks are dropped."""
    made = {}
    for name in ("input_tokens", "output_tokens"):
        own, other = getattr(trace, name), np.sort(getattr(like, name))
        places = np.empty(len(own), np.int64)
        places[np.argsort(own, kind="stable")] = np.arange(len(own)) * len(other) // len(own)
        made[name] = other[places]
    kept = {name: column for name, column in trace.columns.items() if name != "prefix_blocks"}
    changed = replace(trace, input_tokens=made["input_tokens"], output_tokens=made["output_tokens"], columns=kept)
    return recorded(changed, "map_lengths", {"like": like.identity})


def sessionise(trace: Trace, gap_s: float, by: str) -> Trace:
    """Return the trace with sessions inferred: requests of one `by` (a column of labels) until a gap above gap_s.

    Rows without a label have no session. metadata["sessions"] says that they are inferred.
    """
    labels = trace.columns.get(by)
    if not isinstance(labels, Labels):
        raise ValueError(f"trace {trace.name!r} has no labels {by!r} to infer sessions from")
    order = np.lexsort((trace.arrival_ns, labels.codes))
    codes, times = labels.codes[order], trace.arrival_ns[order]
    starts = np.ones(len(trace), bool)
    starts[1:] = (codes[1:] != codes[:-1]) | (np.diff(times) > gap_s * NS_PER_S)
    numbers = np.empty(len(trace), np.int64)
    numbers[order] = np.cumsum(starts) - 1
    turns = np.empty(len(trace), np.int64)
    turns[order] = np.arange(len(trace)) - np.flatnonzero(starts)[np.cumsum(starts) - 1]
    known = labels.codes >= 0
    first_seen, dense = np.unique(numbers[known], return_index=True)[1], np.full(len(trace), MISSING, np.int32)
    rank = np.argsort(np.argsort(first_seen))
    dense[known] = rank[np.unique(numbers[known], return_inverse=True)[1]]
    sessions = Labels(dense, tuple(str(number) for number in range(len(first_seen))))
    columns = {**trace.columns, "session_id": sessions, "turn": np.where(known, turns, MISSING)}
    made = replace(trace, columns=columns, metadata={**trace.metadata, "sessions": "inferred"})
    return recorded(made, "sessionise", {"gap_s": gap_s, "by": by})


def recorded(trace: Trace, operation: str, parameters: Mapping[str, object], seed: int | None = None) -> Trace:
    """Return the trace with one more operation in its chain."""
    step: dict[str, object] = {"operation": operation, "parameters": dict(parameters)}
    step |= {} if seed is None else {"seed": seed}
    return replace(trace, metadata={**trace.metadata, "chain": [*trace.chain, step]})


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _labels(trace: Trace, column: str, names: Sequence[str]) -> Labels:
    labels = trace.columns.get(column)
    if not isinstance(labels, Labels):
        raise ValueError(f"trace {trace.name!r} has no labels {column!r}")
    absent = [name for name in names if name not in labels.names]
    if absent:
        raise ValueError(f"no {column} {absent[0]!r}; known: {', '.join(labels.names[:20])}")
    return labels


def _offsets_ns(traces: Sequence[Trace], align: str) -> list[int]:
    """How much later each trace begins than the first of them to begin."""
    if align == "start":
        return [0] * len(traces)
    if align not in ("date", "week"):
        raise ValueError(f"unknown align {align!r}; known: start, date, week")
    starts = [each.metadata.get("t0_ns") for each in traces]
    dates = [each for each in starts if isinstance(each, int) and each > 0]
    _check(
        len(dates) == len(traces),
        f"align {align!r} needs the date of every trace; {len(traces) - len(dates)} have none",
    )
    if align == "week":
        return [(each + THURSDAY_NS) % WEEK_NS for each in dates]
    return [each - min(dates) for each in dates]


WEEK_NS = 7 * 86_400 * NS_PER_S
THURSDAY_NS = 3 * 86_400 * NS_PER_S  # 1970 began on one; weeks begin on Mondays


def _later(trace: Trace, by_ns: int) -> Trace:
    return replace(trace, arrival_ns=trace.arrival_ns + by_ns) if by_ns else trace


def _period_ns(trace: Trace) -> int:
    span = int(trace.arrival_ns[-1])
    return span + max(span // len(trace), 1)


def _reflected(times_ns: Array, last_ns: int) -> Array:
    inside = np.abs(times_ns)
    return np.clip(np.where(inside > last_ns, 2 * last_ns - inside, inside), 0, last_ns)


def _sessions_cut(trace: Trace, first: int, last: int, before: frozenset[str]) -> int:
    sessions = trace.columns.get("session_id")
    if not isinstance(sessions, Labels):
        return 0
    earlier, inside = np.unique(sessions.codes[:first]), np.unique(sessions.codes[first:last])
    inside = inside[inside >= 0]
    return sum(code in earlier or sessions.names[code] in before for code in inside.tolist())


def _scaled(tokens: Array, factor: float, most: int) -> Array:
    return np.where(tokens > 0, np.clip(np.round(tokens * factor), 1, most), 0).astype(np.int32)


def _highest_block(trace: Trace) -> int:
    blocks = trace.columns.get("prefix_blocks")
    return int(blocks.values.max()) if isinstance(blocks, Ragged) and len(blocks.values) else 0


def _named_apart(trace: Trace, place: int, stride: int) -> Trace:
    columns = dict(copied(trace, place).columns)
    blocks = trace.columns.get("prefix_blocks")
    if isinstance(blocks, Ragged):
        columns["prefix_blocks"] = Ragged(blocks.offsets, blocks.values.astype(np.int64) + place * stride)
    return replace(trace, columns=columns)
