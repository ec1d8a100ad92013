"""Placement: every order of objectives against brute force, and nothing moved that need not be."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from planners.place.placement import Node, Wanted, place


def random_case(seed: int):
    """Up to two pools and three nodes, with something running already."""
    rng = np.random.default_rng(seed)
    wanted = [
        Wanted(
            f"pool{i}",
            str(rng.choice(["a", "b"])),
            int(rng.choice([1, 2])),
            int(rng.integers(1, 4)),
            int(rng.integers(0, 2)),
        )
        for i in range(rng.integers(1, 3))
    ]
    nodes = [Node(f"node{i}", "ab"[i % 2], int(rng.integers(2, 5)), running(rng)) for i in range(rng.integers(2, 4))]
    return wanted, nodes


def running(rng):
    return {f"pool{i}": 1 for i in range(2) if rng.random() < 0.3}


def brute_force(wanted, nodes):
    """The best value of (missing by priority, disrupted, nodes used, minus the most free) over all counts."""
    places = [(one, node) for one in wanted for node in nodes if one.device == node.device]
    priorities = sorted({one.priority for one in wanted})
    best = None
    for counts in itertools.product(*(range(node.devices // one.devices + 1) for one, node in places)):
        placed = {(one.pool, node.name): n for (one, node), n in zip(places, counts, strict=True)}
        free = [
            node.devices - sum(one.devices * placed.get((one.pool, node.name), 0) for one in wanted) for node in nodes
        ]
        total = {one.pool: sum(n for (pool, _), n in placed.items() if pool == one.pool) for one in wanted}
        if min(free) < 0 or any(total[one.pool] > one.replicas for one in wanted):
            continue
        value = (
            *(-sum(total[one.pool] for one in wanted if one.priority == priority) for priority in priorities),
            sum(max(0, n - placed.get((pool, node.name), 0)) for node in nodes for pool, n in node.running.items()),
            len({at for (_, at), n in placed.items() if n}),
            -max(free),
        )
        best = value if best is None else min(best, value)
    return best


@pytest.mark.parametrize("block", range(5))
def test_placements_are_as_good_as_brute_force_in_every_objective(block):
    for seed in range(40 * block, 40 * block + 40):
        wanted, nodes = random_case(seed)
        found = place(wanted, nodes)
        total = {one.pool: one.replicas - found.missing.get(one.pool, 0) for one in wanted}
        by_priority = [
            -sum(total[one.pool] for one in wanted if one.priority == priority)
            for priority in sorted({one.priority for one in wanted})
        ]
        assert (*by_priority, found.disrupted, found.nodes_used, -found.most_free) == brute_force(wanted, nodes), seed


def test_a_running_replica_stays_where_it_is():
    # Either node would do for both; the one that runs decides.
    nodes = [Node("n1", "h100", 8), Node("n2", "h100", 8, {"chat": 1})]
    found = place([Wanted("chat", "h100", 4, 2)], nodes)
    assert found.placed == {("chat", "n2"): 2}
    assert found.disrupted == 0


def test_the_urgent_go_first_and_what_finds_no_place_is_told():
    found = place([Wanted("batch", "h100", 4, 2, priority=1), Wanted("chat", "h100", 8, 1)], [Node("n1", "h100", 8)])
    assert found.placed == {("chat", "n1"): 1}
    assert found.missing == {"batch": 2}


def test_replicas_that_no_node_can_hold_are_named():
    with pytest.raises(ValueError, match="a replica of 'chat' takes 16 x h100; no node has so many"):
        place([Wanted("chat", "h100", 16, 1)], [Node("n1", "h100", 8)])
    with pytest.raises(ValueError, match="node 'n1' is named twice"):
        place([], [Node("n1", "h100", 8), Node("n1", "h100", 8)])


@pytest.mark.parametrize("seed", range(20))
def test_racks_keep_to_their_power_and_zones_hold_no_more_than_may_be_lost(seed):
    wanted, nodes = random_case(seed)
    rng = np.random.default_rng(seed)
    nodes = [replace(node, rack=f"r{i % 2}", zone=f"z{i % 2}", device_w=300.0) for i, node in enumerate(nodes)]
    wanted = [replace(one, zone_most=(one.replicas + 1) // 2) for one in wanted]
    rack_w = {"r0": float(rng.integers(1, 5)) * 300}
    found = place(wanted, nodes, rack_w)
    needs = {one.pool: one.devices for one in wanted}
    at = {node.name: node for node in nodes}
    drawn = sum(300.0 * needs[pool] * n for (pool, name), n in found.placed.items() if at[name].rack == "r0")
    assert drawn <= rack_w["r0"]
    for one in wanted:
        for zone in ("z0", "z1"):
            there = sum(n for (pool, name), n in found.placed.items() if pool == one.pool and at[name].zone == zone)
            assert there <= one.zone_most


def test_a_rack_without_power_leaves_replicas_without_a_place():
    nodes = [Node("n1", "h100", 8, rack="r", device_w=700.0)]
    found = place([Wanted("chat", "h100", 4, 2)], nodes, {"r": 3000.0})
    assert found.placed == {("chat", "n1"): 1}
    assert found.missing == {"chat": 1}
