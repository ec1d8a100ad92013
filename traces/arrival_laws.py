"""When requests come: arrival laws, each a function of its parameters, a duration and a random generator.

Every law returns sorted times int64[n] in ns from 0 to the duration. None forces the number of arrivals.
"""

from collections.abc import Callable, Sequence
from math import exp, gamma, log, sqrt

import numpy as np
from numpy.random import Generator

from traces.trace import NS_PER_S, Array

FEW_EMPTY = 0.05
WARM_UP_MEMORIES = 12  # a cluster older than this many decay times has 6e-6 of its requests to come


def deterministic(rate_per_s: float, duration_s: float, rng: Generator) -> Array:
    """Return arrivals at equal gaps, the first half a gap after zero."""
    return _ns((np.arange(int(rate_per_s * duration_s)) + 0.5) / rate_per_s)


def poisson(rate_per_s: float, duration_s: float, rng: Generator) -> Array:
    """Return a Poisson stream: gap CV 1, index of dispersion 1 at every window."""
    return _ns(rng.uniform(0.0, duration_s, rng.poisson(rate_per_s * duration_s)))


def renewal(rate_per_s: float, cv: float, duration_s: float, rng: Generator, family: str = "gamma") -> Array:
    """Return independent gaps of mean 1 / rate and the given CV, of family gamma, weibull or lognormal.

    The stream has run for ever when it is cut: the gap over time zero is drawn in proportion to its length, so that
    the mean number of arrivals is rate x duration exactly. The index of dispersion tends to cv**2 at long windows
    whatever the family: no slow change of the rate. Raises ValueError for another family.
    """
    if family not in RENEWAL_FAMILIES:
        raise ValueError(f"unknown renewal family {family!r}; known: {', '.join(RENEWAL_FAMILIES)}")
    gaps, gap_over_zero = RENEWAL_FAMILIES[family]
    expected = rate_per_s * duration_s
    batch = int(expected + 10 * (1 + cv) * sqrt(expected) + 10)
    start_s = gap_over_zero(cv, rng) * rng.random() / rate_per_s
    times_s = start_s + np.concatenate([[0.0], np.cumsum(gaps(cv, batch, rng)) / rate_per_s])
    while times_s[-1] < duration_s:
        more_s = np.cumsum(gaps(cv, batch, rng)) / rate_per_s
        times_s = np.concatenate([times_s, times_s[-1] + more_s])
    return _ns(times_s[times_s < duration_s])


def nhpp(times_s: Sequence[float], rates_per_s: Sequence[float], duration_s: float, rng: Generator) -> Array:
    """Return a Poisson stream whose rate is linear between the given points and constant beyond them.

    By thinning a stream of the highest rate (Lewis and Shedler, 1979).
    """
    highest = max(rates_per_s)
    candidates_s = rng.uniform(0.0, duration_s, rng.poisson(highest * duration_s))
    accepted = rng.uniform(0.0, highest, len(candidates_s)) < np.interp(candidates_s, times_s, rates_per_s)
    return _ns(candidates_s[accepted])


def mmpp(rates_per_s: Sequence[float], mean_stays_s: Sequence[float], duration_s: float, rng: Generator) -> Array:
    """Return a Markov-modulated Poisson stream: states of the given rates, exponential stays, the next state drawn
    among the others at random, the first in proportion to its stay."""
    stays = np.asarray(mean_stays_s, np.float64)
    state = int(rng.choice(len(stays), p=stays / stays.sum()))
    start_s, pieces = 0.0, []
    while start_s < duration_s:
        end_s = min(start_s + rng.exponential(stays[state]), duration_s)
        pieces.append(rng.uniform(start_s, end_s, rng.poisson(rates_per_s[state] * (end_s - start_s))))
        others = [each for each in range(len(stays)) if each != state]
        start_s, state = end_s, others[int(rng.integers(len(others)))] if others else state
    return _ns(np.concatenate(pieces))


