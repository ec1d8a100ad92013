"""Migration: requests move between lanes with their KV, or without; prompts go from prefill lanes to decode lanes.

Room is leased where a request goes before anything is sent; whatever comes between, the lease is given back.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simpy

from models.step import PICOSECONDS_PER_SECOND
from simulator.actions import DEPART, DROP, LAND, LEASE, UNLEASE
from simulator.control.actions import Assign, Withdraw
from simulator.control.fabric import Fabric, Link
from simulator.control.freeness import free_tokens, freeness, now
from simulator.control.plane import Controller, Plane, Process
from simulator.control.replicas import Drain, send_back
from simulator.layout import (
    DECODE,
    DECODING,
    HELD,
    MOVING,
    NONE,
    TELL_CANCELLED,
    TELL_DEPARTED,
    TELL_FINISHED,
    TELL_HELD,
    TELL_PREEMPTED,
    TELL_PREFILLED,
)

STOPS = TELL_FINISHED | TELL_PREEMPTED | TELL_CANCELLED | TELL_HELD
SLACK_STEPS = 2  # that may end between the order to depart and the departure
POLL_S = 1.0

Send = Callable[[int, int, float, int], simpy.Event]  # (from lane, to lane, bytes, operations)
Wire = Callable[[Plane], Send]


def link(bytes_per_s: float, latency_s: float = 0.0, operation_s: float = 0.0) -> Wire:
    """Return a wire of its own for every transfer: n_ops x t_op + latency + bytes / bandwidth."""

    def wire(plane: Plane) -> Send:
        return lambda source, to, size_bytes, operations: plane.wait(
            operations * operation_s + latency_s + size_bytes / bytes_per_s
        )

    return wire


def over(make: Callable[[simpy.Environment], Fabric], places: Sequence[str]) -> Wire:
    """Return the wire over a fabric that all transfers share; places names each lane's device in it.

    What a failing link cuts short goes on over another way, or when the link is mended.
    """

    def wire(plane: Plane) -> Send:
        fabric = make(plane.environment)
        return lambda source, to, size_bytes, operations: fabric.carry(
            places[source], places[to], size_bytes, operations
        )

    return wire


def one_fabric(links: Sequence[Link]) -> Callable[[simpy.Environment], Fabric]:
    """Return what gives each environment one fabric of these links, the same for all who ask."""
    known: list[tuple[simpy.Environment, Fabric]] = []

    def fabric(environment: simpy.Environment) -> Fabric:
        if not known or known[-1][0] is not environment:
            known[:] = [(environment, Fabric(environment, links))]
        return known[-1][1]

    return fabric


def _stop(sent: simpy.Event) -> None:
    """End a transfer that is of no more use."""
    if isinstance(sent, simpy.Process) and sent.is_alive:
        sent.interrupt()


# One request from a lane to another.


@dataclass(frozen=True, slots=True)
class Stop:
    """Take the request out of its batch, then send its KV."""


@dataclass(frozen=True, slots=True)
class PreCopy:
    """Send KV while decoding goes on, then what has come since; take the request out once that is little (Llumnix)."""

    tail_blocks: int = 16
    most_rounds: int = 3


@dataclass(frozen=True, slots=True)
class Recompute:
    """Give the KV up and compute it again at the other lane."""


Mode = Stop | PreCopy | Recompute


@dataclass(frozen=True, slots=True)
class Move:
    """The order to let a decoding request go on at another lane."""

    request: int
    to: int
    mode: Mode = PreCopy()


class Moved(NamedTuple):
    """What became of a move: the rounds of copying, the bytes sent, and how long the request was in no batch [s].

    why says what ended a move that was given up; the downtime is not known then, or where KV is computed again.
    """

    move: Move
    source: int
    tokens: int
    rounds: int
    sent_bytes: float
    downtime_s: float
    why: str = ""


class Mover:
    """Moves requests over a wire; a move takes handshake_s from departure beside what is sent.

    KV that has not come patience_s after the departure is given up, and computed again.
    """

    def __init__(self, plane: Plane, wire: Wire, handshake_s: float = 0.0, patience_s: float = inf) -> None:
        self.plane, self.handshake_s, self.patience_s, self._send = plane, handshake_s, patience_s, wire(plane)
        self.moves: list[Moved] = []
        self.under_way: dict[int, tuple[int, int]] = {}  # (from, to) by request

    def is_busy(self, lane: int) -> bool:
        """Say whether a move from or to a lane is under way."""
        return any(lane in ends for ends in self.under_way.values())

    def start(self, move: Move) -> simpy.Process:
        """Begin a move; the process ends with a Moved."""
        return self.plane.environment.process(self.run(move))

    def run(self, move: Move) -> Process:
        """Move a request; return what became of it."""
        plane, number = self.plane, move.request
        source = int(plane.requests["lane"][number]) if 0 <= number < len(plane.requests) else NONE
        why = self._objection(move, source)
        moved = Moved(move, source, 0, 0, 0.0, np.nan, why)
        if not why:
            self.under_way[number] = source, move.to
            if isinstance(move.mode, Recompute):
                moved = yield from self._recompute(moved)
            else:
                moved = yield from self._copy(moved)
            del self.under_way[number]
        plane.ledger.count("Moved" if not moved.why else f"Not moved: {moved.why}")
        self.moves.append(moved)
        return moved

    def tokens(self, number: int) -> int:
        """Return the KV tokens that a decoding request holds now."""
        return int(held_tokens(self.plane, int(self.plane.requests["lane"][number]), [number])[0])

    def _objection(self, move: Move, source: int) -> str:
        plane, number = self.plane, move.request
        if plane.slot(number) == NONE or plane.status(number) != DECODING:
            return "it does not decode"
        if number in self.under_way:
            return "it is on its way"
        if move.to == source or not plane.is_open[move.to] or not plane.serves(number)[move.to]:
            return "there is no such way"
        return ""

    def _copy(self, moved: Moved) -> Process:
        """Send KV in rounds until little is left, then take the request out of its batch and send the rest."""
        plane, (number, to, mode) = self.plane, (moved.move.request, moved.move.to, moved.move.mode)
        lane = plane.lanes[moved.source]
        tail_tokens = mode.tail_blocks << int(lane["block_shift"]) if isinstance(mode, PreCopy) else 1 << 60
        copied, rounds = 0, 0
        while True:
            held = self.tokens(number)
            if not self._lease(number, to, held):
                return self._give_up(moved, rounds, copied, "there is no room")
            if held - copied <= tail_tokens:
                break
            assert isinstance(mode, PreCopy)
            rounds += 1
            if rounds >= mode.most_rounds:
                return self._give_up(moved, rounds, copied, "it grows as fast as it is copied")
            ended = plane.happens(STOPS, number)
            sent = self._kv(moved.source, to, held - copied)
            yield sent | ended
            if ended.triggered:
                _stop(sent)
                return self._give_up(moved, rounds, copied, "it ended")
            copied = held
        told = plane.happens(STOPS | TELL_DEPARTED, number)
        if not plane.act(DEPART, number):
            return self._give_up(moved, rounds, copied, "it ended")
        if (yield told) != TELL_DEPARTED:
            return self._give_up(moved, rounds, copied, "it ended")
        departed_s = plane.now_s
        total = int(plane.requests["computed_tokens"][number])
        if not (yield from in_time(plane, self._kv(moved.source, to, total - copied), self.patience_s)):
            return self._fall(moved, rounds + 1, total, "its KV did not come in time")
        yield plane.wait(self.handshake_s)
        if plane.status(number) != MOVING or not plane.act(LAND, number):
            return self._fall(moved, rounds + 1, total, "a lane was lost")
        return moved._replace(
            tokens=total,
            rounds=rounds + 1,
            sent_bytes=self._bytes(moved.source, total),
            downtime_s=plane.now_s - departed_s,
        )

    def _recompute(self, moved: Moved) -> Process:
        plane, number = self.plane, moved.move.request
        told = plane.happens(STOPS | TELL_DEPARTED, number)
        plane.act(DEPART, number)
        if (yield told) != TELL_DEPARTED:
            return moved._replace(why="it ended")
        total = int(plane.requests["computed_tokens"][number])
        plane.act(DROP, number)
        if plane.status(number) == HELD:
            plane.do(Assign(number, moved.move.to))
        return moved._replace(tokens=total)

    def _lease(self, number: int, to: int, tokens: int) -> bool:
        """Keep room for what a request holds, and for the steps until it has departed."""
        slack = SLACK_STEPS * int(self.plane.lanes["verified_tokens"][to])
        return self.plane.act(LEASE, number, to, tokens + slack)

    def _give_up(self, moved: Moved, rounds: int, copied: int, why: str) -> Moved:
        self.plane.act(UNLEASE, moved.move.request)
        return moved._replace(rounds=rounds, tokens=copied, sent_bytes=self._bytes(moved.source, copied), why=why)

    def _fall(self, moved: Moved, rounds: int, total: int, why: str) -> Moved:
        """Let a request that cannot land be computed again."""
        self.plane.act(DROP, moved.move.request)
        return self._give_up(moved, rounds, total, why)

    def _kv(self, source: int, to: int, tokens: int) -> simpy.Event:
        return self._send(source, to, self._bytes(source, tokens), 1)

    def _bytes(self, source: int, tokens: int) -> float:
        return self.plane.pool_of(source).engine.kv_bytes_per_token * tokens


def in_time(plane: Plane, sent: simpy.Event, patience_s: float) -> Process:
    """Wait for what was sent, so long at most; say whether it came, ending it where not."""
    if patience_s == inf:
        yield sent
        return True
    yield sent | plane.wait(patience_s)
    if not sent.processed:
        _stop(sent)
    return sent.processed


# Who moves, and where.


def held_tokens(plane: Plane, lane: int, numbers: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return the KV tokens that decoding requests of a lane hold now."""
    rows, here = plane.requests[list(numbers)], plane.lanes[lane]
    steps = int(here["steps"]) + max(0, int(now(plane)[0][lane]) - 1) - rows["joined_step"]
    grown = np.maximum(0, steps) * int(here["growth_parts"]) >> int(here["part_shift"])
    return np.asarray(rows["computed_tokens"] + grown)


