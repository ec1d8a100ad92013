"""Times put in order: inversions counted, restarts found, the quantum of the clock measured."""

from dataclasses import dataclass

import numpy as np

from traces.trace import NS_PER_S, Array

RESTART_ROWS = 10  # a restart is a large step back that this many rows before and after confirm
RESTART_NS = 60 * NS_PER_S
MANY_EQUAL = 0.8  # below this fraction of gaps above zero, a coarse clock is looked for


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """Sorted ns since the first arrival, the rows they came from, and what was found on the way."""

    ns: Array
    order: Array
    t0_ns: int
    inversions: int
    restarts: tuple[int, ...]
    quantum_ns: int


def in_order(times_ns: Array, restarts: str, keeps_origin: bool = False) -> Arrivals:
    """Return times int64[n] in order, equal ones in file order; restarts="append" puts parts end to end."""
    found = restarts_in(times_ns)
    inversions = int(np.count_nonzero(np.diff(times_ns) < 0))
    if restarts == "append":
        times_ns = _end_to_end(times_ns, found)
    order = np.argsort(times_ns, kind="stable")
    first_ns = int(times_ns[order[0]])
    t0_ns = min(first_ns, 0) if keeps_origin else first_ns
    arrival_ns = times_ns[order] - t0_ns
    return Arrivals(arrival_ns, order, t0_ns, inversions, found, quantum_ns(arrival_ns))


def restarts_in(times_ns: Array) -> tuple[int, ...]:
    """Return the rows at which time starts again: a step back over half the span so far that rows around it confirm."""
    highest = np.maximum.accumulate(times_ns)
    steps_back = np.flatnonzero(np.diff(times_ns) < -RESTART_NS) + 1
    rows: list[int] = []
    start = 0
    for row in steps_back.tolist():
        before, after = times_ns[start:row], times_ns[row : row + RESTART_ROWS]
        if len(before) < RESTART_ROWS or len(after) < RESTART_ROWS:
            continue
        half = (int(before.min()) + int(highest[row - 1])) // 2
        if after.max() < half:
            rows.append(row)
            start = row
    return tuple(rows)


def quantum_ns(arrival_ns: Array) -> int:
    """Return the step of the clock that wrote the times, 0 where all agree.

    It is the median gap between different times where all such gaps are whole multiples of it within 1 % (the clock
    itself may jitter) and many times are equal; otherwise the greatest common divisor of all gaps.
    """
    gaps = np.diff(arrival_ns)
    steps = gaps[gaps > 0]
    if len(steps) < MANY_EQUAL * len(gaps):
        step = float(np.median(steps)) if len(steps) else 0.0
        multiples = steps / step if step else steps
        if len(steps) and np.mean(np.abs(multiples - np.round(multiples)) < 0.01) > 0.95:
            return round(step)
    return int(np.gcd.reduce(gaps)) if len(gaps) else 0


def _end_to_end(times_ns: Array, restarts: tuple[int, ...]) -> Array:
    joined, end = [], None
    for part in np.split(times_ns, restarts):
        joined.append(part if end is None else part - part.min() + end)
        end = joined[-1].max()
    return np.concatenate(joined)