def on_off(rate_per_s: float, mean_on_s: float, mean_off_s: float, duration_s: float, rng: Generator) -> Array:
    """Return a stream of the given rate while on, silent while off."""
    return mmpp((rate_per_s, 0.0), (mean_on_s, mean_off_s), duration_s, rng)


def cox(
    rate_per_s: float,
    amplitudes: Sequence[float],
    decays_per_s: Sequence[float],
    duration_s: float,
    rng: Generator,
) -> Array:
    """Return a Poisson stream whose rate wanders with exponential memories: a sum of gamma Ornstein-Uhlenbeck rates.

    Its index of dispersion is 1 + sum of A (1 - (1 - exp(-k w)) / (k w)) over amplitudes A and decays k. The rate of
    one memory is a shot noise, so its requests are clusters: geometric in number, exponential in delay. The mean rate
    is shared in proportion to the standard deviations sqrt(A rate k / 2).
    """
    deviations = [sqrt(each * rate_per_s * decay / 2) for each, decay in zip(amplitudes, decays_per_s, strict=True)]
    streams = [poisson(rate_per_s, duration_s, rng)] if not any(deviations) else []
    for amplitude, decay_per_s, deviation in zip(amplitudes, decays_per_s, deviations, strict=True):
        share = deviation / sum(deviations) if any(deviations) else 0.0
        if share:
            size = amplitude / (2 * share)
            streams.append(_clusters(share * rate_per_s / size, size, decay_per_s, duration_s, rng))
    return np.sort(np.concatenate(streams))


def hawkes(rate_per_s: float, branching: float, decay_per_s: float, duration_s: float, rng: Generator) -> Array:
    """Return a self-exciting stream: each request causes `branching` < 1 more on average, after exponential delays.

    The rate is the mean rate of all requests. Source: Hawkes and Oakes, 1974 (cluster representation).
    """
    warm_up_s = WARM_UP_MEMORIES / (decay_per_s * (1 - branching))
    parents = poisson(rate_per_s * (1 - branching), duration_s + warm_up_s, rng) / NS_PER_S
    family = [parents]
    while len(parents):
        children = np.repeat(parents, rng.poisson(branching, len(parents)))
        parents = children + rng.exponential(1 / decay_per_s, len(children))
        family.append(parents)
    return _inside(np.concatenate(family) - warm_up_s, duration_s)


def batch(rate_per_s: float, mean_size: float, spread_s: float, duration_s: float, rng: Generator) -> Array:
    """Return Poisson batches of geometric size >= 1 whose requests come within spread_s: a fan-out of tool calls."""
    starts_s = rng.uniform(0.0, duration_s, rng.poisson(rate_per_s / mean_size * duration_s))
    requests_s = np.repeat(starts_s, rng.geometric(1 / mean_size, len(starts_s)))
    return _inside(requests_s + rng.uniform(0.0, spread_s, len(requests_s)), duration_s)


def bursts(
    bursts_s: Sequence[Sequence[float]], silences_s: Sequence[float], duration_s: float, rng: Generator
) -> Array:
    """Return whole bursts of a library one after the other, each after a silence; both are drawn anew every time.

    A burst is the times of its requests since its first. What happened within bursts is kept to the last gap; that
    one burst leads to another of its kind is not. The stream has run for ever when it is cut: the burst and silence
    over time zero are drawn in proportion to their length.
    """
    sizes = np.array([len(each) for each in bursts_s])
    times_s, firsts = np.concatenate([np.asarray(each, np.float64) for each in bursts_s]), np.cumsum(sizes) - sizes
    lengths_s, pauses_s = times_s[firsts + sizes - 1], np.asarray(silences_s, np.float64)
    cycle_s = lengths_s.mean() + pauses_s.mean()
    batch = int(1.2 * duration_s / cycle_s) + 20
    chosen, pauses = rng.integers(len(sizes), size=batch), pauses_s[rng.integers(len(pauses_s), size=batch)]
    if rng.random() * cycle_s < lengths_s.mean():
        chosen[0] = rng.choice(len(sizes), p=lengths_s / lengths_s.sum())
    else:
        pauses[0] = rng.choice(pauses_s, p=pauses_s / pauses_s.sum())
    while (cycles_s := lengths_s[chosen] + pauses)[1:].sum() < duration_s:
        chosen = np.concatenate([chosen, rng.integers(len(sizes), size=batch)])
        pauses = np.concatenate([pauses, pauses_s[rng.integers(len(pauses_s), size=batch)]])
    starts_s = np.cumsum(cycles_s) - cycles_s - rng.random() * cycles_s[0]
    counts = sizes[chosen]
    places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return _inside(np.repeat(starts_s, counts) + times_s[np.repeat(firsts[chosen], counts) + places], duration_s)