def shortest_first(plane: Plane, lane: int) -> list[tuple[int, int]]:
    """Return the decoding requests of a lane and the tokens they hold, the least urgent and then the shortest first."""
    running = plane.running_at(lane)
    decoding = [each for each in running if plane.requests["status"][each] == DECODING]
    tokens = held_tokens(plane, lane, decoding)
    urgency = -plane.requests["priority"][decoding]
    order = np.lexsort((np.asarray(decoding), tokens, urgency))
    return [(decoding[place], int(tokens[place])) for place in order.tolist()]


def pairing(
    mover: Callable[[Plane], Mover],
    low: float,
    high: float,
    every_s: float = 0.05,
    mode: Mode = PreCopy(),
    headroom_tokens: int = 0,
) -> Controller:
    """Return the controller that pairs lanes of least and most freeness and moves requests between them (Llumnix).

    Lanes below `low` give, the least free to the freest of those above `high`, one request at a time; the victim goes
    only if that brings the two closer, and leaves the other above `low`. Lanes that are closed give all they have.
    """

    def control(plane: Plane) -> Process:
        moves = mover(plane)
        while True:
            yield plane.wait(every_s)
            free, running = free_tokens(plane, headroom_tokens), plane.lanes["running"]
            each_free = free / np.maximum(1, running)
            if not ((each_free < low) & (running > 0)).any():
                continue
            order = [lane for lane in np.argsort(each_free, kind="stable").tolist() if not moves.is_busy(lane)]
            givers = [lane for lane in order if each_free[lane] < low and running[lane]]
            takers = [lane for lane in reversed(order) if each_free[lane] > high]
            for giver, taker in zip(givers, takers, strict=False):
                victims = shortest_first(plane, giver)
                if victims and helps(free, running, giver, taker, victims[0][1], low):
                    moves.start(Move(victims[0][0], taker, mode))

    return control


