"""Several models that share devices and a budget: chosen together as brute force does, bounded, and told in words."""

import itertools
import json
import math
from functools import cache

import numpy as np
import planner_toys
import pytest
from click.testing import CliRunner

from planners.bounds.bound import windows_of
from planners.cli import main
from planners.demand import survey
from planners.offers.limits import Limits
from planners.search.hunt import Hunt
from planners.search.infeasible import Infeasible
from planners.search.search import Sought, find
from planners.sharing.portfolio import plan_together
from planners.slo import holds
from simulator.replay import replay

PROMISES = planner_toys.promises("ttft:p90<=60ms", "tpot:p90<=6ms")


def workload(seed: int):
    """A trace, and two engines that every model has on offer: a small one, and a large one at a better price."""
    offers = [planner_toys.offer("small", 1.0, 2.0, 200.0), planner_toys.offer("large", 1.75, 1.0, 90.0)]
    return planner_toys.bursty_trace(seed, 80, 6.0), offers


@cache
def found_of(seed: int):
    trace, offers = workload(seed)
    sought = Sought(trace, PROMISES, tuple(offers))
    market, windows, _ = sought.sketched()
    return find(sought, market, windows)


@cache
def survivors(seed: int, most: int) -> tuple[tuple[dict[str, int], float], ...]:
    """All fleets of up to so many replicas of each engine that survive under the planner's routers."""
    return tuple(_survivors(seed, most))


def _survivors(seed: int, most: int):
    trace, offers = workload(seed)
    market = survey(trace, PROMISES, offers)
    judge = Hunt(market, windows_of(market), lambda words: None)
    names = [offer.name for offer in market.offers]
    for counts in itertools.product(range(most + 1), repeat=len(names)):
        if any(counts) and judge.attempt_replicas(counts):
            yield dict(zip(names, counts, strict=True)), float(np.dot(counts, market.usd_per_hour))


def counts_of(plan) -> dict[str, int]:
    return {pool.name: pool.replicas for pool in plan.pools}


def brute_force_agrees(pair: tuple[int, int], less: int) -> bool:
    """Hold two models under a shared limit, so many less than they would have, against all fleets; say if it binds.

    Those are of up to five replicas of each engine, which fill alike or are routed by load.
    """
    found = {f"model{seed}": found_of(seed) for seed in pair}
    free = plan_together(found, Limits())
    assert free.usd_per_hour == sum(each.plan.usd_per_hour for each in found.values())
    most = sum(counts_of(plan).get("large", 0) for plan in free.plans.values()) - less
    if most < 0:
        return False
    together = plan_together(found, Limits(devices_at_most={"large": most}))
    pairs = itertools.product(*(survivors(seed, 5) for seed in pair))
    within = [
        one_usd + other_usd for (one, one_usd), (other, other_usd) in pairs if one["large"] + other["large"] <= most
    ]
    assert together.usd_per_hour <= min(within) + 1e-9, (pair, less)  # less where shares were learned
    assert free.usd_per_hour_bound <= together.usd_per_hour_bound <= together.usd_per_hour
    assert together.shared[0].used <= most
    for seed, plan in zip(pair, together.plans.values(), strict=True):
        assert holds(replay(workload(seed)[0], plan.fleet()), PROMISES)
        assert plan.usd_per_hour_bound <= plan.usd_per_hour
    return True


@pytest.mark.parametrize("block", range(4))
def test_two_models_are_planned_as_cheaply_as_brute_force_under_a_shared_limit(block):
    pairs = [(first, second) for first in range(8) for second in range(first)][5 * block : 5 * block + 5]
    assert sum(brute_force_agrees(pair, 1) for pair in pairs) >= 3


def test_the_bound_holds_for_all_fleets_within_the_limits():
    found = {name: found_of(seed) for name, seed in (("one", 0), ("two", 1))}
    for limit in range(3):
        try:
            together = plan_together(found, Limits(devices_at_most={"large": limit}))
        except Infeasible:
            continue
        pairs = itertools.product(list(survivors(0, 5)), list(survivors(1, 5)))
        within = [a_usd + b_usd for (a, a_usd), (b, b_usd) in pairs if a["large"] + b["large"] <= limit]
        assert together.usd_per_hour_bound <= min(within, default=math.inf) + 1e-9


