"""Autoscaling: how many replicas a metric's history asks for, and what a replica goes through as it comes and goes.

An autoscaler is a pure function of readings, oldest first, to the replicas that are wanted. The controller `autoscale`
reads the metric, provisions, drains, and loses replicas to spot eviction.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil, floor, inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simulator.control.actions import Close, Fail, Open, Withdraw
from simulator.control.freeness import freeness
from simulator.control.plane import Controller, Plane, Process
from simulator.layout import COMING, TELL_CANCELLED, TELL_FINISHED, TELL_HELD, TELL_PREEMPTED

if TYPE_CHECKING:
    from models.engine import Engine

FACTS = Path(__file__).with_name("startup.toml")
MEMORY_S = 3600.0  # of readings
POLL_S = 1.0  # how often a draining replica is looked at


class Reading(NamedTuple):
    """A metric summed over the replicas that serve, at one time; and the replicas wanted so far."""

    now_s: float
    total: float
    serving: int
    wanted: int


Autoscaler = Callable[[Sequence[Reading]], int]
Metric = Callable[[Plane, Sequence[int]], float]
Drain = Callable[[Plane, Sequence[int]], Process]


# Autoscalers.


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


# Metrics, each summed over the lanes that serve.


def concurrency(plane: Plane, lanes: Sequence[int]) -> float:
    """Return the requests at the lanes and at the gateway."""
    return float(plane.view().outstanding[list(lanes)].sum()) + len(plane.held)


def waiting(plane: Plane, lanes: Sequence[int]) -> float:
    """Return the requests in the lanes' queues and at the gateway."""
    return float(plane.view().waiting[list(lanes)].sum()) + len(plane.held)


def kv_in_use(plane: Plane, lanes: Sequence[int]) -> float:
    """Return the shares of the lanes' KV that decodes hold."""
    view = plane.view()
    return float((view.kv_tokens[list(lanes)] / view.kv_capacity_tokens[list(lanes)]).sum())


def free_steps(plane: Plane, lanes: Sequence[int]) -> float:
    """Return the lanes' freeness: the decode steps that each has memory for, queues counted."""
    return float(freeness(plane)[list(lanes)].sum())


def arrivals(window_s: float = 60.0) -> Metric:
    """Return the metric of requests that came per second, over a window before now."""

    def per_s(plane: Plane, lanes: Sequence[int]) -> float:
        now_ps, span_s = plane.environment.now, min(window_s, max(plane.now_s, 1e-9))
        came = plane.requests["arrival_ps"][plane.requests["status"] != COMING]
        return int((came > now_ps - window_s * 1e12).sum()) / span_s

    return per_s


METRICS: dict[str, Metric] = {
    "concurrency": concurrency,
    "waiting": waiting,
    "kv-in-use": kv_in_use,
    "freeness": free_steps,
    "arrivals": arrivals(),
}


# What a replica goes through.


class Part(NamedTuple):
    """One part of a replica's start, and where its time is from."""

    name: str
    seconds: float
    source: str


@dataclass(frozen=True, slots=True)
class Startup:
    """What a replica goes through from being asked for to serving; it is paid for all along."""

    parts: tuple[Part, ...]

    @property
    def seconds(self) -> float:
        """Return the time it takes.

        >>> Startup((Part("pull", 60.0, "assumed"), Part("load", 7.0, "assumed"))).seconds
        67.0
        """
        return sum(part.seconds for part in self.parts)


def startup(engine: "Engine", **changes: float) -> Startup:
    """Return the start of a replica of an Engine: bytes over bandwidths, and fixed times; some may be told better.

    Devices of a host load their weights side by side over one path, so all weights of a replica count.
    """
    facts = _facts()
    if unknown := set(changes) - (set(facts) - {"source"}):
        raise ValueError(f"unknown {min(unknown)!r} of a start; known: {', '.join(sorted(set(facts) - {'source'}))}")
    told = {name: changes.get(name, value) for name, value in facts.items()}
    sources = {name: "told" if name in changes else source for name, source in facts["source"].items()}
    weight_bytes = engine.weight_bytes_per_device * engine.devices
    return Startup(
        (
            Part("image pull", told["image_bytes"] / told["image_bytes_per_s"], sources["image_bytes_per_s"]),
            Part("weight load", weight_bytes / told["weight_bytes_per_s"], sources["weight_bytes_per_s"]),
            Part("graph capture", told["graph_capture_s"], sources["graph_capture_s"]),
            Part("warm-up", told["warm_up_s"], sources["warm_up_s"]),
        )
    )


