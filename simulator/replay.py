"""Replays a trace on a fleet: SimPy orders what decides, the data plane runs what merely happens."""

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import simpy

from models.compiled import bound
from models.step import PICOSECONDS_PER_NANOSECOND, PICOSECONDS_PER_SECOND
from simulator.advance import advance
from simulator.fleet import Fleet
from simulator.layout import FAR, NONE, without_extras
from simulator.routing import ROUTERS
from simulator.run import Run
from simulator.series import Sampler
from simulator.state import lay_out
from simulator.step_log import Window, log_of, window
from simulator.stores import NO_TENANTS, Tenants, traffic
from simulator.turnover import CHUNK_REQUESTS, Chunk, Outcome, blank, clear_out, take_in, with_room
from traces import Labels, Ragged, Trace
from traces.statistics import block_ids

FOREVER_PS = int(FAR) - 1


class RequestView(NamedTuple):
    """What a router may know of an arriving request: not its output length."""

    number: int
    input_tokens: int
    priority: int = 0


class FleetView(NamedTuple):
    """What a router may know of the lanes, each an array over lanes as of `now_s`."""

    now_s: float
    outstanding: np.ndarray
    waiting: np.ndarray
    running: np.ndarray
    kv_tokens: np.ndarray
    waiting_tokens: np.ndarray
    kv_capacity_tokens: np.ndarray
    pool: np.ndarray
    is_open: np.ndarray = np.ones(1, bool)


Router = Callable[[RequestView, FleetView], int]


class Contents(NamedTuple):
    """The content blocks of all requests in order, of so many tokens, where each request's begin, and whose each is."""

    offsets: np.ndarray
    blocks: np.ndarray
    tokens: int
    tenants: Tenants = NO_TENANTS


NO_CONTENTS = Contents(np.zeros(0, np.int64), np.zeros(0, np.int64), 1)


def replay(
    trace: Trace,
    fleet: Fleet,
    *,
    router: Router | None = None,
    fast_forward: bool = True,
    chunk_requests: int = CHUNK_REQUESTS,
    sample_s: float | None = None,
    log_s: tuple[float, float] | None = None,
    is_lost: Callable[[Run], bool] | None = None,
) -> Run:
    """Replay every request of a trace on a fleet until the last is finished or refused.

    `router` is a function (RequestView, FleetView) -> lane that replaces the fleet's built-in one. Requests enter the
    data plane so many at a time; the answer does not depend on how many.
    With `sample_s` the pools are observed so often; with `log_s` the steps between two times are kept. `is_lost` is
    shown the run so far whenever requests enter; where it says so the replay ends, and the rest counts as unserved.
    Raises ValueError for an unknown built-in router or a router that names no lane.
    """
    if fleet.router not in ROUTERS:
        raise ValueError(f"unknown router {fleet.router!r}; known: {', '.join(ROUTERS)}")
    if any(pool.serves for pool in fleet.pools):
        raise ValueError("a fleet of several models needs the control plane: use simulator.control.plane.operate")
    contents = contents_of(trace)
    course = Course(fleet, contents, fast_forward, window(log_s) if log_s else None)
    ledger = Ledger(0, blank(len(trace)))
    chunks = ((chunk, ledger) for chunk in chunks_of(trace, fleet, contents, chunk_requests))
    environment = simpy.Environment(initial_time=0)

    def is_over(outcome: Outcome) -> bool:
        return is_lost is not None and is_lost(Run(trace, fleet, outcome, course.state.lanes, course.state.clock))

    course_run = environment.process(course.run(environment, chunks, router, is_over))
    sampler = Sampler(len(fleet.pools))
    if sample_s is not None:
        environment.process(_sample(environment, course, sampler, round(sample_s * PICOSECONDS_PER_SECOND)))
    environment.run(until=course_run)
    clear_out(without_extras(course.state), ledger.outcome, ledger.first)
    series = sampler.series() if sample_s is not None else None
    steps = log_of(course.state, fleet) if log_s else None
    state = course.state
    passed = traffic(fleet, state)
    return Run(trace, fleet, ledger.outcome, state.lanes, state.clock, series, steps, traffic=passed)


def _sample(
    environment: simpy.Environment, course: "Course", sampler: Sampler, every_ps: int
) -> Generator[Any, Any, None]:
    """Observe the pools again and again; the data plane stops at each time for it."""
    while True:
        yield environment.timeout(every_ps)
        sampler.take(course.state, environment.now)


class Ledger(NamedTuple):
    """Where the outcomes of requests are written: those of an outcome's first row and on."""

    first: int
    outcome: Outcome


