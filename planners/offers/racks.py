"""Racks: which nodes there are, what power they share, and what of a fleet they can hold, as limits on its replicas.

A replica fits on one node, which is one NVLink domain. Sizes of replicas are powers of two, so that larger ones take
room from smaller ones without waste, and nodes of b devices hold replicas of s devices or more if and only if

    sum over replicas of >= s devices of their devices  <=  s * sum over nodes of floor(b / s)        for every s.

Where nodes of several kinds share a rack's power P, what kinds D together draw is at most the sum over racks of
min(P, what all their nodes of D would draw): for divisible nodes that is enough, too (Hall's condition of transport).
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planners.search.fluid import Limit

if TYPE_CHECKING:
    from planners.offers.engines import Offer

MOST_KINDS = 8  # that share racks: every set of them gives a row


@dataclass(frozen=True, slots=True)
class Rack:
    """Nodes by device, each by how many devices it has; together they may draw power_w. A zone is a name."""

    nodes: Mapping[str, tuple[int, ...]]
    power_w: float = math.inf
    zone: str = ""

    def powered(self, device: str, tdp_w: float) -> list[int]:
        """Return the devices of each node of a kind that there is power for, the largest nodes first."""
        left = math.floor(self.power_w / tdp_w) if math.isfinite(self.power_w) else sum(self.nodes.get(device, ()))
        sizes = []
        for size in sorted(self.nodes.get(device, ()), reverse=True):
            sizes.append(min(size, left))
            left -= sizes[-1]
        return sizes


def rows(racks: "Sequence[Rack]", offers: "Sequence[Offer]") -> Iterator[Limit]:
    """Yield the limits on replicas [engine] of some offers; devices that stand in no rack cannot be had.

    ValueError where power is limited and that of a device is not known.
    """
    devices = [offer.priced.engine.devices if offer.priced.engine else 1 for offer in offers]
    tdp_w = _tdp_w(racks, offers)
    for kind in sorted(tdp_w):
        own = [count * (offer.device_name == kind) for count, offer in zip(devices, offers, strict=True)]
        rooms = [size for rack in racks for size in rack.powered(kind, tdp_w[kind])]
        for size in sorted({count for count in own if count}):
            most = size * sum(room // size for room in rooms)
            weights = tuple(float(count * (count >= size)) for count in own)
            yield Limit(f"at most {most} x {kind} on nodes for {size} or more together", weights, float(most))
    drawn_w = [count * tdp_w[offer.device_name] for count, offer in zip(devices, offers, strict=True)]
    for some in _sharing(racks, sorted(tdp_w)):
        most_w = sum(
            min(rack.power_w, sum(tdp_w[kind] * sum(rack.nodes.get(kind, ())) for kind in some)) for rack in racks
        )
        weights = tuple(watts * (offer.device_name in some) for watts, offer in zip(drawn_w, offers, strict=True))
        yield Limit(f"at most {most_w:g} W for {' and '.join(some)} in their racks", weights, most_w)


def _sharing(racks: "Sequence[Rack]", kinds: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield the sets of kinds of which some share a rack's limited power."""
    shared = set()
    for rack in racks:
        own = [kind for kind in kinds if kind in rack.nodes]
        shared |= set(own) if math.isfinite(rack.power_w) and len(own) > 1 else set()
    if len(shared) > MOST_KINDS:
        raise ValueError(f"{len(shared)} kinds of devices share the power of racks; at most {MOST_KINDS} may")
    for size in range(2, len(shared) + 1):
        yield from itertools.combinations(sorted(shared), size)


def _tdp_w(racks: "Sequence[Rack]", offers: "Sequence[Offer]") -> dict[str, float]:
    """Return what a device of each kind draws; 1 where no rack's power is limited."""
    is_limited = any(math.isfinite(rack.power_w) for rack in racks)
    found = {}
    for offer in offers:
        device = offer.priced.engine.device if offer.priced.engine else None
        tdp_w = device.tdp_w if device is not None and is_limited else 1.0
        if tdp_w is None:
            raise ValueError(f"the power of a rack needs the TDP of {offer.device_name!r}, which is not known")
        found[offer.device_name] = tdp_w
    return found
