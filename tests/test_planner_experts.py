"""Subsets of experts: brute force on small instances, and more energy or patience is never worth less."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from planners.place.experts import Experts, best_subset, measured
from planners.search.infeasible import Infeasible


def random_case(seed: int, experts: int = 4, queries: int = 3) -> Experts:
    rng = np.random.default_rng(seed)
    shape = queries, experts
    return Experts(
        rng.integers(1, 20, shape) / 20,
        rng.integers(1, 10, shape) / 2,
        rng.integers(1, 10, shape) / 10,
        rng.integers(0, 4, experts) / 4,
        np.full(queries, 1 / queries),
    )


def brute_force(experts: Experts, energy_j: float, delay_s: float, answering: int) -> float:
    ways = itertools.combinations(range(experts.quality.shape[1]), answering)
    best = -math.inf
    for answers in itertools.product(list(ways), repeat=experts.quality.shape[0]):
        found = measured(experts, answers)
        if found.energy_j <= energy_j + 1e-9 and found.delay_s <= delay_s:
            best = max(best, found.quality)
    return best


@pytest.mark.parametrize("block", range(5))
def test_subsets_are_as_good_as_brute_force(block):
    found_some = 0
    for seed in range(40 * block, 40 * block + 40):
        rng = np.random.default_rng(seed)
        experts, answering = random_case(seed), 1 + seed % 2
        energy_j, delay_s = float(rng.integers(2, 14)) / 2, float(rng.integers(4, 10)) / 10
        expected = brute_force(experts, energy_j, delay_s, answering)
        if math.isinf(expected):
            with pytest.raises(Infeasible):
                best_subset(experts, energy_j, delay_s, answering)
            continue
        found = best_subset(experts, energy_j, delay_s, answering)
        assert found.quality == pytest.approx(expected, abs=1e-5), seed
        assert found.energy_j <= energy_j * (1 + 1e-5)
        assert found.delay_s <= delay_s
        found_some += 1
    assert found_some > 10


def test_more_energy_or_patience_is_never_worth_less():
    experts = random_case(1, experts=8, queries=5)
    by_energy = [best_subset(experts, energy_j, 0.9).quality for energy_j in (2.0, 3.0, 4.0, 6.0)]
    by_delay = [best_subset(experts, 4.0, delay_s).quality for delay_s in (0.5, 0.7, 0.9)]
    assert by_energy == sorted(by_energy)
    assert by_delay == sorted(by_delay)


def test_what_no_experts_answer_in_time_is_named():
    experts = random_case(2)
    slow = replace(experts, delay_s=np.where(np.arange(3)[:, None] == 1, 9.0, experts.delay_s))
    with pytest.raises(Infeasible, match="query 1 is answered within 1 s by 0 experts, not 1"):
        best_subset(slow, 100.0, 1.0)
    with pytest.raises(Infeasible, match=r"no 1 experts for every query keep to 0\.001 J"):
        best_subset(experts, 0.001, 1.0)
