"""A weekly schedule: what to reserve all week, and what to add from hour to hour on demand and on spot.

All replicas of all hours in one programme is more than a solver can do. But hours meet only in what is reserved, so:

1. The linear relaxation of all hours together prices a reserved replica in every hour.
2. At those prices each hour is a small integer programme of its own. Their sum is a bound on the whole, for prices of
   one engine that add up to no more than a reserved replica costs (Lagrangian relaxation).
3. What is reserved is rounded from the relaxation and improved one replica at a time; each hour then adds its own.

Loads are divisible, as in planners/search/fluid.py: load[engine, bucket] replicas are kept busy by a whole bucket at
factor 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from planners.search.fluid import values_of
from planners.solver import mathopt, solve

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

EVALUATIONS = 3  # of what is reserved, each one programme for every hour
GAP = 1e-3
NODES = 200


@dataclass(frozen=True, slots=True)
class Prices:
    """What a replica of each engine costs for an hour: on demand, reserved for the whole time, on spot; [engine].

    Infinite where an engine cannot be had so. Spot replicas are at most spot_share of each hour's capacity. A replica
    that is started is paid for start_hours before it serves.
    """

    on_demand: Array
    reserved: Array
    spot: Array
    spot_share: float = 0.3
    start_hours: float = 0.0


@dataclass(frozen=True, slots=True)
class Hour:
    """Replicas of each engine in one hour beyond the reserved ones, and how all of them share the load."""

    on_demand: tuple[int, ...]
    spot: tuple[int, ...]
    shares: Array = field(repr=False)


@dataclass(frozen=True, slots=True)
class Schedule:
    """Reserved replicas [engine] and every hour's; the cost of all hours, and what no schedule costs less than [USD].

    relaxed_usd is the bound of the plain linear relaxation.
    """

    reserved: tuple[int, ...]
    hours: tuple[Hour, ...]
    usd: float
    usd_bound: float
    relaxed_usd: float

    @property
    def gap(self) -> float:
        """Return how much dearer the schedule may be than the best, as a fraction of its cost."""
        return max(0.0, 1 - self.usd_bound / self.usd) if self.usd else 0.0

    def replicas(self, hour: int) -> tuple[int, ...]:
        """Return all replicas [engine] of an hour."""
        one = self.hours[hour]
        return tuple(map(sum, zip(self.reserved, one.on_demand, one.spot, strict=True)))


def cheapest_schedule(prices: Prices, load: Array, factors: Sequence[float]) -> Schedule:
    """Return a schedule for hours whose load is factor times load; ValueError where an hour cannot be carried."""
    if not np.isfinite(load).any(axis=0).all():
        raise ValueError("some requests fit on no engine offered; no schedule carries them")
    reserved, duals, relaxed_usd = _relaxation(prices, load, factors)
    bound_usd = sum(_hour_bound(prices, load, factor, duals[:, hour]) for hour, factor in enumerate(factors))
    best = _staffed(prices, load, factors, np.rint(reserved).astype(np.int64))
    tried = {best.reserved}
    for candidate in _nearby(reserved):
        if len(tried) < EVALUATIONS and candidate not in tried:
            tried.add(candidate)
            best = min(best, _staffed(prices, load, factors, np.array(candidate)), key=lambda found: found.usd)
    bound_usd = max(bound_usd, relaxed_usd)
    return replace(best, usd_bound=min(bound_usd, best.usd), relaxed_usd=relaxed_usd)


def cost_usd(prices: Prices, reserved: Sequence[int], hours: Sequence[Hour]) -> float:
    """Return the cost of all hours, with what replicas cost while they start; the last hour comes before the first."""
    total = len(hours) * _dot(prices.reserved, reserved)
    for before, now in zip([hours[-1], *hours[:-1]], hours, strict=True):
        for usd, was, count in (
            (prices.on_demand, before.on_demand, now.on_demand),
            (prices.spot, before.spot, now.spot),
        ):
            started = np.maximum(np.subtract(count, was), 0)
            total += _dot(usd, count) + prices.start_hours * _dot(usd, started)
    return total


def _dot(usd: Array, count: Sequence[int] | Counts) -> float:
    used = np.asarray(count) > 0
    return float(np.dot(usd[used], np.asarray(count)[used]))


def _nearby(reserved: Array) -> list[tuple[int, ...]]:
    """Return roundings of what is reserved, the nearest first, then one replica more or less of each engine."""
    near = np.rint(reserved)
    steps = [(abs(abs(reserved[engine] - near[engine]) - 0.5), engine) for engine in range(reserved.size)]
    found = []
    for direction in (1, -1):
        for _, engine in sorted(steps):
            toward = 1 if reserved[engine] > near[engine] else -1
            moved = near.copy()
            moved[engine] += direction * toward
            if moved[engine] >= 0:
                found.append(tuple(int(count) for count in moved))
    return found


def _relaxation(prices: Prices, load: Array, factors: Sequence[float]) -> tuple[Array, Array, float]:
    """Return reserved replicas [engine], the price of one in every hour [engine, hour], and the cost, all relaxed.

    Rows: each bucket carried, each engine's room, reserved replicas used, spot's share; columns: hour by hour shares,
    used reserved, on-demand and spot replicas, then what is reserved.
    """
    from scipy import sparse
    from scipy.optimize import linprog

    engines, buckets = load.shape
    places = np.argwhere(np.isfinite(load))
    wide = len(places) + 3 * engines
    carried = np.zeros((buckets, wide))
    carried[places[:, 1], np.arange(len(places))] = 1.0
    rows, used = [], []
    capacity = _capacity(load)
    for factor in factors:
        room = np.zeros((engines, wide))
        room[places[:, 0], np.arange(len(places))] = factor * load[places[:, 0], places[:, 1]]
        room[:, len(places) :] = -np.tile(np.eye(engines), 3)
        spot = np.zeros((1, wide))
        spot[0, len(places) :] = np.concatenate(
            [-prices.spot_share * capacity] * 2 + [(1 - prices.spot_share) * capacity]
        )
        rows.append(sparse.csr_array(np.concatenate([room, spot])))
        used.append(np.concatenate([np.zeros((engines, len(places))), np.eye(3 * engines)[:engines]], axis=1))
    hours = len(factors)
    blocks = sparse.block_diag(rows)
    blocks = sparse.hstack([blocks, sparse.csr_array((blocks.shape[0], engines))])
    linked = sparse.hstack([sparse.block_diag(used), sparse.vstack([-sparse.eye_array(engines)] * hours)])
    cost = np.concatenate([np.zeros(len(places) + engines), prices.on_demand, prices.spot])
    top = np.tile(
        np.concatenate([np.ones(len(places)), np.full(engines, np.inf), _most(prices.on_demand), _most(prices.spot)]),
        hours,
    )
    top = np.concatenate([top, _most(prices.reserved)])
    whole = np.concatenate([np.tile(np.where(np.isfinite(cost), cost, 0.0), hours), _finite(hours * prices.reserved)])
    found = linprog(
        whole,
        sparse.vstack([blocks, linked]).tocsr(),
        np.zeros(blocks.shape[0] + linked.shape[0]),
        sparse.hstack(
            [sparse.block_diag([sparse.csr_array(carried)] * hours), sparse.csr_array((buckets * hours, engines))]
        ).tocsr(),
        np.ones(buckets * hours),
        np.stack([np.zeros(top.size), top], axis=1),
        method="highs-ds",
    )
    if found.status != 0:
        raise ValueError(f"no schedule carries every hour: {found.message}")
    duals = np.maximum(-found.ineqlin.marginals[blocks.shape[0] :].reshape(hours, engines).T, 0.0)
    limit = hours * prices.reserved
    scale = np.minimum(1.0, np.divide(limit, duals.sum(axis=1), out=np.ones(engines), where=duals.sum(axis=1) > 0))
    return found.x[-engines:], duals * scale[:, None], float(found.fun)


def _most(usd: Array) -> Array:
    return np.where(np.isfinite(usd), np.inf, 0.0)


def _finite(usd: Array) -> Array:
    return np.where(np.isfinite(usd), usd, 0.0)


def _capacity(load: Array) -> Array:
    """Return the part of all load that one replica of each engine carries; 0 where there is some that it cannot."""
    whole = load.sum(axis=1)
    capacity: Array = np.divide(1.0, whole, out=np.zeros(whole.size), where=np.isfinite(whole) & (whole > 0))
    return capacity


def _hour_bound(prices: Prices, load: Array, factor: float, reserved_usd: Array) -> float:
    """Return the least that one hour costs where a reserved replica has its price of this hour."""
    found = _hour(prices, load, factor, reserved_usd, None)
    return max(0.0, float(found[0].best_objective_bound()))


def _staffed(prices: Prices, load: Array, factors: Sequence[float], reserved: Counts) -> Schedule:
    """Return the schedule in which each hour adds the cheapest replicas to the reserved ones."""
    hours: list[Hour] = []
    known: dict[float, Hour] = {}
    for factor in factors:
        if factor not in known:
            found, added, shares = _hour(prices, load, factor, np.zeros(len(load)), reserved)
            values = values_of(found, added)
            split = np.zeros(load.shape)
            for place, share in values_of(found, shares).items():
                split[place] = max(0.0, share)
            on_demand, spot = (
                tuple(round(values[engine, kind]) for engine in range(len(load))) for kind in ("on_demand", "spot")
            )
            known[factor] = Hour(on_demand, spot, split)
        hours.append(known[factor])
    total = cost_usd(prices, tuple(reserved), hours)
    return Schedule(tuple(int(count) for count in reserved), tuple(hours), total, 0.0, 0.0)


def _hour(
    prices: Prices, load: Array, factor: float, reserved_usd: Array, reserved: Counts | None
) -> tuple[Any, dict[tuple[int, str], Any], dict[tuple[int, int], Any]]:
    """Solve one hour: reserved replicas at a price, as many as there are, or as one likes where that is None."""
    model = mathopt().Model()
    engines, buckets = load.shape
    capacity, usd = _capacity(load), {"on_demand": prices.on_demand, "spot": prices.spot, "reserved": reserved_usd}
    most = {kind: _most(price) for kind, price in usd.items()}
    most["reserved"] = _most(prices.reserved) if reserved is None else reserved.astype(np.float64)
    count = {
        (engine, kind): model.add_integer_variable(lb=0, ub=float(most[kind][engine]))
        for engine in range(engines)
        for kind in usd
    }
    shares = {(int(k), int(b)): model.add_variable(lb=0, ub=1) for k, b in np.argwhere(np.isfinite(load))}
    for bucket in range(buckets):
        model.add_linear_constraint(sum(share for (_, b), share in shares.items() if b == bucket) == 1)
    for engine in range(engines):
        work = sum(factor * float(load[place]) * share for place, share in shares.items() if place[0] == engine)
        model.add_linear_constraint(work <= sum(count[engine, kind] for kind in usd))
    on_spot = sum(float(capacity[engine]) * count[engine, "spot"] for engine in range(engines))
    whole = sum(float(capacity[engine]) * one for (engine, _), one in count.items())
    model.add_linear_constraint(on_spot <= prices.spot_share * whole)
    model.minimize(
        sum(float(_finite(usd[kind])[engine]) * one for (engine, kind), one in count.items() if most[kind][engine])
    )
    found = solve(model, node_limit=NODES, relative_gap=GAP)
    if found is None:
        raise ValueError("an hour's load cannot be carried within the limit on spot")
    return found, count, shares
