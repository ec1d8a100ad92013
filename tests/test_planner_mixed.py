"""Pools that do both beside pools that prefill or decode: found where they are cheaper, as brute force finds them."""

import itertools
import json
from dataclasses import replace

import numpy as np
import planner_toys
import pytest
import toys
import yaml
from test_cli_export import H100, L4, SMALL, of_kind, plan_of
from test_planner_disaggregated import in_roles

from models.engine import Engine
from planners import exports
from planners.bounds.bound import windows_of
from planners.classes import classified
from planners.demand import survey
from planners.exports.deployment import of_plan
from planners.offers.limits import Limits
from planners.search import mixed_pools
from planners.search.hunt import Hunt
from planners.search.rehearsal import Candidate, split_candidate
from planners.search.search import find_plan
from planners.slo import holds
from simulator.fleet import Fleet, Pool
from simulator.replay import replay

PROMISES = planner_toys.promises("chat/ttft:p90<=60ms", "chat/tpot:p90<=2.5ms", "batch/e2e:p90<=400ms")
RULES = {"chat": "input_tokens<30", "batch": "input_tokens>=30"}


def workload(seed: int):
    trace = classified(planner_toys.bursty_trace(seed, 300, 3.0), RULES)
    offers = [planner_toys.offer("small", 1.0, 2.0, 200.0), planner_toys.offer("large", 2.6, 1.0, 90.0)]
    return trace, [*offers, *in_roles(offers)]


def roles_of(plan) -> set[str]:
    return {pool.role for pool in plan.pools}


@pytest.mark.parametrize(("seed", "pays"), [(0, False), (2, True), (5, True), (6, True)])
def test_ordinary_pools_beside_split_ones_are_found_where_they_are_cheaper(seed, pays, monkeypatch):
    trace, offers = workload(seed)
    plan = find_plan(trace, None, PROMISES, offers=offers)
    monkeypatch.setattr("planners.search.search.EFFORT_MIXED", 0)
    apart = find_plan(trace, None, PROMISES, offers=offers)
    assert (plan.usd_per_hour < apart.usd_per_hour) == pays
    assert (roles_of(plan) == {"both", "prefill", "decode"}) == pays
    assert plan.usd_per_hour_bound <= plan.usd_per_hour
    run = replay(trace, plan.fleet())
    assert holds(run, PROMISES)
    assert run.latency_s() == plan.latency_s
    if plan.router == "planned":  # here each class keeps to pools of its own
        front = run.fleet.share_matrix()
        assert ((front == 0) | (front == front.max(axis=1, keepdims=True))).all()


@pytest.mark.parametrize("seed", [2, 4, 6])
def test_brute_force_finds_no_cheaper_mixed_fleet_under_the_same_routings(seed):
    trace, offers = workload(seed)
    plan = find_plan(trace, None, PROMISES, offers=offers)
    market = survey(trace, PROMISES, offers)
    windows = windows_of(market)
    judge, compared = Hunt(market, windows, lambda words: None), 0
    for counts in itertools.product(range(3), repeat=len(market.offers)):
        used = [(engine, count) for engine, count in enumerate(counts) if count]
        usd = float(np.dot(counts, market.usd_per_hour))
        is_mixed = mixed_pools.is_mixed(market, [engine for engine, _ in used])
        if usd < plan.usd_per_hour - 1e-9 and is_mixed and windows.may_survive(counts):
            for chosen in mixed_pools._routed(market, split_candidate(market, used)):
                assert not judge.attempt(chosen)[0].survives, (seed, counts, chosen.router)
                compared += 1
    assert compared


def test_what_is_left_when_the_only_prefill_replica_fails_cannot_serve():
    trace, offers = workload(2)
    market = survey(trace, PROMISES, offers)
    places = {one.name: engine for engine, one in enumerate(market.offers)}
    pools = [(places[name], 3) for name in ("small", "small/decode")]
    chosen = split_candidate(market, [*pools, (places["small/prefill"], 1)])
    hunt = Hunt(market, windows_of(market), lambda words: None, limits=Limits(spare=1))
    for routed in mixed_pools._routed(market, chosen):
        verdict, _ = hunt.attempt(routed)
        assert not verdict.survives


def test_a_lost_share_goes_to_pools_that_take_prompts():
    chosen = Candidate(((0, 1), (1, 1), (2, 1)), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))  # the last one only decodes
    trace, offers = workload(2)
    market = survey(trace, PROMISES, offers)
    without_first, without_second, _ = Limits(spare=1).degraded(market, chosen)
    assert without_first.shares == ((1.0, 0.0), (1.0, 0.0))
    assert without_second.shares == ((1.0, 0.0), (1.0, 0.0))


def test_a_pool_that_only_decodes_is_planned_no_share():
    pools = (Pool(toys.engine(), 1), Pool(toys.engine(), 1, role="prefill"), Pool(toys.engine(), 1, role="decode"))
    with pytest.raises(ValueError, match="pools that only decode take no share"):
        Fleet(pools, "planned", (0,), ((0.5, 0.25, 0.25),))


def test_a_mixed_plan_is_exported_with_a_router_beside_its_ordinary_pool():
    both = plan_of(*((Engine(SMALL, device), 2) for device in (H100, L4, L4)), shares=((0.5, 0.5, 0.0),))
    pools = zip(both.pools, ("both", "prefill", "decode"), strict=True)
    mixed = replace(both, pools=tuple(replace(pool, role=role) for pool, role in pools))
    texts = exports.load("k8s")(of_plan(mixed, "org/model"))
    found = [each for text in texts.values() for each in yaml.safe_load_all(text)]
    (route,) = of_kind("HTTPRoute", found)
    backends = {each["name"]: each["weight"] for each in route["spec"]["rules"][0]["backendRefs"]}
    assert sorted(backends.values()) == [500, 500]
    assert sum(name.endswith("-router") for name in backends) == 1
    assert json.loads(of_kind("ConfigMap", found)[0]["data"]["routing.json"])["shares"] == [[0.5, 0.5, 0.0]]
