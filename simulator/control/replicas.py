"""What a replica goes through as it comes and goes: its start, its draining, and spot eviction with notice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simulator.control.actions import Close, Fail, Open, Withdraw
from simulator.control.plane import Plane, Process
from simulator.layout import TELL_CANCELLED, TELL_FINISHED, TELL_HELD, TELL_PREEMPTED

if TYPE_CHECKING:
    from models.engine import Engine

FACTS = Path(__file__).with_name("startup.toml")
POLL_S = 1.0  # how often a draining replica is looked at

Drain = Callable[[Plane, Sequence[int]], Process]


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
