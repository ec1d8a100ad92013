"""Rules of thumb against the plan: a rule's fleet carries the mean load, and none that survives is cheaper."""

import planner_toys
import pytest

from planners.demand import survey
from planners.search.rules import RULES, by_rules
from planners.search.search import find_plan


@pytest.mark.parametrize("seed", range(3))
def test_no_rule_that_survives_is_cheaper_than_the_plan(seed):
    trace, offers, promises = planner_toys.bursty_trace(seed), planner_toys.two_offers(), planner_toys.promises()
    plan = find_plan(trace, None, promises, offers=offers)
    ruled = by_rules(survey(trace, promises, offers), (*RULES, 0.4, 0.2))
    assert len(ruled) == 6
    survivors = [one for one in ruled if one.survives]
    assert survivors, "some head-room is enough"
    assert all(one.usd_per_hour >= plan.usd_per_hour - 1e-9 for one in survivors)


def test_less_utilisation_never_costs_less():
    trace, offers, promises = planner_toys.bursty_trace(1), planner_toys.two_offers(), planner_toys.promises()
    costs = [one.usd_per_hour for one in by_rules(survey(trace, promises, offers))]
    assert costs == sorted(costs)
