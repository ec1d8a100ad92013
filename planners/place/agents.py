"""Agents over classes of hardware: which class runs each stage of a graph of stages, within a time from end to end.

Stages i follow each other in a directed graph; a stage takes t[i, j] on class j of hardware and passes what it made on,
which takes time and money where the next stage runs on another class. Chosen is one class for each stage, and replicas
of each class for so many requests per second:

    min  rate * (sum of usd[i, j] + usd of transfers) + sum over j of n[j] * usd_per_hour[j]
    s.t. every path through the graph ends within the limit,
         rate * sum of busy_s[i, j] <= n[j] * utilisation,   memory of all stages on j <= memory of a replica of j.

The published constraints (arXiv 2507.19635) limit single stages; its worked example limits the path, as is done here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from planners.search.infeasible import Infeasible
from planners.solver import proven

SECONDS_PER_HOUR = 3600
PER_SECOND = 10**6  # whole units of time: microseconds
PER_USD = 10**9  # whole units of money


@dataclass(frozen=True, slots=True)
class Way:
    """How a stage runs on a class: from start to end, how long it keeps a replica busy (as long by default), its cost.

    usd is a request's own cost, beside that of replicas; memory_bytes is what it holds on every replica of the class.
    """

    seconds: float
    busy_s: float | None = None
    usd: float = 0.0
    memory_bytes: float = 0.0

    @property
    def replica_s(self) -> float:
        """Return how long a request keeps a replica busy."""
        return self.seconds if self.busy_s is None else self.busy_s


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage: the ways it runs by class, and what it passes on to each stage that follows it [bytes]."""

    name: str
    ways: Mapping[str, Way]
    passes_on_bytes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HardwareClass:
    """A class of hardware: what a replica costs and holds, and how many there are."""

    name: str
    usd_per_hour: float = 0.0
    most: int = 1_000
    memory_bytes: float = math.inf


@dataclass(frozen=True, slots=True)
class Network:
    """What lies between classes: time to begin and per byte, and money per byte."""

    latency_s: float = 0.0
    bytes_per_s: float = math.inf
    usd_per_byte: float = 0.0

    def seconds(self, size: float) -> float:
        """Return what so many bytes take."""
        return self.latency_s + size / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Assignment:
    """The class of each stage, replicas of each class, the longest path, and what a request and all of an hour cost."""

    classes: Mapping[str, str]
    replicas: Mapping[str, int]
    seconds: float
    usd_per_request: float
    usd_per_hour: float


def assign(
    stages: Sequence[Stage],
    classes: Sequence[HardwareClass],
    network: Network,
    limit_s: float,
    requests_per_s: float = 0.0,
    utilisation: float = 1.0,
) -> Assignment:
    """Return the cheapest assignment by the hour, at a rate of 0 by the request; Infeasible says what is in the way.

    ValueError for stages that follow none that is there, or each other in a circle. Solved by CP-SAT to the optimum, in
    microseconds rounded up.
    """
    from ortools.sat.python import cp_model

    order = in_order(stages)
    model = cp_model.CpModel()
    takes = {(one.name, name): model.new_bool_var("") for one in stages for name in one.ways}
    longest = math.ceil(PER_SECOND * limit_s) if math.isfinite(limit_s) else 10**15
    ends = {name: model.new_int_var(0, longest, "") for name in order}
    by_name = {one.name: one for one in stages}
    for one in stages:
        model.add_exactly_one(takes[one.name, name] for name in one.ways)
        lasts = sum(_ticks(way.seconds) * takes[one.name, name] for name, way in one.ways.items())
        model.add(ends[one.name] >= lasts)
    costs: list[Any] = [takes[key] * _cents(by_name[key[0]].ways[key[1]].usd) for key in takes]
    for one, following, size in _edges(stages):
        apart = _apart(model, takes, one, by_name[following])
        lasts = sum(_ticks(way.seconds) * takes[following, name] for name, way in by_name[following].ways.items())
        model.add(ends[following] >= ends[one.name] + lasts + _ticks(network.seconds(size)) * apart)
        costs.append(_cents(size * network.usd_per_byte) * apart)
    replicas = _replicas(model, takes, stages, classes, requests_per_s / utilisation)
    scale = max(requests_per_s * SECONDS_PER_HOUR, 1.0)
    objective = sum(round(scale) * cost for cost in costs)
    objective += sum(_cents(one.usd_per_hour) * replicas[one.name] for one in classes)
    model.minimize(objective)
    solver = proven(model)
    if solver is None:
        raise Infeasible(_why(stages, network, limit_s))
    chosen = {one: name for (one, name), taken in takes.items() if solver.value(taken)}
    counts = {name: int(solver.value(count)) for name, count in replicas.items() if solver.value(count)}
    return _read(stages, classes, network, chosen, counts, requests_per_s)


