"""How far apart traces are: dispersion, gaps, and samples of any kind."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from traces.arrival_laws import ARRIVAL_LAWS
from traces.fit import idc_windows_s
from traces.generate import build
from traces.statistics import FEWEST_WINDOWS, idc_curve
from traces.trace import NS_PER_S, Array, Trace

GAP_DIGITS = 4  # gaps that differ by less of their mean are equal
LEAST_LOGGED = 0.05  # a dispersion or CV below this is as good as none


def made_by(law: str, parameters: Mapping[str, Any], duration_s: float, seed: int) -> Trace:
    times = ARRIVAL_LAWS[law](duration_s=duration_s, rng=np.random.default_rng(seed), **parameters)
    ones = np.ones(len(times), np.int32)
    return build(law, times, ones, ones, {}, seed)


def fit_windows_s(trace: Trace) -> Array:
    windows_s: Array = idc_windows_s(trace)
    return windows_s[windows_s * FEWEST_WINDOWS <= trace.span_s]


def mean_curve(made: list[Trace], windows_s: Array) -> Array:
    curves = np.array([idc_curve(each, windows_s) for each in made])
    known = np.isfinite(curves)
    sums = np.where(known, curves, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Array = sums / known.sum(axis=0)
    return means


def log_errors(made: list[Trace], trace: Trace, windows_s: Array) -> Array:
    """The logarithm of the mean dispersion of made traces over that of a trace, at the windows where both are known."""
    curves = [
        np.log(np.maximum(each, LEAST_LOGGED)) for each in (mean_curve(made, windows_s), idc_curve(trace, windows_s))
    ]
    errors: Array = curves[0] - curves[1]
    errors = errors[np.isfinite(errors)]
    return errors


def gap_distance(trace: Trace, made: list[Trace]) -> float:
    """The largest difference between the distributions of gaps, each relative to its mean."""
    real = np.diff(trace.arrival_ns) / NS_PER_S
    pooled = [np.diff(each.arrival_ns) / NS_PER_S for each in made if len(each) > 2]
    if not pooled or not len(real):
        return 1.0
    relative = np.concatenate([each / each.mean() for each in pooled if each.any()])
    return ks_distance(np.round(real / real.mean(), GAP_DIGITS), np.round(relative, GAP_DIGITS))


def ks_distance(first: Array, second: Array) -> float:
    """Return the largest difference between two empirical distribution functions."""
    first, second = np.sort(first), np.sort(second)
    edges = np.concatenate([first, second])
    shares = [np.searchsorted(each, edges, side="right") / len(each) for each in (first, second)]
    return float(np.abs(shares[0] - shares[1]).max())


def wasserstein_distance(first: Array, second: Array) -> float:
    """Return the mean distance between equal quantiles of two samples."""
    quantiles = np.linspace(0.0, 1.0, 1001)
    return float(np.mean(np.abs(np.quantile(first, quantiles) - np.quantile(second, quantiles))))
