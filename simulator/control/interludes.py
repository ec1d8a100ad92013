"""Interludes: what happens between a request's end and the next of its session: tools at work, KV kept or not."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simpy

from simulator.control.actions import Pin, PushOut, Unpin
from simulator.control.plane import Interlude, Plane, Process
from simulator.layout import FINISHED, NONE

NEWEST_WEIGHT = 0.1  # of the last interlude in the mean that foretells the next
MOST_PINNED = 0.5  # of a lane's memory: so that any request of half its size can begin


@dataclass(frozen=True, slots=True)
class Pause:
    """What a rule may know when a request has ended and another will follow: not how long that takes."""

    plane: Plane
    done: int
    expected_s: float  # mean of the pauses seen so far, NaN before the first

    @property
    def lane(self) -> int:
        """Return the lane that the request ended on."""
        return int(self.plane.requests["lane"][self.done])


KEEP, LEAVE, PUSH_OUT = "keep", "leave", "push-out"
Rule = Callable[[Pause], str]


def keep(pause: Pause) -> str:
    """Pin the prompt's KV until the next request comes."""
    return KEEP


def leave(pause: Pause) -> str:
    """Leave the KV to the cache's own eviction."""
    return LEAVE


def push_out(pause: Pause) -> str:
    """Evict the KV at once, to a tier below where there is one."""
    return PUSH_OUT


def least_waste(pause: Pause) -> str:
    """Keep KV while that costs less memory x time than its prompt computed again would (InferCept).

    Kept, a prompt of C tokens takes C x pause; computed again it holds up all that the lane holds, C included, for the
    time of its prefill. What is not kept goes to a tier below, or is left.
    """
    plane, here = pause.plane, pause.plane.lanes[pause.lane]
    tokens = int(plane.requests["input_tokens"][pause.done])
    others = int(here["context_tokens"] + here["prefilled_tokens"])
    if not pause.expected_s * tokens > prefill_s(plane, pause.lane, tokens) * (tokens + others):
        return KEEP
    return PUSH_OUT if here["tiers_at"] != NONE else LEAVE


RULES: dict[str, Rule] = {"keep": keep, "leave": leave, "push-out": push_out, "least-waste": least_waste}


def prefill_s(plane: Plane, lane: int, tokens: int) -> float:
    """Return how long a prompt takes to compute in full steps, as a policy reckons."""
    engine = plane.pool_of(lane).engine
    table, most = engine.table, engine.limits.max_batched_tokens
    step_ps = int(table.token_ps[0, most] + table.sequence_ps[0, 1] + table.prefill_ps[0, most])
    return step_ps / 1e12 * tokens / most


def tools(workers: int | None = None, rule: Rule = leave) -> Interlude:
    """Return the interlude of tool calls on a CPU pool of so many workers, first come first served; None has no limit.

    The delay that the trace tells is how long a worker takes; the wait for one comes on top. The rule says what becomes
    of the KV meanwhile.
    """
    runs: list[tuple[Plane, _Tools]] = []

    def interlude(plane: Plane, parent: int, child: int, seconds: float) -> Process:
        if not runs or runs[-1][0] is not plane:
            runs[:] = [(plane, _Tools(plane, workers, rule))]
        yield from runs[-1][1].call(parent, seconds)

    return interlude


class _Tools:
    """The workers of one run, the KV that is pinned meanwhile, and how long calls took."""

    def __init__(self, plane: Plane, workers: int | None, rule: Rule) -> None:
        self.plane, self.rule, self.mean_s = plane, rule, np.nan
        self.pool = simpy.Resource(plane.environment, workers) if workers is not None else None
        self.under_way: Counter[int] = Counter()
        self.pinned: dict[int, tuple[int, int]] = {}  # (lane, blocks) by request

    def call(self, parent: int, seconds: float) -> Process:
        """Play one call: what it does to its parent's KV, the wait for a worker, the work."""
        began_s = self.plane.now_s
        self.under_way[parent] += 1
        if self.under_way[parent] == 1 and self.plane.status(parent) == FINISHED:
            self._decide(parent)
        if self.pool is None:
            yield self.plane.wait(seconds)
        else:
            with self.pool.request() as turn:
                yield turn
                yield self.plane.wait(seconds)
        took_s = self.plane.now_s - began_s
        self.mean_s = took_s if np.isnan(self.mean_s) else self.mean_s + NEWEST_WEIGHT * (took_s - self.mean_s)
        self.under_way[parent] -= 1
        if not self.under_way[parent]:
            self._release(parent)

    def _decide(self, parent: int) -> None:
        pause = Pause(self.plane, parent, float(self.mean_s))
        answer = self.rule(pause)
        if answer not in (KEEP, LEAVE, PUSH_OUT):
            raise ValueError(f"a rule of interludes said {answer!r}; expected {KEEP}, {LEAVE} or {PUSH_OUT}")
        if answer == PUSH_OUT:
            self.plane.do(PushOut(parent))
        if answer == KEEP and self._has_room(pause.lane, parent) and self.plane.do(Pin(parent)) is None:
            self.pinned[parent] = pause.lane, int(self.plane.requests["held_blocks"][parent])

    def _has_room(self, lane: int, parent: int) -> bool:
        here = self.plane.lanes[lane]
        pinned_blocks = sum(blocks for other, blocks in self.pinned.values() if other == lane)
        more_blocks = int(self.plane.requests["input_tokens"][parent]) >> int(here["block_shift"])
        return pinned_blocks + more_blocks <= MOST_PINNED * int(here["total_blocks"])

    def _release(self, parent: int) -> None:
        if self.pinned.pop(parent, None) is not None:
            self.plane.do(Unpin(parent))
