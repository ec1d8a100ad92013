"""Another trace like this one: the law its arrivals follow, found on the first two thirds, judged on the last."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import log
from typing import Any

import numpy as np

from traces.arrival_laws import ARRIVAL_LAWS
from traces.candidates import FITS, SEEDS, Candidate, candidates_of, told
from traces.distances import fit_windows_s, gap_distance, ks_distance, log_errors, made_by, wasserstein_distance
from traces.generate import CLOCK_NS, build, generate
from traces.length_laws import fit_lengths
from traces.statistics import (
    FEWEST_WINDOWS,
    counts,
    iat_cv,
    idc,
    lru_token_hit,
    prefix_reuse,
    quantum_s,
    rank_correlation,
    turns_of,
)
from traces.trace import NS_PER_S, Array, Trace
from traces.transform import dequantise, slice_time

HELD_OUT = 1 / 3
FEWEST_REQUESTS = 60
SIGNIFICANCE = 0.01
WINDOWS_S = (1.0, 10.0, 60.0)
GOOD = {"idc_log_error": 0.3, "gap_ks": 0.05, "cv_log_error": 0.3, "length_ks": 0.05, "rank_difference": 0.1}
DRIFT_WINDOWS = 30


@dataclass(frozen=True, slots=True)
class Profile:
    """The slow rate of a trace by windows, and the law of its arrivals once time is counted in expected requests."""

    window_s: float
    rates_per_s: tuple[float, ...]
    law: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Likeness:
    """What was found: the law, its parameters with 90 % intervals, the other candidates, and how it stands up.

    The law is chosen and judged with judged_parameters, fitted on two thirds of the time; parameters are those of the
    same law fitted on all of it, for making more. poisson has the test of a constant rate: the smallest p-value, and
    whether it is rejected. held_out compares the law with time it was not fitted to. drift compares the dispersion of
    tokens in thirtieths of the span with what law and shuffled lengths give; where it is more, profile has the slow
    rate to follow. reuse has what a prefix cache finds and the turns of sessions, fitted and held out. verdict is good,
    doubtful or bad by the thresholds beside it.
    """

    law: str
    parameters: dict[str, Any]
    judged_parameters: dict[str, Any]
    intervals: dict[str, Any]
    candidates: tuple[Candidate, ...]
    poisson: dict[str, Any]
    fitted_on: dict[str, Any]
    held_out: dict[str, Any]
    lengths: dict[str, Any]
    drift: dict[str, Any]
    profile: "Profile | None"
    verdict: str
    reasons: tuple[str, ...] = ()
    reuse: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=lambda: dict(GOOD))

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON, libraries of bursts by their means."""
        about = asdict(self)
        for each in (about, *about["candidates"], *filter(None, [about["profile"]])):
            each["parameters"] = told(each["parameters"])
        return about | {"judged_parameters": told(about["judged_parameters"])}

    def words(self) -> str:
        """Return the finding for people."""
        held = self.held_out
        shown = ", ".join(f"{name} {_short(value)}" for name, value in told(self.parameters).items())
        windows = "; ".join(
            f"{window} s: {_short(held['idc_predicted'][window])} [{_short(low)}, {_short(high)}], "
            f"found {_short(held['idc'][window])}"
            for window, (low, high) in held["idc_interval"].items()
            if held["idc"][window] is not None and held["idc_predicted"][window] is not None
        )
        rejected = "rejected" if self.poisson["rejected"] else "accepted"
        return (
            f"law: {self.law} ({shown})\nPoisson: {rejected}, smallest p-value {self.poisson['p_value']:.2g}\n"
            f"dispersion on held-out time, predicted [90 %]: {windows or 'too short to tell'}\n"
            f"verdict: {self.verdict}" + "".join(f"\n  {reason}" for reason in self.reasons)
        )

    def generate(self, duration_s: float, seed: int, lengths: Trace, name: str = "generated") -> Trace:
        """Return a trace by this law, its lengths drawn in pairs from the trace that was fitted.

        Where rate and lengths drift together, slow rate and lengths follow the time of day of the fitted trace, over
        and over; the law makes the rest.
        """
        if self.profile is None:
            return generate(self.law, self.parameters, lengths, duration_s, seed, name)
        return along(self.profile, lengths, duration_s, seed, name)


