"""What a fleet may be: devices that can be had, racks, a budget, power, vendors, spot capacity, and what may fail."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from planners.demand import Market
from planners.offers.engines import Offer
from planners.offers.racks import Rack
from planners.offers.racks import rows as rack_rows
from planners.offers.tariffs import Carbon
from planners.search.fluid import Limit
from planners.search.rehearsal import Candidate

Array = npt.NDArray[np.float64]

SLACK = 1e-9  # relative


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the whole fleet; those left out do not bind.

    devices_at_most: by device name, how many can be had. power_w_at_most counts the devices' TDP.
    vendor_share_at_least: by vendor, a fraction of the cost. spot_share_at_most: the fraction of the fleet's capacity,
    each replica counted by what it carries of the trace, that may be spot. spare: so many replicas of any pools may
    fail together and every promise still holds. zones: every pool is spread over so many as evenly as can be, and any
    one of them may fail. spot_spare: so many spot replicas of any pools may be taken away together, also beside those.
    racks say which nodes there are and the power they share; none leaves nodes unlimited. carbon says what the grid
    emits; devices draw their TDP all the time.
    """

    devices_at_most: Mapping[str, int] = field(default_factory=dict)
    usd_per_hour_at_most: float = math.inf
    power_w_at_most: float = math.inf
    vendor_share_at_least: Mapping[str, float] = field(default_factory=dict)
    spot_share_at_most: float = 1.0
    carbon_kg_per_hour_at_most: float = math.inf
    spare: int = 0
    zones: int = 1
    spot_spare: int = 0
    racks: tuple[Rack, ...] = ()
    carbon: Carbon | None = None

    def rows(self, market: Market) -> tuple[Limit, ...]:
        """Return the limits as rows over replicas [engine] of a market; ValueError where a limit cannot be counted."""
        return tuple(self._rows(market))

    def _rows(self, market: Market) -> Iterator[Limit]:
        offers = market.offers
        devices = [offer.priced.engine.devices if offer.priced.engine else 1 for offer in offers]
        for name, most in sorted(self.devices_at_most.items()):
            weights = [count * (offer.device_name == name) for count, offer in zip(devices, offers, strict=True)]
            yield _limit(f"at most {most} x {name}", weights, most)
        if self.racks:
            yield from rack_rows(self.racks, offers)
        for place, offer in enumerate(offers):
            if offer.most is not None:
                only = [float(other == place) for other in range(len(offers))]
                yield _limit(f"at most {offer.most} x {offer.short_name}", only, offer.most)
            if offer.least:
                less = [-float(other == place) for other in range(len(offers))]
                yield _limit(f"at least {offer.least} x {offer.short_name}", less, -offer.least)
        if math.isfinite(self.usd_per_hour_at_most):
            running = market.usd_per_hour - np.array([offer.change_usd_per_hour for offer in offers])
            yield _limit(f"at most {self.usd_per_hour_at_most:g} USD/h", running, self.usd_per_hour_at_most)
        if math.isfinite(self.power_w_at_most):
            watts = [_tdp_w(offer) for offer in offers]
            yield _limit(f"at most {self.power_w_at_most:g} W of TDP", watts, self.power_w_at_most)
        if math.isfinite(self.carbon_kg_per_hour_at_most):
            kilograms = [_carbon_kg(offer, self.carbon) for offer in offers]
            most_kg = self.carbon_kg_per_hour_at_most
            yield _limit(f"at most {most_kg:g} kg/h of carbon dioxide", kilograms, most_kg)
        for vendor, least in sorted(self.vendor_share_at_least.items()):
            own = np.array([_vendor(offer).lower() == vendor.lower() for offer in offers])
            yield _limit(f"at least {least:.0%} of the cost from {vendor}", market.usd_per_hour * (least - own), 0.0)
        if self.spot_share_at_most < 1.0:
            spot = np.array([offer.is_spot for offer in offers])
            with np.errstate(divide="ignore"):
                carried = np.where(np.isfinite(market.load), 1 / market.load, 0.0)
            share = self.spot_share_at_most
            yield _limit(f"at most {share:.0%} of the capacity on spot", carried * (spot - share), 0.0)

    def degraded(self, market: Market, chosen: Candidate) -> Iterator[Candidate]:
        """Yield what is left of a candidate after every failure that it has to survive."""
        counts = [count for _, count in chosen.pools]
        spot = [pool for pool, (engine, _) in enumerate(chosen.pools) if market.offers[engine].is_spot]
        seen = {tuple(counts)}
        for failed in itertools.combinations_with_replacement(range(len(counts)), self.spare):
            for taken in itertools.combinations_with_replacement(spot, self.spot_spare if spot else 0):
                left = [count - failed.count(pool) - taken.count(pool) for pool, count in enumerate(counts)]
                yield from self._left(chosen, left, seen)
        if self.zones > 1:
            yield from self._left(chosen, [count - math.ceil(count / self.zones) for count in counts], seen)

    def _left(self, chosen: Candidate, left: list[int], seen: set[tuple[int, ...]]) -> Iterator[Candidate]:
        if min(left) >= 0 and tuple(left) not in seen:
            seen.add(tuple(left))
            yield _left_over(chosen, left)


def keeps(rows: Sequence[Limit], replicas: npt.ArrayLike) -> bool:
    """Say whether replicas [engine] keep every limit."""
    counts = np.asarray(replicas, np.float64)
    return all(float(np.dot(row.weights, counts)) <= row.most + SLACK * max(1.0, abs(row.most)) for row in rows)


def overruns(rows: Sequence[Limit], replicas: npt.ArrayLike) -> tuple[str, ...]:
    """Return in words which limits replicas [engine] overrun, and by how much."""
    counts = np.asarray(replicas, np.float64)
    return tuple(
        f"{row.name} would have to be {float(np.dot(row.weights, counts)) - row.most:.3g} more"
        for row in rows
        if not keeps([row], counts)
    )


def _left_over(chosen: Candidate, left: list[int]) -> Candidate:
    """Return the candidate with fewer replicas; a lost pool's share goes to the others, as theirs or else evenly.

    Pools that take no prompt at all, as those that only decode, get none then, either.
    """
    kept = [pool for pool, count in enumerate(left) if count]
    takes = [float(any(row[pool] > 0 for row in chosen.shares)) for pool in kept]
    shares = []
    for row in chosen.shares:
        own = [row[pool] for pool in kept]
        own = own if sum(own) > 0 else takes if sum(takes) > 0 else [1.0] * len(kept)
        shares.append(tuple(share / sum(own) for share in own))
    pools = tuple((chosen.pools[pool][0], left[pool]) for pool in kept)
    return replace(chosen, pools=pools, shares=tuple(shares))


def _limit(name: str, weights: Sequence[float] | Array, most: float) -> Limit:
    return Limit(name, tuple(float(weight) for weight in weights), float(most))


def _tdp_w(offer: Offer) -> float:
    engine = offer.priced.engine
    if engine is None or engine.device.tdp_w is None:
        raise ValueError(f"a limit on power needs the TDP of {offer.device_name!r}, which is not known")
    return engine.devices * engine.device.tdp_w


def _carbon_kg(offer: Offer, carbon: Carbon | None) -> float:
    engine = offer.priced.engine
    if engine is None or carbon is None:
        raise ValueError("a limit on carbon needs catalogue devices, and what the grid emits: carbon.kg_per_kwh")
    return carbon.kg_per_hour(engine.device, engine.devices)


def _vendor(offer: Offer) -> str:
    engine = offer.priced.engine
    return engine.device.vendor if engine else ""
