"""The weekly schedule: brute force on small instances, and the bound below it."""

import itertools
import math

import numpy as np
import pytest

from planners.schedules.schedule import Hour, Prices, cheapest_schedule, cost_usd


def random_instance(seed: int):
    """One or two engines, one bucket, two or three hours."""
    rng = np.random.default_rng(seed)
    engines = int(rng.integers(1, 3))
    on_demand = rng.integers(2, 9, engines) / 2
    spot = np.where(rng.random(engines) < 0.5, on_demand * 0.35, np.inf)
    prices = Prices(on_demand, on_demand * 0.55, spot, float(rng.choice([0.0, 0.5])))
    return prices, rng.uniform(0.3, 1.0, (engines, 1)), rng.uniform(0.2, 3.0, int(rng.integers(2, 4))).tolist()


def brute_force(prices, load, factors):
    """Every count of every kind in every hour; engines carry 1 / load of the one bucket each."""
    engines, carries = len(load), 1 / load[:, 0]
    counts = np.array(list(itertools.product(range(5), repeat=2 * engines)))
    on_demand, spot = counts[:, :engines], counts[:, engines:]
    spot_usd = np.where(np.isinf(prices.spot), 1e9, prices.spot)
    usd, on_spot = on_demand @ prices.on_demand + spot @ spot_usd, spot @ carries
    best = math.inf
    for reserved in itertools.product(range(5), repeat=engines):
        whole = (on_demand + spot + reserved) @ carries
        allowed = on_spot <= prices.spot_share * whole + 1e-9
        hours = [usd[allowed & (whole >= factor - 1e-9)].min(initial=math.inf) for factor in factors]
        best = min(best, len(factors) * float(prices.reserved @ reserved) + float(sum(hours)))
    return best


@pytest.mark.parametrize("block", range(10))
def test_no_schedule_is_below_the_bound_and_ours_is_nearly_as_cheap_as_brute_force(block):
    exact = 0
    for seed in range(20 * block, 20 * block + 20):
        prices, load, factors = random_instance(seed)
        found, expected = cheapest_schedule(prices, load, factors), brute_force(prices, load, factors)
        assert found.usd_bound <= expected + 1e-6, seed
        assert found.usd >= expected - 1e-6, seed
        exact += found.usd <= expected + 1e-6
    assert exact >= 17


def test_what_is_always_needed_is_reserved_and_a_peak_is_not():
    # One replica carries 1: ten hours of 2 and one of 5. Reserved at half the price: two, and three on demand at noon.
    prices = Prices(np.array([1.0]), np.array([0.5]), np.array([np.inf]))
    found = cheapest_schedule(prices, np.array([[1.0]]), [2.0] * 5 + [5.0] + [2.0] * 5)
    assert found.reserved == (2,)
    assert [found.replicas(hour)[0] for hour in range(11)] == [2] * 5 + [5] + [2] * 5
    assert found.usd == pytest.approx(11 * 2 * 0.5 + 3)
    assert found.gap < 1e-6


def test_replicas_are_paid_for_while_they_start():
    # Three start once, a quarter of an hour early.
    prices = Prices(np.array([1.0]), np.array([0.5]), np.array([np.inf]), start_hours=0.25)
    idle, busy = Hour((0,), (0,), np.ones((1, 1))), Hour((3,), (0,), np.ones((1, 1)))
    assert cost_usd(prices, (2,), [idle, busy, idle]) == pytest.approx(3 * 2 * 0.5 + 3 + 0.75)


def test_spot_stays_within_its_share_of_every_hour():
    prices = Prices(np.array([1.0]), np.array([0.9]), np.array([0.1]), spot_share=0.5)
    found = cheapest_schedule(prices, np.array([[1.0]]), [4.0, 4.0])
    assert [hour.spot for hour in found.hours] == [(2,), (2,)]
    assert found.usd == pytest.approx(2 * (2 * 0.9 + 2 * 0.1))


def test_a_day_of_real_size_is_within_five_percent_of_its_bound():
    rng = np.random.default_rng(0)
    usd = rng.uniform(2, 6, 4)
    load = 12 * usd.mean() / usd[:, None] * rng.uniform(0.8, 1.2, (4, 8)) / 8
    factors = [1 + 0.8 * math.sin(hour / 24 * 2 * math.pi) + 0.1 * (hour % 7) for hour in range(24)]
    found = cheapest_schedule(Prices(usd, 0.55 * usd, 0.35 * usd), load, factors)
    assert found.gap <= 0.05
    assert found.relaxed_usd <= found.usd_bound * (1 + 1e-9)
