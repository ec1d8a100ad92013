"""One queue of requests with equal patience: how many must be left out at a speed, and which speed few misses need."""

import heapq
import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

TOLERANCE = 1e-6


def fewest_misses(work: Array, arrival_s: Array, patience_s: float, speed: float, most: float = math.inf) -> float:
    """Return how many requests one queue has to leave out at least, parts of one allowed, so that none waits too long.

    What is kept of a request's work is done within patience_s of its arrival. Whenever that cannot be, the heaviest of
    the requests since the queue was last empty are left out until it can, as if that always made the queue as much
    shorter. No choice leaves out fewer: let one have left out u requests up to some arrival and have a shorter queue
    than ours; then we could make ours as short, the heaviest first, and still have left out at most u. Idling, a
    request that joins, and leaving out what must be, all keep this true. Stops counting beyond `most`.
    """
    queued, misses, before_s = 0.0, 0.0, 0.0
    kept: list[tuple[float, float]] = []  # (minus the work of a request, minus what is kept of it)
    longest = speed * patience_s
    for now_s, own in zip(arrival_s.tolist(), work.tolist(), strict=True):
        queued -= speed * (now_s - before_s)
        before_s = now_s
        if queued <= 0.0:
            queued = 0.0
            kept.clear()
        queued += own
        heapq.heappush(kept, (-own, -own))
        while queued > longest and kept:
            whole, left = heapq.heappop(kept)
            part = min(-left, queued - longest)
            misses += part / -whole if whole else 0.0
            queued -= part
            if -left > part:
                heapq.heappush(kept, (whole, left + part))
                break
        if misses > most:
            break
    return misses


def least_speed(
    work: Array, arrival_s: Array, patience_s: float, allowed: float, above: float = 0.0, closeness: float = TOLERANCE
) -> float:
    """Return a speed below which one queue leaves out more requests than allowed; 0 where `above` is fast enough.

    It is as high as such speeds are, but for closeness, a fraction of it.
    """
    if not work.size or work.max() <= 0:
        return 0.0
    low, high = 0.0, max(above, float(work.sum()) / (float(arrival_s[-1] - arrival_s[0]) + patience_s))
    while fewest_misses(work, arrival_s, patience_s, high, allowed) > allowed * (1 + TOLERANCE):
        strained = _strained(work, arrival_s, patience_s, high)
        work, arrival_s = work[strained], arrival_s[strained]
        low, high = high, 2 * high
    if low == 0.0 < above:
        return 0.0
    while high - low > closeness * high:
        middle = (low + high) / 2
        if fewest_misses(work, arrival_s, patience_s, middle, allowed) > allowed * (1 + TOLERANCE):
            low = middle
        else:
            high = middle
    return low


def _strained(work: Array, arrival_s: Array, patience_s: float, speed: float) -> npt.NDArray[np.bool_]:
    """Return which requests come while a queue is busy that gets too long; no faster queue leaves out any other."""
    filled = np.cumsum(work)
    idle = np.minimum.accumulate(filled - work - speed * arrival_s)  # of the queue had it never been empty
    begins = np.append(True, idle[1:] < idle[:-1])
    longest = np.maximum.reduceat(filled - speed * arrival_s - idle, np.flatnonzero(begins))
    strained: npt.NDArray[np.bool_] = longest[np.cumsum(begins) - 1] > speed * patience_s * (1 - TOLERANCE)
    return strained
