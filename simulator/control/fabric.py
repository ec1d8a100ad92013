"""The fabric: links between devices, and flows that share them max-min fairly as each starts, ends or is cut short."""

from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from heapq import heapify, heappop, heappush
from itertools import pairwise
from math import ceil, inf
from typing import Any

import simpy

from models.engine import PICOSECONDS_PER_SECOND

Steps = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Link:
    """One direction of a connection from a source to a target.

    bytes_per_s is a number, or steps (from_s, bytes_per_s) of a capacity that changes with time. latency_s is added
    once to what passes; operation_s is what each operation of a transfer costs before its bytes flow.

    >>> Link("dc1", "dc2", ((0.0, 12.5e9), (60.0, 1.25e9))).name
    'dc1>dc2'
    """

    source: str
    target: str
    bytes_per_s: float | Steps
    latency_s: float = 0.0
    operation_s: float = 0.0

    def __post_init__(self) -> None:
        times_s = [from_s for from_s, _ in self.steps]
        if not times_s or any(later <= earlier for earlier, later in pairwise(times_s)):
            raise ValueError(f"link {self.name}: steps begin at {times_s} s; expected times in order")
        if negative := [capacity for _, capacity in self.steps if not capacity >= 0]:
            raise ValueError(f"link {self.name}: {negative[0]:g} bytes/s; expected 0 or more")

    @property
    def name(self) -> str:
        """Return "source>target"."""
        return f"{self.source}>{self.target}"

    @property
    def steps(self) -> Steps:
        """Return the capacity as steps (from_s, bytes_per_s)."""
        return self.bytes_per_s if isinstance(self.bytes_per_s, tuple) else ((0.0, float(self.bytes_per_s)),)


def both_ways(one: str, other: str, bytes_per_s: float | Steps, **times_s: float) -> tuple[Link, Link]:
    """Return the two links of a full-duplex connection."""
    return Link(one, other, bytes_per_s, **times_s), Link(other, one, bytes_per_s, **times_s)


def node(
    name: str,
    devices: int,
    scale_up_bytes_per_s: float,
    nics: int,
    nic_bytes_per_s: float,
    switch: str = "switch",
    operation_s: float = 0.0,
) -> tuple[Link, ...]:
    """Return the links of a node: devices NAME.0, NAME.1, ... in one scale-up domain, their adapters on a switch.

    Devices share adapters evenly, neighbours the same; the switch itself is never the bottleneck.
    """
    links: list[Link] = []
    for adapter in range(nics):
        links += both_ways(f"{name}.nic{adapter}", switch, nic_bytes_per_s)
    for device in range(devices):
        here = f"{name}.{device}"
        links += both_ways(here, f"{name}.domain", scale_up_bytes_per_s, operation_s=operation_s)
        if nics:
            adapter = device * nics // devices
            links += both_ways(here, f"{name}.nic{adapter}", nic_bytes_per_s, operation_s=operation_s)
    return tuple(links)


def route(links: Iterable[Link], source: str, target: str) -> tuple[str, ...]:
    """Return the names of the links on a way of fewest hops, the first in the links' order; ValueError where none is.

    >>> route(node("a", 2, 3e11, 1, 5e10), "a.0", "a.1")
    ('a.0>a.domain', 'a.domain>a.1')
    """
    leaving: dict[str, list[Link]] = {}
    for link in links:
        leaving.setdefault(link.source, []).append(link)
        leaving.setdefault(link.target, [])
    for end in (source, target):
        if end not in leaving:
            raise ValueError(f"the fabric has no {end!r}{_nearest(end, leaving)}")
    ways: dict[str, tuple[str, ...]] = {source: ()}
    queue = deque([source])
    while queue and target not in ways:
        here = queue.popleft()
        for link in leaving[here]:
            if link.target not in ways:
                ways[link.target] = (*ways[here], link.name)
                queue.append(link.target)
    if target not in ways:
        raise ValueError(f"no links lead from {source} to {target}")
    return ways[target]


def fair_shares(paths: Sequence[Sequence[str]], bytes_per_s: Mapping[str, float]) -> list[float]:
    """Return the max-min fair rate of each path by progressive filling: the scarcest link fixes its flows first.

    >>> fair_shares([["a", "b"], ["a"], ["b"]], {"a": 1.0, "b": 2.0})
    [0.5, 0.5, 1.5]
    """
    rates = [inf] * len(paths)
    users: dict[str, list[int]] = {}
    for flow, path in enumerate(paths):
        for link in path:
            users.setdefault(link, []).append(flow)
    left = {link: bytes_per_s[link] for link in users}
    count = {link: len(flows) for link, flows in users.items()}
    queue = [(left[link] / count[link], place, link) for place, link in enumerate(users)]
    heapify(queue)
    while queue:
        share, place, link = heappop(queue)
        if count[link] == 0:
            continue
        now = max(0.0, left[link]) / count[link]
        if now > share:  # others have been fixed since; a link's share never falls
            heappush(queue, (now, place, link))
            continue
        for flow in users[link]:
            if rates[flow] == inf:
                rates[flow] = now
                for each in paths[flow]:
                    left[each] -= now
                    count[each] -= 1
    return rates


