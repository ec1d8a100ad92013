"""The rehearsal: replays the whole trace on a candidate fleet, says what broke and where, and probes single pools."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planners.classes import members
from planners.demand import Market, misses_allowed
from planners.slo import Slo, broken, limit_s, percentile_s, strain, value_s
from simulator.fleet import Fleet, Pool
from simulator.run import Run
from traces import Trace

Array = npt.NDArray[np.float64]

SHARE_PARTS = 1000
PROBES = 7
MANY = 0.1  # of the misses allowed
ROUTERS = ("planned", "join-shortest-queue")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A fleet to try: (engine, replicas) for each pool, and the share of each bucket [bucket][pool] that it takes."""

    pools: tuple[tuple[int, int], ...]
    shares: tuple[tuple[float, ...], ...]
    router: str = ROUTERS[0]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What replays made of a candidate: strain is the worst ratio of a promised percentile to its limit.

    broke_on is the number of the sibling that broke it, 0 where it was the trace itself; broken are the metrics.
    """

    candidate: Candidate
    usd_per_hour: float
    strain: float
    fails: str
    broke_on: int = 0
    broken: frozenset[str] = frozenset()

    @property
    def survives(self) -> bool:
        """Say whether every promise was kept."""
        return self.strain <= 1.0


def candidate(replicas: Sequence[int], shares: Array) -> Candidate:
    """Return the candidate of replicas [engine] and shares [engine, bucket], which are rounded to whole per mille."""
    used = [engine for engine, count in enumerate(replicas) if count]
    columns = shares[used].T
    return Candidate(tuple((engine, replicas[engine]) for engine in used), tuple(map(_per_mille, columns)))


def split_candidate(market: Market, pools: Sequence[tuple[int, int]]) -> Candidate:
    """Return the fleet of (engine, replicas) hand in hand as a candidate: prefill pools first, as a fleet has them."""
    ordered = sorted(pools, key=lambda pool: (market.offers[pool[0]].role == "decode", pool[0]))
    shares = [0.0 if market.offers[engine].role == "decode" else 1.0 for engine, _ in ordered]
    row = tuple(share / sum(shares) for share in shares)
    return Candidate(tuple(ordered), (row,) * market.buckets, "in-time")


def fleet_of(market: Market, chosen: Candidate) -> Fleet:
    """Return the candidate as the simulator takes it; a pool's speed is what one replica carries of the whole trace."""
    pools = []
    for engine, count in chosen.pools:
        offer = market.offers[engine]
        pools.append(Pool(offer.priced, count, _speed(market, engine), offer.usd_per_hour, offer.role))
    ttft_limit_s = limit_s(market.slos, "ttft")
    return Fleet(
        tuple(pools),
        chosen.router,
        market.input_edges,
        chosen.shares,
        ttft_limit_s=ttft_limit_s,
        classes=market.classes,
    )


def rehearse(
    market: Market,
    chosen: Candidate,
    trace: Trace | None = None,
    is_lost: Callable[[Run], bool] | None = None,
) -> Run:
    """Return the replay of a trace, by default the market's, on the candidate; is_lost as replay takes it."""
    from simulator.replay import replay

    return replay(market.trace if trace is None else trace, fleet_of(market, chosen), is_lost=is_lost)


def judge(
    market: Market, chosen: Candidate, siblings: Sequence[Trace] = (), hardest: int = 0, *, to_the_end: bool = True
) -> tuple[Verdict, Run]:
    """Return what replays of the trace and its siblings, until one fails, say of the candidate, and the last run.

    The hardest, by its number, is replayed first; the trace is number 0. Of a candidate that survives all, the run
    returned is that of the trace itself. A replay that need not go to the end is over once a promise is broken whatever
    comes; its strain is then what is known so far.
    """
    cost = sum(float(market.usd_per_hour[engine]) * count for engine, count in chosen.pools)
    traces, runs, worst = (market.trace, *siblings), {}, 0.0
    for number in dict.fromkeys([hardest, *range(len(traces))]):
        tally = Tally(traces[number], market.slos)
        run = runs[number] = rehearse(market, chosen, traces[number], None if to_the_end else tally.is_lost)
        worst, words = max(worst, tally.strain or strain(run, market.slos)), tally.words or failure(run, market.slos)
        if words:
            where = f"on resampled sibling {number}, " if number else ""
            metrics = tally.broken or frozenset(slo.metric for slo in broken(run, market.slos))
            return Verdict(chosen, cost, worst, where + words, number, metrics), run
    return Verdict(chosen, cost, worst, ""), runs[0]


