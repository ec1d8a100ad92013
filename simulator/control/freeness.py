"""Freeness: how many decode steps a lane has memory for, what its queue and its duties claim counted (Llumnix)."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.control.lanes_now import lanes_now
from simulator.layout import without_extras

if TYPE_CHECKING:
    from simulator.control.plane import Plane

Floats = npt.NDArray[np.float64]


def now(plane: "Plane") -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return, lane by lane, the decode steps begun since its last event, and the blocks that are free."""
    begun, free_blocks = np.zeros((2, plane.lanes.size), np.int64)
    lanes_now(without_extras(plane.state), int(plane.environment.now), begun, free_blocks)
    return begun, free_blocks


def free_tokens(plane: "Plane", headroom_tokens: int = 0, whole_queue: bool = False) -> Floats:
    """Return (M - sum of V), lane by lane [tokens]: free memory less what the head of the queue needs, or all of it.

    Migration looks at the head alone; for dispatch that would send all to a lane whose head is small. Memory is kept
    free, so much a lane, beside requests of a priority above the usual. A lane that is closed has less than nothing:
    it is to be left.
    """
    lanes, requests = plane.lanes, plane.requests
    free = (now(plane)[1] << lanes["block_shift"]).astype(np.float64)
    heads = requests[np.where(lanes["waiting"] > 0, lanes["first_waiting"], 0)]
    of_head = np.where(lanes["waiting"] > 0, heads["input_tokens"] + heads["generated_tokens"], 0)
    free -= lanes["waiting_tokens"] if whole_queue else of_head
    if headroom_tokens:
        free -= [headroom_tokens * _has_urgent(plane, lane) for lane in range(lanes.size)]
    return np.where(plane.is_open, free, -np.inf)


def freeness(plane: "Plane", headroom_tokens: int = 0, whole_queue: bool = False) -> Floats:
    """Return free tokens over the batch size, lane by lane: about the steps left, below 0 where a queue waits.

    Where the whole queue counts, what waits is of the batch, too.
    """
    batch = plane.lanes["running"] + (plane.lanes["waiting"] if whole_queue else 0)
    return np.asarray(free_tokens(plane, headroom_tokens, whole_queue) / np.maximum(1, batch))


def _has_urgent(plane: "Plane", lane: int) -> bool:
    return any(plane.requests["priority"][number] < 0 for number in plane.running_at(lane))
