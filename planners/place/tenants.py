"""Indivisible tenants on replicas: each needs memory and compute of one replica; which replicas are cheapest, provably.

Configuration programme: a pattern is what one replica of one kind may hold; patterns are chosen so that all tenants
have a place. Its linear relaxation, by column generation, is the bound: pricing a pattern is a knapsack in two
resources, solved exactly by CP-SAT in whole numbers. Farley's bound holds at every step: prices of tenants, scaled down
until no pattern is worth more than it costs, are a lower bound on any packing.

The packing itself dives: it keeps the whole parts of the relaxation, generates patterns for the tenants left, and so
on; and the patterns seen on the way are combined by an integer programme at the end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from planners.solver import mathopt, proven, solve

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Pattern = tuple[int, tuple[int, ...]]  # kind of replica, tenants of each type on it

SCALE = 1_000_000  # whole units of a price
UNITS = 10**9  # whole units of a replica's resource
ROOM = UNITS + 1_000  # what fits to one part in a million, fits: needs are rounded to whole units
ROUNDS = 400
CLOSED = 1e-4  # relative difference between relaxation and bound at which generation ends
NODES = 3_000


@dataclass(frozen=True, slots=True)
class Tenants:
    """`count` tenants of a type, each with its memory [GB] and compute [any unit, as of Kind] on one replica."""

    memory: float
    compute: float
    count: int


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of replica: its price, and what it holds."""

    usd_per_hour: float
    memory: float
    compute: float


@dataclass(frozen=True, slots=True)
class Packing:
    """Replicas with the tenants on each, their cost, and what no packing costs less than.

    tenant_usd_per_hour [type] is what one tenant more costs at the margin.
    """

    patterns: tuple[tuple[Pattern, int], ...]
    usd_per_hour: float
    usd_per_hour_bound: float
    tenant_usd_per_hour: tuple[float, ...]

    @property
    def gap(self) -> float:
        """Return how much dearer the packing may be than the best, as a fraction of its cost."""
        return max(0.0, 1 - self.usd_per_hour_bound / self.usd_per_hour)


def cheapest_packing(tenants: Sequence[Tenants], kinds: Sequence[Kind]) -> Packing:
    """Return a packing of all tenants with its bound; ValueError names a tenant that fits on no replica."""
    for number, one in enumerate(tenants):
        if not any(one.memory <= kind.memory and one.compute <= kind.compute for kind in kinds):
            raise ValueError(f"tenant {number} ({one.memory:g} GB, compute {one.compute:g}) fits on no kind of replica")
    pricing = _Pricing(tenants, kinds)
    demand = np.array([one.count for one in tenants])
    patterns = _first_patterns(pricing, demand)
    worth, bound = _generate(pricing, patterns, demand)
    chosen = _dive(pricing, patterns, demand)
    combined = _combine(pricing, patterns, demand)
    best = min((each for each in (chosen, combined) if each), key=lambda found: _usd(kinds, found))
    cost = _usd(kinds, best)
    return Packing(tuple(sorted(best.items())), cost, min(bound, cost), tuple(worth.tolist()))


