"""Classes of requests with promises of their own: named, routed, planned for, bounded, and back from their JSON."""

import itertools
import json
from dataclasses import replace

import numpy as np
import planner_toys
import pytest
import toys
from click.testing import CliRunner

from models import llm
from planners import plan as plans
from planners.bounds.bound import rigorous_usd_per_hour, windows_of
from planners.classes import by_class, classified, members
from planners.cli import main
from planners.demand import survey
from planners.search.hunt import Hunt
from planners.search.search import Infeasible, find_plan
from planners.siblings import siblings_of
from planners.slo import Slo, holds, kept, parse, parse_all, value_s
from simulator.fleet import Fleet, Pool
from simulator.replay import replay
from traces import Labels

RULES = {"chat": "input_tokens<30", "batch": "input_tokens>=30"}
PROMISES = ("chat/ttft:p90<=20ms", "chat/tpot:p90<=2.5ms", "batch/e2e:p90<=400ms")


def two_classes(seed: int, requests: int = 120, gap_ms: float = 6.0):
    return classified(planner_toys.bursty_trace(seed, requests, gap_ms), RULES)


def test_rules_name_requests_and_the_first_that_holds_wins():
    trace = toys.trace([0, 1, 2, 3], [10, 20, 30, 40], [1, 9, 1, 9])
    named = classified(trace, {"long": "input_tokens>=30 and output_tokens>5", "any": "input_tokens>10"})
    assert [named.columns["slo_class"][row] for row in range(4)] == [None, "any", "any", "long"]
    assert members(named, "any").tolist() == [False, True, True, False]
    assert by_class(named, np.array([True, False, True, True])) == {"any": 0.5, "long": 1.0}
    with pytest.raises(ValueError, match="class x: no column 'colour'"):
        classified(trace, {"x": "colour=red"})


def test_a_promise_to_a_class_reads_and_writes_and_needs_the_class():
    assert parse("chat/ttft:p99<=2s") == Slo("ttft", 99.0, 2.0, "chat")
    assert str(parse("Chat/TTFT:p99<=500ms")) == "Chat/ttft:p99<=500ms"
    assert len(parse_all(["chat/ttft:p99<=1s", "ttft:p99<=2s"])) == 2
    with pytest.raises(ValueError, match="two promises on chat/ttft:p99"):
        parse_all(["chat/ttft:p99<=1s", "chat/ttft:p99<=2s"])
    trace = planner_toys.bursty_trace(0, 20)
    with pytest.raises(ValueError, match="class 'chat', but the trace names no classes in a column slo_class"):
        survey(trace, parse_all(["chat/ttft:p99<=1s"]), planner_toys.two_offers())
    with pytest.raises(ValueError, match="class 'cat'; the trace has batch, chat"):
        survey(two_classes(0), parse_all(["cat/ttft:p99<=1s"]), planner_toys.two_offers())


def test_a_fleet_sends_each_class_to_the_pools_planned_for_it():
    trace = classified(toys.trace(np.arange(40) * 0.05, [10, 50] * 20, 2), RULES)
    unnamed = np.where(np.arange(40) < 4, -1, trace.columns["slo_class"].codes)
    trace = replace(trace, columns={"slo_class": Labels(unnamed.astype(np.int32), ("chat", "batch"))})
    pools = (Pool(toys.engine(name="a"), 1), Pool(toys.engine(name="b"), 1))
    shares = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))  # chat, batch, neither
    run = replay(trace, Fleet(pools, "planned", (0,), shares, classes=("chat", "batch")))
    pool = run.lanes["pool"][run.outcome.lane]
    assert set(pool[4::2]) == {0}
    assert set(pool[5::2]) == {1}
    assert sorted(pool[:4]) == [0, 0, 1, 1]


