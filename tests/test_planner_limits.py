"""Limits on the whole fleet: kept, survived, and named where they leave no fleet."""

import itertools
import re
from dataclasses import replace

import numpy as np
import planner_toys
import pytest

from models import llm
from planners.demand import survey
from planners.offers.engines import devices_named, offers_for
from planners.offers.limits import Limits, keeps
from planners.offers.tariffs import Tariff
from planners.search.rehearsal import Candidate
from planners.search.search import Infeasible, find_plan, fluid_mix
from planners.slo import holds
from simulator.fleet import Fleet, Pool
from simulator.replay import replay

SPOT = replace(planner_toys.offer("on-spot", 0.5), is_spot=True)


def plan_with(limits=None, seed: int = 0, **changes):
    trace = planner_toys.bursty_trace(seed)
    return trace, find_plan(
        trace, None, planner_toys.promises(), offers=planner_toys.two_offers(), limits=limits, **changes
    )


def toy_market():
    return survey(planner_toys.bursty_trace(0), planner_toys.promises(), [*planner_toys.two_offers(), SPOT])


def counts_of(plan):
    return {pool.name: pool.replicas for pool in plan.pools}


def test_devices_that_cannot_be_had_are_not_planned_with():
    _, free = plan_with()
    name, count = max(counts_of(free).items(), key=lambda entry: entry[1])
    _, held = plan_with(Limits(devices_at_most={name: count - 1}))
    assert counts_of(held).get(name, 0) < count
    assert held.usd_per_hour >= free.usd_per_hour
    assert held.usd_per_hour_bound == pytest.approx(free.usd_per_hour_bound)


def test_a_budget_that_suffices_changes_nothing_and_one_that_does_not_says_what_is_lacking():
    _, free = plan_with()
    assert plan_with(Limits(usd_per_hour_at_most=free.usd_per_hour))[1].usd_per_hour == free.usd_per_hour
    budget = free.usd_per_hour - 0.5
    with pytest.raises(
        Infeasible, match=r"no fleet within the limits keeps the promises; without limits .* at"
    ) as raised:
        plan_with(Limits(usd_per_hour_at_most=budget))
    assert f"at most {budget:g} USD/h would have to be 0.5 more" in raised.value.reasons


def test_within_limits_the_promises_to_loosen_are_named_and_by_how_much():
    promises = planner_toys.promises("ttft:p90<=40ms", "tpot:p90<=4ms")
    _, free = plan_with()
    limits = Limits(usd_per_hour_at_most=free.usd_per_hour - 1.0)
    with pytest.raises(Infeasible) as raised:
        plan_with(limits)
    (reason,) = (each for each in raised.value.reasons if each.startswith("or within the limits"))
    told = dict(re.findall(r"(\w+):p90 is ([0-9.e-]+) s, promised", reason))
    assert 0 < len(told) <= 2
    loosened = [replace(slo, limit_s=1.01 * float(told[slo.metric])) if slo.metric in told else slo for slo in promises]
    trace = planner_toys.bursty_trace(0)
    plan = find_plan(trace, None, loosened, offers=planner_toys.two_offers(), limits=limits)
    assert plan.usd_per_hour <= limits.usd_per_hour_at_most


def test_the_fewest_promises_to_give_up_are_those_that_brute_force_finds():
    promises = planner_toys.promises("ttft:p90<=1ms", "tpot:p90<=4ms", "e2e:p90<=2ms")  # no engine is so fast
    trace = planner_toys.bursty_trace(0)
    with pytest.raises(Infeasible) as raised:
        find_plan(trace, None, promises, offers=planner_toys.two_offers())
    (reason,) = (each for each in raised.value.reasons if each.startswith("the fewest promises to give up"))
    named = {slo for slo in promises if str(slo) in reason}
    possible = []
    for size in (1, 2):
        for given_up in itertools.combinations(promises, size):
            left = [slo for slo in promises if slo not in given_up]
            if fluid_mix(survey(trace, left, planner_toys.two_offers())) is not None:
                possible.append(set(given_up))
    assert named in [some for some in possible if len(some) == min(map(len, possible))]


def test_a_fleet_with_a_spare_survives_the_loss_of_any_replica():
    trace, plan = plan_with(Limits(spare=1))
    assert plan.usd_per_hour > plan_with()[1].usd_per_hour
    fleet = plan.fleet()
    for lost in range(len(fleet.pools)):
        left = [pool.replicas - (place == lost) for place, pool in enumerate(fleet.pools)]
        kept = [place for place, count in enumerate(left) if count]
        shares = []
        for row in fleet.shares:
            total = sum(row[place] for place in kept)
            shares.append(tuple(row[place] / total if total else 1 / len(kept) for place in kept))
        pools = tuple(Pool(fleet.pools[place].engine, left[place], fleet.pools[place].speed) for place in kept)
        less = Fleet(pools, fleet.router, fleet.input_edges, tuple(shares))
        assert holds(replay(trace, less), planner_toys.promises())


