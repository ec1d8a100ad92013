"""The laws that arrivals may follow, each fitted in its own way, and how near traces made by it come."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import log, log2, sqrt
from typing import Any

import numpy as np

from traces.distances import LEAST_LOGGED, fit_windows_s, gap_distance, log_errors, made_by
from traces.fit import fit_idc
from traces.statistics import iat_cv
from traces.trace import NS_PER_S, Trace

SEEDS = 8
PROFILE_BINS = 12
PARAMETER_COST = 0.01  # what a parameter more must improve the misfit by


@dataclass(frozen=True, slots=True)
class Candidate:
    """A law, its parameters, how they were fitted, and how far traces made by it are from the trace: less is nearer."""

    fit: str
    law: str
    parameters: dict[str, Any]
    misfit: float
    idc_log_rmse: float
    gap_ks: float
    cv_ratio: float | None


def candidates_of(trace: Trace, seed: int) -> list[Candidate]:
    found = []
    for name, fit in FITS.items():
        parameters = fit(trace)
        if parameters is not None:
            found.append(candidate(name, parameters, trace, seed))
    return found


def candidate(name: str, parameters: dict[str, Any], trace: Trace, seed: int) -> Candidate:
    law = LAW_OF.get(name, name)
    made = [made_by(law, parameters, trace.span_s, seed + 1000 + number) for number in range(SEEDS)]
    windows_s = fit_windows_s(trace)
    errors = log_errors(made, trace, windows_s)
    log_rmse = float(np.sqrt(np.mean(errors**2))) if len(errors) else 0.0
    gap_ks = gap_distance(trace, made)
    cvs = [cv for each in made if (cv := iat_cv(each)) is not None]
    ratio = float(np.mean(cvs)) / (iat_cv(trace) or 1.0) if cvs else None
    of_cv = abs(log((float(np.mean(cvs)) + LEAST_LOGGED) / ((iat_cv(trace) or 0.0) + LEAST_LOGGED))) if cvs else 1.0
    misfit = log_rmse + gap_ks + of_cv + PARAMETER_COST * _freedom(parameters)
    return Candidate(name, law, parameters, misfit, log_rmse, gap_ks, ratio)


def told(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters for a report: a library of bursts by its size and means."""
    if "bursts_s" not in parameters:
        return dict(parameters)
    bursts, silences_s = parameters["bursts_s"], parameters["silences_s"]
    return {
        "bursts": len(bursts),
        "requests_per_burst": float(np.mean([len(each) for each in bursts])),
        "burst_s": float(np.mean([each[-1] for each in bursts])),
        "silence_s": float(np.mean(silences_s)),
        "least_silence_s": min(silences_s),
    }


def _freedom(parameters: Mapping[str, Any]) -> float:
    """How many parameters there are; libraries of n numbers in all count as log2 n."""
    if "bursts_s" not in parameters:
        return len(parameters)
    return log2(sum(map(len, parameters["bursts_s"])) + len(parameters["silences_s"]))


def _fit_poisson(trace: Trace) -> dict[str, Any]:
    return {"rate_per_s": trace.rate_per_s}


def _renewal(family: str) -> Callable[[Trace], dict[str, Any] | None]:
    def fit(trace: Trace) -> dict[str, Any] | None:
        cv = iat_cv(trace)
        return None if not cv else {"rate_per_s": trace.rate_per_s, "cv": cv, "family": family}

    return fit


