"""Why a plan is as it is: which promise and which moments bind, what demand costs at the margin, what else was near."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from planners.bounds.bound import Windows
from planners.demand import Market
from planners.search.fluid import Limit
from traces.trace import NS_PER_S

Array = npt.NDArray[np.float64]

MOMENTS = 3
RIVALS = 5
STRETCHED = 1e4


@dataclass(frozen=True, slots=True)
class Shadow:
    """What one more request per second of a bucket of prompt lengths adds to the cost [USD/h]."""

    from_tokens: int
    requests_per_s: float
    usd_per_hour_per_request_per_s: float
    slo_class: str = ""


@dataclass(frozen=True, slots=True)
class Rival:
    """An engine that was not chosen, its price, and the price at which it would be worth a place [USD/h, replica]."""

    name: str
    usd_per_hour: float
    worth_usd_per_hour: float


@dataclass(frozen=True, slots=True)
class Moment:
    """A window of the trace in which the bound needs the most replicas: its start and length, and what it costs."""

    start_s: float
    length_s: float
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class LimitUsed:
    """A limit on the fleet: what is used of how much, and what one more unit saves [USD/h], if anything."""

    name: str
    used: float
    most: float
    usd_per_hour_of_one_more: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Shadow prices of demand, rivals and their reduced costs, the moments that bind, and the limits there are."""

    shadows: tuple[Shadow, ...]
    rivals: tuple[Rival, ...]
    moments: tuple[Moment, ...]
    limits: tuple[LimitUsed, ...] = ()

    def result(self) -> Mapping[str, Any]:
        """Return what plan.json says."""
        return {
            "shadow_prices": [
                {
                    "from_tokens": shadow.from_tokens,
                    "requests_per_s": shadow.requests_per_s,
                    "usd_per_hour_per_request_per_s": shadow.usd_per_hour_per_request_per_s,
                    **({"class": shadow.slo_class} if shadow.slo_class else {}),
                }
                for shadow in self.shadows
            ],
            "rivals": [
                {
                    "engine": rival.name,
                    "usd_per_hour": rival.usd_per_hour,
                    "worth_usd_per_hour": rival.worth_usd_per_hour,
                }
                for rival in self.rivals
            ],
            "moments": [
                {"start_s": moment.start_s, "length_s": moment.length_s, "usd_per_hour": moment.usd_per_hour}
                for moment in self.moments
            ],
            **({"limits": [asdict(limit) for limit in self.limits]} if self.limits else {}),
        }


def explain(
    market: Market,
    windows: Windows,
    plan_usd_per_hour: float,
    used: Sequence[int],
    limits: tuple[LimitUsed, ...] = (),
) -> Explanation:
    """Return the reasons for a plan that uses some engines.

    Prices come from the linear programme of divisible replicas, scaled so that they add up to what the plan costs: so
    each bucket bears its share of the room that bursts and whole replicas take.
    """
    shadow, fluid_usd = _shadow_prices(market)
    scale = plan_usd_per_hour / fluid_usd if fluid_usd > 0 else 1.0
    return Explanation(
        shadows=_shadows(market, shadow * scale),
        rivals=_rivals(market, shadow, used),
        moments=_moments(market, windows),
        limits=limits,
    )


def limits_used(
    market: Market, rows: Sequence[Limit], replicas: Sequence[int], plan_usd_per_hour: float
) -> tuple[LimitUsed, ...]:
    """Return what replicas [engine] use of the limits, and what one more unit of each saves.

    Prices are those of divisible replicas that never pause, where load is scaled to cost what the plan does.
    """
    if not rows:
        return ()
    _, fluid_usd = _shadow_prices(market)
    scale = max(plan_usd_per_hour / fluid_usd, 1.0) if fluid_usd > 0 else 1.0
    prices = _limit_prices(market, rows, scale)
    used = [float(np.dot(row.weights, replicas)) for row in rows]
    return tuple(
        LimitUsed(row.name, mine, row.most, price) for row, mine, price in zip(rows, used, prices, strict=True)
    )


