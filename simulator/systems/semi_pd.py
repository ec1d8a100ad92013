"""semi-PD: prefill and decode as two lanes of one device and one memory, with shares that follow the promises."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

from models.step import PICOSECONDS_PER_SECOND, StepTable, slowed
from simulator.control.actions import SetVariant
from simulator.control.plane import Controller, Plane, Process
from simulator.fleet import Fleet, Pool, PricedEngine
from simulator.layout import DECODE, TELL_FIRST_TOKEN

Share = float
Splits = tuple[tuple[Share, Share], ...]

# Caps of the processors that prefill and decode may use: one of them is always free to use all. Half and half first.
SPLITS: Splits = (
    *((1.0, 1.0), (1.0, 0.8), (1.0, 0.6), (1.0, 0.4), (1.0, 0.2)),
    *((0.8, 1.0), (0.6, 1.0), (0.4, 1.0), (0.2, 1.0)),
)
BY_PREFILL = (8, 7, 6, 5, 0, 1, 2, 3, 4)  # indices of SPLITS, the least for prefill first


def prefill_factor(share: Share) -> float:
    """Return how much longer prefill takes on a share of the processors: it is bound by them."""
    return 1.0 / share


def decode_factor(share: Share) -> float:
    """Return how much longer decoding takes on a share of the processors (semi-PD, fit of TPOT, made 1 at 1)."""
    return (0.6284 / share + 0.3818) / (0.6284 + 0.3818)


def fleet(engine: PricedEngine, devices: int = 1, splits: Splits = SPLITS) -> Fleet:
    """Return devices whose prefill and decode run side by side; where caps add up to more than all, they compete."""
    prefill, decode = (Pool(engine, devices, role=role) for role in ("prefill", "decode"))
    return Fleet(side_by_side(prefill, decode, 0, splits))


def side_by_side(prefill: Pool, decode: Pool, place: int, splits: Splits = SPLITS) -> tuple[Pool, Pool]:
    """Return two pools as lanes of the same devices, with shares of them; the first is the fleet's pool `place`."""
    of_prefill = _tables(prefill.engine.table, [(x, x / max(1.0, x + y)) for x, y in splits], prefill_factor)
    of_decode = _tables(decode.engine.table, [(y, y / max(1.0, x + y)) for x, y in splits], decode_factor)
    return (
        replace(prefill, engine=replace(prefill.engine, table=of_prefill[0]), variants=of_prefill[1:]),
        replace(decode, engine=replace(decode.engine, table=of_decode[0]), variants=of_decode[1:], twin_of=place),
    )


def _tables(
    table: StepTable, shares: list[tuple[Share, Share]], factor: Callable[[Share], float]
) -> tuple[StepTable, ...]:
    """Return tables in pairs: alone with the cap, and beside a busy twin with what is left of it."""
    return tuple(slowed(table, factor(share)) for share in chain.from_iterable(shares))


def follow(ttft_s: float, tpot_s: float, every_s: float = 5.0, most_steps: int = 2) -> Controller:
    """Move the split towards what alone misses its promise, so far as is foreseen to mend it.

    Both are means over a window, as what the fits foresee is: waits of a queue (M/M/1), and steps. What answers take
    is told by the steps of the window; those that end in it tell of a split long gone.
    """

    def controller(plane: Plane) -> Process:
        seen_s: list[float] = []
        plane.listen(TELL_FIRST_TOKEN, lambda number: seen_s.append(_waited_s(plane, number)))
        place, before = BY_PREFILL.index(0), (0, 0)
        while True:
            yield plane.wait(every_s)
            ttft = sum(seen_s) / max(1, len(seen_s))
            seen_s.clear()
            so_far = _decoded(plane)
            tpot = (so_far[0] - before[0]) / PICOSECONDS_PER_SECOND / max(1, so_far[1] - before[1])
            before = so_far
            moved = _moved(place, ttft / ttft_s, tpot / tpot_s, most_steps)
            if moved != place:
                place = moved
                for lane in range(plane.lanes.size):
                    plane.do(SetVariant(lane, 2 * BY_PREFILL[place]))

    return controller


def _moved(place: int, ttft_of_promise: float, tpot_of_promise: float, most_steps: int) -> int:
    """Return the place in BY_PREFILL to go to: as many steps as the estimate needs, at most so many at once."""
    direction = (ttft_of_promise > 1) - (tpot_of_promise > 1)
    excess = max(ttft_of_promise, tpot_of_promise)
    for _ in range(most_steps):
        following = place + direction
        if direction == 0 or not 0 <= following < len(BY_PREFILL):
            break
        side, factor = (0, prefill_factor) if direction > 0 else (1, decode_factor)
        before, after = (_beside(SPLITS[BY_PREFILL[each]], side) for each in (place, following))
        place, excess = following, excess * factor(after) / factor(before)
        if excess <= 1:
            break
    return place


def _beside(split: tuple[Share, Share], side: int) -> Share:
    return split[side] / max(1.0, sum(split))


def _waited_s(plane: Plane, number: int) -> float:
    return float(plane.environment.now - plane.requests["arrival_ps"][number]) / PICOSECONDS_PER_SECOND


def _decoded(plane: Plane) -> tuple[int, int]:
    """Return how long [ps] and how many steps the decode lanes have worked."""
    decode = plane.lanes[plane.lanes["role"] == DECODE]
    return int(decode["busy_ps"].sum()), int(decode["scheduled_steps"].sum())
