"""Robustness: the best plan for each of several futures, how each plan fares in all of them, and which to choose.

A plan's regret in a future is how much dearer it is there than that future's own best plan; it is infinite where a
promise breaks. Chosen is the plan whose worst regret is least. One more plan is made for all adverse changes at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from planners import whatif
from planners.plan import Plan
from planners.search.infeasible import Infeasible
from planners.slo import holds
from planners.whatif import Question

Scenario = Mapping[str, str]  # changes as whatif takes them
ALL = "all at once"
AS_IT_IS = "as it is"


@dataclass(frozen=True, slots=True)
class Regrets:
    """What each plan [row] costs in each scenario [column], infinite where it breaks a promise there [USD/h].

    Rows are the scenarios' own plans and, if there are several, the plan for all changes at once; best_usd_per_hour
    is what each scenario's own plan costs.
    """

    scenarios: tuple[str, ...]
    names: tuple[str, ...]
    plans: tuple[Plan, ...]
    usd_per_hour: tuple[tuple[float, ...], ...]
    best_usd_per_hour: tuple[float, ...]

    def worst_regret(self, row: int) -> float:
        """Return how much dearer at worst a plan is than the best of a scenario, as a fraction of that."""
        pairs = zip(self.usd_per_hour[row], self.best_usd_per_hour, strict=True)
        return max(usd / best - 1 if math.isfinite(usd) else math.inf for usd, best in pairs)

    @property
    def chosen(self) -> int:
        """Return the row of the plan to choose: of the least worst regret, then the cheapest as things are."""
        rows = range(len(self.plans))
        return min(rows, key=lambda row: (self.worst_regret(row), self.usd_per_hour[row][0], row))


def parse_scenario(text: str) -> Scenario:
    """Return the changes that a text like "rate=1.2x,price.l40s=2x" names; ValueError says what would do.

    >>> parse_scenario("rate=1.2x,slo=0.9x")
    {'rate': '1.2x', 'slo': '0.9x'}
    """
    changes = {}
    for part in text.split(","):
        axis = whatif.parse_axis(part)
        changes[axis.name] = axis.values[0]
    return changes


def regrets(question: Question, scenarios: Sequence[Scenario]) -> Regrets:
    """Return the regret table over the scenarios, the present one first; Infeasible where one of them has no plan."""
    futures: list[Scenario] = [{}, *(scenario for scenario in scenarios if scenario)]
    names = [_name(future) for future in futures]
    if len(futures) > 2:
        names.append(ALL)
    merged = {name: value for future in futures for name, value in future.items()}
    questions = [_changed(question, future) for future in futures]
    candidates = [*questions, *([_changed(question, merged)] if len(futures) > 2 else [])]
    plans = []
    for name, asked in zip(names, candidates, strict=True):
        try:
            plans.append(asked.plan())
        except Infeasible as error:
            raise Infeasible(tuple(f"{name}: {reason}" for reason in error.reasons)) from error
    table = tuple(tuple(_usd_in(plan, asked) for asked in questions) for plan in plans)
    best = tuple(min(row[column] for row in table) for column in range(len(futures)))
    return Regrets(tuple(names[: len(futures)]), tuple(names), tuple(plans), table, best)


def _usd_in(plan: Plan, asked: Question) -> float:
    """Return what a plan costs in another future; infinite where it breaks a promise there."""
    from simulator.replay import replay

    offers = {one.name: one for one in asked.offers()}
    fleet = plan.fleet()
    if any(pool.engine.name not in offers for pool in fleet.pools):
        return math.inf
    pools = tuple(
        replace(pool, engine=offers[pool.engine.name].priced, usd_per_hour=offers[pool.engine.name].usd_per_hour)
        for pool in fleet.pools
    )
    there = replace(fleet, pools=pools)
    return there.usd_per_hour if holds(replay(asked.trace, there), asked.slos) else math.inf


def _changed(question: Question, changes: Scenario) -> Question:
    for name, value in changes.items():
        kind, _, what = name.partition(".")
        question = whatif.CHANGES[kind](question, what, value)
    return question


def _name(changes: Scenario) -> str:
    return ", ".join(f"{name} {value}" for name, value in changes.items()) or AS_IT_IS