def helps(
    free: npt.NDArray[np.float64], running: npt.NDArray[np.int64], giver: int, taker: int, tokens: int, low: float
) -> bool:
    """Say whether moving a request of so many tokens brings two lanes' freeness closer without turning it around."""
    after = (free[taker] - tokens) / (running[taker] + 1)
    if after < low:
        return False
    if not np.isfinite(free[giver]):
        return True
    gap = free[taker] / max(1, running[taker]) - free[giver] / max(1, running[giver])
    gap_after = after - (free[giver] + tokens) / max(1, running[giver] - 1)
    return bool(0 < gap_after < gap)


def rebalancing_queues(every_s: float = 1.0, least_gap: int = 2) -> Controller:
    """Return the controller that moves the last of long queues to shorter ones while they differ by so many.

    The longest queue goes first; its last goes to the shortest of those that serve its model.
    """

    def control(plane: Plane) -> Process:
        while True:
            yield plane.wait(every_s)
            while _level(plane, least_gap):
                plane.ledger.count("Queue rebalanced")

    return control


def _level(plane: Plane, least_gap: int) -> bool:
    """Move one request from a queue to a shorter one, and say if any could be."""
    may, waiting = plane.is_open & (plane.lanes["role"] != DECODE), plane.lanes["waiting"]
    givers = np.flatnonzero(may & (waiting >= least_gap))
    for giver in givers[np.argsort(-waiting[givers], kind="stable")].tolist():
        last = plane.waiting_at(giver)[-1]
        takers = np.flatnonzero(may & plane.serves(last) & (waiting <= waiting[giver] - least_gap))
        if takers.size and plane.requests["source_lane"][last] == NONE and plane.do(Withdraw(last)) is None:
            return plane.do(Assign(last, int(takers[waiting[takers].argmin()]))) is None
    return False


