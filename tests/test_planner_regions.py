"""Regions: the assignment that brute force finds, promises kept round trip and all, a bound for any split."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import planner_toys
import pytest
from click.testing import CliRunner

from planners.cli import main
from planners.offers.limits import Limits
from planners.search.infeasible import Infeasible
from planners.search.search import find_plan
from planners.sharing.regions import Origin, Region, plan_regions
from planners.slo import Slo, percentile_s
from simulator.replay import replay
from traces.trace import NS_PER_S

PROMISES = planner_toys.promises("ttft:p90<=60ms", "tpot:p90<=6ms")


def world(seed: int, requests: tuple[int, int] = (60, 50)):
    """Two origins and two regions at different prices; the second origin is far from the first region."""
    rng = np.random.default_rng(seed)
    near_s, far_s = float(rng.uniform(0, 0.01)), float(rng.uniform(0.01, 0.05))
    origins = [
        Origin("east", planner_toys.bursty_trace(seed, requests[0], 6.0), {"cheap": near_s, "dear": far_s}),
        Origin("west", planner_toys.bursty_trace(seed + 1000, requests[1], 6.0), {"cheap": far_s, "dear": near_s}),
    ]
    offers = [planner_toys.offer("small", 1.0, 2.0, 200.0), planner_toys.offer("large", 1.75, 1.0, 90.0)]
    dearer = [replace(one, usd_per_hour=one.usd_per_hour * float(rng.integers(9, 17)) / 8) for one in offers]
    return origins, [Region("cheap", tuple(offers)), Region("dear", tuple(dearer))]


def alone_usd(origins, region: Region, names) -> float:
    """What a region's fleet costs that serves whole origins, by a plan of its own."""
    slos, parts = [], []
    for origin in origins:
        if origin.name in names:
            trip_s = origin.round_trip_s[region.name]
            limits = [slo.limit_s - trip_s * (slo.metric != "tpot") for slo in PROMISES]
            if min(limits) <= 0:
                return math.inf
            own = [
                replace(slo, limit_s=limit, slo_class=origin.name) for slo, limit in zip(PROMISES, limits, strict=True)
            ]
            slos += own if len(names) > 1 else [replace(slo, slo_class="") for slo in own]
            shifted = replace(origin.trace, arrival_ns=origin.trace.arrival_ns + round(trip_s / 2 * NS_PER_S))
            parts.append((origin.name, shifted))
    try:
        return find_plan(joined(parts), None, slos, offers=region.offers, limits=region.limits).usd_per_hour
    except Infeasible:
        return math.inf


def joined(parts):
    from traces import Labels
    from traces.joining import merge

    return merge(
        [replace(part, columns={"slo_class": Labels(np.zeros(len(part), np.int32), (name,))}) for name, part in parts]
    )


def brute_force_agrees(seed: int, requests: tuple[int, int] = (24, 20)) -> None:
    """Hold the assignment of a small world against all there are, each region's fleet planned by itself."""
    origins, regions = world(seed, requests)
    found = plan_regions(origins, regions, PROMISES)
    best = math.inf
    for choice in itertools.product(range(2), repeat=2):
        sent = [[origin.name for origin, to in zip(origins, choice, strict=True) if to == place] for place in range(2)]
        usd = [alone_usd(origins, region, names) for region, names in zip(regions, sent, strict=True) if names]
        best = min(best, sum(usd))
    assert found.usd_per_hour == pytest.approx(best), seed
    assert found.is_exhausted, seed
    assert found.usd_per_hour_bound <= best + 1e-9, seed


@pytest.mark.parametrize("block", range(2))
def test_the_assignment_is_the_one_that_brute_force_finds(block):
    for seed in range(3 * block, 3 * block + 3):
        brute_force_agrees(seed)


def latencies(found, origin: Origin, metric: str):
    """The latencies that an origin's requests see in replays of the plans, the round trip to their region included."""
    from planners.classes import members

    seen = []
    for name, plan in found.plans.items():
        trace = found.traffic[name]
        own = (
            members(trace, origin.name)
            if origin.name in trace.columns["slo_class"].names
            else np.zeros(len(trace), bool)
        )
        if own.any():
            waited_s = origin.round_trip_s[name] if metric != "tpot" else 0.0
            seen.append(replay(trace, plan.fleet()).metric_s(metric)[own] + waited_s)
    return np.concatenate(seen)


