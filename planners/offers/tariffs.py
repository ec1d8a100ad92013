"""What devices cost: at which kinds of price, by whose list, owned on what terms, and what their carbon costs."""

from collections.abc import Mapping
from dataclasses import dataclass

from models import price
from models.device import Device
from models.price import WATTS_PER_KILOWATT, Ownership, Price

ON_DEMAND = "on-demand"
OWNED = "owned"


@dataclass(frozen=True, slots=True)
class Carbon:
    """What a kilowatt-hour of the grid emits, the data centre's overhead on it (PUE), and what a kilogram costs."""

    kg_per_kwh: float
    pue: float = 1.0
    usd_per_kg: float = 0.0

    def kg_per_hour(self, device: Device, devices: int = 1) -> float:
        """Return what devices emit that draw their TDP around the clock; ValueError where that is not known."""
        if device.tdp_w is None:
            raise ValueError(f"carbon needs the TDP of {device.name!r}, which is not known")
        return devices * device.tdp_w / WATTS_PER_KILOWATT * self.pue * self.kg_per_kwh


@dataclass(frozen=True, slots=True)
class Tariff:
    """The kinds of price to choose from, a price list instead of the catalogue's, terms of owning, carbon, a region.

    With a region, only what the list offers there can be had, or what is owned.
    """

    kinds: tuple[str, ...] = (ON_DEMAND,)
    price_list: str | None = None
    ownership: Ownership | None = None
    carbon: Carbon | None = None
    region: str | None = None

    def price(self, device: Device, kind: str) -> Price | None:
        """Return the price of a device at a kind, None where there is none."""
        if kind != OWNED:
            return price.load(device.name, kind, self.price_list, self.region)
        usd_per_hour = price.owned_usd_per_hour(device, self.ownership)
        terms = "ownership of plan.yaml" if self.ownership else "ownership.toml"
        return (
            None
            if usd_per_hour is None
            else Price(device.name, usd_per_hour, OWNED, provenance="assumed", source=terms)
        )

    def prices(self, device: Device) -> Mapping[str, Price]:
        """Return the prices of a device by kind; those there are."""
        found = {kind: self.price(device, kind) for kind in self.kinds}
        return {kind: one for kind, one in found.items() if one is not None}

    def carbon_usd_per_hour(self, device: Device) -> float:
        """Return what a device's carbon costs."""
        if self.carbon is None or not self.carbon.usd_per_kg:
            return 0.0
        return self.carbon.usd_per_kg * self.carbon.kg_per_hour(device)


LISTED = Tariff()
