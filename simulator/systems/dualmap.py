"""DualMap: two lanes a prefix from two hash rings, and a queue at the gateway for each, moved where it will be late."""

from collections.abc import Iterator
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


def first_of_pair(setting: Setting = WHOLE) -> Routing:
    """Keep the prompts of a key on the first of its two lanes, whatever waits there (DualMap's cache affinity)."""

    def routing(plane: Plane) -> Router:
        pair = Pair(plane, setting.seed, setting.splits, setting.window)
        return lambda request, view: pair.of(request.number)[0]

    return routing


class Waiting(NamedTuple):
    """A request in a queue: its tokens to be computed there, those cached when it came, and when its client sent it."""

    request: RequestView
    tokens: int
    cached: int
    arrival_ps: int


class Queues:
    """The gateway's queue for each lane; the engine there has few prompts at a time that have no token yet."""

    def __init__(self, plane: Plane, setting: Setting) -> None:
        self.plane, self.setting = plane, setting
        self.pair, self.matched = Pair(plane, setting.seed, setting.splits, setting.window), Matched(plane, True)
        self.s_per_token = prompt_s_per_token(plane)
        self.waiting: list[dict[int, Waiting]] = [{} for _ in plane.lanes]
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
        """Move what gains most, one after another, out of a queue that will be late, until its excess is gone.

        A request goes to its other lane, or where that is late with it to the neighbour, or where that is late, too,
        nowhere.
        """
        if not self.plane.is_open[lane]:
            for number in list(self.waiting[lane]):
                self.plane.offer(number)
        if not self.setting.moves or len(self.waiting[lane]) < 2 or not self._is_late(lane, self._waits_long(lane)):
            return
        waits = [self._waits_long(each) for each in range(len(self.waiting))]
        if all(self._is_late(each, is_long) for each, is_long in enumerate(waits)):
            return
        excess = self.pending_tokens[lane] - self.setting.slo_s / self.s_per_token[lane]
        moved = 0
        while not 0 < excess <= moved:
            gain_s, number, to = min(self._moves(lane, waits), default=(0.0, -1, -1))
            if gain_s >= 0:
                return
            moved += self.waiting[lane][number].tokens
            self._move(number, to)

    def _choose(self, request: RequestView) -> int:
        first, second = self.lanes[request.number] = self.pair.of(request.number)
        cached = self.matched.tokens(request)
        waits_s = self.s_per_token * (self.pending_tokens + (request.input_tokens - cached))
        lane = nearer(first, second, cached, waits_s, self.setting.slo_s)
        self._queue(request, lane)
        return lane

    def _queue(self, request: RequestView, lane: int) -> None:
        cached = self.matched.tokens_at(request, lane)
        tokens, arrival_ps = request.input_tokens - cached, int(self.plane.requests["arrival_ps"][request.number])
        self.waiting[lane][request.number] = Waiting(request, tokens, cached, arrival_ps)
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
        """Send the first of a lane's queue."""
        queue = self.waiting[lane]
        if queue and len(self.working[lane]) < self.setting.in_engine:
            self.plane.offer(min(queue, key=lambda number: self._place(queue[number])))

    def _place(self, waiting: Waiting) -> tuple[int, int, int]:
        """Return what a queue is ordered by: most cached first, and of equals the first come."""
        return -waiting.cached if self.setting.orders else 0, waiting.arrival_ps, waiting.request.number

    def _is_late(self, lane: int, waits_long: bool, more_tokens: int = 0) -> bool:
        """Say whether something in a queue has waited too long, or what would be queued then is late."""
        over_s = (self.pending_tokens[lane] + more_tokens) * self.s_per_token[lane] - self.setting.slo_s
        return waits_long or bool(over_s > 0)

    def _waits_long(self, lane: int) -> bool:
        first_ps = min((each.arrival_ps for each in self.waiting[lane].values()), default=None)
        return first_ps is not None and self.plane.now_s - first_ps / 1e12 >= self.setting.longest_wait_s

    def _moves(self, lane: int, waits: list[bool]) -> Iterator[tuple[float, int, int]]:
        """Yield how much later each of a queue would have its first token elsewhere [s], its number, and where.

        Below 0 it would have it earlier. Queues count so far as they come before the request.
        """
        ahead = self._engine_tokens(lane)
        for waiting in sorted(self.waiting[lane].values(), key=self._place):
            ahead += waiting.tokens
            to = self._destination(waiting.request, lane, waits)
            if to is not None:
                yield (
                    self._tokens_until(waiting, to) * self.s_per_token[to] - ahead * self.s_per_token[lane],
                    waiting.request.number,
                    to,
                )

    def _destination(self, request: RequestView, lane: int, waits: list[bool]) -> int | None:
        """Return where a request may move: to its other lane, or to a neighbour; none where both would be late."""
        first, second = self.lanes[request.number]
        other, lanes = second if lane == first else first, len(self.waiting)
        neighbours = [(start + 1) % lanes for start in (lane, other)]
        neighbour = next((each for each in neighbours if each not in (lane, other)), lane)
        may = (to for to in (other, neighbour) if to != lane and self.plane.is_open[to])
        early = (to for to in may if not self._is_late(to, waits[to]))  # before what it has cached is looked up
        return next((to for to in early if not self._is_late(to, waits[to], self._tokens_at(request, to))), None)

    def _tokens_at(self, request: RequestView, lane: int) -> int:
        return request.input_tokens - self.matched.tokens_at(request, lane)

    def _tokens_until(self, waiting: Waiting, lane: int) -> int:
        """Return the tokens that would be computed at another lane until a request's first token."""
        cached = self.matched.tokens_at(waiting.request, lane)
        place = self._place(waiting._replace(cached=cached))
        before = sum(each.tokens for each in self.waiting[lane].values() if self._place(each) < place)
        return self._engine_tokens(lane) + before + waiting.request.input_tokens - cached

    def _engine_tokens(self, lane: int) -> int:
        return self.pending_tokens[lane] - sum(each.tokens for each in self.waiting[lane].values())

    def _move(self, number: int, to: int) -> None:
        request = self.waiting[self.counted[number][0]][number].request
        self._discount(number)
        self._queue(request, to)
        self.plane.ledger.count("Moved in queue")
        self._send_next(to)
