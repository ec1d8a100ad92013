"""What a plan tells beside its fleet: limits and their prices, an ordinary router's cost, power and carbon."""

from dataclasses import replace

import numpy as np
import planner_toys
import pytest

from models import device, llm
from models.engine import Engine
from planners.commands.explain import reasons
from planners.demand import survey
from planners.offers.limits import Limits
from planners.offers.tariffs import Carbon
from planners.plan import PlannedPool, from_result
from planners.search.explain import limits_used
from planners.search.fluid import Limit
from planners.search.naive_routing import ORDINARY, naive_routing
from planners.search.rehearsal import Candidate, rehearse
from planners.search.search import find_plan
from planners.slo import holds


def market_of(seed: int = 0):
    return survey(planner_toys.bursty_trace(seed), planner_toys.promises(), planner_toys.two_offers())


def test_a_limit_that_binds_has_the_price_that_one_more_saves():
    market = market_of()
    usd, load = market.usd_per_hour, market.load
    cheap, dear = np.argsort(usd * load)
    few = float(load[cheap]) / 2  # half of the load has to go to the other engine
    row = Limit("few", tuple(float(engine == cheap) for engine in range(2)), few)
    slack = Limit("loose", row.weights, 1e6)
    fluid_usd = float(np.min(market.demand.load * usd[:, None], axis=0).sum())
    tight, loose = limits_used(market, [row, slack], [1, 1], fluid_usd)
    assert (tight.used, tight.most) == (1.0, few)
    own, other = market.demand.load[cheap], market.demand.load[dear]

    def usd_within(most: float) -> float:  # buckets go to the limited engine in the order of what that saves
        total, left = float(usd[dear] * other.sum()), most
        for bucket in np.argsort(-(usd[dear] * other - usd[cheap] * own) / own):
            part = min(1.0, left / own[bucket])
            total -= part * float(usd[dear] * other[bucket] - usd[cheap] * own[bucket])
            left -= part * own[bucket]
        return total

    assert tight.usd_per_hour_of_one_more == pytest.approx((usd_within(few) - usd_within(few + 1e-3)) / 1e-3, rel=1e-3)
    assert loose.usd_per_hour_of_one_more == 0.0


def test_limits_are_told_with_the_reasons():
    plan = find_plan(
        planner_toys.bursty_trace(0),
        None,
        planner_toys.promises(),
        offers=planner_toys.two_offers(),
        limits=Limits(usd_per_hour_at_most=50.0),
    )
    (limit,) = plan.explain["limits"]
    assert limit["used"] == pytest.approx(plan.usd_per_hour)
    assert limit["most"] == 50.0
    assert "Limits" in reasons(plan)


def test_an_ordinary_router_is_told_by_what_it_breaks_and_what_makes_up_for_it():
    market = market_of()
    told = 0
    for counts in ((1, 4), (2, 2), (2, 3), (3, 3)):
        chosen = Candidate(((0, counts[0]), (1, counts[1])), ((0.9, 0.1),) * market.buckets)
        found = naive_routing(market, chosen)
        fleet = replace(chosen, router=ORDINARY)
        assert bool(found.fails) != holds(rehearse(market, fleet), market.slos)
        if found.usd_per_hour is not None:
            cheapest = int(np.argmin(market.usd_per_hour))
            more = tuple((engine, count + found.added * (engine == cheapest)) for engine, count in chosen.pools)
            assert holds(rehearse(market, replace(fleet, pools=more)), market.slos)
            told += found.added > 0
    assert told
    assert naive_routing(market, replace(chosen, router=ORDINARY)) is None


def test_power_and_carbon_are_those_of_all_devices():
    engine = Engine(llm.load("llama-3.1-8b"), device.load("l40s"), tp=2)
    plan = find_plan(
        planner_toys.bursty_trace(0), None, planner_toys.promises(), offers=planner_toys.two_offers(), analytic=True
    )
    assert plan.power_w is None  # toys draw nobody knows what
    real = replace(plan, pools=(PlannedPool("a", "l40s", 3, 3.0, engine=engine),), shares=((1.0,),))
    assert real.power_w == 6 * 350
    emitting = real.emitting(Carbon(0.4, pue=1.25))
    assert emitting.carbon_kg_per_hour == pytest.approx(6 * 0.350 * 1.25 * 0.4)
    assert emitting.result()["carbon_kg_per_hour"] == pytest.approx(1.05)
    again = from_result(emitting.result() | {"single_device": None, "cheaper": None}, engine.llm)
    assert again.carbon_kg_per_hour == pytest.approx(1.05)
