"""The mix against brute force: all fleets counted through, the divisible load checked by another solver."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import linprog

from planners.search.mix import Demand, balanced_shares, cheapest_mix, sizes_up_to


def random_demand(seed: int):
    """Up to three engines and three buckets; some cannot carry a bucket, some break a promise there by nature."""
    rng = np.random.default_rng(seed)
    engines, buckets = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    load = rng.uniform(0.1, 1.5, (engines, buckets))
    load[rng.random(load.shape) < 0.15] = np.inf
    lost = np.where(rng.random((1, engines, buckets)) < 0.3, rng.integers(1, 10, (1, engines, buckets)), 0).astype(
        float
    )
    usd = rng.integers(2, 12, engines) / 2
    capacity = [{size: size * float(rng.uniform(0.6, 1.0)) for size in range(1, 4)} for _ in range(engines)]
    return usd, Demand(load, lost, np.array([6.0])), capacity


def carries(demand: Demand, room: np.ndarray) -> bool:
    """Say whether some shares keep every pool within its room and the losses within what is allowed."""
    engines, buckets = demand.load.shape
    usable = np.isfinite(demand.load) & (demand.lost[0] <= demand.allowed[0])
    load = np.where(usable, demand.load, 0.0)
    within = np.zeros((engines + 1, engines * buckets))
    for engine in range(engines):
        within[engine, engine * buckets : (engine + 1) * buckets] = load[engine]
    within[engines] = demand.lost[0].ravel()
    whole = np.tile(np.eye(buckets), engines)
    bounds = [(0, 1 if usable.ravel()[place] else 0) for place in range(engines * buckets)]
    limits = [*room + 1e-9, demand.allowed[0]]
    return linprog(np.zeros(engines * buckets), within, limits, whole, np.ones(buckets), bounds).status == 0


def brute_force(usd, demand, capacity) -> float:
    best = math.inf
    for counts in itertools.product(range(4), repeat=len(usd)):
        room = np.array([capacity[engine][count] if count else 0.0 for engine, count in enumerate(counts)])
        cost = float(np.dot(usd, counts))
        if cost < best and carries(demand, room):
            best = cost
    return best


@pytest.mark.parametrize("block", range(10))
def test_the_mix_is_as_cheap_as_brute_force(block):
    impossible = 0
    for seed in range(20 * block, 20 * block + 20):
        usd, demand, capacity = random_demand(seed)
        found, expected = cheapest_mix(usd, demand, capacity), brute_force(usd, demand, capacity)
        if found is None:
            impossible += 1
            assert math.isinf(expected), seed
            continue
        assert found.usd_per_hour == pytest.approx(expected), seed
        room = np.array([capacity[engine][count] if count else 0.0 for engine, count in enumerate(found.replicas)])
        carried = (np.where(found.shares > 0, demand.load, 0.0) * found.shares).sum(axis=1)
        assert (carried <= room + 1e-6).all(), seed
        assert found.shares.sum(axis=0) == pytest.approx(1.0), seed
    assert impossible < 20


def test_a_ceiling_and_what_failed_before_are_kept():
    # One bucket of load 1.5 on either engine: two replicas at 2 each, or two at 3, or one of each at 5.
    demand = Demand(np.array([[1.5], [1.5]]), np.zeros((1, 2, 1)), np.array([0.0]))
    capacity = [{1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.0}]
    usd = np.array([2.0, 3.0])
    assert cheapest_mix(usd, demand, capacity).replicas == (2, 0)
    assert cheapest_mix(usd, demand, capacity, excluded=[(2, 0)]).replicas == (1, 1)
    assert cheapest_mix(usd, demand, capacity, excluded=[(2, 0), (1, 1)]).replicas == (0, 2)
    assert cheapest_mix(usd, demand, capacity, excluded=[(2, 1), (0, 2)]).replicas == (1, 2)
    assert cheapest_mix(usd, demand, capacity, excluded=[(2, 0)], below_usd_per_hour=4.9) is None


def test_balanced_shares_fill_pools_alike():
    # Loads 1 and 2 for the whole bucket, rooms 1 and 1: both are two thirds full at shares 2/3 and 1/3.
    demand = Demand(np.array([[1.0], [2.0]]), np.zeros((1, 2, 1)), np.array([0.0]))
    shares = balanced_shares(demand, [1.0, 1.0])
    assert shares[:, 0] == pytest.approx([2 / 3, 1 / 3], abs=0.01)
    assert balanced_shares(demand, [0.0, 0.0]) is None


def test_pool_sizes_are_all_small_ones_and_few_large_ones():
    assert sizes_up_to(5) == (1, 2, 3, 4, 5)
    sizes = sizes_up_to(1000)
    assert sizes[:16] == tuple(range(1, 17))
    assert sizes[-1] == 1000
    assert len(sizes) < 80
