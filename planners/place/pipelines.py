"""Layers of one model over unlike groups of devices: which layers each group holds, so that most tokens flow through.

A group, the devices of one NVLink domain, holds a run of layers and works on tokens at a speed that falls with their
number. A token goes from group to group, each doing the next layers that it holds, until all are done; so what a
placement serves is a maximum flow, limited by the groups' speeds and by the links between them (Helix,
arXiv 2406.01566). One pipeline of unequal stages is the case in which runs do not overlap (Zorse, arXiv 2507.10392).

No placement serves more than `most_per_s`: every token takes all layers, and a group does at most so many a second.
Ours starts from pipelines made in three ways and then moves the ends of single groups' runs, as simulated annealing
does, with as many trials as it is given.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Span = tuple[int, int]  # first layer, and the one after the last
Placement = tuple[Span, ...]  # of each group; an empty run takes no part
SCALE = 1_000  # whole units of a token per second
HEAT = 0.1  # of what can be served at most, by which a trial may be worse at first


@dataclass(frozen=True, slots=True)
class Group:
    """Devices that act as one: tokens per second [1/s] that it passes through 1, 2, ... layers, as many as it holds."""

    name: str
    tokens_per_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.tokens_per_s:
            raise ValueError(f"group {self.name!r} has no room for even one layer")

    @property
    def most_layers(self) -> int:
        """Return the layers whose weights and KV it has room for."""
        return len(self.tokens_per_s)

    def speed(self, layers: int) -> float:
        """Return the tokens per second through so many layers."""
        return self.tokens_per_s[layers - 1] if layers else 0.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Groups, the tokens per second that the link from one to another carries [from, to], and those from and to users.

    Users' links carry token numbers, the others activations.
    """

    groups: tuple[Group, ...]
    link_tokens_per_s: npt.NDArray[np.float64] = field(repr=False)
    user_tokens_per_s: float = math.inf