def _limit_prices(market: Market, rows: Sequence[Limit], scale: float) -> list[float]:
    """Return what a unit more of each limit saves; the limits stretched to what fits where they leave too little."""
    from scipy.optimize import linprog

    load = market.demand.load * scale
    places = np.argwhere(np.isfinite(load))
    engines, buckets = load.shape
    carried = np.zeros((buckets, len(places) + engines + 1))
    carried[places[:, 1], np.arange(len(places))] = 1.0
    room = np.zeros((engines, carried.shape[1]))
    room[places[:, 0], np.arange(len(places))] = load[places[:, 0], places[:, 1]]
    room[:, len(places) : -1] = -np.eye(engines)
    most = np.array([row.most for row in rows])
    limited = np.zeros((len(rows), carried.shape[1]))
    limited[:, len(places) : -1] = [row.weights for row in rows]
    limited[:, -1] = -np.maximum(np.abs(most), 1.0)  # the part by which all are stretched, at a price nobody would pay
    usd = np.concatenate([np.zeros(len(places)), market.usd_per_hour, [STRETCHED * market.usd_per_hour.sum() * scale]])
    found = linprog(
        usd,
        np.concatenate([room, limited]),
        np.concatenate([np.zeros(engines), most]),
        carried,
        np.ones(buckets),
        method="highs",
    )
    if found.status != 0 or found.x[-1] > 1e-9:
        return [0.0] * len(rows)
    return [max(0.0, -float(price)) for price in found.ineqlin.marginals[engines:]]


def _shadow_prices(market: Market) -> tuple[Array, float]:
    """Return what each whole bucket costs at the margin were replicas divisible and never idle, and their sum."""
    from scipy.optimize import linprog

    demand, usd = market.demand, market.usd_per_hour
    usable = np.isfinite(demand.load) & (demand.lost <= demand.allowed[:, None, None]).all(axis=0)
    places = np.argwhere(usable)
    cost = usd[places[:, 0]] * demand.load[usable]
    carried = np.zeros((demand.load.shape[1], len(places)))
    carried[places[:, 1], np.arange(len(places))] = 1.0
    lost = np.array([losses[usable] for losses in demand.lost])
    found = linprog(cost, lost, demand.allowed, carried, np.ones(carried.shape[0]), method="highs")
    if found.status != 0:
        return np.zeros(carried.shape[0]), 0.0
    return np.asarray(found.eqlin.marginals), float(found.fun)


def _shadows(market: Market, price: Array) -> tuple[Shadow, ...]:
    rate = np.bincount(market.bucket_of(market.trace), minlength=market.buckets) / market.horizon_s
    edges = itertools.product((*market.classes, ""), market.input_edges)
    return tuple(
        Shadow(edge, float(rate[number]), float(price[number] / rate[number]), name)
        for number, (name, edge) in enumerate(edges)
        if number < rate.size and rate[number] > 0
    )


def _rivals(market: Market, price: Array, used: Sequence[int]) -> tuple[Rival, ...]:
    """Return the engines closest to a place: worth is what a busy replica saves at the shadow prices."""
    rivals = []
    for engine, offer in enumerate(market.offers):
        load = market.demand.load[engine]
        useful = np.isfinite(load) & (load > 0)
        if engine not in used and useful.any():
            rivals.append(Rival(offer.short_name, offer.usd_per_hour, float((price[useful] / load[useful]).max())))
    rivals.sort(key=lambda rival: (-rival.worth_usd_per_hour / rival.usd_per_hour, rival.name))
    return tuple(rivals[:RIVALS])


def _moments(market: Market, windows: Windows) -> tuple[Moment, ...]:
    """Return the windows that by themselves, every miss allowed spent on them, need the dearest fleet."""
    usd, arrival_s = market.usd_per_hour, market.trace.arrival_ns / NS_PER_S
    moments = []
    for row in windows.rows:
        per_usd = float((row.power / usd).max())
        left = row.demand - _most_relief(row.relief, row.allowed)
        if per_usd > 0 and left > 0 and row.allowed > 0:
            start_s = float(arrival_s[row.first])
            moments.append(Moment(start_s, row.end_s - start_s, left / per_usd))
    moments.sort(key=lambda moment: (-moment.usd_per_hour, moment.start_s))
    return tuple(moments[:MOMENTS])


def _most_relief(relief: tuple[tuple[int, float], ...], allowed: float) -> float:
    taken = 0.0
    for count, each in relief:
        part = min(count, allowed)
        taken, allowed = taken + part * each, allowed - part
    return taken
