"""Replays a trace on a fleet: SimPy orders what decides, the data plane runs what merely happens."""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np
import simpy

from models.step import PICOSECONDS_PER_SECOND
from simulator.dataplane import FAR, NONE, State, advance
from simulator.fleet import Fleet
from simulator.routing import ROUTERS
from simulator.run import Run
from simulator.state import lay_out
from traces import Trace

FOREVER_PS = FAR - 1


class RequestView(NamedTuple):
    """What a router may know of an arriving request: not its output length."""

    number: int
    input_tokens: int


class FleetView(NamedTuple):
    """What a router may know of the lanes, each an array over lanes as of `now_s`."""

    now_s: float
    outstanding: np.ndarray
    waiting: np.ndarray
    running: np.ndarray
    kv_tokens: np.ndarray
    kv_capacity_tokens: np.ndarray
    pool: np.ndarray


Router = Callable[[RequestView, FleetView], int]


def replay(trace: Trace, fleet: Fleet, *, router: Router | None = None, fast_forward: bool = True) -> Run:
    """Replay every request of a trace on a fleet until the last is finished or refused.

    `router` is a function (RequestView, FleetView) -> lane that replaces the fleet's built-in one.
    Raises ValueError for an unknown built-in router or a router that names no lane.
    """
    if fleet.router not in ROUTERS:
        raise ValueError(f"unknown router {fleet.router!r}; known: {', '.join(ROUTERS)}")
    state = lay_out(trace, fleet, arrivals=0 if router else len(trace), fast_forward=fast_forward)
    environment = simpy.Environment(initial_time=0)
    if router is None:
        environment.process(_pump(environment, state))
    else:
        environment.process(_arrivals(environment, state, router))
    environment.run()
    return Run(trace, fleet, state)


def _pump(environment: simpy.Environment, state: State) -> Generator[Any, Any, None]:
    """Let the data plane run to whatever SimPy has next; with nothing there, to the end."""
    while True:
        horizon_ps = environment.peek()
        advance(state, FOREVER_PS if horizon_ps == float("inf") else int(horizon_ps), NONE, NONE)
        if horizon_ps == float("inf"):
            return
        yield environment.timeout(horizon_ps - environment.now)


def _arrivals(environment: simpy.Environment, state: State, router: Router) -> Generator[Any, Any, None]:
    """Ask a Python router at every arrival, one crossing into compiled code each."""
    arrivals_ps = state.requests["arrival_ps"].tolist()
    inputs = state.requests["input_tokens"].tolist()
    lanes = state.lanes
    live = {name: lanes[name] for name in ("outstanding", "waiting", "running", "pool")}
    live |= {"kv_tokens": lanes["context_tokens"], "kv_capacity_tokens": lanes["total_blocks"] * lanes["block_tokens"]}
    now_ps = arrivals_ps[0] if arrivals_ps else 0
    yield environment.timeout(now_ps)
    for request, following_ps in enumerate([*arrivals_ps[1:], None]):
        view = FleetView(now_s=now_ps / PICOSECONDS_PER_SECOND, **live)
        lane = router(RequestView(request, inputs[request]), view)
        if not 0 <= lane < lanes.size:
            raise ValueError(
                f"the router named lane {lane!r} for request {request}; the fleet has 0 to {lanes.size - 1}"
            )
        advance(state, FOREVER_PS if following_ps is None else following_ps, request, lane)
        if following_ps is not None:
            yield environment.timeout(following_ps - now_ps)
            now_ps = following_ps
