"""Pictures of traces: each function draws on the matplotlib axes it is given and returns them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from traces.fit import idc_of_memories, idc_windows_s
from traces.statistics import counts, idc_curve, lru_token_hit, prefix_hit_tokens
from traces.trace import NS_PER_S, Array, Labels, Ragged, Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECONDS_PER_HOUR = 3600
HOURS_PER_WEEK = 168
BINS = 240


def rate(ax: "Axes", trace: Trace, windows_s: Sequence[float] = (1.0, 60.0, 3600.0)) -> "Axes":
    """Draw requests per second over time, counted in each of the windows that fits ten times into the span."""
    for window_s in [each for each in windows_s if each * 10 <= trace.span_s] or [trace.span_s / 10 or 1.0]:
        found = counts(trace, window_s) / window_s
        ax.step(np.arange(len(found)) * window_s, found, where="post", linewidth=0.8, label=f"per {window_s:g} s")
    return _labelled(ax, "time [s]", "requests per second", legend=True)


def hour_of_week(ax: "Axes", trace: Trace) -> "Axes":
    """Draw requests by hour and day as a heat map; days are counted from the trace's start where it has no date."""
    t0_ns = trace.metadata.get("t0_ns")
    dated = isinstance(t0_ns, int) and t0_ns > 0
    hours = (trace.arrival_ns + (t0_ns if dated else 0)) // (SECONDS_PER_HOUR * NS_PER_S)  # type: ignore[operator]
    hours = hours + (3 * 24 if dated else 0)  # 1 January 1970 was a Thursday
    table = np.bincount(hours % HOURS_PER_WEEK, minlength=HOURS_PER_WEEK).reshape(7, 24)
    image = ax.imshow(table, aspect="auto", origin="upper")
    ax.figure.colorbar(image, ax=ax, label="requests")
    names = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"] if dated else [f"day {day}" for day in range(7)]
    ax.set_yticks(range(7), names)
    return _labelled(ax, "hour" + (" (UTC)" if dated else ""), "")


def dispersion(
    ax: "Axes", trace: Trace, amplitudes: Sequence[float] = (), decays_per_s: Sequence[float] = (), name: str = ""
) -> "Axes":
    """Draw the index of dispersion of counts by window beside Poisson's, and a fitted Cox law where one is given."""
    windows_s = idc_windows_s(trace, 0.1)
    ax.plot(windows_s, idc_curve(trace, windows_s), marker=".", label=name or trace.name)
    ax.axhline(1.0, color="grey", linestyle=":", label="Poisson")
    if amplitudes:
        fitted = idc_of_memories(windows_s, tuple(amplitudes), tuple(decays_per_s))
        ax.plot(windows_s, fitted, linestyle="--", label="fit")
    ax.set_xscale("log")
    ax.set_yscale("log")
    return _labelled(ax, "window [s]", "variance / mean of counts", legend=True)


def gaps(ax: "Axes", trace: Trace, name: str = "") -> "Axes":
    """Draw the fraction of gaps longer than a time, both axes logarithmic, with the exponential of the same mean."""
    found = np.sort(np.diff(trace.arrival_ns) / NS_PER_S)
    found = found[found > 0]
    if len(found):
        ax.plot(found, 1 - np.arange(len(found)) / len(found), label=name or trace.name)
        times_s = np.geomspace(found[0], found[-1], BINS)
        survival = np.exp(-times_s / found.mean())
        ax.plot(times_s[survival > 1e-6], survival[survival > 1e-6], linestyle=":", color="grey", label="exponential")
    ax.set_xscale("log")
    ax.set_yscale("log")
    return _labelled(ax, "gap [s]", "fraction of gaps longer", legend=True)