def test_what_is_left_after_a_failure_takes_over_the_shares():
    chosen = Candidate(((0, 1), (2, 2)), ((0.25, 0.75), (1.0, 0.0)))
    without_first, without_one_of_second = Limits(spare=1).degraded(toy_market(), chosen)
    assert without_first == Candidate(((2, 2),), ((1.0,), (1.0,)))
    assert without_one_of_second == Candidate(((0, 1), (2, 1)), ((0.25, 0.75), (1.0, 0.0)))


def test_any_zone_may_fail_with_its_even_part_of_every_pool():
    chosen = Candidate(((0, 1), (1, 5)), ((0.25, 0.75),))
    (left,) = Limits(zones=2).degraded(toy_market(), chosen)  # of five replicas three stand in the larger zone
    assert left == Candidate(((1, 2),), ((1.0,),))


def test_spot_replicas_are_taken_away_together_and_beside_a_spare():
    market = toy_market()
    place = [offer.is_spot for offer in market.offers].index(True)
    chosen = Candidate(((1 - place if place < 2 else 0, 2), (place, 3)), ((0.5, 0.5),))
    (taken,) = Limits(spot_spare=2).degraded(market, chosen)
    assert [count for _, count in taken.pools] == [2, 1]
    both = {tuple(count for _, count in left.pools) for left in Limits(spare=1, spot_spare=2).degraded(market, chosen)}
    assert both == {(1, 1), (2,)}


def test_a_fleet_over_two_zones_survives_the_loss_of_either():
    trace, plan = plan_with(Limits(zones=2))
    left = tuple(replace(pool, replicas=pool.replicas // 2) for pool in plan.fleet().pools)
    fleet = plan.fleet()
    half = Fleet(tuple(pool for pool in left if pool.replicas), "join-shortest-queue", fleet.input_edges)
    assert plan.usd_per_hour >= 2 * half.usd_per_hour
    kept = [pool.replicas > 0 for pool in left]
    shares = tuple(tuple(share for share, is_kept in zip(row, kept, strict=True) if is_kept) for row in fleet.shares)
    whole = tuple(tuple(share / sum(row) if sum(row) else 1 / len(row) for share in row) for row in shares)
    assert holds(replay(trace, replace(half, router=fleet.router, shares=whole)), planner_toys.promises())


def real_market():
    """An hour of small requests for an 8B model on two vendors' devices, on demand and spot."""
    devices, _ = devices_named(["l40s", "mi300x"])
    offers = offers_for(llm.load("llama-3.1-8b"), devices, tariff=Tariff(("on-demand", "spot")))
    return survey(planner_toys.toys.trace(np.arange(100) * 0.1, 500, 50), planner_toys.promises("ttft:p99<=2s"), offers)


def test_power_vendors_and_spot_are_counted():
    market = real_market()
    names = [offer.name for offer in market.offers]
    mine = names.index("llama-3.1-8b/mi300x/tp1pp1ep1dp1/bf16")
    spot = names.index("llama-3.1-8b/mi300x/tp1pp1ep1dp1/bf16/spot")
    other = names.index("llama-3.1-8b/l40s/tp2pp1ep1dp1/bf16")
    assert market.usd_per_hour[spot] < market.usd_per_hour[mine]

    def kept(limits: Limits, **counts: int) -> bool:
        replicas = np.zeros(len(names))
        replicas[[mine, spot, other]] = [counts.get("mine", 0), counts.get("spot", 0), counts.get("other", 0)]
        return keeps(limits.rows(market), replicas)

    # 750 W each, and 2 x 350 W.
    assert kept(Limits(power_w_at_most=1450), mine=1, other=1)
    assert not kept(Limits(power_w_at_most=1449), mine=1, other=1)
    assert kept(Limits(vendor_share_at_least={"amd": 0.5}), mine=1, other=1)
    assert not kept(Limits(vendor_share_at_least={"amd": 0.5}), other=1)
    assert kept(Limits(spot_share_at_most=0.5), mine=1, spot=1)
    assert not kept(Limits(spot_share_at_most=0.5), mine=1, spot=2)
    assert kept(Limits(devices_at_most={"l40s": 2}), other=1)
    assert not kept(Limits(devices_at_most={"l40s": 2}), other=2)


def test_power_of_toy_hardware_is_not_known():
    with pytest.raises(ValueError, match="needs the TDP of 'large'"):
        plan_with(Limits(power_w_at_most=1000))
