"""AIBrix: requests go where their prefix is cached while lanes are even, replicas share a KV pool, APA scales."""

from collections import deque
from collections.abc import Sequence
from math import inf

from simulator.control.autoscalers import apa, target_tracking
from simulator.control.plane import Controller, Plane, Routing
from simulator.control.replicas import AT_ONCE, Startup
from simulator.control.routers import prefix_aware
from simulator.control.scaling import Metric, autoscale, concurrency
from simulator.fleet import Fleet, Pool, PricedEngine
from simulator.tier import Tier

LOOK_EVERY_S = 15.0  # as Kubernetes' controller does


def fleet(engine: PricedEngine, replicas: int, router: str = "prefix-aware") -> Fleet:
    """Return equal replicas behind AIBrix's prefix router, which the data plane has, or behind another."""
    return Fleet((Pool(engine, replicas),), router)


def pooled(engine: PricedEngine, replicas: int, pool: Tier, router: str = "prefix-aware") -> Fleet:
    """Return replicas whose prefix caches lie above one KV pool that all of them write to and read from."""
    return Fleet((Pool(engine, replicas, tiers=(pool,)),), router)


def unguarded() -> Routing:
    """Go where most of the prompt is cached, however many requests are there."""
    return prefix_aware(most_apart=inf, deviations=inf)


def guarded(most_apart: float = 8, deviations: float = 1.0) -> Routing:
    """Go by caches while the fullest lane has so many requests more than the emptiest, at most."""
    return prefix_aware(most_apart, deviations)


def scaled_by_apa(target: float, initial: int, start: Startup = AT_ONCE, window_s: float = 0.0) -> Controller:
    """Keep the requests in flight per replica, now or as a mean, at a target with AIBrix's autoscaler."""
    metric = averaged(concurrency, window_s)
    return autoscale(0, apa(target), metric, every_s=LOOK_EVERY_S, start=start, initial=initial)


def scaled_by_hpa(
    target: float, initial: int, start: Startup = AT_ONCE, window_s: float = 0.0, stabilisation_s: float = 300.0
) -> Controller:
    """Keep the requests in flight per replica, now or as a mean, at a target with Kubernetes' autoscaler."""
    policy, metric = target_tracking(target, stabilisation_s=stabilisation_s), averaged(concurrency, window_s)
    return autoscale(0, policy, metric, every_s=LOOK_EVERY_S, start=start, initial=initial)


def averaged(metric: Metric, window_s: float) -> Metric:
    """Return the mean of a metric as read over a window up to now."""
    read: deque[tuple[float, float]] = deque()

    def mean(plane: Plane, lanes: Sequence[int]) -> float:
        read.append((plane.now_s, metric(plane, lanes)))
        while read[0][0] < plane.now_s - window_s:
            read.popleft()
        return sum(value for _, value in read) / len(read)

    return mean