def count_correlation(ax: "Axes", trace: Trace, window_s: float = 1.0, most_lags: int = 120) -> "Axes":
    """Draw the autocorrelation of counts by lag, with the 95 % band of independent counts."""
    found = counts(trace, window_s).astype(np.float64)
    found -= found.mean() if len(found) else 0.0
    lags = np.arange(1, min(most_lags, len(found) // 4) + 1)
    power = float((found**2).sum()) or 1.0
    ax.bar(lags * window_s, [float((found[:-lag] * found[lag:]).sum()) / power for lag in lags], width=0.8 * window_s)
    if len(found):
        ax.axhspan(-1.96 / len(found) ** 0.5, 1.96 / len(found) ** 0.5, color="grey", alpha=0.3)
    return _labelled(ax, "lag [s]", "correlation of counts")


def lengths(ax: "Axes", trace: Trace, name: str = "") -> "Axes":
    """Draw the distribution functions of input and output tokens on a logarithmic axis."""
    for kind in ("input", "output"):
        found = np.sort(getattr(trace, f"{kind}_tokens"))
        ax.step(np.maximum(found, 1), np.arange(1, len(found) + 1) / len(found), label=f"{name} {kind}".strip())
    ax.set_xscale("log")
    return _labelled(ax, "tokens", "fraction of requests at most", legend=True)


def joint_lengths(ax: "Axes", trace: Trace) -> "Axes":
    """Draw how often input and output lengths go together, both axes logarithmic."""
    found = [np.log10(np.maximum(each, 1)) for each in (trace.input_tokens, trace.output_tokens)]
    table, across, up = np.histogram2d(found[0], found[1], bins=60)
    image = ax.pcolormesh(10**across, 10**up, np.log10(table.T + 1))
    ax.figure.colorbar(image, ax=ax, label="log10(requests + 1)")
    ax.set_xscale("log")
    ax.set_yscale("log")
    return _labelled(ax, "input tokens", "output tokens")


def tokens_per_second(ax: "Axes", trace: Trace, window_s: float | None = None) -> "Axes":
    """Draw tokens in and tokens out per second over time."""
    window_s = max(trace.span_s / BINS, 1e-9) if window_s is None else window_s
    edges_s = np.arange(0, trace.span_s + window_s, window_s)
    times_s = (trace.arrival_ns - trace.arrival_ns[0]) / NS_PER_S
    for kind in ("input", "output"):
        sums, _ = np.histogram(times_s, edges_s, weights=getattr(trace, f"{kind}_tokens"))
        ax.step(edges_s[:-1], sums / window_s, where="post", label=kind)
    return _labelled(ax, "time [s]", "tokens per second", legend=True)


def shares(ax: "Axes", trace: Trace, column: str = "client") -> "Axes":
    """Draw the fraction of requests of each name of a column by its rank, both axes logarithmic."""
    found = np.sort(np.bincount(_codes(trace, column)))[::-1]
    found = found[found > 0]
    ax.plot(np.arange(1, len(found) + 1), found / found.sum(), marker=".")
    ax.set_xscale("log")
    ax.set_yscale("log")
    return _labelled(ax, f"rank of {column}", "fraction of requests")


def stacked_rates(ax: "Axes", trace: Trace, column: str = "client", most: int = 6) -> "Axes":
    """Draw requests per second over time, stacked by the most frequent names of a column and all others."""
    codes = _codes(trace, column, keep_missing=True)
    labels = trace.columns[column]
    assert isinstance(labels, Labels)
    order = np.argsort(-np.bincount(codes[codes >= 0], minlength=len(labels.names)))[:most]
    window_s = max(trace.span_s / BINS, 1e-9)
    edges_s = np.arange(0, trace.span_s + window_s, window_s)
    times_s = (trace.arrival_ns - trace.arrival_ns[0]) / NS_PER_S
    rows = [np.histogram(times_s[codes == code], edges_s)[0] / window_s for code in order]
    rows.append(np.histogram(times_s[~np.isin(codes, order)], edges_s)[0] / window_s)
    ax.stackplot(edges_s[:-1], rows, labels=[*(labels.names[code] for code in order), "others"])
    return _labelled(ax, "time [s]", "requests per second", legend=True)


def prefix_hits(ax: "Axes", trace: Trace) -> "Axes":
    """Draw the fraction of input tokens that an infinite prefix cache would hold, over time."""
    window_s = max(trace.span_s / BINS, 1e-9)
    edges_s = np.arange(0, trace.span_s + window_s, window_s)
    times_s = (trace.arrival_ns - trace.arrival_ns[0]) / NS_PER_S
    hit, _ = np.histogram(times_s, edges_s, weights=prefix_hit_tokens(trace))
    total, _ = np.histogram(times_s, edges_s, weights=trace.input_tokens)
    ax.step(edges_s[:-1], hit / np.maximum(total, 1), where="post")
    ax.set_ylim(0, 1)
    return _labelled(ax, "time [s]", "fraction of input tokens seen before")


def lru_curve(ax: "Axes", trace: Trace, fractions: Sequence[float] = (0.01, 0.03, 0.1, 0.25, 0.5, 1.0)) -> "Axes":
    """Draw the fraction of input tokens found by a cache that forgets the longest unused, by its size."""
    ax.plot(fractions, [lru_token_hit(trace, fraction) for fraction in fractions], marker="o")
    ax.set_xscale("log")
    return _labelled(ax, "cache size [fraction of different blocks]", "fraction of input tokens found")


def block_popularity(ax: "Axes", trace: Trace) -> "Axes":
    """Draw how often each prefix block is used, by rank, both axes logarithmic."""
    blocks = trace.columns.get("prefix_blocks")
    if not isinstance(blocks, Ragged):
        raise ValueError(f"trace {trace.name!r} has no prefix blocks")
    uses = np.sort(np.unique(blocks.values, return_counts=True)[1])[::-1]
    ax.plot(np.arange(1, len(uses) + 1), uses)
    ax.set_xscale("log")
    ax.set_yscale("log")
    return _labelled(ax, "rank of block", "requests that use it")


def turns(ax: "Axes", trace: Trace) -> "Axes":
    """Draw the fraction of sessions with more than so many turns, both axes logarithmic."""
    found = np.sort(np.bincount(_codes(trace, "session_id")))
    found = found[found > 0]
    ax.step(found, 1 - np.arange(len(found)) / len(found), where="post")
    ax.set_xscale("log")
    ax.set_yscale("log")
    return _labelled(ax, "turns", "fraction of sessions with as many")


def thinking(ax: "Axes", trace: Trace) -> "Axes":
    """Draw the distribution of the times between an answer and the next request of its session."""
    delays = trace.columns.get("release_delay_ns")
    if not isinstance(delays, np.ndarray):
        raise ValueError(f"trace {trace.name!r} has no release delays")
    found = np.sort(delays[delays >= 0]) / NS_PER_S
    ax.step(np.maximum(found, 1e-3), np.arange(1, len(found) + 1) / max(len(found), 1))
    ax.set_xscale("log")
    return _labelled(ax, "think or tool time [s]", "fraction at most")


def gantt(ax: "Axes", trace: Trace, most: int = 30, tokens_per_s: float = 50.0) -> "Axes":
    """Draw the requests of the first sessions as bars over time, as long as the source measured or, without that, as
    the answer takes at tokens_per_s."""
    codes = _codes(trace, "session_id", keep_missing=True)
    measured = trace.columns.get("source_e2e_ns")
    guessed = trace.output_tokens / tokens_per_s
    known = isinstance(measured, np.ndarray)
    took_s = np.where(measured >= 0, measured / NS_PER_S, guessed) if known else guessed  # type: ignore[operator]
    firsts = [code for code in dict.fromkeys(codes.tolist()) if code >= 0][:most]
    for place, code in enumerate(firsts):
        rows = np.flatnonzero(codes == code)
        ax.broken_barh(list(zip(trace.arrival_ns[rows] / NS_PER_S, took_s[rows], strict=True)), (place - 0.4, 0.8))
    ax.invert_yaxis()
    return _labelled(ax, "time [s]", "session")


def before_after(ax: "Axes", before: Trace, after: Trace, what: Any = dispersion) -> "Axes":
    """Draw one kind of picture of two traces over each other, as before and after a transformation."""
    what(ax, before, name="before")
    what(ax, after, name="after")
    return ax


def quantiles(ax: "Axes", real: Trace, made: Trace, field: str = "gaps") -> "Axes":
    """Draw quantiles of a made trace against the real one's: on the diagonal where they agree.

    field is gaps, input_tokens or output_tokens.
    """
    found = [np.diff(each.arrival_ns) / NS_PER_S if field == "gaps" else getattr(each, field) for each in (real, made)]
    steps = np.linspace(0.001, 0.999, BINS)
    first, second = (np.quantile(each, steps) for each in found)
    ax.plot(first, second, marker=".", linestyle="")
    top = float(max(first.max(), second.max()))
    ax.plot([0, top], [0, top], color="grey", linestyle=":")
    return _labelled(ax, f"real {field}", f"made {field}")


PLOTS: dict[str, Any] = {
    plot.__name__: plot
    for plot in (
        *(rate, hour_of_week, dispersion, gaps, count_correlation, lengths, joint_lengths, tokens_per_second, shares),
        *(stacked_rates, prefix_hits, lru_curve, block_popularity, turns, thinking, gantt),
    )
}


def _codes(trace: Trace, column: str, keep_missing: bool = False) -> Array:
    labels = trace.columns.get(column)
    if not isinstance(labels, Labels):
        raise ValueError(f"trace {trace.name!r} has no labels {column!r} to draw by")
    return labels.codes if keep_missing else labels.codes[labels.codes >= 0]


def _labelled(ax: "Axes", across: str, up: str, legend: bool = False) -> "Axes":
    ax.set_xlabel(across)
    ax.set_ylabel(up)
    if legend:
        ax.legend(frameon=False)
    return ax