class Course:
    """One replay under way: chunks of requests in, their outcomes out."""

    def __init__(self, fleet: Fleet, contents: Contents, fast_forward: bool = True, log: Window | None = None) -> None:
        self.state, self.plan = lay_out(
            fleet, contents.blocks, contents.tokens, tenants=contents.tenants, fast_forward=fast_forward, log=log
        )
        self.input_edges = np.asarray(fleet.input_edges, np.int64)

    def run(
        self,
        environment: simpy.Environment,
        chunks: Iterable[tuple[Chunk, Ledger]],
        router: Router | None = None,
        is_over: Callable[[Outcome], bool] | None = None,
    ) -> Generator[Any, Any, None]:
        """Take requests in by chunks, let their events happen in order with all that SimPy has, to the end.

        Each chunk comes with the ledger for what is done when it is taken in; the last ledger takes the rest. All ends
        where the outcome so far says so.
        """
        for chunk, ledger in chunks:
            clear_out(without_extras(self.state), ledger.outcome, ledger.first)
            if is_over is not None and is_over(ledger.outcome):
                return
            self.state = with_room(self.state, chunk.arrival_ns.size)
            take_in(without_extras(self.state), chunk, self.input_edges)
            if router is None:
                yield from self._until(environment, int(chunk.arrival_ns[-1]) * PICOSECONDS_PER_NANOSECOND)
            else:
                yield from self._ask(environment, router)
        yield from self._until(environment, FOREVER_PS)

    def _until(self, environment: simpy.Environment, end_ps: int) -> Generator[Any, Any, None]:
        """Let the data plane run to whatever SimPy has next, again and again up to an end."""
        if environment.now >= end_ps:  # a whole chunk that arrives at this very instant
            self._advance(environment.now, environment.now)
        while environment.now < end_ps:
            horizon_ps = min(environment.peek(), end_ps)
            self._advance(environment.now, horizon_ps)
            if end_ps == FOREVER_PS and self._is_over():
                return
            yield environment.timeout(horizon_ps - environment.now)

    def _advance(self, now_ps: float, horizon_ps: float) -> None:
        advance(self.state, self.plan, int(now_ps), int(horizon_ps), NONE, NONE)

    def _is_over(self) -> bool:
        """Say whether no lane has anything more to say and no KV is on its way."""
        lanes = self.state.lanes
        return bool((lanes["end_ps"] == FAR).all() and not (lanes["loading"] + lanes["fetching"]).any())

    def _ask(self, environment: simpy.Environment, router: Router) -> Generator[Any, Any, None]:
        """Ask a Python router at every arrival of the chunk, one crossing into compiled code each.

        SimPy is only troubled where it has something of its own to do before the next arrival.
        """
        state, plan = self.state, self.plan
        slots = state.coming[: int(state.clock["coming"][0])]
        coming = state.requests[slots]
        state.clock["coming"] = 0
        arrivals_ps = coming["arrival_ps"].tolist()
        rows = zip(slots.tolist(), coming["number"].tolist(), arrivals_ps, coming["input_tokens"].tolist(), strict=True)
        go_on = bound(advance, state, plan, 0, 0, 0, 0)
        shown, front_lanes, reached_ps = live(state.lanes), int(state.clock["front_lanes"][0]), -1
        for (slot, number, arrival_ps, input_tokens), next_ps in zip(rows, [*arrivals_ps[1:], -1], strict=True):
            if reached_ps < arrival_ps:
                yield from self._until(environment, arrival_ps)
            lane = router(RequestView(number, input_tokens), FleetView(arrival_ps / PICOSECONDS_PER_SECOND, *shown))
            if not 0 <= lane < front_lanes:
                raise ValueError(
                    f"the router named lane {lane!r} for request {number}; the fleet has 0 to {front_lanes - 1}"
                )
            reached_ps = next_ps if next_ps < environment.peek() else arrival_ps
            go_on(state, plan, arrival_ps, max(reached_ps, arrival_ps), slot, lane)


def live(lanes: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return what FleetView shows after now_s, as views of the lanes, which stay true as the run goes on."""
    shown = [lanes[name] for name in ("outstanding", "waiting", "running", "context_tokens", "waiting_tokens")]
    return (*shown, lanes["total_blocks"] << lanes["block_shift"], lanes["pool"])


def contents_of(trace: Trace) -> Contents:
    blocks, size = trace.columns.get("prefix_blocks"), trace.metadata.get("block_tokens")
    if not isinstance(blocks, Ragged) or not isinstance(size, int):
        return NO_CONTENTS
    ids = block_ids(trace, blocks)
    return Contents(blocks.offsets, ids, size, _tenants(trace, blocks, ids))


def _tenants(trace: Trace, blocks: Ragged, ids: np.ndarray) -> Tenants:
    """Return whose each content block is, of the tenants or else classes that the trace names: its first request's."""
    named = trace.columns.get("tenant", trace.columns.get("slo_class"))
    if not isinstance(named, Labels) or not ids.size:
        return NO_TENANTS
    codes = np.full(int(ids.max()) + 1, -1, np.int64)
    codes[ids[::-1]] = np.repeat(named.codes, blocks.lengths)[::-1]
    return Tenants(codes, named.names)


def chunks_of(trace: Trace, fleet: Fleet, contents: Contents, size: int) -> Iterator[Chunk]:
    priorities = np.zeros(len(trace), np.int64) + np.asarray(trace.columns.get("priority", 0))
    first_buckets = len(fleet.input_edges) * class_codes(trace, fleet)
    for first in range(0, len(trace), size):
        rows = slice(first, min(first + size, len(trace)))
        arrays = (trace.arrival_ns[rows], trace.input_tokens[rows], trace.output_tokens[rows], priorities[rows])
        yield Chunk(first, *arrays, contents.offsets[first : rows.stop + 1], first_buckets[rows])


def class_codes(trace: Trace, fleet: Fleet) -> np.ndarray:
    """Return the place of each request's class among the fleet's; those of no class named there come after the last."""
    codes = np.full(len(trace), len(fleet.classes))
    labels = trace.columns.get("slo_class")
    if isinstance(labels, Labels):
        for place, name in enumerate(fleet.classes):
            if name in labels.names:
                codes[labels.codes == labels.names.index(name)] = place
    return codes
