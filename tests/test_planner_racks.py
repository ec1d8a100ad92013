"""Racks: what they hold is what brute force places on their nodes, and a plan within them is placed."""

import functools
import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest

from models import device
from planners.offers.racks import Rack, rows

KINDS = ("h100-sxm", "l40s")
SIZES = (1, 2, 4)


@dataclass(frozen=True)
class Cut:
    devices: int
    device: device.Device


@dataclass(frozen=True)
class Priced:
    engine: Cut


@dataclass(frozen=True)
class Offered:
    priced: Priced

    @property
    def device_name(self) -> str:
        return self.priced.engine.device.name


OFFERS = [Offered(Priced(Cut(size, device.load(kind)))) for kind in KINDS for size in SIZES]


def random_case(seed: int):
    """One or two racks of one kind each with up to three nodes and perhaps little power, and replicas to place."""
    rng = np.random.default_rng(seed)
    racks = []
    for _ in range(rng.integers(1, 3)):
        kind = str(rng.choice(KINDS))
        sizes = tuple(int(size) for size in rng.integers(1, 6, rng.integers(1, 4)))
        power_w = float(rng.integers(1, 2 + sum(sizes)) * device.load(kind).tdp_w) if rng.random() < 0.6 else np.inf
        racks.append(Rack({kind: sizes}, power_w))
    return racks, tuple(int(count) for count in rng.integers(0, 3, len(OFFERS)))


def can_be_placed(racks, replicas) -> bool:
    """Place replicas one by one, on every node that has room in a rack that has power."""
    counted = zip(OFFERS, replicas, strict=True)
    items = [(offer.device_name, offer.priced.engine.devices) for offer, count in counted for _ in range(count)]
    nodes = [
        (number, kind, size) for number, rack in enumerate(racks) for kind in rack.nodes for size in rack.nodes[kind]
    ]

    @functools.cache
    def placed(place: int, free: tuple[int, ...], watts: tuple[float, ...]) -> bool:
        if place == len(items):
            return True
        kind, size = items[place]
        drawn = size * device.load(kind).tdp_w
        for at, (number, own, _) in enumerate(nodes):
            if own == kind and free[at] >= size and watts[number] >= drawn - 1e-6:
                left = tuple(room - size * (other == at) for other, room in enumerate(free))
                power = tuple(each - drawn * (other == number) for other, each in enumerate(watts))
                if placed(place + 1, left, power):
                    return True
        return False

    return placed(0, tuple(size for *_, size in nodes), tuple(rack.power_w for rack in racks))


def is_within(racks, replicas) -> bool:
    return all(np.dot(row.weights, replicas) <= row.most + 1e-6 for row in rows(racks, OFFERS))


@pytest.mark.parametrize("block", range(5))
def test_the_limits_hold_for_exactly_the_replicas_that_can_be_placed(block):
    found = []
    for seed in range(60 * block, 60 * block + 60):
        racks, replicas = random_case(seed)
        found.append(can_be_placed(racks, replicas))
        assert is_within(racks, replicas) == found[-1], seed
    assert 0 < sum(found) < len(found)


def test_no_replicas_that_mixed_racks_hold_are_kept_out():
    rng = np.random.default_rng(0)
    kept_out = 0
    for _ in range(100):
        nodes = {kind: tuple(int(size) for size in rng.integers(1, 4, 2)) for kind in KINDS}
        racks = [Rack(nodes, float(rng.integers(500, 4000))), Rack({KINDS[0]: (2,)})]
        replicas = tuple(int(count) for count in rng.integers(0, 2, len(OFFERS)))
        assert is_within(racks, replicas) or not can_be_placed(racks, replicas)
        kept_out += not is_within(racks, replicas)
    assert kept_out


def test_devices_that_stand_in_no_rack_cannot_be_had():
    racks = [Rack({"l40s": (4,)})]
    one_h100 = tuple(float(offer.device_name == "h100-sxm" and offer.priced.engine.devices == 1) for offer in OFFERS)
    assert not is_within(racks, one_h100)


def test_a_node_of_six_holds_one_replica_of_four_and_two_of_one():
    racks = [Rack({"l40s": (6,)})]
    by_size = {
        ("l40s", size): place for place, (kind, size) in enumerate(itertools.product(KINDS, SIZES)) if kind == "l40s"
    }
    replicas = [0] * len(OFFERS)
    replicas[by_size["l40s", 4]], replicas[by_size["l40s", 1]] = 1, 2
    assert is_within(racks, replicas)
    replicas[by_size["l40s", 4]] = 2
    assert not is_within(racks, replicas)


def test_a_limit_on_power_asks_for_what_devices_draw():
    unknown = replace(device.load("l40s"), tdp_w=None)
    offers = [Offered(Priced(Cut(1, unknown)))]
    assert [row.most for row in rows([Rack({"l40s": (4,)})], offers)] == [4]
    with pytest.raises(ValueError, match="the power of a rack needs the TDP of 'l40s', which is not known"):
        list(rows([Rack({"l40s": (4,)}, 1000.0)], offers))
