"""Benchmarks of the replay: counts, which are asserted, and requests per CPU second, which are reported.

python tests/bench_replay.py [--requests 1000000] [--replicas 1,8,64] [--trace FILE]
"""

import argparse
import resource
import time

import numpy as np
import toys

import traces
from models.engine import UNLIMITED_TOKENS, Limits
from simulator.fleet import Fleet, Pool, PricedEngine
from simulator.replay import replay
from simulator.routing import ROUTERS
from traces import transform
from traces.trace import Trace

NS_PER_S = 1_000_000_000
RATE_PER_REPLICA_PER_S = 0.65  # about the load of Azure's conversation trace on eight replicas of a 70B model

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


def measured(trace: Trace, fleet: Fleet, **options: object) -> tuple[float, object]:
    """Return the CPU seconds of a replay and its run."""
    start = time.process_time()
    run = replay(trace, fleet, **options)  # type: ignore[arg-type]
    return time.process_time() - start, run


def peak_megabytes() -> float:
    """Return the most memory that this process has held [MB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Print one line per router and fleet size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--replicas", default="1,8,64")
    parser.add_argument("--routers", default="join-shortest-queue,round-robin")
    parser.add_argument("--trace")
    chosen = parser.parse_args()
    priced = engine()
    replay(workload(chosen.trace, 100, 1), Fleet((Pool(priced, 1),)))
    for router in chosen.routers.split(","):
        assert router in ROUTERS, router
        for replicas in map(int, chosen.replicas.split(",")):
            trace = workload(chosen.trace, chosen.requests, replicas)
            cpu_s, run = measured(trace, Fleet((Pool(priced, replicas),), router))
            events = int(run.clock["lane_events"][0]) / len(trace)
            steps = int(run.lanes["scheduled_steps"].sum()) / len(trace)
            print(
                f"{router:20s} {replicas:5d} replicas {len(trace):9d} requests {len(trace) / cpu_s:10.0f} per CPU s"
                f" {events:5.2f} lane events and {steps:6.2f} steps a request"
                f" busy {np.mean(run.busy_fraction()):.2f} peak {peak_megabytes():.0f} MB"
            )
            assert events < 4, "between two changes of its batch a lane steps in one event"


if __name__ == "__main__":
    main()