def draining_by_moving(mover: Callable[[Plane], Mover], mode: Mode = PreCopy()) -> Drain:
    """Return the drain that sends what waits back and moves what decodes to the freest open lane, one at a time."""

    def drain(plane: Plane, lanes: Sequence[int]) -> Process:
        moves = mover(plane)
        while True:
            if plane.is_open[list(lanes)].any():
                return
            send_back(plane, lanes)
            if not plane.lanes["outstanding"][list(lanes)].any():
                return
            victims = [each for lane in lanes for each, _ in shortest_first(plane, lane)]
            free = freeness(plane)
            free[list(lanes)] = -np.inf
            if victims:
                free[~plane.serves(victims[0])] = -np.inf
            to = int(free.argmax())
            moved = None
            if victims and np.isfinite(free[to]):
                moved = yield moves.start(Move(victims[0], to, mode))
            if moved is None or moved.why:
                yield plane.wait(min(POLL_S, 0.05))

    return drain


def one_mover(wire: Wire, handshake_s: float = 0.0, patience_s: float = inf) -> Callable[[Plane], Mover]:
    """Return what gives each plane one mover, the same for all who ask: moves of controllers see each other."""
    known: list[tuple[Plane, Mover]] = []

    def mover(plane: Plane) -> Mover:
        if not known or known[-1][0] is not plane:
            known[:] = [(plane, Mover(plane, wire, handshake_s, patience_s))]
        return known[-1][1]

    return mover


# From prefill lanes to decode lanes.


WHOLE, LAYERWISE, BLOCKWISE = GRAINS = ("whole", "layer-wise", "block-wise")


def operations(grain: str, tokens: int, block_tokens: int, layers: int) -> int:
    """Return in how many operations KV is sent: one, one a layer, or one for each block of each layer.

    >>> [operations(grain, 1000, 16, 32) for grain in GRAINS]
    [1, 32, 2016]
    """
    if grain not in GRAINS:
        raise ValueError(f"unknown grain {grain!r} of a hand-over; known: {', '.join(GRAINS)}")
    return {WHOLE: 1, LAYERWISE: layers, BLOCKWISE: layers * -(-tokens // block_tokens)}[grain]


def most_free(plane: Plane, number: int) -> list[int]:
    """Return the decode lanes that are open, the freest first."""
    lanes = np.flatnonzero(plane.is_open & (plane.lanes["role"] == DECODE) & plane.serves(number))
    free = freeness(plane)[lanes]
    return [int(lane) for lane in lanes[np.argsort(-free, kind="stable")]]


Choose = Callable[[Plane, int], Sequence[int]]


def handing_over(
    wire: Wire,
    grain: str = WHOLE,
    choose: Choose = most_free,
    hides_bytes_per_s: float = 0.0,
    patience_s: float = inf,
) -> Controller:
    """Return the controller that moves finished prompts to decode lanes; for operate(..., hands_over=False).

    A prompt goes to the first lane of those chosen that has room; where none has, prompts wait in order, their KV where
    it is. Layer by layer, what the last chunk's time hides, at hides_bytes_per_s, has gone by its end: all but one
    layer at most. KV that has not come after patience_s is given up, and computed again.
    """

    def control(plane: Plane) -> Process:
        send = wire(plane)
        queue: deque[int] = deque()

        def come(number: int) -> None:
            queue.append(number)
            go(number)

        def go(_: int) -> None:
            while queue:
                number = queue[0]
                if plane.status(number) == MOVING:
                    to = next((lane for lane in choose(plane, number) if _lease_prompt(plane, number, lane)), None)
                    if to is None:
                        return
                    plane.environment.process(carry(number, to))
                queue.popleft()

        def carry(number: int, to: int) -> Process:
            row = plane.requests[number]
            source, tokens = int(row["source_lane"]), int(row["computed_tokens"])
            engine = plane.pool_of(source).engine
            block_tokens = 1 << int(plane.lanes["block_shift"][source])
            size_bytes = engine.kv_bytes_per_token * tokens
            if grain == LAYERWISE:
                chunk_s = int(row["last_chunk_ps"]) / PICOSECONDS_PER_SECOND
                size_bytes -= min(size_bytes * (1 - 1 / engine.layers), hides_bytes_per_s * chunk_s)
            sent = send(source, to, size_bytes, operations(grain, tokens, block_tokens, engine.layers))
            has_come = yield from in_time(plane, sent, patience_s)
            plane.ledger.count("Handed over" if has_come else "Not handed over in time")
            if plane.status(number) == MOVING and not (has_come and plane.act(LAND, number)):
                plane.act(DROP, number)
            go(number)

        plane.listen(TELL_PREFILLED, come)
        plane.listen(STOPS | TELL_DEPARTED, go)
        yield plane.wait(0)

    return control


def _lease_prompt(plane: Plane, number: int, lane: int) -> bool:
    return plane.act(LEASE, number, lane, int(plane.requests["computed_tokens"][number]))
