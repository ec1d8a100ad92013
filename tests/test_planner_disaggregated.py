"""Pools that only prefill beside pools that only decode: found, rehearsed, bounded, and back from their JSON."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import planner_toys
import pytest

from models import llm
from planners import plan as plans
from planners.answer import plain
from planners.bounds.bound import rigorous_usd_per_hour, windows_of
from planners.demand import survey
from planners.offers.limits import Limits
from planners.search import disaggregated, roles
from planners.search.hunt import Hunt
from planners.search.rehearsal import judge, split_candidate
from planners.search.search import find_plan
from planners.slo import holds, parse_all
from simulator.fleet import Fleet, Pool
from simulator.replay import replay

PROMISES = ("ttft:p90<=60ms", "tpot:p90<=2.5ms")


def in_roles(offers):
    """The same engines once more for each role; prefills go by priority."""
    for role in ("prefill", "decode"):
        for one in offers:
            limits = replace(one.priced.limits, by_priority=role == "prefill")
            yield replace(one, priced=replace(one.priced, name=f"{one.name}/{role}", limits=limits), role=role)


def split_market(seed: int):
    trace, offers = planner_toys.random_market(seed)
    return trace, [*offers, *in_roles(offers)]


def plan_of(seed: int, with_roles: bool, **options):
    offers = planner_toys.two_offers()
    offers = [*offers, *in_roles(offers)] if with_roles else offers
    trace = planner_toys.bursty_trace(seed)
    return trace, find_plan(trace, None, planner_toys.promises(*PROMISES), offers=offers, **options)


@pytest.mark.parametrize("seed", range(3))
def test_more_to_choose_from_is_never_dearer_and_what_is_found_survives(seed):
    _, alike = plan_of(seed, False)
    trace, plan = plan_of(seed, True)
    assert plan.usd_per_hour <= alike.usd_per_hour + 1e-9
    assert plan.usd_per_hour_bound <= plan.usd_per_hour
    assert holds(replay(trace, plan.fleet()), planner_toys.promises(*PROMISES))


@pytest.mark.parametrize("with_roles", [False, True])
def test_a_split_plan_says_what_its_conditional_bound_takes_for_granted(with_roles):
    _, plan = plan_of(0, with_roles)
    is_split = all(pool.role != "both" for pool in plan.pools)
    assert (roles.ASSUMED in plan.notes) == is_split


def test_prefill_steps_are_as_long_as_a_token_gets_cheaper_but_leave_time_to_wait_for_them():
    # 1 ms and 0.1 ms a token: the longest is the cheapest; a quarter of 200 ms has room for 490 tokens, so for 384.
    one = planner_toys.offer("toy", 1.0, max_batched_tokens=1024)
    assert disaggregated.step_tokens(one, 10.0) == 1024
    assert disaggregated.step_tokens(one, 0.2) == 384


def test_no_split_fleet_that_survives_costs_less_than_the_bound():
    promises, cheaper = planner_toys.promises(*PROMISES), 0
    for seed in range(12):
        trace, offers = split_market(seed)
        bound = rigorous_usd_per_hour(survey(trace, promises, offers))
        pairs = itertools.product(
            [one for one in offers if one.role == "prefill"], [one for one in offers if one.role == "decode"]
        )
        for (prefill, decode), prefills, decodes in itertools.product(pairs, range(1, 4), range(1, 3)):
            if prefills * prefill.usd_per_hour + decodes * decode.usd_per_hour < bound:
                pools = (Pool(prefill.priced, prefills, role="prefill"), Pool(decode.priced, decodes, role="decode"))
                for router in ("in-time", "join-shortest-queue"):
                    fleet = Fleet(pools, router, ttft_limit_s=0.06)
                    assert not holds(replay(trace, fleet), promises), (seed, prefill.name, decode.name, router)
                    cheaper += 1
    assert cheaper > 0


@pytest.mark.parametrize("seed", range(2))
def test_one_replica_fewer_of_either_kind_breaks_a_promise(seed):
    trace, plan = plan_of(seed, True)
    offers = planner_toys.two_offers()
    market = survey(trace, planner_toys.promises(*PROMISES), [*offers, *in_roles(offers)])
    places = {one.name: place for place, one in enumerate(market.offers)}
    counts = {places[pool.name]: pool.replicas for pool in plan.pools}
    if all(pool.role == "both" for pool in plan.pools):
        pytest.skip("pools that do both are cheaper here")
    hunt = Hunt(market, None, lambda words: None)
    for engine in counts:
        fewer = [(place, count - (place == engine)) for place, count in counts.items() if count - (place == engine)]
        if {market.offers[place].role for place, _ in fewer} == {"prefill", "decode"}:
            assert not hunt.attempt(split_candidate(market, fewer))[0].survives


@pytest.mark.parametrize("seed", range(6))
def test_closing_in_finds_as_cheap_a_split_fleet_as_brute_force(seed):
    promises = planner_toys.promises(*PROMISES)
    market = survey(planner_toys.bursty_trace(seed, 400), promises, list(in_roles(planner_toys.two_offers())))
    hunt = Hunt(market, windows_of(market), lambda words: None)
    disaggregated.search(hunt, 60)
    assert hunt.best is not None
    assert hunt.split_usd <= hunt.best.usd_per_hour
    most = [range(int(hunt.best.usd_per_hour / one.usd_per_hour) + 1) for one in market.offers]
    for counts in itertools.product(*most):
        pools = [(engine, count) for engine, count in enumerate(counts) if count]
        cost = sum(market.offers[engine].usd_per_hour * count for engine, count in pools)
        if {market.offers[engine].role for engine, _ in pools} == {
            "prefill",
            "decode",
        } and cost < hunt.split_usd - 1e-6:
            assert not hunt.attempt(split_candidate(market, pools))[0].survives, pools


def test_the_conditional_bound_is_as_wrong_as_the_lessons_it_is_drawn_from():
    # Told that each engine alone in its role takes fifty replicas, it holds a dear fleet for the cheapest.
    promises = planner_toys.promises(*PROMISES)
    market = survey(planner_toys.bursty_trace(0, 400), promises, list(in_roles(planner_toys.two_offers())))
    taught, misled = (Hunt(market, windows_of(market), lambda words: None) for _ in range(2))
    disaggregated.search(taught, 60)
    assert taught.best is not None
    dear = [(engine, count + 3) for engine, count in taught.best.candidate.pools]
    assert misled.attempt(split_candidate(market, dear))[0].survives
    found_usd = roles.close_in(misled, dict.fromkeys(range(len(market.offers)), 50.0), 60)
    assert found_usd > taught.best.usd_per_hour


def test_pools_are_to_blame_that_break_a_promise_beside_those_of_the_best_fleet():
    promises = planner_toys.promises(*PROMISES)
    market = survey(planner_toys.bursty_trace(0, 400), promises, list(in_roles(planner_toys.two_offers())))
    hunt = Hunt(market, windows_of(market), lambda words: None)
    disaggregated.search(hunt, 60)
    assert hunt.best is not None
    for engine, count in hunt.best.candidate.pools:
        fewer = [(place, many - (place == engine)) for place, many in hunt.best.candidate.pools]
        if count > 1:
            chosen = split_candidate(market, fewer)
            assert not hunt.attempt(chosen)[0].survives
            assert roles.to_blame(hunt, chosen) == [[market.offers[engine].role]]


@pytest.mark.parametrize("seed", range(4))
def test_a_rehearsal_that_stops_early_says_the_same_and_of_the_strain_no_more_than_is_known(seed):
    promises = planner_toys.promises(*PROMISES)
    market = survey(
        planner_toys.bursty_trace(seed, 30_000, 3_000.0), promises, list(in_roles(planner_toys.two_offers()))
    )
    roles = {role: [e for e, one in enumerate(market.offers) if one.role == role] for role in ("prefill", "decode")}
    stopped = 0
    for prefill, decode, count in itertools.product(roles["prefill"], roles["decode"], (1, 2)):
        chosen = split_candidate(market, [(prefill, count), (decode, count)])
        whole, _ = judge(market, chosen)
        early, _ = judge(market, chosen, to_the_end=False)
        assert early.survives == whole.survives
        assert early.strain <= whole.strain + 1e-9
        if not whole.survives:
            assert early.broken & whole.broken
            stopped += early.fails != whole.fails
    assert stopped > 0


def test_a_fleet_in_which_either_kind_may_fail_has_two_of_each():
    _, plan = plan_of(0, True, limits=Limits(spare=1))
    roles = {role: sum(pool.replicas for pool in plan.pools if pool.role == role) for role in ("prefill", "decode")}
    assert not any(roles.values()) or min(roles.values()) >= 2


def test_a_split_plan_comes_back_from_its_json_and_replays_the_same():
    model = llm.load("llama-3.1-8b")
    trace = planner_toys.bursty_trace(0, 200, 20.0)
    slos = parse_all(["ttft:p99<=200ms", "tpot:p99<=12ms"])
    plan = find_plan(trace, model, slos, ["l40s", "h100-sxm"], split=True)
    text = json.dumps(plan.result())
    again = plans.from_result(json.loads(text), model)
    assert json.dumps(again.result()) == text
    assert plain(replay(trace, again.fleet()).latency_s()) == json.loads(text)["slo"]


FRESH = """
import json, sys
sys.path.insert(0, "tests")
from test_planner_disaggregated import plan_of
print(json.dumps(plan_of(0, True)[1].result()))
"""


def test_a_fresh_process_with_another_hash_seed_gives_the_same_bytes():
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root)}
    fresh = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRESH],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert fresh.stdout.strip() == json.dumps(plan_of(0, True)[1].result())
