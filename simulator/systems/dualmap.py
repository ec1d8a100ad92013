"""DualMap: two lanes a prefix from two hash rings, and a queue at the gateway for each, moved where it will be late."""

from typing import NamedTuple

from simulator.control.plane import Controller, Decision, Hold, Plane, Process, Router, Routing
from simulator.control.routers import PROMPT_ENDS, Matched, Pair, nearer, prompt_s_per_token
from simulator.layout import TELL_PREFILLED
from simulator.replay import FleetView, RequestView


class Setting(NamedTuple):
    """What DualMap may do: with parts taken away it is a rule of two rings alone."""

    slo_s: float = 5.0  # promise of a first token
    longest_wait_s: float = 3.0
    every_s: float = 0.25  # how often queues are looked at
    in_engine: int = 1  # prompts there that have no token yet
    window: int = 400  # requests that hotness is measured over
    seed: int = 0
    splits: bool = True  # hot prefixes are told apart by more blocks
    orders: bool = True  # of a queue, what has most cached goes first
    moves: bool = True  # requests move out of queues that will be late


WHOLE = Setting()


def dual_map(setting: Setting = WHOLE) -> tuple[Routing, Controller]:
    """Return DualMap's routing and the controller that rebalances its queues; use both in one operation."""
    started: dict[Plane, Queues] = {}

    def routing(plane: Plane) -> Router:
        started[plane] = Queues(plane, setting)
        return started[plane].route

    def rebalance(plane: Plane) -> Process:
        while True:
            yield plane.wait(setting.every_s)
            for lane in range(len(plane.lanes)):
                started[plane].relieve(lane)

    return routing, rebalance


class Queues:
    """The gateway's queue for each lane; the engine there has few prompts at a time that have no token yet."""

    def __init__(self, plane: Plane, setting: Setting) -> None:
        self.plane, self.setting = plane, setting
        self.pair, self.matched = Pair(plane, setting.seed, setting.splits, setting.window), Matched(plane, True)
        self.s_per_token = prompt_s_per_token(plane)
        self.waiting: list[dict[int, RequestView]] = [{} for _ in plane.lanes]
        self.working: list[set[int]] = [set() for _ in plane.lanes]
        self.pending_tokens = [0] * len(plane.lanes)  # to be computed, of what waits and of what is worked on
        self.counted: dict[int, tuple[int, int]] = {}  # lane and tokens of each of them
        self.lanes: dict[int, tuple[int, int]] = {}
        plane.listen(PROMPT_ENDS | TELL_PREFILLED, self.ended)

    def route(self, request: RequestView, view: FleetView) -> Decision:
        """Queue a newcomer at one of its two lanes; name the lane of one whose turn it is."""
        number = request.number
        if number in self.counted and not self._still_waits(number):
            self._discount(number)
        lane = self.counted[number][0] if number in self.counted else self._choose(request)
        if len(self.working[lane]) >= self.setting.in_engine:
            return Hold()
        self.working[lane].add(number)
        del self.waiting[lane][number]
        return self.matched.sent(request, lane)

    def ended(self, number: int) -> None:
        """Let the next of a queue have its turn once a prompt is done; forget one whose client gave up in a queue."""
        if number in self.counted:
            lane = self._discount(number)
            del self.lanes[number]
            self._send_next(lane)

    def relieve(self, lane: int) -> None:
        """Move what gains most out of a queue that will be late, each to its other lane, until it is not."""
        if not self.plane.is_open[lane]:
            for number in list(self.waiting[lane]):
                self.plane.offer(number)
        if not self.setting.moves or not self.waiting[lane] or not self._is_late(lane):
            return
        gains = sorted((self._gain_s(request, lane), number) for number, request in self.waiting[lane].items())
        for _, number in gains:
            if not self._is_late(lane):
                return
            request = self.waiting[lane][number]
            if self._gain_s(request, lane) < 0:
                self._move(request, lane, self._other(request, lane))

    def _choose(self, request: RequestView) -> int:
        first, second = self.lanes[request.number] = self.pair.of(request.number)
        cached = self.matched.tokens(request)
        waits_s = self.s_per_token * (self.pending_tokens + (request.input_tokens - cached))
        lane = nearer(first, second, cached, waits_s, self.setting.slo_s)
        self._queue(request, lane)
        return lane

    def _queue(self, request: RequestView, lane: int) -> None:
        self.waiting[lane][request.number] = request
        tokens = request.input_tokens - self.matched.tokens_at(request, lane)
        self.counted[request.number] = lane, tokens
        self.pending_tokens[lane] += tokens

    def _discount(self, number: int) -> int:
        lane, tokens = self.counted.pop(number)
        self.pending_tokens[lane] -= tokens
        self.waiting[lane].pop(number, None)
        self.working[lane].discard(number)
        return lane

    def _still_waits(self, number: int) -> bool:
        """Say whether a request waits in an open lane's queue; one that was sent and comes back was lost."""
        lane = self.counted[number][0]
        return number in self.waiting[lane] and bool(self.plane.is_open[lane])

    def _send_next(self, lane: int) -> None:
        """Send the request that has most cached now, the first come of equals."""
        queue = self.waiting[lane]
        if queue and len(self.working[lane]) < self.setting.in_engine:
            most = (lambda each: self.matched.tokens_at(queue[each], lane)) if self.setting.orders else (lambda each: 0)
            self.plane.offer(max(queue, key=most))

    def _is_late(self, lane: int) -> bool:
        came_ps = self.plane.requests["arrival_ps"][next(iter(self.waiting[lane]))] if self.waiting[lane] else None
        waits_s = 0.0 if came_ps is None else self.plane.now_s - float(came_ps) / 1e12
        is_over = self.pending_tokens[lane] * self.s_per_token[lane] > self.setting.slo_s
        return bool(is_over or waits_s >= self.setting.longest_wait_s)

    def _other(self, request: RequestView, lane: int) -> int:
        """Return the lane to move to: the request's other one, that one's neighbour where it is late itself."""
        first, second = self.lanes[request.number]
        other = second if lane == first else first
        if self._is_late(other):
            may = [each for each in range(len(self.working)) if self.plane.is_open[each] and each != lane]
            other = next((each for each in may if each > other), may[0] if may else other)
        return other

    def _gain_s(self, request: RequestView, lane: int) -> float:
        """Return how much later the first token would come at the other lane; below 0 where it would come earlier."""
        other = self._other(request, lane)
        tokens = self.pending_tokens[other] + request.input_tokens - self.matched.tokens_at(request, other)
        return float(tokens * self.s_per_token[other] - self.pending_tokens[lane] * self.s_per_token[lane])

    def _move(self, request: RequestView, lane: int, other: int) -> None:
        self._discount(request.number)
        self._queue(request, other)
        self.plane.ledger.count("Moved in queue")
        self._send_next(other)
