"""Indivisible tenants: brute force on small instances, a bound below every packing, a small gap at real size."""

import functools
import itertools
import math

import numpy as np
import pytest

from planners.place.tenants import Kind, Tenants, cheapest_packing

REPLICAS = (
    Kind(0.8, 24, 1.2),
    Kind(1.0, 24, 2.0),
    Kind(1.9, 48, 3.6),
    Kind(3.7, 80, 7.0),
    Kind(4.6, 80, 10),
    Kind(6.0, 141, 11),
)


def random_instance(seed: int):
    """Up to three types of up to two tenants on one or two kinds of replica."""
    rng = np.random.default_rng(seed)
    kinds = [Kind(float(rng.integers(2, 9)), 10.0, float(rng.integers(4, 11))) for _ in range(rng.integers(1, 3))]
    tenants = [
        Tenants(float(rng.integers(1, 10)), float(rng.integers(1, 5)), int(rng.integers(1, 3)))
        for _ in range(rng.integers(1, 4))
    ]
    return tenants, kinds


def brute_force(tenants, kinds) -> float:
    """Place tenants one set after another: every set that fits on a replica, until none are left."""

    @functools.cache
    def usd(left):
        if not any(left):
            return 0.0
        best = math.inf
        for held in itertools.product(*(range(count + 1) for count in left)):
            memory = sum(n * one.memory for n, one in zip(held, tenants, strict=True))
            compute = sum(n * one.compute for n, one in zip(held, tenants, strict=True))
            prices = [kind.usd_per_hour for kind in kinds if memory <= kind.memory and compute <= kind.compute]
            if any(held) and prices:
                rest = tuple(a - b for a, b in zip(left, held, strict=True))
                best = min(best, min(prices) + usd(rest))
        return best

    return usd(tuple(one.count for one in tenants))


@pytest.mark.parametrize("block", range(10))
def test_the_packing_is_as_cheap_as_brute_force_and_its_bound_is_below(block):
    dearer = 0
    for seed in range(20 * block, 20 * block + 20):
        tenants, kinds = random_instance(seed)
        found, expected = cheapest_packing(tenants, kinds), brute_force(tenants, kinds)
        assert found.usd_per_hour_bound <= expected + 1e-6, seed
        assert found.usd_per_hour >= expected - 1e-6, seed
        dearer += found.usd_per_hour > expected + 1e-6
        held = np.sum([count * np.array(pattern) for (_, pattern), count in found.patterns], axis=0)
        assert (held >= [one.count for one in tenants]).all(), seed
    assert dearer <= 1


def test_whole_tenants_need_more_than_their_parts_would():
    # Three tenants of 6 GB on replicas of 10: three replicas, though 18 GB would fit on two. The bound says three too.
    found = cheapest_packing([Tenants(6.0, 1.0, 3)], [Kind(2.0, 10.0, 10.0)])
    assert found.usd_per_hour == pytest.approx(6.0)
    assert found.usd_per_hour_bound == pytest.approx(6.0, rel=1e-4)
    assert found.tenant_usd_per_hour == pytest.approx([2.0], rel=1e-3)


def test_a_tenant_that_fits_nowhere_is_named():
    with pytest.raises(ValueError, match=r"tenant 1 \(99 GB, compute 1\) fits on no kind of replica"):
        cheapest_packing([Tenants(1.0, 1.0, 1), Tenants(99.0, 1.0, 1)], [Kind(1.0, 10.0, 10.0)])


def forty_types(seed: int):
    """Models of 3 to 70 GB, KV of a fifth to twice that, compute with the size: 139 tenants of 40 types."""
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.uniform(np.log(3), np.log(70), 40))
    memory = np.minimum(weights * rng.uniform(1.2, 2.0, 40), 140)
    compute = np.minimum(memory / 14 * rng.uniform(0.4, 1.6, 40), 10.9)
    counts = np.ones(40, int)
    np.add.at(counts, rng.integers(0, 40, 99), 1)
    return [Tenants(float(m), float(c), int(n)) for m, c, n in zip(memory, compute, counts, strict=True)]


def test_a_hundred_and_thirty_nine_tenants_of_forty_types_are_packed_to_a_small_gap():
    found = cheapest_packing(forty_types(0), REPLICAS)
    assert sum(one.count for one in forty_types(0)) == 139
    assert found.gap <= 0.035
