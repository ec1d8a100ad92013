"""The fluid mix: the cheapest whole replicas that carry divisible load under limits, with its proven bound and prices.

Load is divisible and pools never pause: x[k, b] is the share of bucket b on engine k, y[k] its replicas,

    min usd @ y   s.t.   sum_k x[k, b] = 1,   sum_b load[k, b] x[k, b] <= y[k],   limits on y.

The linear relaxation is strengthened by x[k, b] <= y[k], which says that a share needs a replica; of those thousands
of rows only the ones that a relaxation breaks are added.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from planners.solver import mathopt, solve

Array = npt.NDArray[np.float64]

SEPARATIONS = 12
VIOLATION = 1e-3
MOST_ADDED = 2_000  # rows in one separation
NODES = 400
GAP = 1e-4


@dataclass(frozen=True, slots=True)
class Limit:
    """A named limit on replicas: the sum of weight [engine] times replicas is at most `most`."""

    name: str
    weights: tuple[float, ...]
    most: float


@dataclass(frozen=True, slots=True)
class Relaxation:
    """What has to give where limits cannot all be kept: the limit's name and how far it must be raised."""

    name: str
    by: float


@dataclass(frozen=True, slots=True)
class FluidMix:
    """Replicas [engine], shares [engine, bucket], their cost, and what no mix within the limits costs less than.

    bucket_usd_per_hour is each whole bucket's cost at the margin; limit_usd_per_hour what one more unit of each limit
    saves: both of the linear relaxation.
    """

    replicas: tuple[int, ...]
    shares: Array
    usd_per_hour: float
    bound_usd_per_hour: float
    bucket_usd_per_hour: tuple[float, ...]
    limit_usd_per_hour: tuple[float, ...]

    @property
    def gap(self) -> float:
        """Return how much dearer the mix may be than the best one, as a fraction of its cost."""
        return max(0.0, 1 - self.bound_usd_per_hour / self.usd_per_hour)


class _Programme:
    """The mixed-integer programme over the engines that no other dominates."""

    def __init__(self, usd: Array, load: Array, limits: Sequence[Limit], engines: Sequence[int]) -> None:
        library = mathopt()
        self.library, self.engines, self.limits = library, engines, limits
        self.model = model = library.Model()
        self.load = load
        self.replicas = {engine: model.add_variable(lb=0, is_integer=False) for engine in engines}
        self.shares = {
            (engine, int(bucket)): model.add_variable(lb=0, ub=1)
            for engine in engines
            for bucket in np.flatnonzero(np.isfinite(load[engine]))
        }
        self.carried = [model.add_linear_constraint(lb=1, ub=1) for _ in range(load.shape[1])]
        rooms = {engine: model.add_linear_constraint(ub=0) for engine in engines}
        for engine, room in rooms.items():
            room.set_coefficient(self.replicas[engine], -1.0)
        for (engine, bucket), share in self.shares.items():
            self.carried[bucket].set_coefficient(share, 1.0)
            rooms[engine].set_coefficient(share, float(load[engine, bucket]))
        self.limit_rows = [self._limit_row(limit) for limit in limits]
        for engine in engines:
            model.objective.set_linear_coefficient(self.replicas[engine], float(usd[engine]))
        self.linked: set[tuple[int, int]] = set()

    def _limit_row(self, limit: Limit) -> Any:
        row = self.model.add_linear_constraint(ub=limit.most)
        for engine in self.engines:
            row.set_coefficient(self.replicas[engine], limit.weights[engine])
        return row

    def relax(self) -> Any | None:
        """Solve the linear relaxation, each time with the links that it broke before; return the last result."""
        solver = self.library.IncrementalSolver(self.model, self.library.SolverType.GLOP)
        found = None
        for _ in range(SEPARATIONS):
            found = solver.solve()
            if found.termination.reason != self.library.TerminationReason.OPTIMAL:
                return None
            if not self._link(found):
                break
        return found

    def _link(self, found: Any) -> bool:
        """Add x <= y where the result breaks it most; say whether any was."""
        replicas, shares = values_of(found, self.replicas), values_of(found, self.shares)
        broken = [
            (value - replicas[place[0]], place)
            for place, value in shares.items()
            if value > replicas[place[0]] + VIOLATION and place not in self.linked
        ]
        broken.sort(key=lambda entry: (-entry[0], entry[1]))
        for _, place in broken[:MOST_ADDED]:
            row = self.model.add_linear_constraint(ub=0)
            row.set_coefficient(self.shares[place], 1.0)
            row.set_coefficient(self.replicas[place[0]], -1.0)
            self.linked.add(place)
        return bool(broken)

    def make_whole(self) -> None:
        """Ask for whole replicas from now on."""
        for variable in self.replicas.values():
            variable.integer = True


