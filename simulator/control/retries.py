"""Clients that come again: after they were turned away or have waited too long, each time later."""

from collections import Counter

import numpy as np

from simulator.control.actions import Withdraw
from simulator.control.plane import Controller, Decision, Hold, Plane, Process, Reject, Router, Routing
from simulator.layout import NONE
from simulator.replay import FleetView, RequestView

PICOSECONDS_PER_SECOND = 10**12
LOOKS = 10  # at the queues in the time that a client waits


def back_off_s(attempt: int, first_s: float, factor: float = 2.0, spread: float = 0.0, drawn: float = 0.0) -> float:
    """Return how long after its attempt, the first is 1, a client comes again: exponential, spread by a draw of [0, 1).

    >>> [back_off_s(attempt, 0.5) for attempt in (1, 2, 3)]
    [0.5, 1.0, 2.0]
    """
    return first_s * factor ** (attempt - 1) * (1 + spread * drawn)


def retrying(
    routing: Routing, attempts: int = 3, first_s: float = 0.5, factor: float = 2.0, spread: float = 0.5, seed: int = 0
) -> Routing:
    """Return the routing for clients that come again, so many times, when they are turned away."""

    def made(plane: Plane) -> Router:
        route, rng = routing(plane), np.random.default_rng(seed)
        tries, until_ps = Counter[int](), dict[int, int]()

        def again(request: RequestView, view: FleetView) -> Decision:
            number, now_ps = request.number, int(plane.environment.now)
            if now_ps < until_ps.get(number, 0):
                return Hold()
            decision = route(request, view)
            if not isinstance(decision, Reject) or tries[number] == attempts:
                return decision
            tries[number] += 1
            seconds = back_off_s(tries[number], first_s, factor, spread, float(rng.random()))
            until_ps[number] = now_ps + round(seconds * PICOSECONDS_PER_SECOND)
            plane.ledger.count("Turned away, to come again")
            return Hold(seconds)

        return again

    return made


def timing_out(
    wait_s: float, attempts: int = 3, first_s: float = 0.5, factor: float = 2.0, spread: float = 0.5, seed: int = 0
) -> Controller:
    """Return the controller of clients that give up a queue after so long, and come again, so many times."""

    def control(plane: Plane) -> Process:
        rng, tries = np.random.default_rng(seed), Counter[int]()

        def come_again(number: int) -> Process:
            tries[number] += 1
            plane.held.pop(number, None)
            plane.ledger.count("Timed out in a queue")
            yield plane.wait(back_off_s(tries[number], first_s, factor, spread, float(rng.random())))
            plane.held[number] = None
            plane.offer(number)

        while True:
            yield plane.wait(wait_s / LOOKS)
            oldest_ps = int(plane.environment.now) - round(wait_s * PICOSECONDS_PER_SECOND)
            for lane in np.flatnonzero(plane.lanes["waiting"]).tolist():
                for number in plane.waiting_at(lane):
                    row = plane.requests[number]
                    is_late = 0 <= row["enqueued_ps"] < oldest_ps and row["source_lane"] == NONE
                    if is_late and tries[number] < attempts and plane.do(Withdraw(number)) is None:
                        plane.environment.process(come_again(number))

    return control