def in_order(stages: Sequence[Stage]) -> list[str]:
    """Return the stages' names, each after all that it follows; ValueError where there is no such order."""
    names = [one.name for one in stages]
    for one in stages:
        missing = [name for name in one.passes_on_bytes if name not in names]
        if missing:
            raise ValueError(f"stage {one.name!r} passes on to {missing[0]!r}, which is not there")
        if not one.ways:
            raise ValueError(f"stage {one.name!r} runs on no class")
    order: list[str] = []
    left = list(stages)
    while left:
        free = [one for one in left if not any(one.name in other.passes_on_bytes for other in left)]
        if not free:
            raise ValueError(f"stages follow each other in a circle: {', '.join(one.name for one in left)}")
        order += [one.name for one in free]
        left = [one for one in left if one not in free]
    return order


def path_s(stages: Sequence[Stage], network: Network, chosen: Mapping[str, str]) -> float:
    """Return how long the longest path takes where each stage runs on a class."""
    ends = {one.name: 0.0 for one in stages}
    by_name = {one.name: one for one in stages}
    for name in in_order(stages):
        one = by_name[name]
        ends[name] += one.ways[chosen[name]].seconds
        for following, size in one.passes_on_bytes.items():
            moved_s = network.seconds(size) if chosen[following] != chosen[name] else 0.0
            ends[following] = max(ends[following], ends[name] + moved_s)
    return max(ends.values())


def _edges(stages: Sequence[Stage]) -> list[tuple[Stage, str, float]]:
    return [(one, following, size) for one in stages for following, size in one.passes_on_bytes.items()]


def _apart(model: Any, takes: Mapping[tuple[str, str], Any], one: Stage, following: Stage) -> Any:
    """Return a variable that is at least 1 where two stages run on different classes."""
    apart = model.new_bool_var("")
    for name in one.ways:
        same = [takes[following.name, name]] if name in following.ways else []
        model.add_bool_or([apart, takes[one.name, name].negated(), *same])
    return apart


def _replicas(
    model: Any,
    takes: Mapping[tuple[str, str], Any],
    stages: Sequence[Stage],
    classes: Sequence[HardwareClass],
    per_s: float,
) -> dict[str, Any]:
    """Return the replicas of each class, enough for the rate and for memory to hold what runs there."""
    found = {}
    for hardware in classes:
        found[hardware.name] = count = model.new_int_var(0, hardware.most, "")
        own = [(takes[one.name, hardware.name], one.ways[hardware.name]) for one in stages if hardware.name in one.ways]
        model.add(
            sum(math.ceil(PER_SECOND * way.replica_s * per_s) * taken for taken, way in own) <= PER_SECOND * count
        )
        for taken, _ in own:
            model.add(count >= taken)
        if math.isfinite(hardware.memory_bytes):
            model.add(sum(math.ceil(way.memory_bytes) * taken for taken, way in own) <= int(hardware.memory_bytes))
    return found


def _read(
    stages: Sequence[Stage],
    classes: Sequence[HardwareClass],
    network: Network,
    chosen: dict[str, str],
    counts: dict[str, int],
    requests_per_s: float,
) -> Assignment:
    usd = sum(one.ways[chosen[one.name]].usd for one in stages)
    moved = [size for one, following, size in _edges(stages) if chosen[one.name] != chosen[following]]
    usd += sum(moved) * network.usd_per_byte
    standing = sum(one.usd_per_hour * counts.get(one.name, 0) for one in classes)
    hourly = requests_per_s * SECONDS_PER_HOUR * usd + standing
    return Assignment(chosen, counts, path_s(stages, network, chosen), usd, hourly)


def _why(stages: Sequence[Stage], network: Network, limit_s: float) -> tuple[str, ...]:
    """Return the fastest that the stages could be, each on its fastest class and nothing to move."""
    fastest = {one.name: min(one.ways, key=lambda name: (one.ways[name].seconds, name)) for one in stages}
    best_s = path_s(stages, Network(), fastest)
    if best_s > limit_s:
        return (f"the stages cannot end within {limit_s:g} s: each on its fastest class they take {best_s:g} s",)
    return (f"no assignment ends within {limit_s:g} s on the replicas and memory that there are",)


def _ticks(seconds: float) -> int:
    return math.ceil(round(seconds * PER_SECOND, 3))


def _cents(usd: float) -> int:
    return round(usd * PER_USD)
