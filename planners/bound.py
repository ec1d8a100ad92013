"""The rigorous lower bound: what no fleet of the offered engines, under any router, can cost less than.

A request that keeps its promises has its prompt computed, and its answer complete, by deadlines that follow from them.
So in any window of time the replicas must at least do the work that both arrives and falls due inside it, at prices
that bound from below the time of every step whatever (planners/work.py). Only the misses that the percentiles allow
may be left out. All windows, and all engines, share one integer programme.
"""

import numpy as np
import numpy.typing as npt

from planners.demand import Market, sizes
from planners.mix import lower_bound_usd_per_hour
from planners.work import request_work_s

Array = npt.NDArray[np.float64]

INPUT_GROUPS = 5
OUTPUT_GROUPS = 4


def rigorous_usd_per_hour(market: Market) -> float:
    """Return the bound; infinite where no engine can serve enough requests within the promises even when idle."""
    inputs, outputs = sizes(market.trace)
    group = _groups(inputs, INPUT_GROUPS) * OUTPUT_GROUPS + _groups(outputs, OUTPUT_GROUPS)
    group = np.unique(group, return_inverse=True)[1]
    count = int(group.max()) + 1
    work = [request_work_s(price, inputs, outputs) for price in market.prices]
    reference = np.exp(np.mean(np.log(work), axis=0))
    measure = np.bincount(group, reference, count)
    least_ratio = np.full((len(work), count), np.inf)
    for engine, own in enumerate(work):
        np.minimum.at(least_ratio[engine], group, own / reference)
    heaviest = np.zeros(count)
    np.maximum.at(heaviest, group, reference)
    requests = np.bincount(group, minlength=count).astype(np.float64)
    return lower_bound_usd_per_hour(
        market.usd_per_hour,
        least_ratio * measure / market.horizon_s,
        np.ones((len(work), count)),
        requests,
        heaviest / (measure / requests),
        float(market.demand.allowed.sum()),
    )


def _groups(tokens: npt.NDArray[np.int64], groups: int) -> npt.NDArray[np.int64]:
    """Return for each size which of about equally full groups it is in."""
    edges = np.unique(np.quantile(tokens, np.arange(1, groups) / groups))
    return np.searchsorted(edges, tokens, side="right")
