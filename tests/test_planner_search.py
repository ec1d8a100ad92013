"""The search on toy markets: survives, is cheap, cannot do without a replica, gives reasons, and repeats itself."""

import itertools
import json
from dataclasses import replace

import numpy as np
import planner_toys
import pytest
import toys

from models import llm
from planners import plan as plans
from planners.answer import plain
from planners.bounds.bound import windows_of
from planners.demand import survey
from planners.search.hunt import Hunt
from planners.search.search import Infeasible, find_plan
from planners.siblings import siblings_of
from planners.slo import holds, parse_all
from simulator.fleet import Fleet, Pool
from simulator.replay import replay


def plan_of(seed: int, **changes):
    trace = planner_toys.bursty_trace(seed)
    return trace, find_plan(trace, None, planner_toys.promises(), offers=planner_toys.two_offers(), **changes)


@pytest.mark.parametrize("seed", range(5))
def test_the_plan_survives_its_own_rehearsal_to_the_last_digit(seed):
    trace, plan = plan_of(seed)
    run = replay(trace, plan.fleet())
    assert holds(run, planner_toys.promises())
    assert run.latency_s() == plan.latency_s
    assert run.counts() == plan.requests
    assert plan.usd_per_hour == sum(pool.usd_per_hour for pool in plan.pools)


@pytest.mark.parametrize("seed", range(5))
def test_the_plan_costs_no_more_than_the_cheapest_survivor_of_one_engine(seed):
    trace, plan = plan_of(seed)
    for offer in planner_toys.two_offers():
        for count in itertools.count(1):
            cost = count * offer.usd_per_hour
            if cost >= plan.usd_per_hour or holds(
                replay(trace, Fleet((Pool(offer.priced, count),))), planner_toys.promises()
            ):
                break
        assert cost >= plan.usd_per_hour
    assert plan.single_device.usd_per_hour >= plan.usd_per_hour >= plan.usd_per_hour_bound


@pytest.mark.parametrize("block", range(4))
def test_the_plan_is_as_cheap_as_brute_force_with_the_same_routing(block):
    promises = planner_toys.promises("ttft:p90<=60ms", "tpot:p90<=6ms")
    for seed in range(5 * block, 5 * block + 5):
        trace, offers = planner_toys.random_market(seed)
        try:
            plan = find_plan(trace, None, promises, offers=offers)
        except Infeasible:
            continue
        market = survey(trace, promises, offers)
        judge = Hunt(market, windows_of(market), lambda words: None)
        most = [int(plan.usd_per_hour / usd) for usd in market.usd_per_hour]
        for counts in itertools.product(*(range(count + 1) for count in most)):
            if any(counts) and float(np.dot(counts, market.usd_per_hour)) < plan.usd_per_hour - 1e-6:
                assert not judge.attempt_replicas(counts), (seed, counts)


@pytest.mark.parametrize("seed", range(3))
def test_without_any_one_replica_a_promise_breaks(seed):
    trace, plan = plan_of(seed)
    market = survey(trace, planner_toys.promises(), planner_toys.two_offers())
    judge = Hunt(market, windows_of(market), lambda words: None)
    names = [offer.name for offer in market.offers]
    for pool in plan.pools:
        counts = [0] * len(names)
        for other in plan.pools:
            counts[names.index(other.name)] = other.replicas - (other is pool)
        assert not any(counts) or not judge.attempt_replicas(tuple(counts))
    assert plan.cheaper.usd_per_hour < plan.usd_per_hour
    assert plan.cheaper.fails


def test_the_same_question_has_the_same_answer_to_the_byte():
    (_, first), (_, second) = plan_of(1), plan_of(1)
    assert json.dumps(first.result()) == json.dumps(second.result())


def test_the_first_estimate_comes_before_the_rehearsal_and_says_so():
    heard = []
    _, plan = plan_of(2, progress=heard.append)
    stages = [progress.stage for progress in heard]
    assert stages[:2] == ["engines", "analytic"]
    assert set(stages[2:]) == {"rehearsal"}
    sketch = heard[1].plan
    assert not sketch.is_rehearsed
    assert "not rehearsed" in sketch.notes[-1]
    assert sketch.usd_per_hour_bound <= plan.usd_per_hour


@pytest.mark.parametrize("seed", range(3))
def test_an_analytic_answer_says_what_it_leaves_out_and_its_bound_holds(seed):
    (_, plan), (_, rough) = plan_of(seed), plan_of(seed, analytic=True)
    assert not rough.is_rehearsed
    assert any("bursts, siblings and replays are left out" in note for note in rough.notes)
    assert 0 < rough.usd_per_hour_bound <= plan.usd_per_hour_bound
    assert set(rough.result()) == set(plan.result())


def test_a_promise_that_nobody_can_keep_is_named_with_the_best_there_is():
    # A prompt of 1 token takes one step: 3.3 ms on the small engine, 1.1 ms on the large one.
    trace = toys.trace(np.arange(10) * 1.0, 1, 1)
    with pytest.raises(
        Infeasible, match=r"ttft:p99<=1ms cannot be kept: the best of 2 engines, large, reaches 1\.1 ms"
    ) as raised:
        find_plan(trace, None, parse_all(["ttft:p99<=1ms"]), offers=planner_toys.two_offers())
    assert [(row.device, row.best_s) for row in raised.value.reachable] == [
        ("large", pytest.approx(1.1e-3)),
        ("small", pytest.approx(3.3e-3)),
    ]