def test_each_class_has_buckets_promises_and_misses_of_its_own():
    trace, promises = two_classes(1), planner_toys.promises(*PROMISES)
    market = survey(trace, promises, planner_toys.two_offers())
    chat = members(trace, "chat")
    sized = len(market.input_edges)
    assert market.buckets == 3 * sized
    assert (market.demand.load[:, 2 * sized :] == 0).all()  # everybody is of a class
    assert market.demand.allowed.tolist() == [
        promises[0].misses_allowed(int(chat.sum())),
        promises[1].misses_allowed(int((chat & (trace.output_tokens > 1)).sum())),
        promises[2].misses_allowed(int((~chat).sum())),
    ]
    bucket = market.bucket_of(trace)
    assert (bucket[chat] < sized).all()
    assert ((bucket[~chat] >= sized) & (bucket[~chat] < 2 * sized)).all()
    for promise, number in itertools.product(range(3), range(market.buckets)):
        late = market.late[promise][:, bucket == number].sum(axis=1)
        assert market.demand.lost[promise][:, number].tolist() == late.tolist()
    assert not market.late[:2][:, :, ~chat].any()


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_keeps_every_class_its_own_promises(seed):
    trace, promises = two_classes(seed), planner_toys.promises(*PROMISES)
    plan = find_plan(trace, None, promises, offers=planner_toys.two_offers())
    run = replay(trace, plan.fleet())
    assert plan.usd_per_hour_bound <= plan.usd_per_hour
    for slo in promises:
        values = run.metric_s(slo.metric)[members(trace, slo.slo_class)]
        expected = np.percentile(values[~np.isnan(values)], slo.percent)
        assert value_s(run, slo) == pytest.approx(expected)
        assert expected <= slo.limit_s
    assert plan.attainment == pytest.approx(kept(run, promises).mean())
    assert plan.latency_by_class_s["batch"]["e2e"]["p90"] <= 0.4


def test_brute_force_finds_no_cheaper_fleet_with_the_same_routing():
    promises, compared = planner_toys.promises(*PROMISES), 0
    for seed in range(8):
        _, offers = planner_toys.random_market(seed)
        trace = two_classes(seed, 100)
        try:
            plan = find_plan(trace, None, promises, offers=offers[:2])
        except Infeasible:
            continue
        market = survey(trace, promises, offers[:2])
        judge = Hunt(market, windows_of(market), lambda words: None)
        most = [int(plan.usd_per_hour / usd) for usd in market.usd_per_hour]
        for counts in itertools.product(*(range(count + 1) for count in most)):
            if any(counts) and float(np.dot(counts, market.usd_per_hour)) < plan.usd_per_hour - 1e-6:
                assert not judge.attempt_replicas(counts), (seed, counts)
                compared += 1
    assert compared


def test_no_fleet_that_survives_costs_less_than_the_bound_whatever_its_router():
    promises, cheaper = planner_toys.promises(*PROMISES), 0
    for seed in range(12):
        _, offers = planner_toys.random_market(seed)
        trace = two_classes(seed, 160, 3.0)
        market = survey(trace, promises, offers)
        bound = rigorous_usd_per_hour(market, windows_of(market))
        for counts in itertools.product(range(4), repeat=len(offers)):
            usd = float(np.dot(counts, [one.usd_per_hour for one in offers]))
            if 0 < usd < bound:
                pools = tuple(Pool(one.priced, n) for one, n in zip(offers, counts, strict=True) if n)
                for router in ("join-shortest-queue", "round-robin", "in-time", "least-kv"):
                    assert not holds(replay(trace, Fleet(pools, router, ttft_limit_s=0.02)), promises), (seed, counts)
                    cheaper += 1
    assert cheaper > 0


def test_no_fleet_that_survives_siblings_too_costs_less_than_the_bound_for_all_of_them():
    promises, higher = parse_all(["chat/ttft:p90<=10ms", "batch/ttft:p90<=25ms"]), 0
    for seed in range(6):
        trace, (_, offers) = two_classes(seed), planner_toys.random_market(seed)
        market, siblings = survey(trace, promises, offers), siblings_of(trace, (1, 2), 0)
        higher += planner_toys.siblings_raise_the_bound(market, siblings)
    assert higher > 0, "some sibling must ask for more than its trace"