@pytest.mark.parametrize("parts", [1, 2])
def test_every_origin_is_kept_its_promises_with_the_round_trip_in_them(parts):
    origins, regions = world(0)
    limited = [replace(regions[0], limits=Limits(devices_at_most={"large": 1, "small": 1})), regions[1]]
    found = plan_regions(origins, limited, PROMISES, parts=parts)
    for origin in origins:
        assert sum(found.chosen.fractions[origin.name].values()) == pytest.approx(1.0)
        for slo in PROMISES:
            values = latencies(found, origin, slo.metric)
            assert values.size == len(origin.trace)
            assert percentile_s(values, slo.percent) <= slo.limit_s * (1 + 1e-9)


def test_data_stays_where_it_must_and_that_costs():
    origins, regions = world(1)
    free = plan_regions(origins, regions, PROMISES)
    bound = [origins[0], replace(origins[1], round_trip_s={"dear": origins[1].round_trip_s["dear"]})]
    held = plan_regions(bound, regions, PROMISES)
    assert held.chosen.fractions["west"] == {"dear": 1.0}
    assert held.usd_per_hour >= free.usd_per_hour


def test_the_bound_is_that_of_no_latency_or_higher_and_below_what_is_planned():
    origins, regions = world(2)
    near = [replace(origin, round_trip_s=dict.fromkeys(origin.round_trip_s, 0.0)) for origin in origins]
    without, found = plan_regions(near, regions, PROMISES), plan_regions(origins, regions, PROMISES)
    assert without.usd_per_hour_bound <= found.usd_per_hour_bound <= found.usd_per_hour


def test_a_shared_limit_is_kept_by_all_regions_together():
    origins, regions = world(3)
    free = plan_regions(origins, regions, PROMISES)
    name = next(pool.name for plan in free.plans.values() for pool in plan.pools)
    count = replicas_of(free, name)
    held = plan_regions(origins, regions, PROMISES, shared=Limits(devices_at_most={name: count - 1}))
    assert replicas_of(held, name) < count
    assert held.usd_per_hour >= free.usd_per_hour


def replicas_of(found, name):
    return sum(pool.replicas for plan in found.plans.values() for pool in plan.pools if pool.name == name)


def test_requests_that_may_go_nowhere_in_time_are_named():
    origins, regions = world(0)
    far = [origins[0], replace(origins[1], round_trip_s={"dear": 1.0})]
    with pytest.raises(Infeasible, match="requests of west may go to no region"):
        plan_regions(far, regions, PROMISES)
    with pytest.raises(ValueError, match="is for a class"):
        plan_regions(origins, regions, [Slo("ttft", 90.0, 1.0, "chat")])
    with pytest.raises(ValueError, match="ask for fewer parts"):
        plan_regions(origins, regions, PROMISES, parts=200)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rows = "".join(f"{number / 4},{100 + 10 * (number % 7)},{20 + number % 5}\n" for number in range(60))
    (tmp_path / "chat.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    (tmp_path / "regions.yaml").write_text(
        "model: llama-3.1-8b\n"
        "slo: ['ttft:p99<=2s', 'tpot:p99<=80ms']\n"
        "origins:\n"
        "  europe: {trace: chat.csv, stays_in: [eu]}\n"
        "  america: {trace: chat.csv, scale: 2x}\n"
        "regions:\n"
        "  eu: {devices: [l4], prices: {l4: 1.5}, limits: {devices.l4: 4}}\n"
        "  us: {devices: [l4], priced_as: us-east-1}\n"
        "latency_ms:\n"
        "  europe: {eu: 10, us: 90}\n"
        "  america: {eu: 90, us: 10}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_plans_over_regions_are_written_and_stand_by_themselves(folder):
    outcome = CliRunner().invoke(main, ["regions", "--json"])
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout)["result"]
    assert "eu" in result["sent"]["europe"]
    assert result["usd_per_hour_bound"] <= result["usd_per_hour"]
    for file in result["files"]:
        trace = file.replace("plan.json", "trace.parquet")
        done = CliRunner().invoke(main, ["simulate", trace, "--fleet", file, "--json"])
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("stays_in: [eu]", "stays_in: [ue]", "4:39: origins.europe.stays_in: unknown region 'ue'; known: eu, us"),
        ("america: {eu: 90", "asia: {eu: 90", "11:3: latency_ms.asia: unknown origin; known: europe, america"),
        ("us: 10}", "us: -1}", "11:25: latency_ms.america.us: -1 is below 0"),
        ("devices: [l4], priced", "devices: [l5], priced", "8:17: regions.us.devices: unknown device 'l5'"),
        ("regions:", "region:", "6:1: region: unknown key; did you mean regions?"),
    ],
)
def test_mistakes_are_told_with_their_place(folder, old, new, words):
    file = folder / "regions.yaml"
    file.write_text(file.read_text().replace(old, new, 1))
    outcome = CliRunner().invoke(main, ["regions"])
    assert outcome.exit_code == 2
    assert words in outcome.stderr