def test_promises_that_only_different_engines_keep_are_named_together():
    # One is quick to begin, the other quick to go on; a request needs both.
    offers = [planner_toys.offer("starter", 1.0, 2.0, 0.0), planner_toys.offer("runner", 1.0, 1.0, 100.0)]
    trace = toys.trace(np.arange(10) * 1.0, 60, 10)
    with pytest.raises(Infeasible, match="cannot be kept together"):
        find_plan(trace, None, parse_all(["ttft:p99<=3ms", "tpot:p99<=1.5ms"]), offers=offers)


def test_an_empty_trace_and_no_engines_are_refused():
    with pytest.raises(ValueError, match="holds no requests"):
        find_plan(toys.trace([], 1, 1), None, planner_toys.promises(), offers=planner_toys.two_offers())
    with pytest.raises(ValueError, match="needs a model, or offers"):
        find_plan(toys.trace([0.0], 1, 1), None, planner_toys.promises())


def test_a_model_that_fits_nowhere_says_what_it_needs():
    big = replace(llm.load("llama-3.1-405b"), name="huge", layers=1260, full_attention_layers=1260, ffn_layers=1260)
    with pytest.raises(Infeasible, match=r"huge fits on no engine offered: its weights take \d+ GB in fp8"):
        find_plan(toys.trace([0.0], 1, 1), big, planner_toys.promises(), ["l4", "a10g"])


def test_a_plan_comes_back_from_its_json_and_replays_the_same():
    model = llm.load("llama-3.1-8b")
    trace = planner_toys.bursty_trace(0, 200, 100.0)
    plan = find_plan(trace, model, parse_all(["ttft:p99<=1s", "tpot:p99<=60ms"]), ["l4", "l40s"], siblings=1)
    text = json.dumps(plan.result())
    again = plans.from_result(json.loads(text), model)
    assert json.dumps(again.result()) == text
    run = replay(trace, again.fleet())
    assert plain(run.latency_s()) == json.loads(text)["slo"]
    assert plain(run.counts()) == json.loads(text)["requests"]


def test_the_contract_of_the_answer_is_kept():
    result = plan_of(0)[1].result()
    assert {"usd_per_hour", "usd_per_hour_bound", "gap", "pools", "slo", "attainment", "requests"} <= set(result)
    assert set(result["slo"]) == {"ttft", "tpot", "e2e"}
    assert all(set(row) == {"p50", "p90", "p99"} for row in result["slo"].values())
    assert set(result["requests"]) == {"arrived", "finished", "rejected", "failed", "in_flight"}
    keys = {"device", "replicas", "tp", "pp", "dp", "ep", "dtype", "role", "usd_per_hour"}
    assert all(keys <= set(pool) for pool in result["pools"])
    assert 0 <= result["gap"] < 1


def test_siblings_keep_the_traces_size_and_bursts_and_are_not_the_trace():
    trace = planner_toys.bursty_trace(4, 600)
    first, second = siblings_of(trace, (1, 2), seed=0)
    assert [len(first), len(second)] == pytest.approx([600, 600], rel=0.3)
    assert first.arrival_ns.tolist() != second.arrival_ns.tolist() != trace.arrival_ns.tolist()
    assert siblings_of(trace, (1,), seed=0)[0].arrival_ns.tolist() == first.arrival_ns.tolist()


def test_a_plan_with_siblings_costs_no_less_and_says_how_often_it_held_out_of_sample():
    _, alone = plan_of(1)
    trace, robust = plan_of(1, siblings=5)
    assert robust.usd_per_hour >= alone.usd_per_hour
    assert robust.out_of_sample.siblings == 5
    held = [
        holds(replay(sibling, robust.fleet()), planner_toys.promises())
        for sibling in siblings_of(trace, range(7, 12), seed=0)
    ]
    assert robust.out_of_sample.passed == sum(held)
    for sibling in siblings_of(trace, range(1, 7), seed=0):
        assert holds(replay(sibling, robust.fleet()), planner_toys.promises())


def test_shadow_prices_add_up_to_the_plans_cost_and_rivals_are_worth_less_than_they_cost():
    trace, plan = plan_of(0)
    shadows = plan.explain["shadow_prices"]
    total = sum(row["requests_per_s"] * row["usd_per_hour_per_request_per_s"] for row in shadows)
    assert total == pytest.approx(plan.usd_per_hour, rel=1e-3)
    assert all(row["worth_usd_per_hour"] <= row["usd_per_hour"] * (1 + 1e-5) for row in plan.explain["rivals"])
    assert all(0 <= row["start_s"] <= trace.span_s for row in plan.explain["moments"])
    assert plan.usd_per_hour_bound <= plan.conditional_usd_per_hour <= plan.usd_per_hour