def cheapest_fluid(
    usd_per_hour: Array, load: Array, limits: Sequence[Limit] = (), *, node_limit: int = NODES
) -> FluidMix | None:
    """Return the cheapest mix with its bound; None where the limits leave no mix that carries every bucket.

    usd_per_hour [engine] is per replica; load [engine, bucket] in replicas, infinite where it cannot be carried.
    """
    programme = _Programme(usd_per_hour, load, limits, undominated(usd_per_hour, load, limits))
    relaxed = programme.relax()
    if relaxed is None:
        return None
    bucket_prices = tuple(relaxed.dual_values(row) for row in programme.carried)
    limit_prices = tuple(-relaxed.dual_values(row) for row in programme.limit_rows)
    programme.make_whole()
    found = solve(programme.model, node_limit=node_limit, relative_gap=GAP)
    if found is None:
        return None
    replicas = [0] * len(usd_per_hour)
    shares = np.zeros(load.shape)
    for engine, count in values_of(found, programme.replicas).items():
        replicas[engine] = round(count)
    for place, share in values_of(found, programme.shares).items():
        shares[place] = max(0.0, share)
    bound = max(float(found.best_objective_bound()), float(relaxed.objective_value()))
    cost = float(np.dot(replicas, usd_per_hour))
    return FluidMix(tuple(replicas), shares, cost, min(bound, cost), bucket_prices, limit_prices)


def least_relaxation(usd_per_hour: Array, load: Array, limits: Sequence[Limit]) -> tuple[Relaxation, ...] | None:
    """Return the fewest limits to raise, and by how much in all, so that some mix carries every bucket.

    First the number of raised limits is made least, then the sum of their relative rises; () where none is needed,
    None where no limits are to blame.
    """
    library = mathopt()
    programme = _Programme(usd_per_hour, load, limits, undominated(usd_per_hour, load, limits))
    programme.make_whole()
    model = programme.model
    most = {limit.name: _most_useful(limit, load) for limit in limits}
    excess = [model.add_variable(lb=0, ub=most[limit.name]) for limit in limits]
    raised = [model.add_binary_variable() for _ in limits]
    for row, over, is_raised, limit in zip(programme.limit_rows, excess, raised, limits, strict=True):
        row.set_coefficient(over, -1.0)
        model.add_linear_constraint(over <= most[limit.name] * is_raised)
    model.minimize(sum(raised))
    first = solve(model)
    if first is None:
        return None
    model.add_linear_constraint(sum(raised) <= round(first.objective_value()))
    model.minimize(sum(over * (1 / max(limit.most, 1.0)) for over, limit in zip(excess, limits, strict=True)))
    second = solve(model) or first
    del library
    values = [second.variable_values(over) for over in excess]
    return tuple(Relaxation(limit.name, value) for limit, value in zip(limits, values, strict=True) if value > 1e-6)


def undominated(usd_per_hour: Array, load: Array, limits: Sequence[Limit] = ()) -> list[int]:
    """Return the engines that no other beats in price, in the load of every bucket and in what limits count."""
    counted = np.array([limit.weights for limit in limits]).T if limits else np.zeros((len(usd_per_hour), 0))
    traits = np.concatenate([usd_per_hour[:, None], load, counted], axis=1)
    kept = []
    for engine, own in enumerate(traits):
        no_worse = (traits <= own).all(axis=1)
        better = no_worse & (traits < own).any(axis=1)
        twins = np.flatnonzero(no_worse & ~better)
        if np.isfinite(load[engine]).any() and not better.any() and twins[0] == engine:
            kept.append(engine)
    return kept


def values_of(found: Any, variables: dict[Any, Any]) -> dict[Any, float]:
    """Return the values of a dictionary's variables in a solver's result."""
    return dict(zip(variables, found.variable_values(variables.values()), strict=True))


def _most_useful(limit: Limit, load: Array) -> float:
    """Return a rise of a limit that certainly is enough: every engine carries all that it can by itself."""
    needed = np.ceil(np.where(np.isfinite(load), load, 0.0).sum(axis=1)) + 1
    return float(np.dot(np.abs(limit.weights), needed)) + math.fabs(limit.most)