class _Pricing:
    """Knapsacks, one for each kind of replica: what is the most that a replica may hold worth?"""

    def __init__(self, tenants: Sequence[Tenants], kinds: Sequence[Kind]) -> None:
        self.kinds = kinds
        self.usd = np.array([kind.usd_per_hour for kind in kinds])
        self.needs = []
        for kind in kinds:
            needs = np.array([[one.memory / kind.memory, one.compute / kind.compute] for one in tenants])
            self.needs.append(np.rint(needs * UNITS).astype(np.int64))

    def best(self, kind: int, worth: Counts, demand: Counts) -> tuple[int, tuple[int, ...]]:
        """Return the largest worth of what fits on a replica, in whole units, and the tenants of it."""
        from ortools.sat.python import cp_model

        needs = self.needs[kind]
        useful = [int(i) for i in np.flatnonzero((worth > 0) & (demand > 0) & (needs <= ROOM).all(axis=1))]
        model = cp_model.CpModel()
        most = [int(min(demand[i], ROOM // max(1, needs[i].max()))) for i in useful]
        held = [model.new_int_var(0, top, "") for top in most]
        for resource in range(2):
            model.add(cp_model.LinearExpr.weighted_sum(held, needs[useful, resource].tolist()) <= ROOM)
        model.maximize(cp_model.LinearExpr.weighted_sum(held, worth[useful].tolist()))
        solver = proven(model)
        assert solver is not None, "an empty replica is always possible"
        pattern = [0] * worth.size
        for place, variable in zip(useful, held, strict=True):
            pattern[place] = int(solver.value(variable))
        return round(solver.objective_value), tuple(pattern)


def _first_patterns(pricing: _Pricing, demand: Counts) -> dict[Pattern, None]:
    """Return for every type and kind the replica filled with it alone."""
    patterns: dict[Pattern, None] = {}
    for number in range(demand.size):
        for kind, needs in enumerate(pricing.needs):
            fits = min(ROOM // max(1, int(needs[number].max())), int(demand[number]))
            if fits:
                patterns[kind, tuple(fits if i == number else 0 for i in range(demand.size))] = None
    return patterns


def _generate(pricing: _Pricing, patterns: dict[Pattern, None], demand: Counts) -> tuple[Array, float]:
    """Add patterns until none improves the relaxation; return the tenants' prices and the best of Farley's bounds."""
    bound, best_worth = 0.0, np.zeros(demand.size)
    for _ in range(ROUNDS):
        usd, worth, _ = _relaxed(pricing, patterns, demand)
        whole = np.floor(worth * SCALE).astype(np.int64)
        before = len(patterns)
        dearest = 1.0
        for kind in range(len(pricing.kinds)):
            value, pattern = pricing.best(kind, whole, demand)
            ratio = value / SCALE / float(pricing.usd[kind])
            dearest = max(dearest, ratio)
            if ratio > 1 + 1e-6:
                patterns[kind, pattern] = None
        found = float(whole @ demand) / SCALE / dearest
        if found > bound:
            bound, best_worth = found, worth / dearest
        if len(patterns) == before or bound >= usd * (1 - CLOSED):
            break
    return best_worth, bound


def _relaxed(pricing: _Pricing, patterns: dict[Pattern, None], demand: Counts) -> tuple[float, Array, Array]:
    """Return the cost of the relaxation over some patterns, the price of each type, and how often each is used."""
    from scipy.optimize import linprog

    kinds = [kind for kind, _ in patterns]
    held = np.array([pattern for _, pattern in patterns], np.float64).T
    found = linprog(pricing.usd[kinds], -held, -demand.astype(np.float64), method="highs-ds")
    assert found.status == 0, found.message
    return float(found.fun), np.maximum(-found.ineqlin.marginals, 0.0), np.asarray(found.x)


def _dive(pricing: _Pricing, patterns: dict[Pattern, None], demand: Counts) -> dict[Pattern, int]:
    """Return a packing: the whole parts of the relaxation, or else its largest part, fixed again and again."""
    left, chosen = demand.copy(), {}  # type: ignore[var-annotated]
    while left.any():
        useful = {key: None for key in patterns if (np.array(key[1]) <= left).all()} | _first_patterns(pricing, left)
        _generate(pricing, useful, left)
        patterns.update(useful)
        _, _, used = _relaxed(pricing, useful, left)
        keys = list(useful)
        whole = {keys[place]: int(used[place] + 1e-6) for place in np.flatnonzero(used >= 1 - 1e-6)}
        if not whole:
            whole = {keys[int(np.argmax(used))]: 1}
        for key, count in whole.items():
            chosen[key] = chosen.get(key, 0) + count
            left = np.maximum(left - count * np.array(key[1]), 0)
    return chosen


def _combine(pricing: _Pricing, patterns: dict[Pattern, None], demand: Counts) -> dict[Pattern, int] | None:
    """Return the cheapest packing of the patterns seen, as far as the solver gets."""
    model = mathopt().Model()
    used = {key: model.add_integer_variable(lb=0) for key in patterns}
    for number, count in enumerate(demand.tolist()):
        held: Any = sum(key[1][number] * variable for key, variable in used.items() if key[1][number])
        model.add_linear_constraint(held >= count)
    model.minimize(sum(float(pricing.usd[key[0]]) * variable for key, variable in used.items()))
    found = solve(model, node_limit=NODES, relative_gap=1e-3)
    if found is None:
        return None
    counts = {key: round(found.variable_values(variable)) for key, variable in used.items()}
    return {key: count for key, count in counts.items() if count}


def _usd(kinds: Sequence[Kind], chosen: dict[Pattern, int]) -> float:
    return math.fsum(count * kinds[kind].usd_per_hour for (kind, _), count in chosen.items())
