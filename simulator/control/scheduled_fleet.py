"""A trace on a fleet whose lanes ask schedulers written in Python: one by name, or a function, for every lane."""

import inspect
from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import numpy as np
import simpy

from models.step import PICOSECONDS_PER_SECOND
from simulator.control.estimators import fit, with_error
from simulator.control.kv_pool import KvPool
from simulator.control.lane_view import NO_DEADLINE_PS, IllegalStep, Request, Scheduler
from simulator.control.scheduled_lane import ScheduledLane
from simulator.control.schedulers import SCHEDULERS
from simulator.control.step_prices import StepPrices
from simulator.fleet import Fleet, PricedEngine
from simulator.layout import CANCELLED, CLOCK, FINISHED, LANE, REJECTED
from simulator.run import Run
from simulator.turnover import blank
from traces import Trace

Build = Callable[[PricedEngine, StepPrices], Scheduler]
FEWEST_PROFILED_TOKENS = 32
ENGINES: dict[str, Callable[[PricedEngine], int]] = {  # what an engine's limits say where nothing was told
    "max_tokens": lambda engine: engine.limits.max_batched_tokens,
    "max_sequences": lambda engine: engine.limits.max_sequences,
    "batch_tokens": lambda engine: engine.limits.max_batched_tokens,
}


