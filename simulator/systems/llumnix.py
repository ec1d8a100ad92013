"""Llumnix: dispatch to the freest instance, and requests that move while they decode; beside load-aware dispatch."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simpy

from simulator.control.fabric import Fabric, Link, node
from simulator.control.freeness import free_tokens, freeness, now
from simulator.control.migration import Mode, Moved, PreCopy, Wire, one_mover, over, pairing
from simulator.control.plane import CLEAR, Controller, Plane, Process, Router, Routing, Sight, operate
from simulator.fleet import Fleet
from simulator.layout import PREFILLING, TELL_PREEMPTED, WAITING
from simulator.run import Run
from traces import Trace

LOOK_S = 0.5  # how often preempted requests are looked at
SAMPLE_S = 1.0  # how often fragmentation is


class Migration(NamedTuple):
    """How requests move: lanes of less freeness give, those of more take; a move takes so long beside what is sent."""

    low: float
    high: float
    every_s: float
    handshake_s: float
    mode: Mode = PreCopy()


class Outcome(NamedTuple):
    """A run; the time each preemption cost [s]; the mean share of memory that is free but of no use; and the moves."""

    run: Run
    losses_s: list[float]
    fragmentation: float
    moves: list[Moved]


def freest(plane: Plane) -> Router:
    """Send a request to the lane with most steps left for each request, all of its queue counted (Llumnix)."""
    return lambda request, view: int(freeness(plane, whole_queue=True).argmax())


def least_memory(plane: Plane) -> Router:
    """Send a request to the lane with the least memory in use and asked for in its queue (INFaaS++)."""
    return lambda request, view: int(free_tokens(plane, whole_queue=True).argmax())


def machines(count: int, devices: int, host_bytes_per_s: float, nic_bytes_per_s: float) -> Wire:
    """Return the wire between the devices of machines with one adapter each; KV goes through the host's memory."""

    def make(environment: simpy.Environment) -> Fabric:
        links: list[Link] = []
        for machine in range(count):
            links += node(f"m{machine}", devices, host_bytes_per_s, 1, nic_bytes_per_s)
        return Fabric(environment, links)

    return over(make, [f"m{machine}.{device}" for machine in range(count) for device in range(devices)])


def serve(
    trace: Trace,
    fleet: Fleet,
    routing: Routing,
    wire: Wire,
    migration: Migration | None = None,
    sight: Sight = CLEAR,
) -> Outcome:
    """Serve a trace with a dispatch rule, with migration or without."""
    mover = one_mover(wire, migration.handshake_s if migration else 0.0)
    movers: list[list[Moved]] = []
    losses_s: list[float] = []
    shares: list[float] = []
    controllers = [_preemption_losses(losses_s), _fragmentation(shares)]
    if migration is not None:
        controllers.append(pairing(mover, migration.low, migration.high, migration.every_s, migration.mode))
        controllers.append(_keep(movers, lambda plane: mover(plane).moves))
    run = operate(trace, fleet, routing=routing, controllers=controllers, sight=sight).run
    return Outcome(run, losses_s, float(np.mean(shares)) if shares else 0.0, movers[0] if movers else [])


def _keep(kept: list[list[Moved]], get: Callable[[Plane], list[Moved]]) -> Controller:
    def controller(plane: Plane) -> Process:
        kept.append(get(plane))
        yield plane.wait(0)

    return controller


def _preemption_losses(losses_s: list[float]) -> Controller:
    """Write down how long preempted requests wait and compute again before they go on, looking now and then."""

    def controller(plane: Plane) -> Process:
        since_s: dict[int, float] = {}

        def note(number: int) -> None:
            since_s.setdefault(number, plane.now_s)

        plane.listen(TELL_PREEMPTED, note)
        while True:
            yield plane.wait(LOOK_S)
            for number in [each for each in since_s if plane.status(each) not in (WAITING, PREFILLING)]:
                losses_s.append(plane.now_s - since_s.pop(number))

    return controller


def _fragmentation(shares: list[float]) -> Controller:
    """Sample the memory that all lanes' free blocks together could give to heads of queues that none can serve."""

    def controller(plane: Plane) -> Process:
        while True:
            yield plane.wait(SAMPLE_S)
            shares.append(fragmented(plane))

    return controller


def fragmented(plane: Plane) -> float:
    """Return the share of all memory that would serve blocked heads of queues if free blocks lay on one lane."""
    lanes, requests = plane.lanes, plane.requests
    free = now(plane)[1] - lanes["watermark_blocks"]
    blocked = [int(lanes["first_waiting"][lane]) for lane in np.flatnonzero(lanes["waiting"] > 0)]
    wanted = [_blocks(plane, number) for number in blocked]
    left, served = int(free.sum()), 0
    for number, blocks in sorted(zip(blocked, wanted, strict=True), key=lambda each: each[1]):
        if free[int(requests["lane"][number])] < blocks <= left:
            left, served = left - blocks, served + blocks
    return served / int(lanes["total_blocks"].sum())


def _blocks(plane: Plane, number: int) -> int:
    """Return the blocks that a waiting request needs to begin."""
    row = plane.requests[number]
    block_tokens = 1 << int(plane.lanes["block_shift"][int(row["lane"])])
    return -(-int(row["input_tokens"] + row["generated_tokens"]) // block_tokens)