def test_one_more_of_what_there_is_none_of_is_worth_what_it_saves():
    found = {name: found_of(seed) for name, seed in (("one", 0), ("two", 1))}
    without = plan_together(found, Limits(devices_at_most={"large": 0}))
    with_one = plan_together(found, Limits(devices_at_most={"large": 1}))
    saved = without.usd_per_hour - with_one.usd_per_hour
    assert saved - 1e-9 <= without.shared[0].usd_per_hour <= without.usd_per_hour


def test_a_budget_that_is_too_small_is_answered_with_what_it_would_have_to_be():
    found = {name: found_of(seed) for name, seed in (("one", 0), ("two", 1))}
    usd = plan_together(found, Limits()).usd_per_hour
    assert plan_together(found, Limits(usd_per_hour_at_most=usd)).usd_per_hour == usd
    with pytest.raises(Infeasible, match="no fleets that were found fit the shared limits") as raised:
        plan_together(found, Limits(usd_per_hour_at_most=usd - 0.5))
    assert f"the fewest limits to raise: at most {usd - 0.5:g} USD/h, by 0.5" in raised.value.reasons


def test_what_is_shared_is_no_spare():
    with pytest.raises(ValueError, match="no spare"):
        plan_together({"one": found_of(0)}, Limits(spare=1))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, tokens in (("chat", 100), ("code", 2000)):
        rows = "".join(f"{number / 4},{tokens + 10 * (number % 7)},{20 + number % 5}\n" for number in range(60))
        (tmp_path / f"{name}.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    (tmp_path / "portfolio.yaml").write_text(
        "plans:\n"
        "  chat: {trace: chat.csv, model: llama-3.1-8b, devices: [l40s, l4], slo: ['ttft:p99<=2s']}\n"
        "  code: {trace: code.csv, model: llama-3.1-8b, devices: [l40s, l4], slo: ['ttft:p99<=4s']}\n"
        "limits: {devices.l40s: 1}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_portfolio_is_planned_written_and_each_plan_stands_by_itself(folder):
    outcome = CliRunner().invoke(main, ["portfolio", "--json"])
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout)["result"]
    assert result["usd_per_hour"] >= result["usd_per_hour_bound"] > 0
    assert result["shared"][0]["used"] <= 1
    assert result["usd_per_hour"] == pytest.approx(sum(each["usd_per_hour"] for each in result["plans"].values()))
    for name in ("chat", "code"):
        again = CliRunner().invoke(main, ["simulate", f"{name}.csv", "--fleet", f"{name}/plan.json", "--enforce"])
        assert again.exit_code == 0, again.output
        inputs = json.loads((folder / name / "plan.json").read_text())["inputs"]
        used = sum(
            pool["replicas"] * pool["tp"]
            for other, plan in result["plans"].items()
            for pool in plan["pools"]
            if other != name and pool["device"] == "l40s"
        )
        assert inputs["limits"] == {"devices.l40s": 1 - used}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "llama-3.1-8b, devices: [l40s, l4], slo: ['ttft:p99<=4s']",
            "nollm, slo: ['ttft:p99<=4s']",
            "3:34: plans.code.model",
        ),
        ("devices.l40s: 1", "devices: 1", "4:9: limits: unknown limit 'devices'"),
        ("devices.l40s: 1", "spare: 1", "4:9: limits: spares and zones are not shared"),
        ("slo: ['ttft:p99<=2s']", "slos: []", "plans.chat.slos: unknown key"),
    ],
)
def test_mistakes_in_a_portfolio_are_told_with_their_place(folder, old, new, words):
    file = folder / "portfolio.yaml"
    file.write_text(file.read_text().replace(old, new, 1))
    outcome = CliRunner().invoke(main, ["portfolio"])
    assert outcome.exit_code == 2
    assert words in outcome.stderr