def built(name: str, spread: float = 0.0, seed: int = 0, **settings: Any) -> Build:
    """Return what makes a scheduler of a name for an engine: settings are its own, its times as NAME_s in seconds.

    Step times are predicted with this spread of errors, where a scheduler predicts them. Raises ValueError for an
    unknown name or setting, or one that is missing.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"unknown scheduler {name!r}; known: {', '.join(SCHEDULERS)}")
    make = SCHEDULERS[name]
    taken = inspect.signature(make).parameters
    told = {_own_name(key): value for key, value in settings.items()}
    known = [_told_name(key) for key in taken if key != "estimate_ps"]
    if unknown := [key for key in settings if _own_name(key) not in taken or key not in known]:
        raise ValueError(f"scheduler {name} has no setting {unknown[0]!r}; known: {', '.join(known)}")
    given = {*told, *ENGINES, "estimate_ps"}
    needed = [key for key, each in taken.items() if each.default is each.empty and key not in given]
    if needed:
        raise ValueError(f"scheduler {name} needs settings: {', '.join(map(_told_name, needed))}")

    def build(engine: PricedEngine, prices: StepPrices) -> Scheduler:
        mine: dict[str, Any] = {
            key: ENGINES[key](engine)
            for key, each in taken.items()
            if key in ENGINES and (each.default is each.empty or key == "max_sequences")
        }
        if "estimate_ps" in taken:
            mine["estimate_ps"] = with_error(_profiled(prices), spread, seed)
        return make(**(mine | {key: _in_ps(key, value) for key, value in told.items()}))

    return build


def serve(trace: Trace, fleet: Fleet, build: Build) -> Run:
    """Replay a trace on a fleet whose lanes ask schedulers in Python; each request goes to the shortest weighed queue.

    Requests are promised their first token within the fleet's ttft_limit_s. Raises ValueError for what such lanes have
    not: roles, tiers, pipeline stages, ranks that step together; or where whole prompts are longer than a step. What
    clients say that they will be content with is the longest answer of the trace.
    """
    _check(fleet)
    environment = simpy.Environment(initial_time=0)
    lanes = [
        _lane(environment, pool.engine, build) for pool in fleet.pools for _ in range(pool.replicas * pool.engine.lanes)
    ]
    costs = [pool.engine.lanes / pool.speed for pool in fleet.pools for _ in range(pool.replicas * pool.engine.lanes)]
    chosen = np.full(len(trace), -1, np.int32)

    def arrive() -> Iterable[simpy.Event]:
        for request, output_tokens in zip(_requests(trace, fleet), trace.output_tokens.tolist(), strict=True):
            yield environment.timeout(request.arrival_ps - environment.now)
            queues = [(lane.outstanding + 1) * cost for lane, cost in zip(lanes, costs, strict=True)]
            place = queues.index(min(queues))
            chosen[request.number] = place
            lanes[place].submit(request, max(1, output_tokens))
            if fleet.patience_s < inf:
                environment.process(give_up(lanes[place], request.number))

    def give_up(lane: ScheduledLane, number: int) -> Iterable[simpy.Event]:
        yield environment.timeout(round(fleet.patience_s * PICOSECONDS_PER_SECOND))
        lane.cancel(number)

    environment.process(arrive())
    try:
        environment.run()
    except IllegalStep as error:
        raise ValueError(f"{error}; a larger max_num_batched_tokens or max_num_seqs would do") from None
    return _run(trace, fleet, lanes, chosen)


def _check(fleet: Fleet) -> None:
    for pool in fleet.pools:
        engine = pool.engine
        lacks = {
            f"the role {pool.role}": pool.role != "both",
            "tiers": bool(pool.tiers),
            "a model of its own": bool(pool.serves),
            "pipeline stages": engine.stages > 1,
            "ranks that step together": engine.ranks > 1,
        }
        if found := [what for what, is_so in lacks.items() if is_so]:
            raise ValueError(f"pool {engine.name} has {found[0]}, which lanes scheduled in Python have not")


def _lane(environment: simpy.Environment, engine: PricedEngine, build: Build) -> ScheduledLane:
    prices, limits = StepPrices(engine), engine.limits
    pool = KvPool(limits.total_blocks * limits.block_tokens)
    return ScheduledLane(environment, prices, build(engine, prices), pool, max_context_tokens=limits.max_context_tokens)


def _requests(trace: Trace, fleet: Fleet) -> Iterable[Request]:
    """Yield what lanes are told of requests."""
    patience_ps = min(fleet.ttft_limit_s * PICOSECONDS_PER_SECOND, float(NO_DEADLINE_PS))
    limit_tokens = max(1, int(trace.output_tokens.max(initial=1)))
    priorities = np.zeros(len(trace), np.int64) + np.asarray(trace.columns.get("priority", 0))
    rows = zip((trace.arrival_ns * 1000).tolist(), trace.input_tokens.tolist(), priorities.tolist(), strict=True)
    for number, (arrival_ps, input_tokens, priority) in enumerate(rows):
        deadline_ps = min(NO_DEADLINE_PS, arrival_ps + round(patience_ps))
        yield Request(number, arrival_ps, max(1, input_tokens), limit_tokens, deadline_ps, priority)


def _run(trace: Trace, fleet: Fleet, lanes: list[ScheduledLane], chosen: np.ndarray) -> Run:
    """Return what happened as a replay tells it."""
    outcome = blank(len(trace))._replace(lane=chosen)
    outcome.queued_ps[:] = trace.arrival_ns * 1000
    for lane in lanes:
        for each in lane.served:
            number = each.request.number
            outcome.scheduled_ps[number], outcome.first_token_ps[number] = each.scheduled_ps, each.first_token_ps
            outcome.finish_ps[number], outcome.preemptions[number] = each.finish_ps, each.evictions
            outcome.status[number] = FINISHED
        for status, requests in ((REJECTED, lane.refused), (CANCELLED, lane.cancelled)):
            outcome.status[[each.number for each in requests]] = status
    rows, clock = np.zeros(len(lanes), LANE), np.zeros(1, CLOCK)
    rows["pool"] = np.repeat(np.arange(len(fleet.pools)), [pool.replicas * pool.engine.lanes for pool in fleet.pools])
    rows["busy_ps"], rows["scheduled_steps"] = [lane.busy_ps for lane in lanes], [lane.steps for lane in lanes]
    rows["total_blocks"] = [lane.pool.capacity_tokens for lane in lanes]
    rows["assigned"] = np.bincount(chosen[chosen >= 0], minlength=len(lanes))
    rows["preemptions"] = [sum(each.evictions for each in lane.served) for lane in lanes]
    clock["lane_events"], clock["done"] = rows["scheduled_steps"].sum(), len(trace)
    return Run(trace, fleet, outcome, rows, clock)


def _profiled(prices: StepPrices) -> Callable[[float], float]:
    """Return a cubic through prefill times, as a scheduler fits before it serves."""
    tokens = [most for shift in range(12) if (most := prices.most_tokens >> shift) >= FEWEST_PROFILED_TOKENS]
    tokens = sorted(tokens or [prices.most_tokens])
    return fit(lambda each: prices.step_ps([(each, 0)], 0, 0), tokens, min(3, len(tokens) - 1))


def _told_name(key: str) -> str:
    return key.removesuffix("_ps") + "_s" if key.endswith("_ps") else key


def _own_name(key: str) -> str:
    return key.removesuffix("_s") + "_ps" if key.endswith("_s") else key


def _in_ps(key: str, value: Any) -> Any:
    return round(value * PICOSECONDS_PER_SECOND) if key.endswith("_ps") else value