def test_a_class_that_may_wait_is_cheaper_than_the_same_promise_to_all_and_binds_the_bound_too():
    trace, offers = two_classes(2), planner_toys.two_offers()
    strict = find_plan(trace, None, planner_toys.promises("ttft:p90<=20ms", "tpot:p90<=2.5ms"), offers=offers)
    mild = find_plan(trace, None, planner_toys.promises(*PROMISES), offers=offers)
    assert mild.usd_per_hour < strict.usd_per_hour
    alone = survey(trace, planner_toys.promises("batch/e2e:p90<=400ms"), offers)
    both = survey(trace, planner_toys.promises(*PROMISES), offers)
    assert rigorous_usd_per_hour(both) >= rigorous_usd_per_hour(alone)


def test_promises_to_all_stand_beside_those_to_a_class():
    trace, promises = two_classes(0), planner_toys.promises("ttft:p90<=200ms", "chat/tpot:p90<=2.5ms")
    plan = find_plan(trace, None, promises, offers=planner_toys.two_offers())
    assert holds(replay(trace, plan.fleet()), promises)
    market = survey(trace, promises, planner_toys.two_offers())
    assert market.demand.allowed[0] == promises[0].misses_allowed(len(trace))
    assert plan.usd_per_hour_bound <= plan.usd_per_hour


def test_a_study_of_classes_is_planned_replayed_locked_and_checked(tmp_path, monkeypatch):
    rows = "".join(f"{number / 4},{100 + 400 * (number % 3)},{20 + number % 5}\n" for number in range(80))
    (tmp_path / "chat.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    (tmp_path / "plan.yaml").write_text(
        "trace: chat.csv\nmodel: llama-3.1-8b\ndevices: [l40s]\n"
        "slo: ['short/ttft:p99<=500ms', 'long/e2e:p90<=10s']\n"
        "classes: {short: 'input_tokens<200', long: 'input_tokens>=200'}\n"
    )
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, exit_code: int = 0):
        outcome = CliRunner().invoke(main, [*arguments, "--json"])
        assert outcome.exit_code == exit_code, outcome.output
        return json.loads(outcome.stdout)

    told = run("fleet")["result"]
    assert told["routing"]["classes"] == ["short", "long"]
    assert told["slo_by_class"]["short"]["ttft"]["p99"] <= 0.5
    replayed = run("simulate", "chat.csv", "--fleet", "plan.json", "--enforce")["result"]
    assert replayed["slo"] == told["slo"]
    assert replayed["attainment"] == told["attainment"]
    assert set(replayed["attainment_by_class"]) == {"short", "long"}
    run("lock")
    assert run("check")["result"]["drift"] is False
    again = plans.from_result(told, llm.load("llama-3.1-8b"))
    assert json.dumps(again.result()) == json.dumps(told)
    flags = ["--class", "short=input_tokens<150", "--slo", "short/ttft:p99<=1us", "--slo", "ttft:p99<=9s"]
    refused = run("fleet", *flags, exit_code=1)
    assert refused["result"]["infeasible"]["reasons"][0].startswith("short/ttft:p99<=0.001ms cannot be kept")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("classes: {chat: input_tokens}", "4:10: classes: cannot read the condition 'input_tokens'"),
        ("classes: {cat: input_tokens<9}", "4:10: classes: a promise is for the class 'chat'; known: cat"),
    ],
)
def test_mistakes_in_classes_are_told_with_their_place(tmp_path, line, words):
    file = tmp_path / "plan.yaml"
    file.write_text(f"model: llama-3.1-8b\nslo:\n- chat/ttft:p99<=2s\n{line}\n")
    outcome = CliRunner().invoke(main, ["fleet", "-f", str(file)])
    assert outcome.exit_code == 2
    assert words in outcome.stderr
