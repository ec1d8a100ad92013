"""Fleets of several models that share devices, a budget, power: which for each, so that together they are cheapest.

Models share no replica, so that each is planned and rehearsed by itself. What they share is priced: fleets that were
seen to survive are the columns of a master programme (Dantzig and Wolfe), which chooses one for each model within the
limits; its shadow prices are added to what devices cost, and every model is planned again at those, until no fleet is
found that the master would take. The same prices give a bound: what each model costs at least where a limit is paid
for, less what the limits are worth.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from planners.bounds.bound import rigorous_usd_per_hour
from planners.demand import Market
from planners.offers.limits import SLACK, Limits, keeps
from planners.plan import Plan
from planners.search.fluid import Limit
from planners.search.hunt import Hunt, describe
from planners.search.infeasible import Infeasible
from planners.search.rehearsal import Candidate, Verdict
from planners.search.search import Found, search_all
from planners.solver import mathopt, solve

Array = npt.NDArray[np.float64]

ROUNDS = 4
PENALTY = 10.0  # what a limit's whole amount costs if overrun, in costs of all fleets
BETTER_BY = 1e-6  # relative
MORE = 1e-6  # relative


@dataclass(frozen=True, slots=True)
class Shared:
    """One shared limit: what is used of how much, and what one more unit of it would save [USD/h]."""

    name: str
    used: float
    most: float
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class Portfolio:
    """A plan for each model, by name, and what they share; the bound holds for any fleets within the limits."""

    plans: Mapping[str, Plan]
    shared: tuple[Shared, ...]
    usd_per_hour_bound: float
    rounds: int

    @property
    def usd_per_hour(self) -> float:
        """Return what all fleets cost together."""
        return sum(plan.usd_per_hour for plan in self.plans.values())

    @property
    def gap(self) -> float:
        """Return how much dearer the plans may be than the best ones, as a fraction of their cost."""
        return max(0.0, 1 - self.usd_per_hour_bound / self.usd_per_hour)


@dataclass(frozen=True, slots=True)
class Column:
    """A fleet of one model that survived, at its listed price, and what it uses of each shared limit."""

    model: int
    verdict: Verdict
    uses: tuple[float, ...]

    @property
    def key(self) -> tuple[int, Candidate]:
        """Return what makes a column this one."""
        return self.model, self.verdict.candidate


Columns = Mapping[tuple[int, Candidate], Column]


def plan_together(
    found: Mapping[str, Found], limits: Limits, tell: Callable[[str], None] = lambda words: None
) -> Portfolio:
    """Return a fleet for each model, each found by itself before, so that together they are cheap within limits.

    A spare is not shared: it is of each model's own limits. Raises Infeasible where no fleets that were found fit.
    """
    if limits.spare or limits.spot_spare or limits.zones > 1 or limits.racks:
        raise ValueError("limits shared by several models have no spare, zones or racks; each plan's own limits may")
    names, hunts = list(found), [each.hunt for each in found.values()]
    rows = [limits.rows(hunt.market) for hunt in hunts]
    most = np.array([row.most for row in rows[0]])
    columns = {column.key: column for column in _columns(hunts, hunts, rows)}
    prices = np.zeros(most.size)
    bound_usd = _bound(found, limits, prices)
    chosen = _choice(columns, len(hunts), most)
    rounds = 0
    while rounds < ROUNDS and _is_tight(chosen, bound_usd, columns):
        prices = _prices(columns, len(hunts), most)
        if not prices.any():
            break
        rounds += 1
        bound_usd = max(bound_usd, _bound(found, limits, prices))
        tell(f"round {rounds}: " + ", ".join(_price_words(rows[0], prices)))
        again = [_at(hunt, row, prices) for hunt, row in zip(hunts, rows, strict=True)]
        fresh = {column.key: column for column in _columns(hunts, again, rows)}
        if fresh.keys() <= columns.keys():
            break
        columns = fresh | columns
        chosen = _choice(columns, len(hunts), most)
    if chosen is None:
        raise _too_limited(names, hunts, columns, rows[0])
    used = np.sum([column.uses for column in chosen], axis=0)
    plans = {name: found[name].plan_of(column.verdict) for name, column in zip(names, chosen, strict=True)}
    told = zip(rows[0], used, _prices(columns, len(hunts), most), strict=True)
    shared = tuple(Shared(row.name, float(mine), row.most, float(price)) for row, mine, price in told)
    total = sum(column.verdict.usd_per_hour for column in chosen)
    return Portfolio(plans, shared, min(bound_usd, total), rounds)


def _columns(homes: Sequence[Hunt], hunts: Sequence[Hunt], rows: Sequence[Sequence[Limit]]) -> Iterator[Column]:
    """Yield the fleets that survived in each hunt, at what they cost before any limit is paid for."""
    for model, (home, hunt, limits) in enumerate(zip(homes, hunts, rows, strict=True)):
        for verdict in hunt.verdicts.values():
            replicas = np.zeros(len(home.market.offers))
            for engine, count in verdict.candidate.pools:
                replicas[engine] = count
            if verdict.survives and keeps(home.rows, replicas):
                usd = float(np.dot(home.market.usd_per_hour, replicas))
                uses = tuple(float(np.dot(limit.weights, replicas)) for limit in limits)
                yield Column(model, replace(verdict, usd_per_hour=usd), uses)


class _Master:
    """One column of each model, chosen under the shared limits."""

    def __init__(self, columns: Columns, models: int) -> None:
        self.columns = list(columns.values())
        self.model: Any = mathopt().Model()
        self.take = [self.model.add_binary_variable() for _ in self.columns]
        for number in range(models):
            own = [taken for column, taken in self.pairs() if column.model == number]
            self.model.add_linear_constraint(sum(own) == 1)

    def pairs(self) -> Iterator[tuple[Column, Any]]:
        """Yield the columns with the variables that say whether they are taken."""
        return zip(self.columns, self.take, strict=True)

    def used(self, limit: int) -> Any:
        """Return what the columns taken use of a limit."""
        return sum(column.uses[limit] * taken for column, taken in self.pairs())

    def chosen(self, found: Any) -> list[Column]:
        """Return the columns that a solution takes, model by model."""
        taken = [column for column, each in self.pairs() if found.variable_values(each) > 0.5]
        return sorted(taken, key=lambda column: column.model)


def _choice(columns: Columns, models: int, most: Array) -> list[Column] | None:
    """Return one column of each model, cheapest together within the limits; None where there are none."""
    master = _Master(columns, models)
    for limit, amount in enumerate(most.tolist()):
        master.model.add_linear_constraint(master.used(limit) <= amount + SLACK * max(1.0, abs(amount)))
    master.model.minimize(sum(column.verdict.usd_per_hour * taken for column, taken in master.pairs()))
    found = solve(master.model)
    return None if found is None else master.chosen(found)


def _prices(columns: Columns, models: int, most: Array) -> Array:
    """Return what a unit more of each limit is worth to the cheapest mixtures of columns; overrunning has a price, too.

    A little more than there is makes it what the next unit saves where what the last one saves is not the same.
    """
    from scipy.optimize import linprog

    usd = np.array([column.verdict.usd_per_hour for column in columns.values()])
    uses = np.array([column.uses for column in columns.values()]).reshape(usd.size, most.size).T
    per_unit = PENALTY * usd.max() / np.maximum(np.abs(most), np.abs(uses).max(axis=1, initial=1e-9))
    own = np.array([[column.model == number for column in columns.values()] for number in range(models)], np.float64)
    found = linprog(
        np.concatenate([usd, per_unit]),
        np.hstack([uses, -np.eye(most.size)]),
        most + MORE * np.maximum(1.0, np.abs(most)),
        np.hstack([own, np.zeros((models, most.size))]),
        np.ones(models),
        method="highs",
    )
    assert found.status == 0, found.message
    worth: Array = np.maximum(0.0, -np.asarray(found.ineqlin.marginals))
    return worth


def _bound(found: Mapping[str, Found], limits: Limits, prices: Array) -> float:
    """Return the Lagrangian bound at prices of the limits; -inf where they would pay for replicas.

    Within the limits, cost >= cost + prices @ (uses - most) >= what each model costs at least - prices @ most.
    """
    total = 0.0
    for place, each in enumerate(found.values()):
        rows = limits.rows(each.market)
        usd = _paid(each.market, rows, prices)
        if (usd < 0).any():
            return -math.inf
        total += rigorous_usd_per_hour(replace(each.market, usd_per_hour=usd), each.windows, each.fails_alone)
        total -= 0.0 if place else float(np.dot(prices, [row.most for row in rows]))
    return total


def _paid(market: Market, limits: Sequence[Limit], prices: Array) -> Array:
    """Return what replicas [engine] cost where what they use of the limits is paid for."""
    weights = np.array([limit.weights for limit in limits]).reshape(len(limits), len(market.offers))
    paid: Array = market.usd_per_hour + np.dot(prices, weights)
    return paid


def _at(home: Hunt, limits: Sequence[Limit], prices: Array) -> Hunt:
    """Return the search of one model where the limits are paid for; what pools carry is known from before."""
    usd = np.maximum(_paid(home.market, limits, prices), SLACK)
    offers = tuple(replace(one, usd_per_hour=float(paid)) for one, paid in zip(home.market.offers, usd, strict=True))
    market = replace(home.market, usd_per_hour=usd, offers=offers)
    again = Hunt(market, home.windows, lambda words: None, home.siblings, home.limits)
    again.rows, again.carries, again.reaches = home.rows, dict(home.carries), home.reaches
    again.tried = {replicas: survives for replicas, survives in home.tried.items() if not survives}
    search_all(again)
    return again


def _is_tight(chosen: Sequence[Column] | None, bound_usd: float, columns: Columns) -> bool:
    """Say whether the limits may be what keeps the fleets from being cheaper."""
    if chosen is None:
        return True
    cheapest: dict[int, float] = {}
    for column in columns.values():
        cheapest[column.model] = min(column.verdict.usd_per_hour, cheapest.get(column.model, math.inf))
    total = sum(column.verdict.usd_per_hour for column in chosen)
    return total > max(sum(cheapest.values()), bound_usd) * (1 + BETTER_BY)


def _price_words(limits: Sequence[Limit], prices: Array) -> list[str]:
    return [f"{limit.name} at {price:.3g} USD/h a unit" for limit, price in zip(limits, prices, strict=True) if price]


def _too_limited(names: Sequence[str], hunts: Sequence[Hunt], columns: Columns, limits: Sequence[Limit]) -> Infeasible:
    """Return the fewest limits to raise, and by how much, so that fleets that were found fit."""
    master = _Master(columns, len(hunts))
    model = master.model
    largest = [sum(abs(column.uses[place]) for column in master.columns) for place in range(len(limits))]
    over = [model.add_variable(lb=0, ub=size) for size in largest]
    raised = [model.add_binary_variable() for _ in limits]
    for place, limit in enumerate(limits):
        model.add_linear_constraint(master.used(place) - over[place] <= limit.most)
        model.add_linear_constraint(over[place] <= largest[place] * raised[place])
    model.minimize(
        sum(raised) + sum(size * (0.5 / (most * len(limits))) for size, most in zip(over, largest, strict=True) if most)
    )
    found = solve(model)
    assert found is not None, "with limits raised far enough any fleets fit"
    fleets = [
        f"{names[each.model]}: {describe(hunts[each.model].market, each.verdict.candidate)}"
        for each in master.chosen(found)
    ]
    by = [(limit.name, found.variable_values(size)) for limit, size in zip(limits, over, strict=True)]
    reasons = [f"the fewest limits to raise: {name}, by {size:.3g}" for name, size in by if size > 1e-6]
    words = f"no fleets that were found fit the shared limits; these would, were some raised: {'; '.join(fleets)}"
    return Infeasible((words, *reasons))
