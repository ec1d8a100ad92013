"""Benchmarks of the replay: counts, which are asserted, and requests per CPU second, which are reported.

python tests/bench_replay.py [--requests 1000000] [--replicas 1,8,64] [--trace FILE] [--curve]
"""

import argparse
import resource
import time
from collections.abc import Iterator

import numba
import numpy as np
import simpy
import toys

import simulator.replay
import traces
from models.engine import UNLIMITED_TOKENS, Limits
from simulator.fleet import Fleet, Pool, PricedEngine
from simulator.replay import FleetView, RequestView, replay
from simulator.routing import ROUTERS
from simulator.run import Run
from simulator.stream import replay_blocks
from traces import transform
from traces.trace import Trace

NS_PER_S = 1_000_000_000
RATE_PER_REPLICA_PER_S = 0.65  # about the load of Azure's conversation trace on eight replicas of a 70B model

MOST_BARE_STEPS = 2_000_000
MOST_MEGABYTES_BEYOND = 300
LIMITS = Limits(256, 8192, 16, 25_000, 131_072, UNLIMITED_TOKENS)


def engine() -> PricedEngine:
    """Return an engine that steps about as a 70B model does on four H100."""
    table = toys.table(
        LIMITS,
        step_ps=18 * toys.PS_PER_MS,
        token_ps=75_000_000,
        sequence_ps=5_000_000,
        context_ps=30_000,
        pair_ps=2_000,
        cell_shift=12,
    )
    return PricedEngine("like-70b", LIMITS, table)