def fit_trace(trace: Trace, seed: int = 0) -> Likeness:
    """Return the law that the arrivals of a trace follow, fitted on its first two thirds and judged on the rest.

    Times on a coarse clock are spread over its steps first. Raises ValueError where there are too few requests.
    """
    if len(trace) < FEWEST_REQUESTS or trace.span_s <= 0:
        raise ValueError(f"trace {trace.name!r} has {len(trace)} requests in {trace.span_s:.6g} s: too few to fit")
    smooth = _spread(trace, seed)
    cut_s = (smooth.arrival_ns[0] / NS_PER_S) + smooth.span_s * (1 - HELD_OUT)
    fitted, held = slice_time(smooth, 0.0, cut_s), slice_time(smooth, cut_s)
    poisson = poisson_test(fitted)
    candidates = sorted(candidates_of(fitted, seed), key=lambda each: each.misfit)
    if not poisson["rejected"]:
        candidates.sort(key=lambda each: (each.law != "poisson", each.misfit))
    best = candidates[0]
    found = judged(best.law, best.parameters, fitted, held, seed)
    lengths = _lengths(fitted, held)
    reasons, verdict = _verdict(found, lengths)
    about: dict[str, Any] = {
        "requests": len(fitted),
        "span_s": fitted.span_s,
        "rate_per_s": fitted.rate_per_s,
        "iat_cv": iat_cv(fitted),
    }
    about["idc"] = _idcs(fitted)
    about["dequantised_s"] = quantum_s(trace) if smooth is not trace else None
    whole = FITS[best.fit](smooth) or best.parameters
    intervals = _intervals(best.fit, smooth, seed)
    drift = _drift(best.law, whole, smooth, seed)
    return Likeness(
        law=best.law, parameters=whole, judged_parameters=best.parameters, intervals=intervals,
        candidates=tuple(candidates), poisson=poisson, fitted_on=about, held_out=found, lengths=lengths, drift=drift,
        profile=_profile(smooth, seed) if drift["drifts"] else None, verdict=verdict, reasons=reasons,
        reuse=_reuse(fitted, held),
    )  # fmt: skip