def _fit_nhpp(trace: Trace) -> dict[str, Any]:
    """Rates in equal stretches, read as the rate at their middles."""
    bins = min(PROFILE_BINS, max(len(trace) // 50, 2))
    start, width_s = trace.arrival_ns[0] / NS_PER_S, trace.span_s / bins
    arrived, _ = np.histogram(trace.arrival_ns / NS_PER_S - start, bins, (0.0, trace.span_s))
    middles = (np.arange(bins) + 0.5) * width_s
    return {"times_s": tuple(middles.tolist()), "rates_per_s": tuple((arrived / width_s).tolist())}


def _fit_cox(memories: int) -> Callable[[Trace], dict[str, Any] | None]:
    def fit(trace: Trace) -> dict[str, Any] | None:
        try:
            found = fit_idc(trace, memories)
        except ValueError:
            return None
        names = {"amplitudes": found.amplitudes, "decays_per_s": found.decays_per_s}
        return {"rate_per_s": trace.rate_per_s, **names}

    return fit


def _fit_mmpp(trace: Trace) -> dict[str, Any] | None:
    """Two states from mean, variance and decay of the rate: one silent, or, where the rate varies little, symmetric."""
    cox = _fit_cox(1)(trace)
    if cox is None:
        return None
    rate, amplitude, decay = trace.rate_per_s, cox["amplitudes"][0], cox["decays_per_s"][0]
    variance = amplitude * rate * decay / 2
    if variance < rate**2:
        deviation = sqrt(variance)
        return {"rates_per_s": (rate + deviation, rate - deviation), "mean_stays_s": (2 / decay, 2 / decay)}
    on = rate**2 / (variance + rate**2)
    return {"rates_per_s": (rate / on, 0.0), "mean_stays_s": (1 / (decay * (1 - on)), 1 / (decay * on))}


def _fit_hawkes(trace: Trace) -> dict[str, Any] | None:
    """Branching and decay from the same curve: A = n (2 - n) / (1 - n)^2, k = decay (1 - n)."""
    cox = _fit_cox(1)(trace)
    if cox is None:
        return None
    branching = 1 - 1 / sqrt(1 + cox["amplitudes"][0])
    if branching > 0.97:
        return None
    return {
        "rate_per_s": trace.rate_per_s,
        "branching": branching,
        "decay_per_s": cox["decays_per_s"][0] / (1 - branching),
    }


def _fit_deterministic(trace: Trace) -> dict[str, Any] | None:
    cv = iat_cv(trace)
    return _fit_poisson(trace) if cv is not None and cv < 0.2 else None


def _fit_bursts(least_silence: float) -> Callable[[Trace], dict[str, Any] | None]:
    """The bursts and silences of the trace themselves, told apart by a gap of so many mean gaps."""

    def fit(trace: Trace) -> dict[str, Any] | None:
        times_s = (trace.arrival_ns - trace.arrival_ns[0]) / NS_PER_S
        ends = np.flatnonzero(np.diff(times_s) > least_silence / trace.rate_per_s) + 1
        if len(ends) < FEWEST_BURSTS or len(trace) < LEAST_BURST * (len(ends) + 1):
            return None
        bursts = tuple(tuple(np.round(each - each[0], 6).tolist()) for each in np.split(times_s, ends))
        return {"bursts_s": bursts, "silences_s": tuple(np.round(times_s[ends] - times_s[ends - 1], 6).tolist())}

    return fit


FEWEST_BURSTS, LEAST_BURST = 20, 5  # fewer bursts are too few to draw from, smaller ones on average are none


FITS: dict[str, Callable[[Trace], dict[str, Any] | None]] = {
    "poisson": _fit_poisson,
    "deterministic": _fit_deterministic,
    "gamma": _renewal("gamma"),
    "weibull": _renewal("weibull"),
    "lognormal": _renewal("lognormal"),
    "nhpp": _fit_nhpp,
    "cox": _fit_cox(1),
    "cox2": _fit_cox(2),
    "mmpp": _fit_mmpp,
    "hawkes": _fit_hawkes,
    **{f"bursts{multiple}": _fit_bursts(multiple) for multiple in (2, 5, 10, 20)},
}
LAW_OF = {
    **{name: "bursts" for name in FITS if name.startswith("bursts")},
    "gamma": "renewal",
    "weibull": "renewal",
    "lognormal": "renewal",
    "cox2": "cox",
}
