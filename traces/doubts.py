"""What a reader should know before believing a trace: quantised time, odd blocks, cut lengths, absurd rates."""

import numpy as np

from traces.errors import BadTrace
from traces.trace import NS_PER_S, Ragged, Trace

MOST_PER_S = 1e5
LONGEST_S = 5 * 365 * 86_400


def doubts(trace: Trace, file: str, forced: bool = False) -> list[str]:
    """Return warnings about a trace just read; raises BadTrace where span or rate is absurd and not forced."""
    if not forced:
        refuse_absurd_rate(len(trace), trace.span_s, trace.metadata["time_unit"], file)
    looks = (_no_times, _nothing_in, _quantised, _inversions, _blocks, _nothing_out, _clipped, _duplicates, _unknown)
    return [each for look in looks if (each := look(trace))]


def refuse_absurd_rate(rows: int, span_s: float, time_unit: object, file: str) -> None:
    """Raise BadTrace for a rate above 100,000/s or a span above five years: most likely a wrong unit of time."""
    rate = rows / span_s if span_s > 0 else float("nan")
    if rows < 2 or not (span_s > LONGEST_S or rate > MOST_PER_S):
        return
    words = f"{rows} requests in {span_s:.6g} s ({rate:.3g}/s): wrong unit? read as {time_unit}; "
    raise BadTrace(file, 1, 1, words + "give time_unit='s', 'ms', 'us' or 'ns' to insist")


def _no_times(trace: Trace) -> str:
    return (
        "no arrival times in this file: all requests at once; only lengths mean anything"
        if lengths_alone(trace)
        else ""
    )


def lengths_alone(trace: Trace) -> bool:
    """Return whether a trace has no arrival times of its own, all its requests at zero."""
    return trace.metadata.get("time_unit") == "none"


def _quantised(trace: Trace) -> str:
    quantum = int(trace.metadata.get("time_quantum_ns") or 0)  # type: ignore[call-overload]
    gaps = np.diff(trace.arrival_ns)
    zero = float(np.mean(gaps == 0)) if len(gaps) else 0.0
    if quantum < NS_PER_S // 100 or len(gaps) < 100 or zero < 0.05:
        return ""
    return (
        f"time moves in steps of {quantum / NS_PER_S:g} s ({zero:.0%} of gaps are zero): dequantise before fitting gaps"
    )


def _inversions(trace: Trace) -> str:
    count = trace.metadata.get("inversions")
    return f"{count} rows came before the row above them: sorted by time" if count else ""


def _blocks(trace: Trace) -> str:
    blocks, size = trace.columns.get("prefix_blocks"), trace.metadata.get("block_tokens")
    if not isinstance(blocks, Ragged) or not isinstance(size, int):
        return ""
    expected = -(-trace.input_tokens.astype(np.int64) // size)
    wrong = np.flatnonzero((blocks.lengths != expected) & (blocks.lengths > 0))
    if not len(wrong):
        return ""
    row = int(wrong[0])
    line = trace.columns["source_line"][row]
    sign = "<" if blocks.lengths[row] < expected[row] else ">"
    return (
        f"line {line}: {blocks.lengths[row]} ids x {size} {sign} {trace.input_tokens[row]} tokens "
        f"(expected {expected[row]}; {len(wrong)} rows so); wrong block size?"
    )


def _nothing_out(trace: Trace) -> str:
    count = int(np.count_nonzero(trace.output_tokens == 0))
    return f"{count} requests have no output tokens ({count / len(trace):.1%})" if count else ""


def _nothing_in(trace: Trace) -> str:
    return "" if trace.input_tokens.any() else "all input lengths are 0: the source did not record them"


def _clipped(trace: Trace) -> str:
    found = []
    for name in ("input_tokens", "output_tokens"):
        values = getattr(trace, name)
        near_top = float(np.mean(values >= 0.999 * values.max()))
        if len(values) >= 1000 and values.max() > 0 and near_top > 0.005:
            found.append(f"{name} stops at {values.max()} ({near_top:.1%} of requests): clipped by the source")
    return "; ".join(found)


def _duplicates(trace: Trace) -> str:
    rows = np.stack([trace.arrival_ns, trace.input_tokens, trace.output_tokens])
    same = int(np.count_nonzero(np.all(np.diff(rows, axis=1) == 0, axis=0)))
    return f"{same} rows equal the row above them: kept" if same else ""


def _unknown(trace: Trace) -> str:
    names = trace.metadata.get("unknown_columns")
    return f"columns not used: {', '.join(names)}" if isinstance(names, list) and names else ""
