"""Autoscaling: a controller that reads a metric of a pool and keeps the replicas that an autoscaler wants."""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from simulator.control.autoscalers import Autoscaler, Reading
from simulator.control.freeness import freeness
from simulator.control.plane import Controller, Plane, Process
from simulator.control.replicas import AT_ONCE, Drain, Replicas, Spot, Startup, drain_by_waiting
from simulator.layout import COMING, TELL_HELD

MEMORY_S = 3600.0  # of readings

Metric = Callable[[Plane, Sequence[int]], float]


def concurrency(plane: Plane, lanes: Sequence[int]) -> float:
    """Return the requests at the lanes and at the gateway."""
    return float(plane.view().outstanding[list(lanes)].sum()) + plane.held_for(lanes)


def waiting(plane: Plane, lanes: Sequence[int]) -> float:
    """Return the requests in the lanes' queues and at the gateway."""
    return float(plane.view().waiting[list(lanes)].sum()) + plane.held_for(lanes)


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
            if replicas.wanted == 0 and plane.serves(number)[plane.lanes_of(pool)].any():
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
