"""The fluid mix: brute force, published allocations, a generated instance of real size, limits and what to relax."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
from planner_instances import instance
from scipy.optimize import linprog

from planners.search.fluid import Limit, cheapest_fluid, least_relaxation

GPUS = {"l4": "L4", "a10g": "A10G", "a100": "A100-80GB", "h100": "H100"}


def random_instance(seed: int):
    """Up to three engines, up to three buckets and perhaps a limit on the first engine."""
    rng = np.random.default_rng(seed)
    engines, buckets = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    load = rng.uniform(0.1, 1.2, (engines, buckets))
    load[rng.random(load.shape) < 0.15] = np.inf
    usd = rng.integers(2, 12, engines) / 2
    first = (1.0, *[0.0] * (engines - 1))
    return usd, load, [Limit("first", first, float(rng.integers(0, 3)))] if seed % 2 else []


def carries(load: np.ndarray, counts) -> bool:
    engines, buckets = load.shape
    usable = np.isfinite(load).ravel()
    rooms = np.kron(np.eye(engines), np.ones(buckets)) * np.where(usable, load.ravel(), 0.0)
    whole = np.tile(np.eye(buckets), engines)
    bounds = [(0, 1 if can else 0) for can in usable]
    return linprog(np.zeros(usable.size), rooms, np.array(counts) + 1e-9, whole, np.ones(buckets), bounds).status == 0


def brute_force(usd, load, limits) -> float:
    best = math.inf
    for counts in itertools.product(range(5), repeat=len(usd)):
        allowed = all(np.dot(limit.weights, counts) <= limit.most for limit in limits)
        cost = float(np.dot(usd, counts))
        if allowed and cost < best and carries(load, counts):
            best = cost
    return best


@pytest.mark.parametrize("block", range(10))
def test_the_fluid_mix_is_as_cheap_as_brute_force_and_its_bound_is_below(block):
    for seed in range(20 * block, 20 * block + 20):
        usd, load, limits = random_instance(seed)
        found, expected = cheapest_fluid(usd, load, limits), brute_force(usd, load, limits)
        if found is None:
            assert math.isinf(expected), seed
            continue
        assert found.usd_per_hour == pytest.approx(expected), seed
        assert found.bound_usd_per_hour <= expected + 1e-6, seed
        assert found.gap <= 1e-3, seed
        assert carries(load, found.replicas), seed


def test_the_published_toy_costs_468_instead_of_670(shared):
    # Mélange's example: its slices are not divisible, so it answers 6.70, or 5.69 in quarter slices.
    toy = json.loads((shared / "data" / "melange.json").read_text())["toy_example"]
    share = np.array(toy["workload_distribution"]).ravel() / np.sum(toy["workload_distribution"])
    rates = np.array([np.ravel(gpu["tputs"]) for gpu in toy["gpu_info"].values()])
    usd = np.array([gpu["cost"] for gpu in toy["gpu_info"].values()])
    found = cheapest_fluid(usd, toy["total_request_rate"] * share / rates)
    assert found.usd_per_hour == pytest.approx(4.68)
    assert found.gap < 1e-6


@pytest.mark.parametrize("rate", [10.0, 50.0])
@pytest.mark.parametrize("slices", [1, 4])
def test_published_profiles_cost_no_more_than_the_published_solver(shared, rate, slices):
    content = json.loads((shared / "data" / "melange.json").read_text())
    case = content["solver_cases"][f"aibrix_uniform_r{rate:.0f}_sf{slices}"]
    profiles = [content["aibrix_profiles"][name] for name in ("a100_v1", "a40")]
    rates = np.array([np.ravel(profile["tputs"]) for profile in profiles])
    found = cheapest_fluid(np.array([profile["cost"] for profile in profiles]), rate / rates.shape[1] / rates)
    assert found.usd_per_hour <= case["melange"]["cost"] + 1e-9
    assert found.usd_per_hour >= case["lp_bound"] - 1e-3
    assert found.gap < 1e-6


def published_rows(shared):
    with (shared / "data" / "melange_allocations.csv").open() as file:
        return list(csv.DictReader(file))


def implied_load(row):
    """Return a load [gpu, bucket] with which a row's numbers agree: a bucket for each kind of GPU in its mix.

    A bucket keeps its own kind's replicas in the mix busy. What a fleet of one kind needs beyond that, half a replica
    less than published, is the other buckets', by what they cost in the mix; kinds without such a fleet carry their own
    bucket alone. The rows tell no more: many loads agree with them.
    """
    mixed = {name: float(row[f"mix_{name}"]) for name in GPUS if float(row[f"mix_{name}"])}
    spent = {name: count * float(row["usd"][name]) for name, count in mixed.items()}
    load = np.full((len(GPUS), len(mixed)), np.inf)
    for place, name in enumerate(GPUS):
        others = {bucket: usd for bucket, usd in spent.items() if bucket != name}
        if row[f"only_{name}"]:
            rest = max(float(row[f"only_{name}"]) - 0.5 - mixed.get(name, 0.0), 0.05)
            for column, bucket in enumerate(mixed):
                load[place, column] = mixed[name] if bucket == name else rest * spent[bucket] / sum(others.values())
        elif name in mixed:
            load[place, list(mixed).index(name)] = mixed[name]
    return load


def test_published_allocations_are_never_cheaper_on_loads_that_they_imply(shared):
    prices = json.loads((shared / "data" / "melange.json").read_text())["prices_usd_per_hour"]
    usd = {name: prices[published] for name, published in GPUS.items()}
    rows = published_rows(shared)
    for row in rows:
        load = implied_load({**row, "usd": usd})
        assert carries(load, [float(row[f"mix_{name}"]) for name in GPUS])
        found = cheapest_fluid(np.array(list(usd.values())), load)
        assert found.gap < 1e-4
        assert found.usd_per_hour <= float(row["cost"]) + 0.01, row
    assert len(rows) == 30


def test_published_savings_recompute(shared):
    """Against the dearest and the cheapest fleet of one kind, at the published prices."""
    prices = json.loads((shared / "data" / "melange.json").read_text())["prices_usd_per_hour"]
    usd = {name: prices[published] for name, published in GPUS.items()}
    savings = {}
    for row in published_rows(shared):
        single = [float(row[f"only_{name}"]) * usd[name] for name in usd if row[f"only_{name}"]]
        key = (row["dataset"], row["slo_ms"])
        savings.setdefault(key, []).extend(1 - float(row["cost"]) / cost for cost in single)
    assert max(savings["arena", "120"]) == pytest.approx(0.77, abs=0.05)
    assert max(savings["arena", "40"]) == pytest.approx(0.68, abs=0.05)
    assert max(savings["pubmed", "120"]) == pytest.approx(0.33, abs=0.05)
    assert max(savings["mixed", "120"]) == pytest.approx(0.51, abs=0.05)


@pytest.mark.parametrize(("model", "rate", "gap"), [("70b", 10, 0.01), ("70b", 1000, 0.01), ("8b", 10, 0.015)])
def test_two_hundred_buckets_on_ten_devices_are_solved_to_a_small_gap(model, rate, gap):
    usd, load = instance(model, rate)
    assert load.shape[1] == 200
    assert len(usd) > 150
    found = cheapest_fluid(usd, load)
    trivial = float(np.min(load * usd[:, None], axis=0).sum())
    assert trivial <= found.bound_usd_per_hour * (1 + 1e-9)
    assert found.gap <= gap


def test_bucket_prices_are_what_a_little_more_load_costs():
    # One engine at 2 per replica, loads 1.5 and 0.5: divisible replicas cost 3 and 1.
    found = cheapest_fluid(np.array([2.0]), np.array([[1.5, 0.5]]))
    assert found.bucket_usd_per_hour == pytest.approx((3.0, 1.0))
    assert found.replicas == (2,)


def test_a_limit_is_kept_and_has_a_price():
    # Load 2 on a cheap engine at 1 or a dear one at 3; only one cheap replica there is.
    usd, load = np.array([1.0, 3.0]), np.array([[2.0], [2.0]])
    found = cheapest_fluid(usd, load, [Limit("cheap ones", (1.0, 0.0), 1.0)])
    assert found.replicas == (1, 1)
    assert found.limit_usd_per_hour == pytest.approx((2.0,))


def test_what_cannot_be_names_the_fewest_limits_to_raise_and_by_how_much():
    # Load 3 needs three replicas: 6 USD/h. The budget of 5 lacks 1; the stock of 5 replicas is no matter.
    usd, load = np.array([2.0]), np.array([[3.0]])
    limits = [Limit("budget", (2.0,), 5.0), Limit("stock", (1.0,), 5.0)]
    assert cheapest_fluid(usd, load, limits) is None
    (only,) = least_relaxation(usd, load, limits)
    assert (only.name, only.by) == ("budget", pytest.approx(1.0))
    assert least_relaxation(usd, load, [Limit("budget", (2.0,), 6.0)]) == ()
    assert least_relaxation(usd, np.array([[np.inf]]), limits) is None