def workload(path: str | None, requests: int, replicas: int) -> Trace:
    """Return a trace repeated to so many requests, in time scaled to an equal rate per replica."""
    source = traces.read(path) if path else traces.sample()
    long = transform.repeat(source, -(-requests // len(source)))
    faster = RATE_PER_REPLICA_PER_S * replicas / long.rate_per_s
    arrival_ns = (long.arrival_ns[:requests] / faster).astype(np.int64)
    columns = {name: getattr(long, name)[:requests] for name in ("input_tokens", "output_tokens", "status")}
    return Trace(long.name, arrival_ns, **columns)


def measured(trace: Trace, fleet: Fleet, **options: object) -> tuple[float, Run]:
    """Return the CPU seconds of a replay and its run."""
    start = time.process_time()
    run = replay(trace, fleet, **options)  # type: ignore[arg-type]
    return time.process_time() - start, run


def peak_megabytes() -> float:
    """Return the most memory that this process has held [MB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@numba.njit(cache=False)
def bare_loop(step_ends_ps: np.ndarray, lanes: int) -> int:
    """Walk step ends one by one, each the earliest of all lanes': the least that a replay step by step would do."""
    ends = step_ends_ps[:lanes].copy()
    total = 0
    for i in range(lanes, step_ends_ps.size):
        lane = 0
        for other in range(1, lanes):
            if ends[other] < ends[lane]:
                lane = other
        total ^= ends[lane]
        ends[lane] += step_ends_ps[i]
    return total


def bare_cpu_s(steps: int, lanes: int) -> float:
    """Return the CPU seconds of the bare loop for so many steps."""
    gaps = np.random.default_rng(0).integers(1, 1_000_000, steps + lanes)
    bare_loop(gaps[: 2 * lanes], lanes)
    start = time.process_time()
    bare_loop(gaps, lanes)
    return time.process_time() - start


def shortest_queue(request: RequestView, view: FleetView) -> int:
    """Route in Python."""
    return int(view.outstanding.argmin())


def crossings(trace: Trace, fleet: Fleet, **options: object) -> tuple[int, int]:
    """Return how often a replay enters the data plane, and how many events SimPy handles."""
    entered, handled = [0], [0]
    advance, step = simulator.replay.advance, simpy.Environment.step

    def counted_advance(*arguments: object) -> None:
        entered[0] += 1
        advance(*arguments)

    def counted_step(environment: simpy.Environment) -> None:
        handled[0] += 1
        step(environment)

    simulator.replay.advance, simpy.Environment.step = counted_advance, counted_step
    try:
        replay(trace, fleet, **options)  # type: ignore[arg-type]
    finally:
        simulator.replay.advance, simpy.Environment.step = advance, step
    return entered[0], handled[0]


def blocks(source: Trace, requests: int, replicas: int) -> Iterator[Trace]:
    """Yield a trace again and again, in time scaled to an equal rate per replica, to so many requests in all."""
    faster = RATE_PER_REPLICA_PER_S * replicas / source.rate_per_s
    span_ns = int(source.arrival_ns[-1] / faster) + 1
    for first in range(0, requests, len(source)):
        rows = slice(0, requests - first)
        arrival_ns = (source.arrival_ns[rows] / faster).astype(np.int64) + span_ns * (first // len(source))
        yield Trace(source.name, arrival_ns, source.input_tokens[rows], source.output_tokens[rows], source.status[rows])


def curve(source: Trace, priced: PricedEngine) -> None:
    """Print what a streamed request costs from few to many of them, and from few to many replicas."""
    costs_us = []
    for requests, replicas in ((10_000, 8), (100_000, 8), (1_000_000, 8), (10_000_000, 8), (1_000_000, 1_000)):
        fleet = Fleet((Pool(priced, replicas),))
        before, start = peak_megabytes(), time.process_time()
        columns = replay_blocks(blocks(source, requests, replicas), fleet).columns
        cpu_s = time.process_time() - start
        beyond = peak_megabytes() - before - sum(column.nbytes for column in columns.values()) / 1e6
        costs_us.append(cpu_s / requests * 1e6)
        print(
            f"streamed {requests:9d} requests {replicas:5d} replicas {costs_us[-1]:6.2f} CPU us a request,"
            f" {max(0.0, beyond):.0f} MB beyond the columns",
            flush=True,
        )
        assert beyond <= MOST_MEGABYTES_BEYOND
    print(f"dearest to cheapest: {max(costs_us) / min(costs_us):.2f}")


def report(name: str, replicas: int, trace: Trace, cpu_s: float, run: Run) -> None:
    """Print one line, and hold the events a request to what they should be."""
    events = int(run.clock["lane_events"][0])
    steps = int(run.lanes["scheduled_steps"].sum())
    ratio = bare_cpu_s(min(steps, MOST_BARE_STEPS), replicas) * max(1.0, steps / MOST_BARE_STEPS) / cpu_s
    print(
        f"{name:20s} {replicas:5d} replicas {len(trace):9d} requests {len(trace) / cpu_s:10.0f} per CPU s"
        f" {events / len(trace):5.2f} lane events and {steps / len(trace):6.2f} steps a request"
        f" {ratio:5.2f} of the speed of a bare loop over step ends, peak {peak_megabytes():.0f} MB",
        flush=True,
    )
    assert events < 4 * len(trace), "between two changes of its batch a lane steps in one event"


def main() -> None:
    """Print one line per router and fleet size, then what a router in Python costs, then the crossings."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--replicas", default="1,8,64")
    parser.add_argument("--routers", default="join-shortest-queue,round-robin")
    parser.add_argument("--trace")
    parser.add_argument("--curve", action="store_true", help="what a request costs, from 10 k of them to 10 M")
    chosen = parser.parse_args()
    priced = engine()
    replay(workload(chosen.trace, 100, 1), Fleet((Pool(priced, 1),)))
    if chosen.curve:
        return curve(traces.read(chosen.trace) if chosen.trace else traces.sample(), priced)
    sizes = [int(text) for text in chosen.replicas.split(",")]
    for router in chosen.routers.split(","):
        assert router in ROUTERS, router
        for replicas in sizes:
            trace = workload(chosen.trace, chosen.requests, replicas)
            report(router, replicas, trace, *measured(trace, Fleet((Pool(priced, replicas),), router)))
    trace = workload(chosen.trace, min(chosen.requests, 100_000), 8)
    fleet = Fleet((Pool(priced, 8),))
    report("router in Python", 8, trace, *measured(trace, fleet, router=shortest_queue))
    entered, handled = crossings(trace, fleet)
    asked, asked_handled = crossings(trace, fleet, router=shortest_queue)
    print(f"built-in router: {entered} crossings, {handled} SimPy events for {len(trace)} requests")
    print(f"router in Python: {asked} crossings, {asked_handled} SimPy events for {len(trace)} requests")
    assert entered <= len(trace) / 8192 + 2
    assert handled <= len(trace) / 8192 + 4
    assert asked <= 1.01 * len(trace) + 2
    assert asked_handled <= 0.01 * len(trace) + 4


if __name__ == "__main__":
    main()
