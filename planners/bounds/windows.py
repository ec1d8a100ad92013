"""Windows of time that fleets are held against: the power of replicas, what falls due, and what misses take out."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Relief = tuple[tuple[int, float], ...]

SHORTEST = 1.25  # length of the shortest windows, in patience with a prompt
LENGTH_RATIO = 2.0
MOST_WINDOWS = 40
BUDGETS = 4.0  # windows are taken until they hold so many times the misses allowed, or MOST_WINDOWS


@dataclass(frozen=True, slots=True)
class Row:
    """One window, from the arrival of its first request to its end: power [engine] of a replica, demand, and relief.

    relief is (how many requests, what each takes out at most); rows of one family share the misses allowed. Where
    misses of several promises take out different things, budgets are what each takes out, and how many are allowed.
    """

    first: int
    end_s: float
    power: Array
    demand: float
    relief: Relief
    family: int
    allowed: float
    budgets: tuple[tuple[Relief, float], ...] = ()

    @property
    def misses(self) -> tuple[tuple[Relief, float], ...]:
        """Return what misses of each kind take out, and how many of them are allowed in the family."""
        return self.budgets or ((self.relief, self.allowed),)


def lengths_s(patience_s: float, span_s: float) -> list[float]:
    """Return the lengths of windows to look at, short of the whole span."""
    found, length_s = [], SHORTEST * patience_s
    while length_s < span_s:
        found.append(length_s)
        length_s *= LENGTH_RATIO
    return found


def densest(
    arrival_s: Array, weight: Array, length_s: float, patience_s: float, allowed: float
) -> list[tuple[int, float]]:
    """Return disjoint windows (first request, end) of one length, the densest first, until they hold enough."""
    filled = np.concatenate([[0.0], np.cumsum(np.where(np.isfinite(weight), weight, 0.0))])
    beyond = np.searchsorted(arrival_s, arrival_s + length_s - patience_s, side="right")
    density = filled[beyond] - filled[:-1]
    windows: list[tuple[int, float]] = []
    held = 0
    while len(windows) < MOST_WINDOWS and held < max(BUDGETS * allowed, 1):
        first = int(np.argmax(density))
        if density[first] <= 0:
            break
        last = int(beyond[first])
        windows.append((first, float(arrival_s[first]) + length_s))
        held += last - first
        density[int(np.searchsorted(beyond, first, side="right")) : last] = 0.0
    return windows


def relief_of(demand: Array, allowed: float) -> Relief:
    """Return the heaviest requests by groups of 1, 1, 2, 4, ..., each with the largest of its group."""
    ordered = np.sort(demand)[::-1]
    relief, taken, size = [], 0, 1
    while taken < min(ordered.size, allowed):
        relief.append((min(size, ordered.size - taken), float(ordered[taken])))
        size, taken = max(1, taken + size), taken + size
    return tuple(relief)