def served_per_s(cluster: Cluster, layers: int, placement: Placement) -> float:
    """Return the tokens per second that a placement serves: the maximum flow, in thousandths of a token."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    count = len(cluster.groups)
    first, last = np.array([start for start, _ in placement]), np.array([end for _, end in placement])
    held = last - first
    speed = np.array([group.speed(n) for group, n in zip(cluster.groups, held.tolist(), strict=True)])
    follows = (first[None, :] <= last[:, None]) & (last[:, None] < last[None, :]) & (held[:, None] > 0)
    capacity = np.zeros((2 * count + 2, 2 * count + 2))  # into and out of each group, then users' ends
    capacity[np.arange(count), count + np.arange(count)] = speed
    capacity[count : 2 * count, :count] = np.where(follows & (held > 0), cluster.link_tokens_per_s, 0.0)
    capacity[2 * count, :count] = np.where((first == 0) & (held > 0), cluster.user_tokens_per_s, 0.0)
    capacity[count : 2 * count, 2 * count + 1] = np.where((last == layers) & (held > 0), cluster.user_tokens_per_s, 0.0)
    whole = np.minimum(np.floor(capacity * SCALE), 2**30).astype(np.int32)
    return float(maximum_flow(csr_array(whole), 2 * count, 2 * count + 1).flow_value) / SCALE


def most_per_s(cluster: Cluster, layers: int) -> float:
    """Return what no placement serves more than: the layers that all groups do in a second over those of a token."""
    done = [max(n * group.speed(n) for n in range(1, min(layers, group.most_layers) + 1)) for group in cluster.groups]
    return min(sum(done) / layers, len(done) * cluster.user_tokens_per_s)


def best_placement(cluster: Cluster, layers: int, trials: int, seed: int = 0) -> tuple[Placement, float]:
    """Return the placement that serves most of those tried, and what it serves [tokens/s].

    All are tried where there are no more than trials, so that it is the best there is. ValueError where the groups
    together do not hold the layers.
    """
    room = sum(min(layers, group.most_layers) for group in cluster.groups)
    if room < layers:
        raise ValueError(f"the groups hold {room} layers together; the model has {layers}")
    runs = [_runs_of(min(layers, group.most_layers), layers) for group in cluster.groups]
    if math.prod(map(len, runs)) <= trials:
        best = max(itertools.product(*runs), key=lambda placement: served_per_s(cluster, layers, placement))
        return best, served_per_s(cluster, layers, best)
    found = {start: served_per_s(cluster, layers, start) for start in starts(cluster, layers)}
    best = max(found, key=lambda placement: found[placement])
    best_per_s, most = found[best], most_per_s(cluster, layers)
    now, now_per_s = best, best_per_s
    rng = np.random.default_rng(seed)
    for trial in range(trials):
        if best_per_s >= most * (1 - 1e-6):
            break
        near = _moved(cluster, layers, now, rng)
        per_s = served_per_s(cluster, layers, near)
        heat = HEAT * most * (1 - trial / trials) ** 2
        if per_s >= now_per_s or (heat > 0 and rng.random() < math.exp((per_s - now_per_s) / heat)):
            now, now_per_s = near, per_s
        if per_s > best_per_s:
            best, best_per_s = near, per_s
    return best, best_per_s


def _runs_of(most: int, layers: int) -> list[Span]:
    """Return every run of at most so many layers, none included."""
    return [(0, 0), *((a, b) for a in range(layers) for b in range(a + 1, min(layers, a + most) + 1))]


def starts(cluster: Cluster, layers: int) -> Iterator[Placement]:
    """Yield placements to begin with: even stages, a pipeline of each kind of group, runs laid where least is done."""
    for stages in sorted({math.ceil(layers / group.most_layers) for group in cluster.groups}):
        yield even_stages(cluster, layers, stages)
    yield separate_pipelines(cluster, layers)
    yield _balanced(cluster, layers)


def even_stages(cluster: Cluster, layers: int, stages: int) -> Placement:
    """Return stages of as many layers each, groups given to the weakest stage one by one (Swarm, arXiv 2301.11913)."""
    edges = [round(stage * layers / stages) for stage in range(stages + 1)]
    done = [0.0] * stages
    placement: list[Span] = [(0, 0)] * len(cluster.groups)
    for number in sorted(range(len(placement)), key=lambda n: -cluster.groups[n].most_layers):
        group = cluster.groups[number]
        fits = [stage for stage in range(stages) if edges[stage + 1] - edges[stage] <= group.most_layers]
        if fits:
            stage = min(fits, key=lambda each: (done[each], each))
            done[stage] += group.speed(edges[stage + 1] - edges[stage])
            placement[number] = edges[stage], edges[stage + 1]
    return tuple(placement)


def separate_pipelines(cluster: Cluster, layers: int) -> Placement:
    """Return pipelines of groups that are alike, as many of each kind as hold all layers; the rest take no part."""
    placement: list[Span] = [(0, 0)] * len(cluster.groups)
    alike: dict[tuple[float, ...], list[int]] = {}
    for number, group in enumerate(cluster.groups):
        alike.setdefault(group.tokens_per_s, []).append(number)
    for speeds, own in alike.items():
        stages = math.ceil(layers / len(speeds))
        for begin in range(0, len(own) - stages + 1, stages):
            for stage, number in enumerate(own[begin : begin + stages]):
                placement[number] = round(stage * layers / stages), round((stage + 1) * layers / stages)
    return tuple(placement)


def _balanced(cluster: Cluster, layers: int) -> Placement:
    """Return runs laid one by one, the fastest group first, over the layers on which least is done so far."""
    done = np.zeros(layers)
    placement: list[Span] = [(0, 0)] * len(cluster.groups)
    order = sorted(range(len(placement)), key=lambda n: -max(n * s for n, s in _work(cluster.groups[n])))
    for number in order:
        group = cluster.groups[number]
        held = min(group.most_layers, layers)
        begin = min(range(layers - held + 1), key=lambda at: (float(np.sort(done[at : at + held]).sum()), at))
        done[begin : begin + held] += group.speed(held)
        placement[number] = begin, begin + held
    return tuple(placement)


def _work(group: Group) -> Iterator[tuple[int, float]]:
    return enumerate(group.tokens_per_s, 1)


def _moved(cluster: Cluster, layers: int, placement: Placement, rng: np.random.Generator) -> Placement:
    """Return the placement after one of four moves, chosen by chance; runs are cut to what groups hold."""
    spans = list(placement)
    number, other = (int(each) for each in rng.integers(len(spans), size=2))
    kind = rng.random()
    if kind < 0.35:  # a run from where another ends or begins
        edges = sorted({0, layers, *(edge for span in spans for edge in span)})
        first, last = sorted(int(each) for each in rng.choice(edges, 2))
        spans[number] = first, last
    elif kind < 0.6:  # its ends by a layer or two
        first, last = spans[number]
        spans[number] = first + int(rng.integers(-2, 3)), last + int(rng.integers(-2, 3))
    elif kind < 0.85:  # an edge of several runs at once
        edge, by = spans[number][int(rng.integers(2))], int(rng.choice([-2, -1, 1, 2]))
        moved = edge + by if 0 < edge < layers else edge
        spans = [(moved if a == edge else a, moved if b == edge else b) for a, b in spans]
    else:
        spans[number], spans[other] = spans[other], spans[number]
    return tuple(_cut(span, group.most_layers, layers, rng) for span, group in zip(spans, cluster.groups, strict=True))


def _cut(span: Span, most: int, layers: int, rng: np.random.Generator) -> Span:
    """Return a run within the layers and no longer than may be, cut at one of its ends by chance; (0, 0) for none."""
    first, last = max(0, span[0]), min(layers, span[1])
    if last - first > most:
        first, last = (first, first + most) if rng.random() < 0.5 else (last - most, last)
    return (first, last) if last > first else (0, 0)


def best_pipeline(cluster: Cluster, layers: int) -> tuple[Sequence[int], Placement, float]:
    """Return one pipeline, the groups in order, their layers and what it serves: the best there is.

    Each group is a stage at most. By halving on what is served: at a rate a group does as many layers as it is fast
    enough for, and a way through groups whose links carry the rate must do all (dynamic programme over sets of groups).
    ValueError for more than MOST_STAGES groups, and where none holds all layers.
    """
    count = len(cluster.groups)
    if count > MOST_STAGES:
        raise ValueError(f"{count} groups are too many for one pipeline; at most {MOST_STAGES}")
    rates = sorted({speed for group in cluster.groups for speed in group.tokens_per_s}, reverse=True)
    links = sorted({float(x) for x in cluster.link_tokens_per_s.ravel() if math.isfinite(x)} - {0.0}, reverse=True)
    rates = sorted(
        {rate for rate in (*rates, *links) if rate <= cluster.user_tokens_per_s} | _finite(cluster), reverse=True
    )
    low, high = 0, len(rates)
    best: tuple[Sequence[int], Placement, float] | None = None
    while low < high:
        middle = (low + high) // 2
        found = _pipeline_at(cluster, layers, rates[middle])
        if found is None:
            low = middle + 1
        else:
            best, high = (*found, rates[middle]), middle
    if best is None:
        raise ValueError(f"no order of the groups holds all {layers} layers over links that carry anything")
    return best


MOST_STAGES = 12


def _finite(cluster: Cluster) -> set[float]:
    return {cluster.user_tokens_per_s} if math.isfinite(cluster.user_tokens_per_s) else set()


def _pipeline_at(cluster: Cluster, layers: int, per_s: float) -> tuple[list[int], Placement] | None:
    """Return an order of groups that does all layers at a rate, and their runs; None where there is none."""
    able = [sum(speed >= per_s for speed in group.tokens_per_s) for group in cluster.groups]
    carries = cluster.link_tokens_per_s >= per_s
    reached: dict[tuple[int, int], list[int]] = {(1 << g, g): [g] for g, n in enumerate(able) if n}
    while reached:
        following: dict[tuple[int, int], list[int]] = {}
        for (some, last), way in reached.items():
            if sum(able[g] for g in way) >= layers:
                return way, _runs(way, able, layers)
            for g, n in enumerate(able):
                if n and not some >> g & 1 and carries[last, g]:
                    following.setdefault((some | 1 << g, g), [*way, g])
        reached = following
    return None


def _runs(way: Sequence[int], able: Sequence[int], layers: int) -> Placement:
    placement: list[Span] = [(0, 0)] * len(able)
    begin = 0
    for group in way:
        end = min(layers, begin + able[group])
        placement[group], begin = (begin, end), end
    return tuple(span if span[1] > span[0] else (0, 0) for span in placement)