def _clusters(clusters_per_s: float, mean_size: float, decay_per_s: float, duration_s: float, rng: Generator) -> Array:
    warm_up_s = WARM_UP_MEMORIES / decay_per_s
    rows = 0 if mean_size >= FEW_EMPTY else 1  # where most clusters are empty, only the others are drawn
    some = mean_size / (1 + mean_size) if rows else 1.0
    starts_s = rng.uniform(-warm_up_s, duration_s, rng.poisson(some * clusters_per_s * (duration_s + warm_up_s)))
    sizes = rng.geometric(1 / (1 + mean_size), len(starts_s)) - 1 + rows
    requests_s = np.repeat(starts_s, sizes)
    return _inside(requests_s + rng.exponential(1 / decay_per_s, len(requests_s)), duration_s)


def _inside(times_s: Array, duration_s: float) -> Array:
    return _ns(times_s[(times_s >= 0) & (times_s < duration_s)])


def _ns(times_s: Array) -> Array:
    return np.sort(np.round(times_s * NS_PER_S).astype(np.int64))


def _gamma_gaps(cv: float, count: int, rng: Generator) -> Array:
    return rng.gamma(1 / cv**2, cv**2, count)


def _lognormal_gaps(cv: float, count: int, rng: Generator) -> Array:
    variance = log(1 + cv**2)
    return rng.lognormal(-variance / 2, sqrt(variance), count)


def _weibull_gaps(cv: float, count: int, rng: Generator) -> Array:
    shape = weibull_shape(cv)
    return rng.weibull(shape, count) / gamma(1 + 1 / shape)


def _gamma_gap_over_zero(cv: float, rng: Generator) -> float:
    return rng.gamma(1 / cv**2 + 1, cv**2)


def _lognormal_gap_over_zero(cv: float, rng: Generator) -> float:
    variance = log(1 + cv**2)
    return rng.lognormal(variance / 2, sqrt(variance))


def _weibull_gap_over_zero(cv: float, rng: Generator) -> float:
    shape = weibull_shape(cv)
    return float(rng.gamma(1 + 1 / shape) ** (1 / shape) / gamma(1 + 1 / shape))


def weibull_shape(cv: float) -> float:
    """Return the shape at which a Weibull law has the given CV, by bisection on a logarithmic scale."""
    low, high = log(0.05), log(100.0)
    for _ in range(60):
        middle = (low + high) / 2
        shape = exp(middle)
        if gamma(1 + 2 / shape) / gamma(1 + 1 / shape) ** 2 - 1 > cv**2:
            low = middle
        else:
            high = middle
    return exp((low + high) / 2)


Gaps = Callable[[float, int, Generator], Array]
GapOverZero = Callable[[float, Generator], float]
RENEWAL_FAMILIES: dict[str, tuple[Gaps, GapOverZero]] = {
    "gamma": (_gamma_gaps, _gamma_gap_over_zero),
    "weibull": (_weibull_gaps, _weibull_gap_over_zero),
    "lognormal": (_lognormal_gaps, _lognormal_gap_over_zero),
}

ARRIVAL_LAWS: dict[str, Callable[..., Array]] = {
    law.__name__: law for law in (deterministic, poisson, renewal, nhpp, mmpp, on_off, cox, hawkes, batch, bursts)
}
