"""Freeness: how many decode steps a lane has memory for, what its queue and its duties claim counted (Llumnix)."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.control.lanes_now import lanes_now

if TYPE_CHECKING:
    from simulator.control.plane import Plane

Floats = npt.NDArray[np.float64]


def now(plane: "Plane") -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return, lane by lane, the decode steps begun since its last event, and the blocks that are free."""
    begun, free_blocks = np.zeros((2, plane.lanes.size), np.int64)
    lanes_now(plane.state, int(plane.environment.now), begun, free_blocks)
    return begun, free_blocks


def free_tokens(plane: "Plane", headroom_tokens: int = 0) -> Floats:
    """Return (M - sum of V), lane by lane [tokens]: free memory less what the head of the queue needs.

    Memory is kept free, so much a lane, beside requests of a priority above the usual. A lane that is closed has less
    than nothing: it is to be left.
    """
    lanes, requests = plane.lanes, plane.requests
    free = (now(plane)[1] << lanes["block_shift"]).astype(np.float64)
    heads = requests[np.where(lanes["waiting"] > 0, lanes["first_waiting"], 0)]
    free -= np.where(lanes["waiting"] > 0, heads["input_tokens"] + heads["generated_tokens"], 0)
    if headroom_tokens:
        free -= [headroom_tokens * _has_urgent(plane, lane) for lane in range(lanes.size)]
    return np.where(plane.is_open, free, -np.inf)


def freeness(plane: "Plane", headroom_tokens: int = 0) -> Floats:
    """Return free tokens over the batch size, lane by lane: about the steps left, below 0 where a queue waits."""
    return np.asarray(free_tokens(plane, headroom_tokens) / np.maximum(1, plane.lanes["running"]))


def _has_urgent(plane: "Plane", lane: int) -> bool:
    return any(plane.requests["priority"][number] < 0 for number in plane.running_at(lane))
