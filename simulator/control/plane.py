"""The control plane: SimPy orders what decides, policies look at views and ask for actions, the data plane obeys.

A router is a function of a request and a view of the fleet. Everything with a clock of its own is a controller: a
generator that SimPy runs, given the Plane. Slots of requests are their rows in the trace.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simpy

from models.compiled import bound
from models.step import PICOSECONDS_PER_SECOND
from simulator.actions import DROP, HOLD, REJECT, SUBMIT, UNPIN, act
from simulator.advance import advance
from simulator.control.actions import Action, Assign, Refusal, perform, refusal
from simulator.control.freeness import freeness
from simulator.control.ledger import Ledger
from simulator.control.matching import matched_tokens
from simulator.control.serving import Serving, serving
from simulator.control.sessions import Families
from simulator.fleet import Fleet, Pool
from simulator.layout import (
    DECODE,
    FINISHED,
    HELD,
    NONE,
    TELL_CANCELLED,
    TELL_FINISHED,
    TELL_HELD,
    TELL_PREFILLED,
    TELL_REFUSED,
    without_extras,
)
from simulator.replay import FOREVER_PS, FleetView, RequestView, chunks_of, contents_of, live
from simulator.run import Run
from simulator.series import Sampler
from simulator.state import lay_out
from simulator.stores import traffic
from simulator.turnover import blank, clear_out, take_in, with_room
from traces import Trace

Process = Generator[Any, Any, Any]
Controller = Callable[["Plane"], Process]
BITS = [1 << place for place in range(TELL_HELD.bit_length())]  # of the notices
QUIET_S = 3600.0  # after so long without a step, what is in flight is taken to wait for ever


class Hold(NamedTuple):
    """A router's answer: keep the request at the gateway, and ask again after so long or when something ends."""

    seconds: float | None = None


class Reject(NamedTuple):
    """A router's answer: turn the request away."""


Decision = int | Hold | Reject
Router = Callable[[RequestView, FleetView], Decision]
Routing = Callable[["Plane"], Router]
Interlude = Callable[["Plane", int, int, float], Process]  # (parent that has ended, child, seconds)


class Sight(NamedTuple):
    """How well policies see: views are taken so often [s], 0 for always fresh, with a lognormal error of this spread.

    A decision takes effect `decision_s` after it was made.
    """

    age_s: float = 0.0
    noise: float = 0.0
    decision_s: float = 0.0
    seed: int = 0


CLEAR = Sight()


class Operation(NamedTuple):
    """A replay under control: what happened to the requests, and what the control plane did."""

    run: Run
    ledger: Ledger


def operate(
    trace: Trace,
    fleet: Fleet,
    *,
    routing: Routing | None = None,
    controllers: Sequence[Controller] = (),
    sight: Sight = CLEAR,
    closed_loop: Families | None = None,
    interlude: Interlude | None = None,
    hands_over: bool = True,
    fast_forward: bool = True,
    sample_s: float | None = None,
) -> Operation:
    """Replay a trace on a fleet with policies: a routing, None for the fleet's built-in router, and controllers.

    In a closed loop a request comes some time after the last of its parents, rows before it, has ended; an interlude
    plays what happens in that time, as tools that take workers do.
    With `hands_over` off, the control plane moves what prefill lanes have done.
    """
    environment = simpy.Environment(initial_time=0)
    plane = Plane(environment, trace, fleet, sight, fast_forward=fast_forward)
    plane.clock["hands_over"] = hands_over
    if hands_over:
        plane.listen(TELL_PREFILLED, plane.compute_again)
    if closed_loop is not None:
        plane.withhold(closed_loop, interlude)
    if routing is not None:
        plane.router = routing(plane)
    if plane.serving is not None and (routing is None or (hands_over and (plane.lanes["role"] == DECODE).any())):
        raise ValueError(
            "a fleet of several models needs a routing, and hand-over by a controller, of the control plane"
        )
    for controller in controllers:
        environment.process(controller(plane))
    sampler = Sampler(len(fleet.pools))
    if sample_s is not None:
        environment.process(_sample(plane, sampler, sample_s))
    environment.run(until=environment.process(plane.run()))
    plane.unpin_all()
    outcome = blank(len(trace))
    clear_out(without_extras(plane.state), outcome, 0)
    series = sampler.series() if sample_s is not None else None
    arrived_ps = plane.requests["arrival_ps"].copy()
    passed = traffic(fleet, plane.state)
    run = Run(trace, fleet, outcome, plane.lanes, plane.clock, series, arrived_ps=arrived_ps, traffic=passed)
    return Operation(run, plane.ledger)


