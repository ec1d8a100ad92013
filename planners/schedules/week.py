"""From an hourly profile to a schedule that was replayed: what replicas carry, the schedule, and each hour's rehearsal.

What a replica carries in keeping with the promises is measured once, on a slice of the trace at the profile's mean
rate; the schedule staffs every hour for that. Then each hour is replayed for HOUR_SLICE_S at its own rate, and an hour
that breaks a promise gets on-demand replicas more, one by one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models import price
from planners.demand import Market, survey
from planners.offers.engines import Offer
from planners.schedules.schedule import Hour, Prices, Schedule, cheapest_schedule, cost_usd
from planners.search import rehearsal
from planners.search.hunt import undominated
from planners.search.rehearsal import Candidate
from planners.slo import Slo, holds
from traces import Trace

Array = npt.NDArray[np.float64]

ENGINES = 4  # to choose from
PROBED = 8  # engines whose capacity is measured
PROBE_S = 300.0
HOUR_SLICE_S = 120.0
FULLEST = 0.6  # of its load by the fluid count is what a probed pool is first given
MOST_ADDED = 6  # replicas to an hour that breaks a promise


@dataclass(frozen=True, slots=True)
class Terms:
    """What is paid: reserved replicas a fraction of on-demand ones, spot at its listed price, up to a share.

    Started replicas are paid for start_s before they serve.
    """

    reserved_fraction: float
    spot_share: float = 0.0
    start_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Week:
    """A schedule over the engines chosen from, what one replica of each carries of its fluid load, and its rehearsal.

    mended lists hours that broke a promise as scheduled, and got replicas on demand until they held (broken: until no
    more were allowed). usd is the cost with those.
    """

    offers: tuple[Offer, ...]
    carries: tuple[float, ...]
    schedule: Schedule
    hours: tuple[Hour, ...]
    usd: float
    mended: tuple[int, ...]
    broken: tuple[int, ...]
    simulated_requests: int

    @property
    def gap(self) -> float:
        """Return how much dearer the mended schedule may be than the best at the capacities measured."""
        return max(0.0, 1 - self.schedule.usd_bound / self.usd)


def plan_week(
    trace: Trace,
    requests: Sequence[float],
    slos: Sequence[Slo],
    offers: Sequence[Offer],
    terms: Terms,
    seed: int = 0,
    tell: Callable[[str], None] = lambda words: None,
) -> Week:
    """Return the schedule for so many requests in each hour, of the sizes and burstiness of a trace.

    The bound of the schedule is for the engines chosen from, at the capacities measured.
    """
    mean_per_s = float(np.mean(requests)) / 3600
    if mean_per_s <= 0:
        raise ValueError("the profile holds no requests; there is nothing to schedule")
    sample = _at_rate(trace, mean_per_s, PROBE_S, seed)
    market = survey(sample, slos, offers)
    engines, carries = _capacities(market)
    if not engines:
        raise ValueError("no engine offered keeps the promises by itself; no schedule is made of it")
    chosen = tuple(market.offers[engine] for engine in engines)
    tell(", ".join(f"{one.short_name} carries {part:.0%}" for one, part in zip(chosen, carries, strict=True)))
    load = market.demand.load[engines] / np.array(carries)[:, None]
    factors = [count / 3600 / mean_per_s for count in requests]
    schedule = cheapest_schedule(_prices(chosen, terms), load, factors)
    tell(f"schedule: {schedule.usd:.2f} USD, at least {schedule.usd_bound:.2f}")
    return _rehearsed(trace, market, engines, carries, schedule, requests, terms, seed)


def _at_rate(trace: Trace, per_s: float, length_s: float, seed: int) -> Trace:
    """Return the busiest-looking middle of a trace at another rate, its bursts kept in proportion."""
    from traces.transform import scale_rate, slice_time

    middle_s = trace.span_s / 2
    part = slice_time(trace, max(0.0, middle_s - length_s / 2), middle_s + length_s / 2)
    return scale_rate(part, per_s / part.rate_per_s, seed)


def _capacities(market: Market) -> tuple[list[int], list[float]]:
    """Return the engines that carry the load at least cost, and the fraction of their fluid load that they carry."""
    usd = market.usd_per_hour * market.load
    lost = (market.demand.lost.sum(axis=2) <= market.demand.allowed[:, None]).all(axis=0)
    able = [engine for engine in undominated(market) if math.isfinite(usd[engine]) and lost[engine]]
    found = []
    everyone = np.arange(len(market.trace))
    for engine in sorted(able, key=lambda engine: usd[engine])[:PROBED]:
        count = max(1, math.ceil(market.load[engine] / FULLEST))
        fraction = rehearsal.largest_fraction(market, engine, count, market.trace, everyone)
        carried = fraction * float(market.load[engine]) / count
        if carried > 0:
            found.append((float(usd[engine]) / carried, engine, min(1.0, carried)))
    found.sort()
    return [engine for _, engine, _ in found[:ENGINES]], [carried for *_, carried in found[:ENGINES]]


def _prices(offers: Sequence[Offer], terms: Terms) -> Prices:
    on_demand = np.array([one.usd_per_hour for one in offers])
    spot = np.array([_spot_usd(one) if terms.spot_share > 0 else math.inf for one in offers])
    return Prices(on_demand, terms.reserved_fraction * on_demand, spot, terms.spot_share, terms.start_s / 3600)


def _spot_usd(one: Offer) -> float:
    engine = one.priced.engine
    listed = price.load(engine.device.name, "spot") if engine else None
    return math.inf if listed is None or engine is None else listed.usd_per_hour * engine.devices


def _rehearsed(
    trace: Trace,
    market: Market,
    engines: Sequence[int],
    carries: Sequence[float],
    schedule: Schedule,
    requests: Sequence[float],
    terms: Terms,
    seed: int,
) -> Week:
    hours, mended, broken, simulated = list(schedule.hours), [], [], 0
    for hour, count in enumerate(requests):
        part = _at_rate(trace, count / 3600, HOUR_SLICE_S, seed + hour) if count else None
        if part is None or not len(part):
            continue
        for added in range(MOST_ADDED + 1):
            replicas = [a + b + c for a, b, c in zip(schedule.reserved, hours[hour].on_demand, hours[hour].spot)]  # noqa: B905
            simulated += len(part)
            if holds(rehearsal.rehearse(market, _candidate(engines, replicas, hours[hour]), part), market.slos):
                break
            if added == MOST_ADDED:
                broken.append(hour)
                break
            more = list(hours[hour].on_demand)
            more[0] += 1  # the cheapest engine for its work
            hours[hour] = replace(hours[hour], on_demand=tuple(more))
        if hours[hour] != schedule.hours[hour]:
            mended.append(hour)
    chosen = tuple(market.offers[engine] for engine in engines)
    usd = cost_usd(_prices(chosen, terms), schedule.reserved, hours)
    return Week(chosen, tuple(carries), schedule, tuple(hours), usd, tuple(mended), tuple(broken), simulated)


def _candidate(engines: Sequence[int], replicas: Sequence[int], hour: Hour) -> Candidate:
    """Return an hour's fleet; pools without a planned share of a bucket get none."""
    used = [place for place, count in enumerate(replicas) if count]
    shares = []
    for row in np.asarray(hour.shares)[used].T:
        total = row.sum()
        shares.append(tuple((row / total).tolist()) if total > 0 else (1 / len(used),) * len(used))
    return Candidate(tuple((engines[place], replicas[place]) for place in used), tuple(shares), "join-shortest-queue")
