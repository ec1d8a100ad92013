"""Prefill as a service: long prompts are prefilled in another datacenter, and their KV comes back over a thin link."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.control.fabric import Fabric, Link, both_ways
from simulator.control.migration import LAYERWISE, Send, handing_over
from simulator.control.plane import Controller, Plane, Router, Routing
from simulator.fleet import Fleet, Pool, PricedEngine
from simulator.layout import PREFILL

Floats = npt.NDArray[np.float64]
Seconds = Callable[[Floats], Floats]  # of prompts of so many tokens

STATE_BYTES = 172 * 2**20  # of linear attention, whatever the length (fit of the published sizes)


@dataclass(frozen=True, slots=True)
class Service:
    """What the closed form knows: prefill times far and near, KV sizes, what a decode instance ends, and the link."""

    far_s: Seconds
    near_s: Seconds
    kv_bytes: Seconds
    decoded_per_s: float  # requests that one decode instance ends
    link_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Split:
    """Instances that prefill far and near and that decode, and the length above which prompts go far."""

    far: int
    prefill: int
    decode: int
    longest_near: float


@dataclass(frozen=True, slots=True)
class Rates:
    """Requests per second: of each part by itself, over the link, and of the whole."""

    far: float
    prefill: float
    decode: float
    whole: float
    far_share: float
    egress_bytes_per_s: float


def rates(service: Service, split: Split, prompts: Floats) -> Rates:
    """Return what a split carries of prompts drawn from a law (PrfaaS, eq. of Theta and Lambda)."""
    is_long = prompts > split.longest_near
    far_share = float(is_long.mean())
    far = prefill = np.inf
    mean_bytes = 0.0
    if far_share > 0:
        mean_bytes = float(service.kv_bytes(prompts[is_long]).mean())
        far = min(split.far / float(service.far_s(prompts[is_long]).mean()), service.link_bytes_per_s / mean_bytes)
    if far_share < 1:
        prefill = split.prefill / float(service.near_s(prompts[~is_long]).mean())
    decode = split.decode * service.decoded_per_s
    parts = (far / far_share if far_share else np.inf, prefill / (1 - far_share) if far_share < 1 else np.inf, decode)
    whole = float(min(parts))
    return Rates(far, prefill, decode, whole, far_share, whole * far_share * mean_bytes)


def best_split(service: Service, far: int, near: int, prompts: Floats, lengths: Floats) -> tuple[Split, Rates]:
    """Return the split of the near instances and the length that carry most; where two carry alike, the longer one."""
    found = [
        Split(far, prefill, near - prefill, float(length))
        for length in lengths
        for prefill in range(0 if length <= prompts.min() else 1, near)
    ]
    carried = [rates(service, each, prompts) for each in found]
    best = max(range(len(found)), key=lambda each: (carried[each].whole, found[each].longest_near))
    return found[best], carried[best]


def fleet(far: PricedEngine, near: PricedEngine, decode: PricedEngine, split: Split) -> Fleet:
    """Return the instances of both datacenters; those that decode come last."""
    pools = ((far, split.far, "prefill"), (near, split.prefill, "prefill"), (decode, split.decode, "decode"))
    return Fleet(tuple(Pool(engine, count, role=role) for engine, count, role in pools if count))


def by_length(split: Split) -> Routing:
    """Send prompts above the length to the far datacenter, the others to the near one; there to the shortest queue."""

    def routing(plane: Plane) -> Router:
        front = np.flatnonzero(plane.lanes["role"] == PREFILL)
        is_far = plane.lanes["pool"][front] == 0 if split.far else np.zeros(front.size, bool)
        sides = {True: front[is_far], False: front[~is_far]}

        def route(request, view):  # type: ignore[no-untyped-def]
            is_long = request.input_tokens > split.longest_near and split.far > 0
            lanes = sides[is_long or not split.prefill]
            return int(lanes[view.outstanding[lanes].argmin()])

        return route

    return routing


def over_the_link(split: Split, wan: Link, layer_bytes_per_s: float) -> tuple[Controller, list[Fabric]]:
    """Return the hand-over of KV, layer by layer, the far datacenter's over one shared link; and its fabric to come."""
    fabrics: list[Fabric] = []

    def wire(plane: Plane) -> Send:
        fabric = Fabric(plane.environment, (wan, *both_ways("site", "decode", 400e9)))
        fabrics[:] = [fabric]

        def send(source: int, to: int, size_bytes: float, operations: int):  # type: ignore[no-untyped-def]
            is_far = split.far and plane.lanes["pool"][source] == 0
            return fabric.send((wan.name,) if is_far else ("site>decode",), size_bytes + STATE_BYTES)

        return send

    return handing_over(wire, LAYERWISE, hides_bytes_per_s=layer_bytes_per_s), fabrics
