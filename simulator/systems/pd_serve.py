"""P/D-Serve: prefill instances that refuse while they are busy, KV in few operations, and ratios that fit a mix."""

from collections.abc import Sequence
from typing import NamedTuple

import simpy

from models.step import PICOSECONDS_PER_SECOND
from simulator.control.fabric import Fabric, node
from simulator.control.migration import Send, Wire, handing_over, over
from simulator.control.plane import CLEAR, Plane, Process, Sight, operate
from simulator.control.routers import least_requests, offer_refuse_retry
from simulator.control.step_prices import StepPrices
from simulator.fleet import Fleet, Link, Pool, PricedEngine
from simulator.replay import replay
from simulator.run import Run
from traces import Trace


class Sent(NamedTuple):
    """One hand-over: its bytes, its operations, and how long it took [s]."""

    size_bytes: float
    operations: int
    seconds: float


def fleet(engine: PricedEngine, prefill: int, decode: int, link: Link) -> Fleet:
    """Return so many instances that prefill and so many that decode."""
    return Fleet((Pool(engine, prefill, role="prefill"), Pool(engine, decode, role="decode")), link=link)


def forwarded(trace: Trace, on: Fleet, budget_s: float, prompts: int = 1) -> Run:
    """Serve a trace by on-demand forwarding: no queues at instances, and no prompt later than its budget."""
    return operate(trace, on, routing=offer_refuse_retry(prompts, budget_s)).run


def queued(trace: Trace, on: Fleet, sight: Sight = CLEAR) -> Run:
    """Serve a trace with a queue at each prefill instance, any with the fewest requests chosen on arrival."""
    return operate(trace, on, routing=least_requests(sight.seed), sight=sight).run


def backlog_per_s(trace: Trace, on: Fleet) -> float:
    """Return the requests served per second where all have come at once."""
    run = replay(trace, on)
    return run.counts()["finished"] / run.span_s


def prompts_per_s(engine: PricedEngine, input_tokens: Sequence[int]) -> float:
    """Return the prompts that one prefill instance computes per second, one by one."""
    prices = StepPrices(engine)
    total_ps = sum(prices.step_ps([(tokens, 0)], 0, 0) for tokens in input_tokens)
    return len(input_tokens) * PICOSECONDS_PER_SECOND / total_ps


def balanced(engine: PricedEngine, instances: int, input_tokens: Sequence[int], output_tokens: Sequence[int]) -> int:
    """Return how many of the instances should prefill for both sides to keep pace: n_p / T_p = n_d b_d / T_d.

    b_d is what fits the KV of a decode instance at mean lengths, or the most sequences it takes.
    """
    prices, limits = StepPrices(engine), engine.limits
    mean_out = sum(output_tokens) / len(output_tokens)
    context = round(sum(input_tokens) / len(input_tokens) + mean_out / 2)
    batch = min(limits.max_sequences, limits.total_blocks * limits.block_tokens // context)
    answers_per_s = batch * PICOSECONDS_PER_SECOND / prices.step_ps([], batch, batch * context) / mean_out
    rate = prompts_per_s(engine, input_tokens)
    return max(1, min(instances - 1, round(instances * answers_per_s / (answers_per_s + rate))))


def handed_over(trace: Trace, on: Fleet, grain: str, nic_bytes_per_s: float, operation_s: float) -> list[Sent]:
    """Serve a trace with KV sent over a fabric, each device through its own adapter; return what was sent."""
    lanes = on.replicas
    sent: list[Sent] = []

    def make(environment: simpy.Environment) -> Fabric:
        return Fabric(environment, node("n", lanes, nic_bytes_per_s, lanes, nic_bytes_per_s, operation_s=operation_s))

    wire = timed(over(make, [f"n.{lane}" for lane in range(lanes)]), sent)
    operate(trace, on, controllers=[handing_over(wire, grain)], hands_over=False)
    return sent


def timed(wire: Wire, sent: list[Sent]) -> Wire:
    """Return a wire that writes down what goes over it."""

    def wrapped(plane: Plane) -> Send:
        send = wire(plane)

        def passing(source: int, to: int, size_bytes: float, operations: int) -> simpy.Event:
            return plane.environment.process(until_sent(source, to, size_bytes, operations))

        def until_sent(source: int, to: int, size_bytes: float, operations: int) -> Process:
            from_s = plane.now_s
            yield send(source, to, size_bytes, operations)
            sent.append(Sent(size_bytes, operations, plane.now_s - from_s))

        return passing

    return wrapped