def along(profile: Profile, source: Trace, duration_s: float, seed: int, name: str = "generated") -> Trace:
    """Return requests whose slow rate is a profile's, repeated as need be, with lengths from the same window of the
    source; within windows they follow the profile's law. Counts are not forced."""
    rng = np.random.default_rng(seed)
    clock_s, counted_s = _clocks(profile, duration_s)
    times = ARRIVAL_LAWS[profile.law](duration_s=float(counted_s[-1]), rng=rng, **profile.parameters) / NS_PER_S
    times = np.interp(times, counted_s, clock_s)
    times = times[times < duration_s]
    if not len(times):
        raise ValueError(f"{profile.law} along a profile makes no arrival in {duration_s} s")
    begin_ns = int(source.arrival_ns[0])
    edges = begin_ns + np.round(np.arange(len(profile.rates_per_s) + 1) * profile.window_s * NS_PER_S)
    bounds = np.searchsorted(source.arrival_ns, edges)
    bounds[-1] = len(source)
    windows = (times // profile.window_s).astype(np.int64) % len(profile.rates_per_s)
    first, last = bounds[windows], np.maximum(bounds[windows + 1], bounds[windows] + 1)
    rows = np.minimum(first + (rng.random(len(times)) * (last - first)).astype(np.int64), len(source) - 1)
    about = {"arrivals": profile.law, "along": source.identity, "window_s": profile.window_s, "duration_s": duration_s}
    arrival_ns = np.round(times * NS_PER_S).astype(np.int64) // CLOCK_NS * CLOCK_NS
    return build(name, arrival_ns, source.input_tokens[rows], source.output_tokens[rows], about, seed)


def _clocks(profile: Profile, duration_s: float) -> tuple[Array, Array]:
    """Clock time and the time at which the profile's mean rate would have made as many requests, at window edges."""
    rates = np.asarray(profile.rates_per_s)
    windows = int(np.ceil(duration_s / profile.window_s))
    relative = np.resize(np.maximum(rates, LEAST_RATE * rates.mean()) / rates.mean(), windows)
    clock_s = np.arange(windows + 1) * profile.window_s
    return clock_s, np.concatenate([[0.0], np.cumsum(relative * profile.window_s)])


LEAST_RATE = 1e-3


def _profile(trace: Trace, seed: int) -> Profile:
    """The slow rate in thirtieths of the span, and the law that fits best once it is taken out."""
    window_s = trace.span_s / DRIFT_WINDOWS
    times_s = (trace.arrival_ns - trace.arrival_ns[0]) / NS_PER_S
    found, _ = np.histogram(times_s, DRIFT_WINDOWS, (0.0, trace.span_s))
    slow = Profile(window_s, tuple((found / window_s).tolist()), "poisson", {})
    clock_s, counted_s = _clocks(slow, trace.span_s)
    steady_ns = np.round(np.interp(times_s, clock_s, counted_s) * NS_PER_S).astype(np.int64)
    steady = replace(trace, arrival_ns=np.maximum.accumulate(steady_ns))
    best = min(candidates_of(steady, seed), key=lambda each: each.misfit)
    return replace(slow, law=best.law, parameters=best.parameters)


def _drift(law: str, parameters: Mapping[str, Any], trace: Trace, seed: int) -> dict[str, Any]:
    """Whether tokens come in slower waves than the law with lengths drawn at random makes them."""
    found = _work_dispersion(trace)
    made = [generate(law, parameters, trace, trace.span_s, seed + 4000 + number) for number in range(4 * SEEDS)]
    expected = [_work_dispersion(each) for each in made]
    highest = float(np.quantile(expected, 0.95))
    return {"dispersion": found, "expected": float(np.mean(expected)), "highest": highest, "drifts": found > highest}


def _work_dispersion(trace: Trace) -> float:
    """The squared coefficient of variation of tokens in thirtieths of the span."""
    tokens = trace.input_tokens.astype(np.float64) + trace.output_tokens
    sums, _ = np.histogram(trace.arrival_ns, DRIFT_WINDOWS, weights=tokens)
    return float(sums.var(ddof=1) / sums.mean() ** 2) if sums.any() else 0.0


def poisson_test(trace: Trace) -> dict[str, Any]:
    """Return the p-values of a constant-rate Poisson stream and whether it is rejected at 1 % after Bonferroni.

    Tests: counts in windows by their dispersion, (n - 1) IDC being chi-square, both ends; gaps against the exponential
    by Kolmogorov and Smirnov (the rate being estimated, the p-value is conservative).
    """
    from scipy import stats

    found = {}
    for window_s in _test_windows_s(trace):
        value, windows = idc(trace, window_s), int(trace.span_s / window_s)
        if value is not None:
            tail = stats.chi2.cdf((windows - 1) * value, windows - 1)
            found[f"idc_{window_s:g}_s"] = float(2 * min(tail, 1 - tail))
    gaps = np.diff(trace.arrival_ns) / NS_PER_S
    found["gaps_ks"] = float(stats.kstest(gaps, "expon", args=(0, gaps.mean())).pvalue)
    smallest = min(found.values())
    threshold = SIGNIFICANCE / len(found)
    return {"p_value": smallest, "threshold": threshold, "rejected": smallest < threshold, "tests": found}


def judged(law: str, parameters: Mapping[str, Any], fitted: Trace, held: Trace, seed: int) -> dict[str, Any]:
    """Return how a law compares with held-out time: predictions are means over traces made as long as it is, with the
    5th and 95th percentile over them; errors are of logarithms."""
    made = [made_by(law, parameters, held.span_s, seed + number) for number in range(4 * SEEDS)]
    errors = log_errors(made, held, fit_windows_s(held))
    cvs = [cv for each in made if (cv := iat_cv(each)) is not None]
    values = {
        f"{window:g}": [found for each in made if (found := idc(each, window)) is not None] for window in WINDOWS_S
    }
    return {
        "requests": len(held),
        "span_s": held.span_s,
        "rate_per_s": held.rate_per_s,
        "rate_predicted_per_s": float(np.mean([len(each) for each in made]) / held.span_s),
        "idc": _idcs(held),
        "idc_predicted": {window: float(np.mean(found)) if found else None for window, found in values.items()},
        "idc_interval": {window: _interval(found) for window, found in values.items()},
        "idc_log_error": float(np.abs(errors).max()) if len(errors) else None,
        "idc_log_error_fitted": _curve_error(law, parameters, fitted, seed),
        "iat_cv": iat_cv(held),
        "iat_cv_predicted": float(np.mean(cvs)) if cvs else None,
        "cv_log_error": _log_ratio(float(np.mean(cvs)) if cvs else None, iat_cv(held)),
        "gap_ks": gap_distance(held, made),
        "rescaled_gap_ks": _rescaled_ks(law, parameters, held),
        "count_correlation_1_s": [_correlation(held), float(np.mean([_correlation(each) for each in made]))],
    }


def _spread(trace: Trace, seed: int) -> Trace:
    step_s = quantum_s(trace)
    zero = float(np.mean(np.diff(trace.arrival_ns) == 0))
    return dequantise(trace, seed, step_s) if step_s >= 0.01 and zero >= 0.05 else trace


def _curve_error(law: str, parameters: Mapping[str, Any], trace: Trace, seed: int) -> float | None:
    made = [made_by(law, parameters, trace.span_s, seed + 2000 + number) for number in range(SEEDS)]
    errors = log_errors(made, trace, fit_windows_s(trace))
    return float(np.abs(errors).max()) if len(errors) else None


def _test_windows_s(trace: Trace) -> list[float]:
    return [window for window in (0.1, *WINDOWS_S) if window * FEWEST_WINDOWS <= trace.span_s]


def _idcs(trace: Trace) -> dict[str, float | None]:
    return {f"{window:g}": idc(trace, window) for window in WINDOWS_S}


def _interval(values: list[float]) -> list[float]:
    return [float(each) for each in np.quantile(values, [0.05, 0.95])] if values else [float("nan")] * 2


def _rescaled_ks(law: str, parameters: Mapping[str, Any], held: Trace) -> float | None:
    """Gaps rescaled by the law's own rate against Exp(1), where the law's rate does not depend on the unseen."""
    if law != "poisson":
        return None
    gaps = np.sort(np.diff(held.arrival_ns) / NS_PER_S * parameters["rate_per_s"])
    shares = np.arange(1, len(gaps) + 1) / len(gaps)
    return float(np.abs(shares - (1 - np.exp(-gaps))).max())


def _correlation(trace: Trace) -> float:
    """The correlation of counts in one second with those in the next."""
    found = counts(trace, 1.0)
    if len(found) < 3 or found[:-1].std() == 0 or found[1:].std() == 0:
        return 0.0
    return float(np.corrcoef(found[:-1], found[1:])[0, 1])


def _lengths(fitted: Trace, held: Trace) -> dict[str, Any]:
    """How the lengths drawn from fitted time compare with those of held-out time."""
    found: dict[str, Any] = {}
    for name in ("input_tokens", "output_tokens"):
        first, second = getattr(fitted, name), getattr(held, name)
        tails = np.quantile(first, [0.99, 0.999]), np.quantile(second, [0.99, 0.999])
        found[name] = {
            "ks": ks_distance(first, second),
            "wasserstein": wasserstein_distance(first, second),
            "p99": [float(tails[0][0]), float(tails[1][0])],
            "p99.9": [float(tails[0][1]), float(tails[1][1])],
        }
    ranks = [rank_correlation(each.input_tokens, each.output_tokens) for each in (fitted, held)]
    known = [each for each in ranks if each is not None]
    found["rank_correlation"] = ranks
    found["rank_difference"] = abs(known[0] - known[1]) if len(known) == 2 else None
    found["law"] = "pairs drawn from the trace; a table of quantiles with a copula where it must not be shown"
    found["quantiles"] = asdict(fit_lengths(fitted))
    return found


def _reuse(fitted: Trace, held: Trace) -> dict[str, Any]:
    """What a prefix cache finds and how many turns sessions have, [fitted, held-out]; a law makes neither.

    Both stretches begin with a cold cache; sessions that the cut parts count as two.
    """
    found: dict[str, Any] = {}
    hits = [prefix_reuse(each) for each in (fitted, held)]
    if all(hits):
        found["token_hit_infinite"] = [each["token_hit_infinite"] for each in hits if each]
        found["token_hit_lru"] = {f"{size:g}": [lru_token_hit(each, size) for each in (fitted, held)] for size in LRU}
    turns = [turns_of(each) for each in (fitted, held)]
    if all(len(each) for each in turns):
        found["turns_mean"] = [float(each.mean()) for each in turns]
        found["turns_ks"] = ks_distance(*turns)
    return found


LRU = (0.01, 0.1, 0.25)  # room for so much of the different blocks


def _intervals(name: str, trace: Trace, seed: int, resamples: int = 20) -> dict[str, Any]:
    """5th and 95th percentile of each parameter over traces put together from twelfths of the time drawn anew."""
    from traces.transform import resample

    block_s = max(trace.span_s / 12, 1.0)
    values: dict[str, list[Any]] = {}
    for number in range(resamples):
        try:
            drawn = resample(trace, seed + 3000 + number, block_s)
        except ValueError:
            return {}
        for parameter, value in told(FITS[name](drawn) or {}).items():
            if not isinstance(value, str):
                values.setdefault(parameter, []).append(value)
    return {each: np.quantile(np.array(found), [0.05, 0.95], axis=0).T.tolist() for each, found in values.items()}


def _log_ratio(first: float | None, second: float | None) -> float | None:
    return abs(log(first / second)) if first and second else None


def _verdict(held: Mapping[str, Any], lengths: Mapping[str, Any]) -> tuple[tuple[str, ...], str]:
    ks = max(lengths[name]["ks"] for name in ("input_tokens", "output_tokens"))
    found = {name: held[name] for name in ("idc_log_error", "gap_ks", "cv_log_error")}
    found |= {"length_ks": ks, "rank_difference": lengths["rank_difference"]}
    over = {name: value for name, value in found.items() if value is not None and value > GOOD[name]}
    reasons = tuple(f"{name} {value:.3g}, good up to {GOOD[name]:g}" for name, value in over.items())
    if not over:
        return reasons, "good"
    return reasons, "bad" if any(value > 3 * GOOD[name] for name, value in over.items()) else "doubtful"


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_short, value)) + ")"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
