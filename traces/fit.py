"""Fitting arrival laws to a trace by its curve of dispersion, and judging the fit on time it has not seen."""

from dataclasses import dataclass

import numpy as np

from traces.statistics import idc_curve
from traces.trace import Array, Trace


@dataclass(frozen=True, slots=True)
class IdcFit:
    """IDC(w) = 1 + sum of A (1 - (1 - exp(-k w)) / (k w)): amplitudes A, decays k per s; the fit's log error."""

    rate_per_s: float
    amplitudes: tuple[float, ...]
    decays_per_s: tuple[float, ...]
    log_rmse: float

    def idc(self, windows_s: Array) -> Array:
        """Return the index of dispersion that the fitted law has at each window."""
        return idc_of_memories(windows_s, self.amplitudes, self.decays_per_s)


def idc_of_memories(windows_s: Array, amplitudes: tuple[float, ...], decays_per_s: tuple[float, ...]) -> Array:
    """Return 1 + sum of A (1 - (1 - exp(-k w)) / (k w)), float64 per window: the dispersion of a Cox process."""
    curve = np.ones(len(windows_s))
    for amplitude, decay_per_s in zip(amplitudes, decays_per_s, strict=True):
        x = decay_per_s * np.asarray(windows_s)
        curve += amplitude * (1 + np.expm1(-x) / x)
    return curve


def idc_windows_s(trace: Trace, fraction_of_span: float = 1 / 30, per_decade: int = 6) -> Array:
    """Return windows from 0.1 s to a fraction of the span, equally spaced in their logarithm.

    A variance from n windows is uncertain by sqrt(2 / (n - 1)): a quarter at 30, half at 10.
    """
    longest = max(trace.span_s * fraction_of_span, 0.2)
    return np.geomspace(0.1, longest, max(int(per_decade * np.log10(longest / 0.1)), 4))


def expected_idc(
    windows_s: Array, span_s: float, amplitudes: tuple[float, ...], decays_per_s: tuple[float, ...]
) -> Array:
    """Return what `statistics.idc` finds on average in a Cox process seen for span_s: less than its dispersion.

    The variance of n windows is taken about their own mean, which wanders too: (n IDC(w) - IDC(n w)) / (n - 1).
    """
    counts = np.maximum(np.floor(span_s / np.asarray(windows_s)), 2)
    whole = idc_of_memories(counts * windows_s, amplitudes, decays_per_s)
    within: Array = (counts * idc_of_memories(windows_s, amplitudes, decays_per_s) - whole) / (counts - 1)
    return within


def fit_idc(trace: Trace, memories: int = 1) -> IdcFit:
    """Return the Cox law of one or more exponential memories whose dispersion curve, as seen in so short a time, is
    nearest in logarithm.

    Raises ValueError where the trace is too short for a curve.
    """
    from scipy.optimize import least_squares

    windows_s = idc_windows_s(trace)
    curve = idc_curve(trace, windows_s)
    known = np.isfinite(curve) & (curve > 0)
    if known.sum() < 2 * memories + 1:
        raise ValueError(f"trace {trace.name!r} is too short to fit {memories} memories: {int(known.sum())} windows")
    windows_s, target = windows_s[known], np.log(curve[known])
    low = np.log([LEAST_AMPLITUDE] * memories + [LEAST_DECAYS / trace.span_s] * memories)
    high = np.log([MOST_AMPLITUDE] * memories + [MOST_DECAY_PER_S] * memories)

    def error(logs: Array) -> Array:
        parameters = np.exp(logs)
        amplitudes, decays = tuple(parameters[:memories]), tuple(parameters[memories:])
        fitted = expected_idc(windows_s, trace.span_s, amplitudes, decays)
        return np.asarray(np.log(np.maximum(fitted, 1e-9)) - target)

    starts = [np.clip(start, low + 1e-6, high - 1e-6) for start in _starts(windows_s, target, memories)]
    fits = [least_squares(error, start, bounds=(low, high)) for start in starts]
    best = min(fits, key=lambda fit: fit.cost)
    order = np.argsort(-best.x[memories:])
    amplitudes, decays = np.exp(best.x[:memories])[order], np.exp(best.x[memories:])[order]
    log_rmse = float(np.sqrt(np.mean(best.fun**2)))
    return IdcFit(trace.rate_per_s, tuple(amplitudes.tolist()), tuple(decays.tolist()), log_rmse)


LEAST_AMPLITUDE, MOST_AMPLITUDE = 1e-4, 1e5
LEAST_DECAYS, MOST_DECAY_PER_S = 0.3, 100.0  # a memory much longer than the trace cannot be told from a trend


def _starts(windows_s: Array, log_idc: Array, memories: int) -> list[Array]:
    amplitude = max(float(np.exp(log_idc.max())) - 1, 0.01)
    spans = [windows_s[0], np.sqrt(windows_s[0] * windows_s[-1]), windows_s[-1]]
    places = [np.geomspace(first, last, memories) for first in spans for last in spans if first <= last]
    return [np.log(np.concatenate([np.geomspace(amplitude / 10, amplitude, memories), 1 / each])) for each in places]
