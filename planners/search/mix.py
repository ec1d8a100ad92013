"""The cheapest mix of replicas that carries every size bucket: a mixed-integer programme, and its proven bound.

Load is divisible: x[k, b] is the share of bucket b that engine k takes, load[k, b] the replicas of engine k that all
of bucket b keeps busy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from planners.search.fluid import Limit
from planners.solver import mathopt, solve

Array = npt.NDArray[np.float64]

ONE_BY_ONE = 16
SIZE_RATIO = 1.08
ROUGH_GAP = 2e-3
ROUGH_NODES = 200


@dataclass(frozen=True, slots=True)
class Demand:
    """What must be carried: load[engine, bucket] in replicas, and the requests that break a promise there by nature.

    lost[promise, engine, bucket] counts requests of a bucket that an engine cannot serve within a promise even when
    idle; allowed[promise] is how many may break it.
    """

    load: Array
    lost: Array
    allowed: Array


@dataclass(frozen=True, slots=True)
class Mix:
    """Replicas per engine, the shares [engine, bucket] that they take, their cost and the solver's bound on any."""

    replicas: tuple[int, ...]
    shares: Array
    usd_per_hour: float
    bound_usd_per_hour: float


def sizes_up_to(most: int) -> tuple[int, ...]:
    """Return the pool sizes to choose from: one by one at first, then in a constant ratio."""
    sizes = list(range(1, min(most, ONE_BY_ONE) + 1))
    while sizes[-1] < most:
        sizes.append(min(most, max(sizes[-1] + 1, round(sizes[-1] * SIZE_RATIO))))
    return tuple(sizes)


def cheapest_mix(
    usd_per_hour: Array,
    demand: Demand,
    capacity: Sequence[dict[int, float]],
    *,
    below_usd_per_hour: float | None = None,
    excluded: Sequence[tuple[int, ...]] = (),
    limits: Sequence[Limit] = (),
    rough: bool = False,
) -> Mix | None:
    """Return the cheapest mix whose pools carry their load; None where there is none.

    usd_per_hour [engine] is per replica; capacity[engine] says, for each pool size on offer, the load it carries;
    the cost stays under below_usd_per_hour; a mix contained in an excluded one is not taken, nor one over a limit.
    Among equally cheap mixes the one with the least load, then the fewest replicas of later engines, is returned; with
    rough=True any within ROUGH_GAP of the cheapest, soon.
    """
    library = mathopt()
    model = library.Model()
    engines, buckets = demand.load.shape
    take = [{size: model.add_binary_variable() for size in capacity[engine]} for engine in range(engines)]
    shares = _add_shares(model, demand)
    for engine in range(engines):
        if take[engine]:
            model.add_linear_constraint(sum(take[engine].values()) <= 1)
        room = sum(capacity[engine][size] * chosen for size, chosen in take[engine].items())
        load = sum(demand.load[engine, bucket] * shares[engine, bucket] for bucket in _used(shares, engine, buckets))
        model.add_linear_constraint(load <= room)
    for bucket in range(buckets):
        carriers = [shares[engine, bucket] for engine in range(engines) if (engine, bucket) in shares]
        if not carriers:
            return None
        model.add_linear_constraint(sum(carriers) == 1)
    for mix in excluded:
        larger = [take[engine][size] for engine in range(engines) for size in take[engine] if size > mix[engine]]
        if not larger:
            return None
        model.add_linear_constraint(sum(larger) >= 1)
    for limit in limits:
        counted = [
            limit.weights[engine] * size * take[engine][size] for engine in range(engines) for size in take[engine]
        ]
        model.add_linear_constraint(sum(counted) <= limit.most)
    cost = sum(
        float(usd_per_hour[engine]) * size * chosen
        for engine in range(engines)
        for size, chosen in take[engine].items()
    )
    if below_usd_per_hour is not None:
        model.add_linear_constraint(cost <= below_usd_per_hour)
    model.minimize(cost)
    if rough:
        found = solve(model, node_limit=ROUGH_NODES, relative_gap=ROUGH_GAP)
        return None if found is None else _read(found, usd_per_hour, take, shares, demand.load.shape)
    found = solve(model)
    if found is None:
        return None
    return _tie_broken(model, cost, usd_per_hour, demand, take, shares, found)