def _wait(plane: "Plane", parent: int, child: int, seconds: float) -> Process:
    yield plane.wait(seconds)


def _sample(plane: "Plane", sampler: Sampler, every_s: float) -> Process:
    while True:
        yield plane.wait(every_s)
        sampler.take(plane.state, plane.environment.now)


class Plane:
    """One replay under way, as controllers see it."""

    def __init__(
        self, environment: simpy.Environment, trace: Trace, fleet: Fleet, sight: Sight, *, fast_forward: bool = True
    ) -> None:
        contents = contents_of(trace)
        self.environment, self.trace, self.fleet, self.sight = environment, trace, fleet, sight
        self._contents_at = contents.offsets
        state, self.plan = lay_out(
            fleet, contents.blocks, contents.tokens, tenants=contents.tenants, fast_forward=fast_forward
        )
        state.clock["told"] = TELL_HELD
        self.state = with_room(state, len(trace))
        for chunk in chunks_of(trace, fleet, contents, max(1, len(trace))):
            take_in(without_extras(self.state), chunk, np.asarray(fleet.input_edges, np.int64))
        self.clock, self.lanes, self.requests = self.state.clock, self.state.lanes, self.state.requests
        self._act = bound(act, self.state, 0, 0, 0, 0, 0)
        self._go_on = bound(advance, self.state, self.plan, 0, 0, 0, 0)
        self.serving: Serving | None = serving(trace, fleet, self.lanes["pool"])
        self.costs, self.first_variants = self.lanes["cost"].copy(), self.lanes["next_variant"].copy()
        self.is_open = np.ones(self.lanes.size, bool)
        self.router: Router | None = None
        self.held: dict[int, None] = {}
        self.ledger = Ledger(paid=[(0.0, int(self.lanes.size))])
        self.rng = np.random.default_rng(sight.seed)
        self._listeners: dict[int, list[Callable[[int], None]]] = {}
        self._awaited: dict[int, list[tuple[int, simpy.Event]]] = {}
        self._children: dict[int, list[int]] = {}
        self._interlude: Interlude = _wait
        self._is_withheld = np.zeros(len(trace), bool)
        self._last_event = (-1, 0.0)
        self._live = (*live(self.lanes), self.is_open)
        self._shown = self._live
        self._shows_freeness, self._freeness = False, np.zeros(0)
        if sight.age_s > 0 or sight.noise > 0:
            environment.process(self._look_now_and_then())
        self.listen(TELL_HELD, self._take_back)

    # What policies see.

    @property
    def now_s(self) -> float:
        """Return the time since the trace's start."""
        return float(self.environment.now) / PICOSECONDS_PER_SECOND

    def view(self) -> FleetView:
        """Return the fleet as policies see it now."""
        return FleetView(self.now_s, *self._shown)

    def shown_freeness(self) -> npt.NDArray[np.float64]:
        """Return the lanes' freeness, queues counted, as policies see it: as old, and as wrong, as their view."""
        if self._shown is self._live:
            return freeness(self, whole_queue=True)
        if not self._shows_freeness:
            self._shows_freeness, self._freeness = True, freeness(self, whole_queue=True)
        return self._freeness

    def request(self, number: int) -> RequestView:
        """Return what policies may know of a request."""
        row = self.requests[number]
        return RequestView(number, int(row["input_tokens"]), int(row["priority"]))

    def matched_tokens(self, number: int, below: bool = False) -> npt.NDArray[np.int64]:
        """Return, lane by lane, the tokens of a prompt that the lane has cached now; `below`, in tiers of it, too."""
        found = np.zeros(self.lanes.size, np.int64)
        matched_tokens(self.state, number, found, below)
        return found

    def content_blocks(self, number: int) -> int:
        """Return how many content blocks a request's prompt is told to have, and can have by its length."""
        size = int(self.clock["content_tokens"][0])
        told = int(self._contents_at[number + 1] - self._contents_at[number]) if self._contents_at.size else 0
        return min(told, -(-int(self.requests["input_tokens"][number]) // size))

    def status(self, number: int) -> int:
        """Return a request's status, as simulator.layout names it."""
        return int(self.requests["status"][number])

    def slot(self, number: int) -> int:
        """Return a request's place, NONE where it is done or not of this trace."""
        return number if 0 <= number < len(self.requests) and self.status(number) < FINISHED else NONE

    def pool_of(self, lane: int) -> Pool:
        """Return the pool of a lane."""
        return self.fleet.pools[int(self.lanes["pool"][lane])]

    def lanes_of(self, pool: int) -> npt.NDArray[np.int64]:
        """Return the lanes of a pool."""
        return np.flatnonzero(self.lanes["pool"] == pool)

    def serves(self, number: int) -> npt.NDArray[np.bool_]:
        """Return which lanes serve a request's model."""
        return np.ones(self.lanes.size, bool) if self.serving is None else self.serving.of(number)

    def held_for(self, lanes: Sequence[int]) -> int:
        """Return how many requests at the gateway some of these lanes could serve."""
        if self.serving is None:
            return len(self.held)
        return sum(bool(self.serving.of(number)[list(lanes)].any()) for number in self.held)

    def waiting_at(self, lane: int) -> list[int]:
        """Return the requests that wait in a lane's queue, first come first."""
        here, found = self.lanes[lane], []
        number = int(here["first_waiting"])
        for _ in range(int(here["waiting"])):
            found.append(number)
            number = int(self.requests["next_waiting"][number])
        return found

    def running_at(self, lane: int) -> list[int]:
        """Return the requests in a lane's batch, last admitted first."""
        number, found = int(self.lanes["last_running"][lane]), []
        while number != NONE:
            found.append(number)
            number = int(self.requests["previous_running"][number])
        return found

    # What policies do.

    def do(self, action: Action) -> Refusal | None:
        """Do an action, or return why physics does not allow it."""
        why = refusal(self, action)
        if why is not None:
            return self.ledger.refuse(action, why)
        self.ledger.count(type(action).__name__)
        perform(self, action)
        return None

    def act(self, action: int, slot: int = NONE, lane: int = NONE, amount: int = 0) -> bool:
        """Let the data plane do something at once; return whether it could."""
        return bool(self._act(self.state, int(self.environment.now), action, slot, lane, amount))

    def wait(self, seconds: float) -> simpy.Event:
        """Return the event of so much time having passed."""
        return self.environment.timeout(max(0, round(seconds * PICOSECONDS_PER_SECOND)))

    def listen(self, kinds: int, function: Callable[[int], None]) -> None:
        """Call a function with the request's number whenever one of these notices comes."""
        self.clock["told"] |= kinds
        for bit in range(kinds.bit_length()):
            if kinds >> bit & 1:
                self._listeners.setdefault(1 << bit, []).append(function)

    def happens(self, kinds: int, number: int) -> simpy.Event:
        """Return the event of one of these notices coming for a request; its value is the notice."""
        self.requests["told"][number] |= kinds
        event = self.environment.event()
        self._awaited.setdefault(number, []).append((kinds, event))
        return event

    def pay(self, lanes: int) -> None:
        """Note down that so many more lanes are paid for from now on, or fewer."""
        self.ledger.paid.append((self.now_s, self.ledger.paid[-1][1] + lanes))

    def unpin_all(self) -> None:
        """Let go of all that is pinned for requests that are done."""
        for number in np.flatnonzero((self.requests["status"] == FINISHED) & (self.requests["held_nodes"] > 0)):
            self.act(UNPIN, int(number))

    # The gateway.

    def withhold(self, families: Families, interlude: Interlude | None = None) -> None:
        """Let requests with parents come some time after the last of these has ended, when an interlude is over."""
        self._interlude = interlude or _wait
        parents = families.parents
        children = np.repeat(np.arange(len(self.trace)), parents.lengths)
        if (parents.values >= children).any():
            raise ValueError("a request's parent is a row before it")
        missing = parents.lengths.copy()
        self._is_withheld = missing > 0
        for parent, child in zip(parents.values.tolist(), children.tolist(), strict=True):
            self._children.setdefault(parent, []).append(child)

        def release(parent: int) -> None:
            for number in self._children.pop(parent, []):
                missing[number] -= 1
                if missing[number] == 0:
                    self.environment.process(self._come_later(parent, number, float(families.delay_s[number])))

        self.listen(TELL_FINISHED | TELL_CANCELLED | TELL_REFUSED, release)

    def _come_later(self, parent: int, number: int, seconds: float) -> Process:
        yield from self._interlude(self, parent, number, seconds)
        self.requests["arrival_ps"][number] = self.environment.now
        self.act(HOLD, number)

    def _take_back(self, number: int) -> None:
        """Take a request that no lane has: a newcomer, or one whose lane failed."""
        if number not in self.held:
            self.held[number] = None
            self.offer(number)

    def compute_again(self, number: int) -> None:
        """Give up the KV of a request that is in no batch, for want of a lane to move it to."""
        self.act(DROP, number)

    def offer(self, number: int) -> bool:
        """Ask the router for a lane for a request at the gateway; say if it left it."""
        if self.status(number) != HELD:
            self.held.pop(number, None)
            return True
        decision = self._ask(number)
        if isinstance(decision, Hold):
            if decision.seconds is not None:
                self.environment.process(self._offer_later(number, decision.seconds))
            return False
        self.held.pop(number, None)
        if isinstance(decision, Reject):
            self.act(REJECT, number)
        elif self.sight.decision_s > 0:
            self.environment.process(self._assign_later(number, decision))
        else:
            self.do(Assign(number, decision))
        return True

    def offer_all(self) -> None:
        """Offer what is held, first come first, until one of each model has to stay."""
        stay: set[int] = set()
        for number in list(self.held):
            model = 0 if self.serving is None else int(self.serving.codes[number])
            if model not in stay and not self.offer(number):
                stay.add(model)
                if self.serving is None:
                    return

    def _offer_later(self, number: int, seconds: float) -> Process:
        yield self.wait(seconds)
        self.offer(number)

    def _assign_later(self, number: int, lane: int) -> Process:
        yield self.wait(self.sight.decision_s)
        if self.status(number) == HELD and self.do(Assign(number, lane)) is not None:
            self._take_back(number)

    def _ask(self, number: int) -> Decision:
        if self.router is None:
            return self._least_loaded()
        decision = self.router(self.request(number), self.view())
        if not isinstance(decision, Hold | Reject) and not 0 <= decision < self.lanes.size:
            raise ValueError(
                f"the router named lane {decision!r} for request {number}; the fleet has 0 to {self.lanes.size - 1}"
            )
        if isinstance(decision, Hold | Reject):
            return decision
        if self.serving is not None and not self.serving.of(number)[decision]:
            raise ValueError(
                f"the router named lane {decision} for request {number} of {self.serving.name(number)}; it serves "
                f"{', '.join(self.pool_of(decision).serves)}"
            )
        return decision if self.is_open[decision] else Hold()

    def _least_loaded(self) -> Decision:
        front = np.where(self.is_open & (self.lanes["role"] != DECODE), self.lanes["load"], np.inf)
        return int(front.argmin()) if np.isfinite(front.min()) else Hold()

    # The pump.

    def run(self) -> Process:
        """Let requests come and all events happen in order, to the end."""
        coming = np.flatnonzero(~self._is_withheld)
        self.state.coming[: coming.size] = coming
        if self.router is None:
            self.clock["next_coming"], self.clock["coming"] = 0, coming.size
            yield from self._until(FOREVER_PS)
            return
        self.clock["coming"] = 0
        arrivals_ps = self.requests["arrival_ps"][coming].tolist()
        for number, arrival_ps in zip(coming.tolist(), arrivals_ps, strict=True):
            yield from self._until(arrival_ps)
            self._arrive(number)
        yield from self._until(FOREVER_PS)

    def _arrive(self, number: int) -> None:
        if self.sight.decision_s > 0:
            self.act(HOLD, number)
            return
        decision = self._ask(number)
        if isinstance(decision, Hold):
            self.held[number] = None
            self.act(HOLD, number)
            if decision.seconds is not None:
                self.environment.process(self._offer_later(number, decision.seconds))
        elif isinstance(decision, Reject):
            self.act(REJECT, number)
        else:
            self.act(SUBMIT, number, decision)

    def _until(self, end_ps: int) -> Process:
        """Let the data plane run to whatever SimPy has next, or to what it has to tell, up to an end."""
        environment = self.environment
        while True:
            while self.clock["notices"][0]:
                self._dispatch()
            if environment.now >= end_ps or (end_ps == FOREVER_PS and self._is_over()):
                return
            horizon_ps = min(environment.peek(), end_ps)
            self._go_on(self.state, self.plan, int(environment.now), int(horizon_ps), NONE, NONE)
            if self.clock["notices"][0]:
                horizon_ps = int(self.clock["now_ps"][0])
            if horizon_ps == FOREVER_PS:
                return
            if horizon_ps > environment.now or not self.clock["notices"][0]:
                yield environment.timeout(horizon_ps - environment.now)

    def _dispatch(self) -> None:
        count = int(self.clock["notices"][0])
        pairs = self.state.notices[: 2 * count].tolist()
        self.clock["notices"] = 0
        for kind, number in zip(pairs[::2], pairs[1::2], strict=True):
            for function in self._listeners.get(kind, ()):
                function(number)
            if number in self._awaited:
                self._wake(kind, number)

    def _wake(self, kind: int, number: int) -> None:
        waiting = self._awaited.pop(number)
        left = [(kinds, event) for kinds, event in waiting if not kinds & kind]
        self.requests["told"][number] = sum({bit for kinds, _ in left for bit in BITS if kinds & bit})
        if left:
            self._awaited[number] = left
        for kinds, event in waiting:
            if kinds & kind and not event.triggered:
                event.succeed(kind)

    def _is_over(self) -> bool:
        """Say whether all requests are done, or nothing has moved for very long."""
        if int(self.clock["done"][0]) == len(self.requests):
            return True
        events = int(self.clock["lane_events"][0])
        if events != self._last_event[0]:
            self._last_event = (events, self.now_s)
        return self.now_s - self._last_event[1] > QUIET_S

    def _look_now_and_then(self) -> Process:
        """Refresh what is shown, so often, with an error."""
        while True:
            shown = [np.array(column) for column in self._live]
            if self.sight.noise > 0:
                factors = self._error((5, self.lanes.size))
                shown[:5] = [column * factor for column, factor in zip(shown[:5], factors, strict=True)]
            self._shown = tuple(shown)
            if self._shows_freeness:
                self._freeness = freeness(self, whole_queue=True) * self._error(self.lanes.size)
            yield self.wait(max(self.sight.age_s, 1e-3))

    def _error(self, shape: int | tuple[int, int]) -> npt.NDArray[np.float64]:
        return np.asarray(np.exp(self.sight.noise * self.rng.standard_normal(shape)))
