"""The rehearsal: replays the whole trace on a candidate fleet, says what broke and where, and probes single pools."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

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


@dataclass(slots=True)
class Rehearsed:
    """A trace rehearsed on a candidate: what that told, known from earlier runs or found now, and the run on demand."""

    market: Market
    candidate: Candidate
    trace: Trace
    _run: Run | None = None

    def run(self) -> Run:
        """Return the replay to its end."""
        self._run = self._run or rehearse(self.market, self.candidate, self.trace)
        return self._run

    def told(self, *, to_the_end: bool = True) -> tuple[float, str, frozenset[str]]:
        """Return the strain, in words what broke, and the metrics that did.

        A replay that need not go to the end is over once a promise is broken whatever comes; its strain is then what
        is known so far.
        """
        about = (*self._about(), to_the_end)
        strained, words, broke = self.market.facts.known(("told", *about), lambda: self._tell(to_the_end))
        return strained, words, frozenset(broke)

    def _tell(self, to_the_end: bool) -> tuple[float, str, list[str]]:
        slos, tally = self.market.slos, Tally(self.trace, self.market.slos)
        run = rehearse(self.market, self.candidate, self.trace, None if to_the_end else tally.is_lost)
        if tally.words:
            return tally.strain, tally.words, sorted(tally.broken)
        self._run = run
        return strain(run, slos), failure(run, slos), sorted(slo.metric for slo in broken(run, slos))

    def overfull(self) -> list[tuple[int, float]]:
        """Return the pools whose own requests break a promise, or most nearly do, and what fraction they carry."""
        found = self.market.facts.known(("overfull", *self._about()), self._overfull)
        return [(pool, fraction) for pool, fraction in found]

    def _overfull(self) -> list[tuple[int, float]]:
        run, market, pools = self.run(), self.market, self.candidate.pools
        strains = [pool_strain(run, pool, market.slos) for pool in range(len(pools))]
        full = [pool for pool, own in enumerate(strains) if own > 1 or own == max(strains)]
        return [(pool, largest_fraction(market, *pools[pool], run.trace, pool_rows(run, pool))) for pool in full]

    def _about(self) -> tuple[Any, ...]:
        return self.market.slos, self.trace, _nameless(fleet_of(self.market, self.candidate))


def _nameless(fleet: Fleet) -> Fleet:
    """Return a fleet without names and prices: nothing else of it is told by a replay."""
    pools = [replace(pool, usd_per_hour=0.0, engine=replace(pool.engine, name="", engine=None)) for pool in fleet.pools]
    return replace(fleet, pools=tuple(pools))


def judge(
    market: Market, chosen: Candidate, siblings: Sequence[Trace] = (), hardest: int = 0, *, to_the_end: bool = True
) -> tuple[Verdict, Rehearsed]:
    """Return what replays of the trace and its siblings, until one fails, say of the candidate, and the last one.

    The hardest, by its number, is replayed first; the trace is number 0. Of a candidate that survives all, what is
    returned is the trace itself. to_the_end is as Rehearsed takes it.
    """
    cost = sum(float(market.usd_per_hour[engine]) * count for engine, count in chosen.pools)
    all_of_them = [Rehearsed(market, chosen, trace) for trace in (market.trace, *siblings)]
    worst = 0.0
    for number in dict.fromkeys([hardest, *range(len(all_of_them))]):
        strained, words, broke = all_of_them[number].told(to_the_end=to_the_end)
        worst = max(worst, strained)
        if words:
            where = f"on resampled sibling {number}, " if number else ""
            return Verdict(chosen, cost, worst, where + words, number, broke), all_of_them[number]
    return Verdict(chosen, cost, worst, ""), all_of_them[0]


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
    fleet = Fleet((Pool(market.offers[engine].priced, count),))
    about = ("fraction", market.slos, market.input_edges, market.classes, trace, rows, _nameless(fleet))
    return float(market.facts.known(about, lambda: _largest_fraction(market, fleet, trace, rows)))


def _largest_fraction(market: Market, fleet: Fleet, trace: Trace, rows: npt.NDArray[np.int64]) -> float:
    from simulator.replay import replay
    from traces.trace import take

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