def balanced_shares(demand: Demand, capacity: Sequence[float]) -> Array | None:
    """Return the shares [engine, bucket] that keep the fullest pool emptiest, or None where a promise forbids all.

    capacity [engine] is the load that the chosen pools carry; those with none get no share.
    """
    library = mathopt()
    model = library.Model()
    engines, buckets = demand.load.shape
    shares = _add_shares(model, demand, [engine for engine in range(engines) if capacity[engine] > 0])
    fullest = model.add_variable(lb=0)
    work = 0
    for engine in range(engines):
        used = _used(shares, engine, buckets)
        if used:
            load = sum(demand.load[engine, bucket] * shares[engine, bucket] for bucket in used)
            model.add_linear_constraint(load <= capacity[engine] * fullest)
            work = work + load
    for bucket in range(buckets):
        carriers = [shares[engine, bucket] for engine in range(engines) if (engine, bucket) in shares]
        if not carriers:
            return None
        model.add_linear_constraint(sum(carriers) == 1)
    model.minimize(fullest + 1e-3 / engines * work)
    found = solve(model)
    return None if found is None else _share_values(found, shares, demand.load.shape)


def _add_shares(model: Any, demand: Demand, engines: Sequence[int] | None = None) -> dict[tuple[int, int], Any]:
    """Add the shares that are worth having, and what they may break by nature."""
    promises, count, buckets = demand.lost.shape
    chosen = range(count) if engines is None else engines
    shares = {
        (engine, bucket): model.add_variable(lb=0, ub=1)
        for engine in chosen
        for bucket in range(buckets)
        if np.isfinite(demand.load[engine, bucket]) and (demand.lost[:, engine, bucket] <= demand.allowed).all()
    }
    for promise in range(promises):
        broken = [
            float(demand.lost[promise][place]) * share for place, share in shares.items() if demand.lost[promise][place]
        ]
        if broken:
            model.add_linear_constraint(sum(broken) <= float(demand.allowed[promise]))
    return shares


def _tie_broken(
    model: Any,
    cost: Any,
    usd_per_hour: Array,
    demand: Demand,
    take: list[dict[int, Any]],
    shares: dict[Any, Any],
    first: Any,
) -> Mix:
    """Fix the cost and prefer the mix with the least work, so that one optimum is left."""
    slack = 1e-6 * max(1.0, abs(first.objective_value()))
    model.add_linear_constraint(cost <= first.objective_value() + slack)
    work = sum(float(demand.load[place]) * float(usd_per_hour[place[0]]) * share for place, share in shares.items())
    order = sum(
        1e-6 * (engine + 1) * size * chosen for engine, sizes in enumerate(take) for size, chosen in sizes.items()
    )
    model.minimize(work + order)
    found = solve(model) or first
    mix = _read(found, usd_per_hour, take, shares, demand.load.shape)
    return replace(mix, bound_usd_per_hour=min(float(first.best_objective_bound()), mix.usd_per_hour))


def _read(
    found: Any, usd_per_hour: Array, take: list[dict[int, Any]], shares: dict[Any, Any], shape: tuple[int, ...]
) -> Mix:
    replicas = tuple(
        sum(size for size, chosen in sizes.items() if found.variable_values(chosen) > 0.5) for sizes in take
    )
    total = sum(count * float(usd) for count, usd in zip(replicas, usd_per_hour, strict=True))
    bound = min(float(found.best_objective_bound()), total)
    return Mix(replicas, _share_values(found, shares, shape), total, bound)


def _used(shares: dict[tuple[int, int], Any], engine: int, buckets: int) -> list[int]:
    return [bucket for bucket in range(buckets) if (engine, bucket) in shares]


def _share_values(found: Any, shares: dict[tuple[int, int], Any], shape: tuple[int, ...]) -> Array:
    values = np.zeros(shape)
    for place, share in shares.items():
        values[place] = max(0.0, found.variable_values(share))
    return values
