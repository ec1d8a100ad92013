"""Whether a made trace loads a fleet as the real one does: the one number about a fit that matters."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.fleet import Fleet
from simulator.replay import replay
from traces.trace import Trace
from traces.transform import time_scale

LOADS = (0.5, 0.7, 0.9)


@dataclass(frozen=True, slots=True)
class Resemblance:
    """p99 TTFT [s] at one load of the real trace and of made ones: their mean and 5th and 95th percentile.

    load is the request rate as a fraction of what the fleet serves when nothing ever waits to arrive; error is
    (mean made - real) / real, and standard_error what it is uncertain by for want of more made traces; goodput is the
    fraction of requests whose TTFT is below twice the real median.
    """

    load: float
    real_ttft_p99_s: float
    made_ttft_p99_s: float
    made_interval_s: tuple[float, float]
    error: float
    standard_error: float
    real_goodput: float
    made_goodput: float


def resemblances(real: Trace, made: Sequence[Trace], fleet: Fleet, loads: Sequence[float] = LOADS) -> list[Resemblance]:
    """Return the p99 TTFT of a real trace beside that of made ones on a fleet at the given loads.

    A load is set by running all traces faster or slower by the same factor.
    """
    capacity_per_s = saturation_rate_per_s(real, fleet)
    found = []
    for load in loads:
        factor = load * capacity_per_s / real.rate_per_s
        real_ttft_s, *made_ttfts_s = (replay(time_scale(each, factor), fleet).ttft_s for each in (real, *made))
        promise_s = 2 * float(np.median(real_ttft_s))
        p99s = [float(np.percentile(each, 99)) for each in made_ttfts_s]
        real_p99_s, mean_s = float(np.percentile(real_ttft_s, 99)), float(np.mean(p99s))
        low_s, high_s = np.quantile(p99s, [0.05, 0.95]).tolist()
        goodputs = [float(np.mean(each <= promise_s)) for each in (real_ttft_s, np.concatenate(made_ttfts_s))]
        spread_s = float(np.std(p99s, ddof=1)) / np.sqrt(len(p99s)) if len(p99s) > 1 else float("nan")
        errors = mean_s / real_p99_s - 1, float(spread_s / real_p99_s)
        found.append(Resemblance(load, real_p99_s, mean_s, (low_s, high_s), *errors, *goodputs))
    return found


def saturation_rate_per_s(trace: Trace, fleet: Fleet) -> float:
    """Return requests per second when all requests of a trace are there from the start."""
    run = replay(replace(trace, arrival_ns=np.zeros(len(trace), np.int64)), fleet)
    finished_s = run.e2e_s[run.is_finished]
    if not len(finished_s):
        raise ValueError(f"the fleet can serve no request of {trace.name!r}")
    return len(finished_s) / float(finished_s.max())