class Transfer(simpy.Event):  # type: ignore[misc]
    """Bytes on their way: an event that succeeds with the bytes that arrived, fewer than asked where it was cancelled.

    rate_bytes_per_s is the present share of the path; 0 while its operations are posted and when it is over.
    """

    def __init__(self, environment: simpy.Environment, path: tuple[str, ...], size_bytes: float) -> None:
        super().__init__(environment)
        self.path, self.size_bytes = path, float(size_bytes)
        self.left_bytes, self.rate_bytes_per_s = float(size_bytes), 0.0
        self.settled_ps = environment.now
        self.end_ps = inf
        self.is_over = False


class Fabric:
    """Links and the transfers on them, in an environment whose time is whole picoseconds.

    carried_bytes tells what each link has carried up to the last change of its flows. A link that fails ends the
    transfers on it early, with what has arrived by then.
    """

    def __init__(self, environment: simpy.Environment, links: Iterable[Link]) -> None:
        self.environment = environment
        self.links = {link.name: link for link in links}
        self.carried_bytes = dict.fromkeys(self.links, 0.0)
        self._steps_ps = {name: _in_ps(link.steps) for name, link in self.links.items()}
        self._varying = [name for name, steps in self._steps_ps.items() if len(steps) > 1]
        self._capacities = {name: self._capacity(name) for name in self.links}
        self._users: dict[str, dict[Transfer, None]] = {name: {} for name in self.links}
        self._active: dict[Transfer, None] = {}
        self._alarm_ps = inf
        self._down: set[str] = set()
        self._mended = environment.event()
        self.cut = 0  # transfers that a failing link ended

    def route(self, source: str, target: str) -> tuple[str, ...]:
        """Return the names of the links on a way of fewest hops that is up; ValueError where there is none."""
        return route([link for link in self.links.values() if link.name not in self._down], source, target)

    def carry(self, source: str, target: str, size_bytes: float, operations: int = 1) -> simpy.Process:
        """Send bytes over whatever way is up, again and again until all have arrived, waiting while there is none.

        The process ends with the bytes that arrived: fewer than asked where it was interrupted.
        """
        return self.environment.process(self._carry(source, target, size_bytes, operations))

    def _carry(self, source: str, target: str, size_bytes: float, operations: int) -> Generator[Any, Any, float]:
        route(self.links.values(), source, target)  # there is a way when all is well
        arrived_bytes, transfer = 0.0, None
        try:
            while True:
                try:
                    way = self.route(source, target)
                except ValueError:
                    yield self._mended
                    continue
                transfer = self.send(way, size_bytes - arrived_bytes, operations)
                yield transfer
                arrived_bytes = size_bytes - transfer.left_bytes
                if transfer.left_bytes == 0.0:
                    return arrived_bytes
        except simpy.Interrupt:
            if transfer is not None and not transfer.is_over:
                self.cancel(transfer)
                arrived_bytes = size_bytes - transfer.left_bytes
            return arrived_bytes

    def fail(self, name: str) -> None:
        """Let a link go down: what is on it ends with what has arrived."""
        self._link(name)
        self._down.add(name)
        for transfer in list(self._users[name]):
            self.cut += 1
            self.cancel(transfer)

    def mend(self, name: str) -> None:
        """Let a link come up again."""
        self._link(name)
        if name in self._down:
            self._down.remove(name)
            self._mended.succeed()
            self._mended = self.environment.event()

    def send(self, path: Sequence[str], size_bytes: float, operations: int = 1) -> Transfer:
        """Send bytes along links by name; they flow once the operations are posted and the latency has passed.

        Alone on its path a transfer takes operations x the costliest operation_s + latencies + bytes / bandwidth.
        """
        links = [self._link(name) for name in path]
        if len(set(path)) < len(path):
            raise ValueError(f"path {' '.join(path)} passes a link twice")
        if not 0 <= size_bytes < inf:
            raise ValueError(f"cannot send {size_bytes} bytes; expected 0 or more")
        transfer = Transfer(self.environment, tuple(path), size_bytes)
        posting_s = operations * max((link.operation_s for link in links), default=0.0)
        delay_s = posting_s + sum(link.latency_s for link in links)
        if delay_s > 0:
            self._after(round(delay_s * PICOSECONDS_PER_SECOND), lambda: self._begin(transfer))
        else:
            self._begin(transfer)
        return transfer

    def cancel(self, transfer: Transfer) -> None:
        """End a transfer early; its event succeeds with what has arrived. One that is over stays as it is."""
        if not transfer.is_over:
            self._end(transfer)
            self._settle(transfer.path)

    def moved_bytes(self, transfer: Transfer) -> float:
        """Return the bytes of a transfer that have arrived by now."""
        since_s = (self.environment.now - transfer.settled_ps) / PICOSECONDS_PER_SECOND
        left_bytes = max(0.0, transfer.left_bytes - transfer.rate_bytes_per_s * since_s)
        return float(transfer.size_bytes - left_bytes)

    def flows(self, link: str) -> int:
        """Return the transfers that flow through a link."""
        self._link(link)
        return len(self._users[link])

    def free_bytes_per_s(self, link: str) -> float:
        """Return what is left of a link's capacity now."""
        self._link(link)
        capacity = self._capacity(link)
        return max(0.0, capacity - sum(each.rate_bytes_per_s for each in self._users[link]))

    def _link(self, name: str) -> Link:
        if name not in self.links:
            raise ValueError(f"the fabric has no link {name!r}{_nearest(name, self.links)}")
        return self.links[name]

    def _begin(self, transfer: Transfer) -> None:
        if transfer.is_over:
            return
        transfer.settled_ps = self.environment.now
        if not transfer.path or transfer.left_bytes == 0.0:
            transfer.left_bytes = 0.0
            self._end(transfer)
            return
        if not self._down.isdisjoint(transfer.path):  # while its operations were posted
            self.cut += 1
            self._end(transfer)
            return
        self._active[transfer] = None
        for name in transfer.path:
            self._users[name][transfer] = None
        self._settle(transfer.path)

    def _end(self, transfer: Transfer) -> None:
        """Take a transfer off its links, what it moved booked, and tell who waits for it."""
        self._book(transfer)
        self._active.pop(transfer, None)
        for name in transfer.path:
            self._users[name].pop(transfer, None)
        transfer.is_over, transfer.rate_bytes_per_s, transfer.end_ps = True, 0.0, inf
        transfer.succeed(transfer.size_bytes - transfer.left_bytes)

    def _book(self, transfer: Transfer) -> None:
        """Count what a transfer has moved since its rate was last set; all of it at its end."""
        now_ps = self.environment.now
        since_s = (now_ps - transfer.settled_ps) / PICOSECONDS_PER_SECOND
        moved_bytes = min(transfer.left_bytes, transfer.rate_bytes_per_s * since_s)
        if transfer.end_ps <= now_ps:
            moved_bytes = transfer.left_bytes
        transfer.left_bytes -= moved_bytes
        transfer.settled_ps = now_ps
        for name in transfer.path:
            self.carried_bytes[name] += moved_bytes

    def _settle(self, links: Iterable[str]) -> None:
        """Share the links anew among all flows that these reach through links in common, ending those that are done."""
        now_ps = self.environment.now
        if self._alarm_ps <= now_ps:  # something else is due at this very instant
            links = [name for name, users in self._users.items() if users]
        flows = self._reached(links)
        for flow in flows:
            if flow.end_ps <= now_ps:
                self._end(flow)
            else:
                self._book(flow)
        flows = [flow for flow in flows if not flow.is_over]
        self._capacities |= {name: self._capacity(name) for name in self._varying}
        for flow, rate in zip(flows, fair_shares([flow.path for flow in flows], self._capacities), strict=True):
            flow.rate_bytes_per_s = rate
            flow.end_ps = now_ps + ceil(flow.left_bytes / rate * PICOSECONDS_PER_SECOND) if rate > 0 else inf
        self._set_alarm()

    def _reached(self, links: Iterable[str]) -> list[Transfer]:
        """Return the flows that share links with these, with the flows on these, and so on."""
        seen, flows, queue = set(links), dict[Transfer, None](), deque(links)
        while queue:
            for flow in self._users[queue.popleft()]:
                if flow not in flows:
                    flows[flow] = None
                    fresh = [name for name in flow.path if name not in seen]
                    seen.update(fresh)
                    queue.extend(fresh)
        return list(flows)

    def _set_alarm(self) -> None:
        """Wake up at the next end of a flow or change of a capacity in use."""
        now_ps = self.environment.now
        next_ps = min((flow.end_ps for flow in self._active), default=inf)
        for name in self._varying:
            if self._users[name]:
                later = (from_ps for from_ps, _ in self._steps_ps[name] if from_ps > now_ps)
                next_ps = min(next_ps, next(later, inf))
        if next_ps < inf and next_ps != self._alarm_ps:
            self._after(int(next_ps) - now_ps, self._wake)
        self._alarm_ps = next_ps

    def _capacity(self, name: str) -> float:
        """Return the capacity of a link now [bytes/s]; before its first step, that of the first."""
        steps, now_ps = self._steps_ps[name], self.environment.now
        begun = [capacity for from_ps, capacity in steps if from_ps <= now_ps]
        return begun[-1] if begun else steps[0][1]

    def _wake(self) -> None:
        """Settle what is due; an alarm that was overtaken by another finds nothing."""
        if self.environment.now == self._alarm_ps:
            self._settle(())

    def _after(self, delay_ps: int, act: Any) -> None:
        self.environment.timeout(delay_ps).callbacks.append(lambda event: act())


def _in_ps(steps: Steps) -> tuple[tuple[int, float], ...]:
    return tuple((ceil(from_s * PICOSECONDS_PER_SECOND), capacity) for from_s, capacity in steps)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"
