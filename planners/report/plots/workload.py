"""The workload: how its rate moves, beside what a Poisson stream of the same rate would do."""

from typing import Any

import numpy as np

from planners.report.colours import FAINT, NEUTRAL
from planners.report.plots.axes import dress, say_nothing_to_show
from traces import Trace
from traces.statistics import counts, idc

POISSON_BAND = 2.0


def trace_overview(ax: Any, trace: Trace, window_s: float = 60.0) -> Any:
    """Draw requests per second, window by window, and the band that a Poisson stream would keep to nearly always."""
    if len(trace) < 2 or trace.span_s < 2 * window_s:
        return say_nothing_to_show(ax, f"{trace.name}: {len(trace)} requests", "too short for windows")
    found = counts(trace, window_s)
    times_s = (np.arange(len(found)) + 0.5) * window_s
    mean = float(found.mean())
    low, high = (max(0.0, mean + sign * POISSON_BAND * mean**0.5) / window_s for sign in (-1, 1))
    ax.axhspan(low, high, color=FAINT, alpha=0.4, linewidth=0)
    ax.plot(times_s, found / window_s, color=NEUTRAL, drawstyle="steps-mid")
    dispersion = idc(trace, window_s)
    words = f"{dispersion:.1f} times the variance of Poisson" if dispersion is not None else "too few windows"
    finding = f"{trace.name}: {trace.rate_per_s:.3g}/s, per {window_s:g} s {words}"
    return dress(ax, finding, "time [s]", "requests per second; band: Poisson")
