"""A fleet that is there: kept, grown and shrunk as cheaply as brute force does, changes included."""

import itertools
import json

import planner_toys
import pytest
from click.testing import CliRunner

from models import llm
from planners import plan as plans
from planners.bounds.bound import windows_of
from planners.cli import main
from planners.demand import survey
from planners.offers.keeping import Keep, keep_of
from planners.offers.limits import Limits
from planners.search.hunt import Hunt
from planners.search.search import find_plan
from planners.slo import holds
from simulator.replay import replay

PROMISES = planner_toys.promises("ttft:p90<=60ms", "tpot:p90<=6ms")
MOST = 4


def offers():
    return [planner_toys.offer("small", 1.0, 2.0, 200.0), planner_toys.offer("large", 1.75, 1.0, 90.0)]


def workload(seed: int):
    return planner_toys.bursty_trace(seed, 80, 6.0)


def keeping(usd_per_change: float, **there: int) -> Keep:
    return Keep(tuple((one, there[one.name]) for one in offers() if one.name in there), usd_per_change)


def cheapest_usd(seed: int, usd_per_change: float, there: int) -> float:
    """The cheapest survivor of all fleets of up to MOST replicas each, routed as planners route replicas given."""
    market = survey(workload(seed), PROMISES, keeping(usd_per_change, small=there).offers(offers()))
    judge = Hunt(market, windows_of(market), lambda words: None)
    best = float("inf")
    for counts in itertools.product(range(MOST + 1), repeat=len(market.offers)):
        by_name = dict(zip((one.name for one in market.offers), counts, strict=True))
        if by_name["small/kept"] <= there and any(counts):
            kept, small, large = by_name["small/kept"], by_name["small"], by_name["large"]
            changes = there - kept + small + large
            usd = kept + small + 1.75 * large + usd_per_change * changes
            if usd < best and judge.attempt_replicas(counts):
                best = usd
    return best


@pytest.mark.parametrize("usd_per_change", [0.0, 0.3, 0.6, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_kept_added_and_removed_costs_no_more_than_by_brute_force(seed, usd_per_change):
    trace, there = workload(seed), 2
    plan = find_plan(trace, None, PROMISES, offers=offers(), keep=keeping(usd_per_change, small=there))
    best_usd = cheapest_usd(seed, usd_per_change, there)
    assert plan.usd_per_hour <= best_usd + 1e-9  # with shares of its own it may do better
    assert plan.usd_per_hour_bound <= min(plan.usd_per_hour, best_usd)
    assert holds(replay(trace, plan.fleet()), PROMISES)
    kept = plan.change["kept"].get("small", 0)
    assert plan.change["removed"] == ({"small": there - kept} if kept < there else {})
    changes = sum(plan.change["removed"].values()) + sum(plan.change["added"].values())
    assert plan.change["usd_per_hour"] == pytest.approx(usd_per_change * changes)
    running = sum(pool.usd_per_hour for pool in plan.pools)
    assert plan.usd_per_hour == pytest.approx(running + plan.change["usd_per_hour"])


def test_changes_that_are_free_leave_the_cheapest_plan_and_dear_ones_leave_a_fleet_that_holds():
    trace = workload(1)
    free = find_plan(trace, None, PROMISES, offers=offers())
    assert find_plan(trace, None, PROMISES, offers=offers(), keep=keeping(0.0, small=2)).usd_per_hour == pytest.approx(
        free.usd_per_hour
    )
    ample = find_plan(trace, None, PROMISES, offers=offers(), keep=keeping(50.0, large=MOST))
    assert ample.change["kept"] == {"large": MOST}
    assert ample.change["added"] == ample.change["removed"] == {}


def test_a_budget_is_on_what_runs_not_on_what_changes():
    trace = workload(0)
    free = find_plan(trace, None, PROMISES, offers=offers())
    limits = Limits(usd_per_hour_at_most=free.usd_per_hour)
    plan = find_plan(trace, None, PROMISES, offers=offers(), keep=keeping(0.4, small=1), limits=limits)
    assert sum(pool.usd_per_hour for pool in plan.pools) <= free.usd_per_hour
    assert plan.usd_per_hour > free.usd_per_hour


def test_an_engine_that_another_beats_is_planned_with_where_the_other_is_not_to_be_had():
    trace = workload(0)
    better = [planner_toys.offer("small", 1.0, 2.0, 200.0), planner_toys.offer("large", 1.0, 1.0, 90.0)]
    most = sum(pool.replicas for pool in find_plan(trace, None, PROMISES, offers=better).pools)
    limits = Limits(devices_at_most={"large": most - 1})
    plan = find_plan(trace, None, PROMISES, offers=better, limits=limits)
    assert {pool.name for pool in plan.pools} >= {"small"}


def test_a_plan_is_kept_from_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{number / 4},{100 + 10 * (number % 7)},{20 + number % 5}\n" for number in range(80))
    (tmp_path / "chat.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    asked = ["fleet", "chat.csv", "--model", "llama-3.1-8b", "--devices", "l40s,l4", "--slo", "ttft:p99<=2s"]

    def run(*arguments: str):
        outcome = CliRunner().invoke(main, [*arguments, "--json"])
        assert outcome.exit_code == 0, outcome.output
        return json.loads(outcome.stdout)["result"]

    first = run(*asked, "-o", "first")
    again = run(*asked, "--keep", "first/plan.json", "--set", "keep.usd_per_change=720", "-o", "second")
    assert again["change"] == {
        "usd_per_hour": 0.0,
        "kept": {pool["name"]: pool["replicas"] for pool in first["pools"]},
        "added": {},
        "removed": {},
    }
    assert again["usd_per_hour"] == first["usd_per_hour"]
    back = plans.from_result(again, llm.load("llama-3.1-8b"))
    assert json.dumps(back.result()) == json.dumps(again)
    assert keep_of(back, [], 1.0).there[0][0].name == first["pools"][0]["name"]
    told = CliRunner().invoke(main, [*asked, "--keep", "first/plan.json", "--set", "keep.usd_per_change=720"]).stdout
    assert f"Changes    kept {first['pools'][0]['replicas']} x l" in told
    run("lock", "second/plan.json")
    assert run("check")["drift"] is False
    refused = CliRunner().invoke(main, [*asked, "--keep", "first/plan.json", "--set", "keep.hours=0"])
    assert refused.exit_code == 2
    assert "hours must be above 0, not 0" in refused.stderr
