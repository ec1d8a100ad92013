"""Replications: the same question asked of independent traces, and how sure the mean of the answers is."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

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
    workers: int = 1,
) -> dict[str, Interval]:
    """Return an interval for each figure of the runs that `run_of` makes of seeds.

    The answer does not depend on the number of workers; with more than one, processes are started, which have to be
    able to import both functions.

    >>> replicate(lambda seed: seed, [1, 2, 3], lambda run: {"itself": run})["itself"].mean
    2.0
    """
    rows = _rows(partial(_row, run_of, figures), list(seeds), workers)
    if not rows:
        raise ValueError("no seed given; expected at least one")
    return {name: interval([row[name] for row in rows], confidence) for name in rows[0]}


def _row(run_of: Callable[[int], Run], figures: Callable[[Run], Mapping[str, float]], seed: int) -> Mapping[str, float]:
    return figures(run_of(seed))


def _rows(row_of: Callable[[int], Mapping[str, float]], seeds: list[int], workers: int) -> list[Mapping[str, float]]:
    """Return the figures of every seed, in their order."""
    if workers <= 1 or len(seeds) <= 1:
        return [row_of(seed) for seed in seeds]
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(workers, len(seeds)), get_context("spawn")) as pool:
        return list(pool.map(row_of, seeds))


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
