"""Replications: the same question asked of independent traces, and how sure the mean of the answers is."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from simulator.run import Run


@dataclass(frozen=True, slots=True)
class Interval:
    """The mean of a figure over replications, and the interval that holds the true mean with `confidence`.

    Student's t on the replications' values; infinite ends from a single one, and where a value is infinite.
    """

    mean: float
    low: float
    high: float
    replications: int
    confidence: float


def replicate(
    run_of: Callable[[int], Run],
    seeds: Iterable[int],
    figures: Callable[[Run], Mapping[str, float]],
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Return an interval for each figure of the runs that `run_of` makes of seeds.

    >>> replicate(lambda seed: seed, [1, 2, 3], lambda run: {"itself": run})["itself"].mean
    2.0
    """
    rows = [figures(run_of(seed)) for seed in seeds]
    if not rows:
        raise ValueError("no seed given; expected at least one")
    return {name: interval([row[name] for row in rows], confidence) for name in rows[0]}


def interval(values: list[float], confidence: float = 0.95) -> Interval:
    """Return the mean of independent values and its confidence interval."""
    from scipy import stats

    known = np.array([value for value in values if not math.isnan(value)])
    if known.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0, confidence)
    mean = float(known.mean())
    if known.size == 1 or not np.isfinite(known).all():
        return Interval(mean, -math.inf, math.inf, known.size, confidence)
    half = float(stats.t.ppf(0.5 + confidence / 2, known.size - 1) * known.std(ddof=1) / math.sqrt(known.size))
    return Interval(mean, mean - half, mean + half, known.size, confidence)


def figures_of(run: Run, limits_s: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the figures that are worth an interval: percentiles of latency, goodput, cost and attainment."""
    found = {f"{name}.{label}": value for name, row in run.latency_s().items() for label, value in row.items()}
    limits = dict(limits_s or {})
    found |= {"goodput_per_s": run.goodput_per_s(limits), "attainment": run.attainment(limits), "usd": run.usd}
    return found