AT_ONCE = Startup(())


@lru_cache(maxsize=1)
def _facts() -> dict[str, Any]:
    import tomllib

    return tomllib.loads(FACTS.read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Spot:
    """Replicas are taken away at random, so often per replica and hour, after a notice."""

    evictions_per_hour: float
    notice_s: float
    seed: int


def drain_by_waiting(plane: Plane, lanes: Sequence[int]) -> Process:
    """Send what waits at closed lanes elsewhere, and let what runs there end."""
    while True:
        send_back(plane, lanes)
        left = [number for lane in lanes for number in plane.running_at(lane)]
        if not left and not plane.lanes["outstanding"][list(lanes)].any():
            return
        ends = [plane.happens(TELL_FINISHED | TELL_PREEMPTED | TELL_CANCELLED | TELL_HELD, left[0])] if left else []
        yield plane.environment.any_of([*ends, plane.wait(POLL_S)])


def send_back(plane: Plane, lanes: Sequence[int]) -> None:
    """Offer what waits in these lanes' queues to the router again; KV that comes from elsewhere stays."""
    for lane in lanes:
        for number in plane.waiting_at(lane):
            if plane.requests["source_lane"][number] < 0 and plane.do(Withdraw(number)) is None:
                plane.held[number] = None
                plane.offer(number)


class Replicas:
    """A pool's replicas through their lives: absent, starting, serving, draining, and absent again."""

    def __init__(self, plane: Plane, pool: int, initial: int, start: Startup, drain: Drain) -> None:
        self.plane, self.pool, self.start_s, self.drain = plane, pool, start.seconds, drain
        per_replica = plane.fleet.pools[pool].engine.lanes
        self.lanes: list[list[int]] = plane.lanes_of(pool).reshape(-1, per_replica).tolist()
        self.serving, self.absent = list(range(initial)), list(range(initial, len(self.lanes)))
        self.starting: dict[int, int] = {}  # and which of all starts it is
        self._starts = 0
        self.draining: list[int] = []
        for replica in self.absent:
            self._close(replica)
        plane.pay(-sum(len(self.lanes[replica]) for replica in self.absent))

    @property
    def wanted(self) -> int:
        """Return the replicas that serve or are about to."""
        return len(self.serving) + len(self.starting)

    def serving_lanes(self) -> list[int]:
        """Return the lanes of the replicas that serve."""
        return [lane for replica in self.serving for lane in self.lanes[replica]]

    def want(self, count: int) -> None:
        """Start or stop replicas until so many serve or are about to, as far as there are any."""
        self._miss_the_failed()
        while self.wanted < count and (self.draining or self.absent):
            self._add()
        while self.wanted > count:
            self._take_away()

    def evict(self, replica: int, notice_s: float) -> Process:
        """Drain a serving replica for as long as the notice lasts, then lose it with what it still has."""
        plane = self.plane
        self.serving.remove(replica)
        plane.ledger.count("Evicted")
        plane.ledger.events.append((plane.now_s, f"pool {self.pool} replica {replica} is evicted"))
        self._close(replica)
        drained = plane.environment.process(self.drain(plane, self.lanes[replica]))
        yield drained | plane.wait(notice_s)
        if not drained.triggered:
            for lane in self.lanes[replica]:
                plane.do(Fail(lane))
        self._stop_paying(replica)

    def _add(self) -> None:
        if self.draining:
            replica = self.draining.pop()
            self.serving.append(replica)
            self._open(replica)
        else:
            replica = self.absent.pop(0)
            self._starts += 1
            self.starting[replica] = self._starts
            self.plane.pay(len(self.lanes[replica]))
            self.plane.environment.process(self._start(replica, self._starts))

    def _take_away(self) -> None:
        if self.starting:
            self._stop_paying(self.starting.popitem()[0])
            return
        running = self.plane.lanes["running"]
        replica = min(self.serving, key=lambda each: (int(running[self.lanes[each]].sum()), -each))
        self.serving.remove(replica)
        self.draining.append(replica)
        self._close(replica)
        self.plane.environment.process(self._drain(replica))

    def _start(self, replica: int, start: int) -> Process:
        yield self.plane.wait(self.start_s)
        if self.starting.get(replica) == start:
            del self.starting[replica]
            self.serving.append(replica)
            self._open(replica)

    def _drain(self, replica: int) -> Process:
        yield from self.drain(self.plane, self.lanes[replica])
        if replica in self.draining:
            self.draining.remove(replica)
            self._stop_paying(replica)

    def _stop_paying(self, replica: int) -> None:
        self.absent.append(replica)
        self.plane.pay(-len(self.lanes[replica]))

    def _miss_the_failed(self) -> None:
        """Count replicas out that somebody else closed or failed."""
        for replica in list(self.serving):
            if not self.plane.is_open[self.lanes[replica]].all():
                self.serving.remove(replica)
                self._close(replica)
                self._stop_paying(replica)

    def _open(self, replica: int) -> None:
        for lane in self.lanes[replica]:
            if not self.plane.is_open[lane]:
                self.plane.do(Open(lane))
        self.plane.offer_all()

    def _close(self, replica: int) -> None:
        for lane in self.lanes[replica]:
            if self.plane.is_open[lane]:
                self.plane.do(Close(lane))


def autoscale(
    pool: int,
    policy: Autoscaler,
    metric: Metric = concurrency,
    *,
    every_s: float = 10.0,
    start: Startup = AT_ONCE,
    initial: int = 1,
    least: int = 1,
    most: int | None = None,
    drain: Drain = drain_by_waiting,
    spot: Spot | None = None,
) -> Controller:
    """Return the controller that keeps a pool at the replicas that a policy wants, within bounds.

    The pool's size in the fleet is the most there can be; those beyond `initial` do not serve at first. With `least` 0
    the pool may go down to nothing: a request that is then held starts a replica at once.
    """

    def control(plane: Plane) -> Process:
        replicas = Replicas(plane, pool, initial, start, drain)
        bound = len(replicas.lanes) if most is None else most
        history: deque[Reading] = deque()
        direction = 0

        def scale(count: int) -> None:
            nonlocal direction
            before = replicas.wanted
            replicas.want(min(bound, max(least, count)))
            change = replicas.wanted - before
            if change:
                plane.ledger.count("Scaled up" if change > 0 else "Scaled down")
                plane.ledger.events.append((plane.now_s, f"pool {pool} wants {before} -> {replicas.wanted}"))
                if change * direction < 0:
                    plane.ledger.count("Scale reversal")
                direction = 1 if change > 0 else -1

        def wake(number: int) -> None:
            if replicas.wanted == 0:
                scale(1)

        if least == 0:
            plane.listen(TELL_HELD, wake)
        if spot is not None:
            plane.environment.process(_evict_now_and_then(replicas, spot))
        while True:
            yield plane.wait(every_s)
            lanes = replicas.serving_lanes()
            history.append(Reading(plane.now_s, metric(plane, lanes), len(replicas.serving), replicas.wanted))
            while history[0].now_s < plane.now_s - MEMORY_S:
                history.popleft()
            scale(policy(tuple(history)))

    return control


def _evict_now_and_then(replicas: Replicas, spot: Spot) -> Process:
    """Evict serving replicas, each as often as any other."""
    plane, rng = replicas.plane, np.random.default_rng(spot.seed)
    while spot.evictions_per_hour > 0:
        yield plane.wait(float(rng.exponential(3600.0 / spot.evictions_per_hour / len(replicas.lanes))))
        drawn = int(rng.integers(len(replicas.lanes)))  # of all there could be: one that does not serve is spared
        if drawn in replicas.serving:
            plane.environment.process(replicas.evict(drawn, spot.notice_s))
