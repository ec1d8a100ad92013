"""Replicas onto nodes: what matters most first, and no replica moved that need not be.

A node is one NVLink domain. Racks may limit the power of their nodes together, and a pool may have to stay alive when
any one zone fails: then no zone holds more of its replicas than may be lost.

Objectives in order, each solved by CP-SAT with all earlier ones held: place as many replicas of the most urgent pools
as can be (priority by priority), move as few as possible of those that run already, use as few nodes as possible, and
last leave the node with the most free devices as free as can be, for the next replica to come.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from planners.solver import proven


@dataclass(frozen=True, slots=True)
class Node:
    """So many devices of one kind in one NVLink domain; `running` counts the replicas there by pool.

    device_w is what one of its devices draws; rack and zone are names of what it stands in.
    """

    name: str
    device: str
    devices: int
    running: Mapping[str, int] = field(default_factory=dict)
    rack: str = ""
    zone: str = ""
    device_w: float = 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Replicas of a pool: so many devices of a kind each, all on one node; a lower priority goes first.

    At most zone_most of them may stand in one zone.
    """

    pool: str
    device: str
    devices: int
    replicas: int
    priority: int = 0
    zone_most: int | None = None


@dataclass(frozen=True, slots=True)
class Placement:
    """Replicas by (pool, node), those that found no place by pool, and how many running ones move or stop."""

    placed: Mapping[tuple[str, str], int]
    missing: Mapping[str, int]
    disrupted: int
    nodes_used: int
    most_free: int


def place(
    wanted: Sequence[Wanted], nodes: Sequence[Node], rack_w: Mapping[str, float] = MappingProxyType({})
) -> Placement:
    """Return the best placement; ValueError for pools or nodes of one name, and for replicas that fit on no node.

    rack_w is the power that the devices in use of a rack may draw together; racks without one are not limited.
    """
    _check(wanted, nodes)
    from ortools.sat.python import cp_model

    model = cp_model.CpModel()
    count = {
        (one.pool, node.name): model.new_int_var(0, min(one.replicas, node.devices // one.devices), "")
        for one in wanted
        for node in nodes
        if node.device == one.device and node.devices >= one.devices
    }
    for one in wanted:
        model.add(sum(_row(count, one.pool)) <= one.replicas)
    _limit_power(model, count, wanted, nodes, rack_w)
    _limit_zones(model, count, wanted, nodes)
    free, used = [], []
    for node in nodes:
        taken: Any = sum(one.devices * count[one.pool, node.name] for one in wanted if (one.pool, node.name) in count)
        model.add(taken <= node.devices)
        is_used = model.new_bool_var("")
        model.add(taken <= node.devices * is_used)
        used.append(is_used)
        free.append(node.devices - taken)
    stopped = []
    for node in nodes:
        for pool, running in node.running.items():
            gone = model.new_int_var(0, running, "")
            if (pool, node.name) in count:
                model.add(gone >= running - count[pool, node.name])
            else:
                model.add(gone == running)
            stopped.append(gone)
    largest = model.new_int_var(0, max(node.devices for node in nodes), "")
    is_largest = [model.new_bool_var("") for _ in nodes]
    model.add_exactly_one(is_largest)
    for room, chosen in zip(free, is_largest, strict=True):
        model.add(largest <= room).only_enforce_if(chosen)
    priorities = sorted({one.priority for one in wanted})
    objectives: list[Any] = [
        -sum(variable for one in wanted if one.priority == priority for variable in _row(count, one.pool))
        for priority in priorities
    ]
    objectives += [sum(stopped), sum(used), -largest]
    return _read(wanted, nodes, count, _lexicographic(model, objectives))


def _limit_power(
    model: Any,
    count: Mapping[tuple[str, str], Any],
    wanted: Sequence[Wanted],
    nodes: Sequence[Node],
    rack_w: Mapping[str, float],
) -> None:
    """Keep every rack's devices in use within its power, in whole watts."""
    needs = {one.pool: one.devices for one in wanted}
    by_name = {node.name: node for node in nodes}
    for rack, watts in rack_w.items():
        drawn = [
            math.ceil(needs[pool] * by_name[name].device_w) * variable
            for (pool, name), variable in count.items()
            if by_name[name].rack == rack
        ]
        model.add(sum(drawn) <= math.floor(watts))


def _limit_zones(
    model: Any, count: Mapping[tuple[str, str], Any], wanted: Sequence[Wanted], nodes: Sequence[Node]
) -> None:
    """Keep what a pool has in any one zone within what it may lose."""
    zones = {node.name: node.zone for node in nodes}
    for one in wanted:
        if one.zone_most is not None:
            for zone in sorted(set(zones.values())):
                there = [each for (pool, name), each in count.items() if pool == one.pool and zones[name] == zone]
                model.add(sum(there) <= one.zone_most)


def _row(count: Mapping[tuple[str, str], Any], pool: str) -> list[Any]:
    return [variable for (name, _), variable in count.items() if name == pool]


def _lexicographic(model: Any, objectives: Sequence[Any]) -> Any:
    """Minimise one objective after the other; return the solver with the last solution."""
    solver = proven(model)
    for objective in objectives:
        if isinstance(objective, int):
            continue
        model.minimize(objective)
        solver = proven(model)
        assert solver is not None, "an empty placement is always possible"
        model.add(objective <= round(solver.objective_value))
    return solver


def _read(
    wanted: Sequence[Wanted], nodes: Sequence[Node], count: Mapping[tuple[str, str], Any], solver: Any
) -> Placement:
    placed = {key: int(solver.value(variable)) for key, variable in count.items()}
    placed = {key: number for key, number in placed.items() if number}
    missing = {one.pool: one.replicas - sum(n for (pool, _), n in placed.items() if pool == one.pool) for one in wanted}
    disrupted = sum(
        max(0, running - placed.get((pool, node.name), 0)) for node in nodes for pool, running in node.running.items()
    )
    needs = {one.pool: one.devices for one in wanted}
    free = [
        node.devices - sum(needs[pool] * n for (pool, at), n in placed.items() if at == node.name) for node in nodes
    ]
    nodes_used = len({at for _, at in placed})
    return Placement(placed, {pool: n for pool, n in missing.items() if n}, disrupted, nodes_used, max(free))


def _check(wanted: Sequence[Wanted], nodes: Sequence[Node]) -> None:
    if not nodes:
        raise ValueError("no nodes to place replicas on")
    for what, names in (("pool", [one.pool for one in wanted]), ("node", [node.name for node in nodes])):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{what} {twice[0]!r} is named twice")
    for one in wanted:
        if not any(node.device == one.device and node.devices >= one.devices for node in nodes):
            raise ValueError(f"a replica of {one.pool!r} takes {one.devices} x {one.device}; no node has so many")
