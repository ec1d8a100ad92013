"""Autoscalers: pure functions of a metric's readings, oldest first, to the replicas that are wanted."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import ceil, floor, inf
from typing import NamedTuple


class Reading(NamedTuple):
    """A metric summed over the replicas that serve, at one time; and the replicas wanted so far."""

    now_s: float
    total: float
    serving: int
    wanted: int


Autoscaler = Callable[[Sequence[Reading]], int]


def target_tracking(target: float, tolerance: float = 0.1, stabilisation_s: float = 300.0) -> Autoscaler:
    """Keep the metric per replica at a target; go down to the most that was asked for within a window (HPA).

    Replicas that do not serve yet count as idle when more are asked for.
    """

    def asked(reading: Reading) -> int:
        if reading.serving == 0:
            return reading.wanted
        ratio = reading.total / (reading.serving * target)
        with_all = reading.total / (max(reading.serving, reading.wanted) * target)
        if abs(ratio - 1) <= tolerance or (ratio > 1 and with_all <= 1 + tolerance):
            return reading.wanted
        return ceil(reading.total / target)

    def wanted(history: Sequence[Reading]) -> int:
        now = asked(history[-1])
        recent = _since(history, stabilisation_s)
        return max(now, min(history[-1].wanted, max(asked(each) for each in recent)))

    return wanted


def kpa(
    target: float, stable_s: float = 180.0, panic_s: float = 60.0, panic_ratio: float = 2.0, most_down: float = 2.0
) -> Autoscaler:
    """Follow the mean over a stable window; over a short one, never down, once that asks for so many times more (KPA).

    Panic lasts until a stable window has passed without its cause.
    """

    def asked(history: Sequence[Reading], window_s: float) -> int:
        return ceil(_mean_total(_since(history, window_s)) / target)

    def wanted(history: Sequence[Reading]) -> int:
        last = history[-1]
        recent = len(_since(history, stable_s))
        ends = range(len(history) - recent + 1, len(history) + 1)
        panics = any(asked(history[:end], panic_s) >= panic_ratio * max(1, history[end - 1].serving) for end in ends)
        if panics:
            return max(last.wanted, asked(history, panic_s))
        return max(asked(history, stable_s), floor(last.serving / most_down))

    return wanted


def apa(
    target: float, tolerance: float = 0.1, most_up: float = 2.0, most_down: float = 2.0, cool_down_s: float = 300.0
) -> Autoscaler:
    """Scale by the ratio to a target outside a band, at most twofold; down only after a quiet time (AIBrix's APA)."""

    def wanted(history: Sequence[Reading]) -> int:
        last = history[-1]
        serving = max(1, last.serving)
        ratio = last.total / (serving * target)
        if ratio > 1 + tolerance:
            return max(last.wanted, min(ceil(serving * ratio), ceil(serving * most_up)))
        if ratio < 1 - tolerance and last.now_s - _last_change_s(history) >= cool_down_s:
            return min(last.wanted, max(ceil(serving * ratio), floor(serving / most_down)))
        return last.wanted

    return wanted


def band(low: float = 10.0, high: float = 60.0) -> Autoscaler:
    """Keep the metric per replica in a band where more is better, one replica at a time (Llumnix, on freeness)."""

    def wanted(history: Sequence[Reading]) -> int:
        last = history[-1]
        if last.serving == 0 or last.serving < last.wanted:
            return last.wanted
        per_replica = last.total / last.serving
        return last.wanted + (per_replica < low) - (per_replica > high)

    return wanted


def queueing(rate_per_s: float, wait_s: float, variation: float = 1.0, window_s: float = 60.0) -> Autoscaler:
    """Want the fewest replicas that keep a mean wait, each serving so many requests a second; on arrival rates.

    M/M/c; with another coefficient of variation of service times, Kimura's M/G/c.
    """

    def wanted(history: Sequence[Reading]) -> int:
        offered = _mean_total(_since(history, window_s)) / rate_per_s
        replicas = max(1, floor(offered) + 1) if offered > 0 else 0
        while replicas and mean_wait(offered, replicas, variation) / rate_per_s > wait_s:
            replicas += 1
        return replicas

    return wanted


def predictive(target: float, window_s: float = 300.0, ahead_s: float = 120.0) -> Autoscaler:
    """Keep the metric per replica below a target now and, on the trend of a window, after the time a start takes."""

    def wanted(history: Sequence[Reading]) -> int:
        recent = _since(history, window_s)
        now_s, total = history[-1].now_s, history[-1].total
        foreseen = max(total, _line(recent, now_s + ahead_s))
        return ceil(foreseen / target)

    return wanted


AUTOSCALERS: dict[str, Callable[..., Autoscaler]] = {
    "target-tracking": target_tracking,
    "kpa": kpa,
    "apa": apa,
    "band": band,
    "queueing": queueing,
    "predictive": predictive,
}


def mean_wait(offered: float, servers: int, variation: float = 1.0) -> float:
    """Return the mean wait of M/G/c in mean service times, by Kimura from M/M/c; infinite where it has no bound.

    >>> mean_wait(0.5, 1), mean_wait(0.5, 1, variation=0.0)  # M/M/1 and M/D/1
    (1.0, 0.5)
    """
    if offered >= servers:
        return inf
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    waits = blocked / (1 - offered / servers * (1 - blocked))
    return (1 + variation**2) / 2 * waits / (servers - offered)


def _since(history: Sequence[Reading], window_s: float) -> Sequence[Reading]:
    first_s = history[-1].now_s - window_s
    first = next(place for place, each in enumerate(history) if each.now_s > first_s or place == len(history) - 1)
    return history[first:]


def _mean_total(readings: Sequence[Reading]) -> float:
    return sum(each.total for each in readings) / len(readings)


def _last_change_s(history: Sequence[Reading]) -> float:
    changes = [after.now_s for before, after in pairwise(history) if before.wanted != after.wanted]
    return changes[-1] if changes else -inf


def _line(readings: Sequence[Reading], at_s: float) -> float:
    """Return what the least-squares line through the readings says at a time."""
    mean_s = sum(each.now_s for each in readings) / len(readings)
    mean = _mean_total(readings)
    spread = sum((each.now_s - mean_s) ** 2 for each in readings)
    if spread == 0:
        return mean
    slope = sum((each.now_s - mean_s) * (each.total - mean) for each in readings) / spread
    return mean + slope * (at_s - mean_s)
