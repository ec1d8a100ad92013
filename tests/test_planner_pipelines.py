"""Layers over unlike groups: flows as a linear programme has them, placements as brute force finds them, a bound."""

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import linprog

from planners.place.pipelines import (
    Cluster,
    Group,
    best_pipeline,
    best_placement,
    even_stages,
    most_per_s,
    separate_pipelines,
    served_per_s,
)


def random_cluster(seed: int, groups: int = 3, layers: int = 4) -> Cluster:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(groups):
        speed = float(rng.integers(4, 40))
        made.append(Group(f"g{number}", tuple(speed / n for n in range(1, int(rng.integers(1, layers + 1)) + 1))))
    links = rng.integers(1, 40, (groups, groups)).astype(float)
    return Cluster(tuple(made), links, float(rng.integers(20, 80)))


def spans(most: int, layers: int):
    return [(0, 0), *((a, b) for a in range(layers) for b in range(a + 1, layers + 1) if b - a <= most)]


def flow_by_hand(cluster: Cluster, layers: int, placement) -> float:
    """The same maximum flow as a linear programme over the links between groups."""
    groups = range(len(placement))
    on = [g for g in groups if placement[g][1] > placement[g][0]]
    links = [(a, b) for a in on for b in on if a != b and placement[b][0] <= placement[a][1] < placement[b][1]]
    ins = [g for g in on if placement[g][0] == 0]
    outs = [g for g in on if placement[g][1] == layers]
    arcs = [*links, *(("in", g) for g in ins), *((g, "out") for g in outs)]
    if not ins or not outs:
        return 0.0
    top = [cluster.link_tokens_per_s[arc] if arc in links else cluster.user_tokens_per_s for arc in arcs]
    balance = [[(arc[1] == g) - (arc[0] == g) for arc in arcs] for g in on]
    room = [[float(arc[1] == g) for arc in arcs] for g in on]
    speed = [cluster.groups[g].speed(placement[g][1] - placement[g][0]) for g in on]
    gain = [-float(arc[0] == "in") for arc in arcs]
    found = linprog(gain, room, speed, balance, np.zeros(len(on)), [(0, each) for each in top])
    return -found.fun


@pytest.mark.parametrize("block", range(4))
def test_what_is_served_is_the_flow_of_a_linear_programme(block):
    rng = np.random.default_rng(block)
    for seed in range(50 * block, 50 * block + 50):
        cluster = random_cluster(seed)
        placement = tuple(
            tuple(spans(g.most_layers, 4)[rng.integers(len(spans(g.most_layers, 4)))]) for g in cluster.groups
        )
        assert served_per_s(cluster, 4, placement) == pytest.approx(flow_by_hand(cluster, 4, placement), abs=0.01), seed


@pytest.mark.parametrize("block", range(4))
def test_the_placement_is_as_good_as_brute_force_and_the_bound_is_above(block):
    for seed in range(50 * block, 50 * block + 50):
        cluster = random_cluster(seed, groups=2 + (seed % 5 == 0), layers=3)
        if sum(group.most_layers for group in cluster.groups) < 3:
            with pytest.raises(ValueError, match="layers together; the model has 3"):
                best_placement(cluster, 3, 10)
            continue
        every = itertools.product(*(spans(group.most_layers, 3) for group in cluster.groups))
        best = max(served_per_s(cluster, 3, placement) for placement in every)
        assert best <= most_per_s(cluster, 3) + 0.01, seed
        assert best_placement(cluster, 3, trials=400)[1] == best


def test_annealing_comes_close_where_not_all_placements_are_tried():
    ratios = []
    for seed in range(5):
        cluster = random_cluster(seed)
        if sum(group.most_layers for group in cluster.groups) >= 4:
            every = list(itertools.product(*(spans(group.most_layers, 4) for group in cluster.groups)))
            best = max(served_per_s(cluster, 4, placement) for placement in every)
            placement, per_s = best_placement(cluster, 4, trials=len(every) - 1)
            assert per_s == served_per_s(cluster, 4, placement) <= best
            ratios.append(per_s / best)
    assert np.mean(ratios) > 0.98
    assert min(ratios) > 0.8


def pipeline_by_hand(cluster: Cluster, layers: int) -> float:
    best = 0.0
    groups = range(len(cluster.groups))
    for size in range(1, len(groups) + 1):
        for order in itertools.permutations(groups, size):
            for ends in itertools.combinations(range(1, layers), size - 1):
                held = np.diff([0, *ends, layers])
                if all(n <= cluster.groups[g].most_layers for g, n in zip(order, held, strict=True)):
                    speeds = [cluster.groups[g].speed(int(n)) for g, n in zip(order, held, strict=True)]
                    links = [cluster.link_tokens_per_s[a, b] for a, b in itertools.pairwise(order)]
                    best = max(best, min(*speeds, *links, cluster.user_tokens_per_s, math.inf))
    return best


@pytest.mark.parametrize("block", range(4))
def test_the_pipeline_is_as_good_as_brute_force(block):
    for seed in range(50 * block, 50 * block + 50):
        cluster = random_cluster(seed)
        expected = pipeline_by_hand(cluster, 4)
        if expected == 0:
            with pytest.raises(ValueError, match="no order of the groups holds all 4 layers"):
                best_pipeline(cluster, 4)
            continue
        _, placement, per_s = best_pipeline(cluster, 4)
        assert per_s == pytest.approx(expected), seed
        assert sorted(layer for a, b in placement for layer in range(a, b)) == [0, 1, 2, 3]


def test_unlike_groups_get_layers_by_their_speed():
    # One group does 30 tokens/s through one layer, the other 10: three layers and one are the even split, at 10.
    fast, slow = Group("fast", (30.0, 15.0, 10.0, 7.5)), Group("slow", (10.0, 5.0, 10 / 3, 2.5))
    cluster = Cluster((fast, slow), np.full((2, 2), 1e3))
    _, placement, per_s = best_pipeline(cluster, 4)
    assert [b - a for a, b in placement] == [3, 1]
    assert per_s == 10.0
    assert served_per_s(cluster, 4, even_stages(cluster, 4, 2)) == 5.0
    assert separate_pipelines(cluster, 4) == ((0, 4), (0, 4))
    assert best_placement(cluster, 4, 100)[1] == most_per_s(cluster, 4) == 10.0


def test_a_slow_link_is_not_crossed_where_there_is_another_way():
    same = Group("g", (20.0, 10.0))
    links = np.array([[0.0, 1.0, 50.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    order, _, per_s = best_pipeline(Cluster((same, same, same), links), 3)
    assert (list(order), per_s) == ([0, 2], 10.0)


def test_the_same_seed_gives_the_same_placement():
    cluster = random_cluster(5, groups=6, layers=8)
    assert best_placement(cluster, 8, 300, seed=3) == best_placement(cluster, 8, 300, seed=3)
