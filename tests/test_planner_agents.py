"""Stages of agents on classes of hardware: the published vector to the cent, and brute force on small graphs."""

import itertools
import math

import numpy as np
import pytest

from planners.place.agents import HardwareClass, Network, Stage, Way, assign, path_s
from planners.search.infeasible import Infeasible

# arXiv 2507.19635, section on the worked example: HP and CO are two kinds of devices, 1,000 tokens in, 500 out.
PREFILL = {"hp": Way(0.080, usd=1000 * 8e-5), "co": Way(0.130, usd=1000 * 5e-5)}
DECODE = {"hp": Way(0.025, usd=500 * 6e-5), "co": Way(0.030, usd=500 * 2e-5)}
WORKED = [Stage("prefill", PREFILL, {"decode": 1000.0}), Stage("decode", DECODE)]
CLASSES = [HardwareClass("hp"), HardwareClass("co")]
KV = Network(latency_s=0.010, usd_per_byte=5e-6)  # a byte stands for a token


def test_the_worked_example_is_exact():
    found = assign(WORKED, CLASSES, KV, 0.120)
    assert found.classes == {"prefill": "hp", "decode": "co"}
    assert found.seconds == pytest.approx(0.120)
    assert found.usd_per_request == pytest.approx(0.095)
    tight = assign(WORKED, CLASSES, KV, 0.110)
    assert tight.classes == {"prefill": "hp", "decode": "hp"}
    assert (tight.seconds, tight.usd_per_request) == (pytest.approx(0.105), pytest.approx(0.11))
    loose = assign(WORKED, CLASSES, KV, 0.160)
    assert loose.classes == {"prefill": "co", "decode": "co"}
    assert loose.usd_per_request == pytest.approx(0.06)  # the paper prints 0.07; its own sum is this


def test_what_cannot_be_in_time_says_how_fast_it_could_be():
    with pytest.raises(Infeasible, match=r"cannot end within 0\.1 s: each on its fastest class they take 0\.105 s"):
        assign(WORKED, CLASSES, KV, 0.100)
    with pytest.raises(ValueError, match="'a' passes on to 'b', which is not there"):
        assign([Stage("a", PREFILL, {"b": 1.0})], CLASSES, KV, 1.0)
    circle = [Stage("a", PREFILL, {"b": 1.0}), Stage("b", PREFILL, {"a": 1.0})]
    with pytest.raises(ValueError, match="follow each other in a circle: a, b"):
        assign(circle, CLASSES, KV, 1.0)


def random_case(seed: int):
    """Up to four stages in a random graph on up to three classes that cost by the hour."""
    rng = np.random.default_rng(seed)
    classes = [
        HardwareClass(f"c{number}", float(rng.integers(1, 8)), int(rng.integers(1, 5)), float(rng.integers(4, 12)))
        for number in range(rng.integers(2, 4))
    ]
    names = [f"s{number}" for number in range(rng.integers(1, 5))]
    stages = []
    for place, name in enumerate(names):
        able = [one.name for one in classes if rng.random() < 0.8] or [classes[0].name]
        ways = {
            one: Way(
                float(rng.integers(1, 9)) / 10,
                float(rng.integers(1, 9)) / 10,
                float(rng.integers(0, 4)) / 1e3,
                float(rng.integers(0, 5)),
            )
            for one in able
        }
        stages.append(
            Stage(name, ways, {late: float(rng.integers(1, 5)) for late in names[place + 1 :] if rng.random() < 0.6})
        )
    network = Network(0.05, 20.0, 1e-4)
    return stages, classes, network, float(rng.integers(4, 20)) / 10, float(rng.integers(0, 5))


def brute_force(stages, classes, network, limit_s, per_s) -> float:
    best = math.inf
    for choice in itertools.product(*(one.ways for one in stages)):
        chosen = {one.name: name for one, name in zip(stages, choice, strict=True)}
        if path_s(stages, network, chosen) > limit_s + 1e-9:
            continue
        usd = sum(one.ways[chosen[one.name]].usd for one in stages)
        usd += network.usd_per_byte * sum(
            size for one in stages for late, size in one.passes_on_bytes.items() if chosen[one.name] != chosen[late]
        )
        standing = 0.0
        for hardware in classes:
            own = [one.ways[hardware.name] for one in stages if chosen[one.name] == hardware.name]
            count = max(bool(own), math.ceil(round(sum(way.replica_s for way in own) * per_s, 9)))
            fits = count <= hardware.most and sum(way.memory_bytes for way in own) <= hardware.memory_bytes
            standing += hardware.usd_per_hour * count if fits else math.inf
        best = min(best, (3600 * per_s if per_s else 1.0) * usd + standing)
    return best


@pytest.mark.parametrize("block", range(5))
def test_assignments_are_as_cheap_as_brute_force(block):
    found_some = 0
    for seed in range(40 * block, 40 * block + 40):
        stages, classes, network, limit_s, per_s = random_case(seed)
        expected = brute_force(stages, classes, network, limit_s, per_s)
        if math.isinf(expected):
            with pytest.raises(Infeasible):
                assign(stages, classes, network, limit_s, per_s)
            continue
        found = assign(stages, classes, network, limit_s, per_s)
        cost = found.usd_per_hour if per_s else found.usd_per_hour + found.usd_per_request
        assert cost == pytest.approx(expected), seed
        assert found.seconds <= limit_s + 1e-9
        found_some += 1
    assert found_some > 10
