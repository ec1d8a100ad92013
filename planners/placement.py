"""Replicas onto nodes: what matters most first, and no replica moved that need not be.

Objectives in order, each solved by CP-SAT with all earlier ones held: place as many replicas of the most urgent pools
as can be (priority by priority), move as few as possible of those that run already, use as few nodes as possible, and
last leave the node with the most free devices as free as can be, for the next replica to come.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Node:
    """So many devices of one kind in one NVLink domain; `running` counts the replicas there by pool."""

    name: str
    device: str
    devices: int
    running: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Replicas of a pool: so many devices of a kind each, all on one node; a lower priority goes first."""

    pool: str
    device: str
    devices: int
    replicas: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Replicas by (pool, node), those that found no place by pool, and how many running ones move or stop."""

    placed: Mapping[tuple[str, str], int]
    missing: Mapping[str, int]
    disrupted: int
    nodes_used: int
    most_free: int


def place(wanted: Sequence[Wanted], nodes: Sequence[Node]) -> Placement:
    """Return the best placement; ValueError for pools or nodes of one name, and for replicas that fit on no node.

    One worker, no time limit: the same question has the same answer.
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


def _row(count: Mapping[tuple[str, str], Any], pool: str) -> list[Any]:
    return [variable for (name, _), variable in count.items() if name == pool]


def _lexicographic(model: Any, objectives: Sequence[Any]) -> Any:
    """Minimise one objective after the other; return the solver with the last solution."""
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    for objective in objectives:
        if isinstance(objective, int):
            continue
        model.minimize(objective)
        status = solver.solve(model)
        assert status == cp_model.OPTIMAL, "an empty placement is always possible"
        model.add(objective <= round(solver.objective_value))
    if not objectives or all(isinstance(objective, int) for objective in objectives):
        solver.solve(model)
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