class Tally:
    """Counts the requests of a trace that break a promise while it is replayed, until they are more than may."""

    def __init__(self, trace: Trace, slos: Sequence[Slo]) -> None:
        self.allowed = {slo: misses_allowed(slo, trace) for slo in slos}
        self.strain, self.words, self.broken = 0.0, "", frozenset[str]()

    def is_lost(self, run: Run) -> bool:
        """Say whether a promise is broken however the rest of the requests fare; keep by how much, at least, and which.

        A promise that many have missed by then, if not too many, counts as broken with it.
        """
        worst, words, broken = 0.0, [], set()
        for slo, allowed in self.allowed.items():
            values = run.metric_s(slo.metric)[members(run.trace, slo.slo_class)]
            late = np.sort(values[np.isfinite(values) & (values > slo.limit_s)])[::-1]
            if late.size > allowed:
                worst = max(worst, float(late[allowed]) / slo.limit_s)
                words.append(f"{slo.name} is {late[allowed]:.3g} s or more, promised {slo}")
            if late.size > allowed * MANY:
                broken.add(slo.metric)
        if words:
            self.strain, self.words, self.broken = worst, "; ".join(words), frozenset(broken)
        return bool(words)


def failure(run: Run, slos: Sequence[Slo]) -> str:
    """Return in words which promises a run broke and by how much; empty where it kept all."""
    return "; ".join(f"{slo.name} is {value_s(run, slo):.3g} s, promised {slo}" for slo in broken(run, slos))


def pool_rows(run: Run, pool: int) -> npt.NDArray[np.int64]:
    """Return the requests that a run's router sent to one of its pools."""
    return np.flatnonzero(run.lanes["pool"][run.outcome.lane] == pool)


def pool_strain(run: Run, pool: int, slos: Sequence[Slo]) -> float:
    """Return the worst ratio of a promised percentile to its limit among one pool's own requests."""
    rows = pool_rows(run, pool)
    worst = 0.0
    for slo in slos:
        own = rows[members(run.trace, slo.slo_class)[rows]]
        value = percentile_s(run.metric_s(slo.metric)[own], slo.percent)
        worst = worst if math.isnan(value) else max(worst, value / slo.limit_s)
    return worst


def largest_fraction(market: Market, engine: int, count: int, trace: Trace, rows: npt.NDArray[np.int64]) -> float:
    """Return the largest fraction of a trace's rows that so many replicas of an engine serve within the promises.

    Found by halving, PROBES times; every thinning takes requests evenly in time within each size bucket.
    """
    from simulator.replay import replay
    from traces.trace import take

    offer = market.offers[engine]
    fleet = Fleet((Pool(offer.priced, count, 1.0, offer.usd_per_hour),))
    low, high = 0.0, 1.0
    for _ in range(PROBES):
        middle = (low + high) / 2
        kept = rows[thinned(market, trace, rows, middle)]
        if kept.size == 0 or strain(replay(take(trace, kept), fleet), market.slos) <= 1.0:
            low = middle
        else:
            high = middle
    return low


def thinned(market: Market, trace: Trace, rows: npt.NDArray[np.int64], fraction: float) -> npt.NDArray[np.bool_]:
    """Return which of some requests a router keeps that takes an even fraction of each size bucket."""
    bucket = market.bucket_of(trace)[rows]
    kept = np.zeros(rows.size, bool)
    for number in range(market.buckets):
        places = np.flatnonzero(bucket == number)
        due = np.floor(fraction * np.arange(places.size + 1) + 0.5)
        kept[places] = np.diff(due) > 0
    return kept


def _speed(market: Market, engine: int) -> float:
    load = market.demand.load[engine]
    carried = load[np.isfinite(load)].sum()
    return float(f"{1 / carried:.4g}") if carried > 0 else 1.0


def _per_mille(shares: Array) -> tuple[float, ...]:
    """Return shares rounded to whole per mille that add up to 1: the largest remainders are rounded up.

    A bucket without a request is nobody's: it is spread evenly.
    """
    shares = shares if shares.any() else np.ones_like(shares)
    parts = shares / shares.sum() * SHARE_PARTS
    whole = np.floor(parts + 1e-9)
    missing = round(SHARE_PARTS - whole.sum())
    whole[np.argsort(whole - parts, kind="stable")[:missing]] += 1
    return tuple(float(part) / SHARE_PARTS for part in whole)
