"""Price: what one hour of one device costs, from which offer, and since when."""

import csv
import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from models import device, toml_file
from models.device import Device

CATALOGUE = Path(__file__).parent / "catalogue" / "prices.csv"
OWNERSHIP = Path(__file__).parent / "catalogue" / "ownership.toml"
LISTED_KINDS = ("on-demand", "spot", "reserved-1y", "reserved-3y")
KINDS = (*LISTED_KINDS, "owned")  # the last follows from a purchase price
PROVENANCES = ("listed", "assumed")
COLUMNS = (
    *("device", "usd_per_hour", "kind", "provider", "region", "instance", "devices_per_instance", "date"),
    *("provenance", "source"),
)
HOURS_PER_YEAR = 8760
WATTS_PER_KILOWATT = 1000


@dataclass(frozen=True, slots=True)
class Ownership:
    """The terms of owning devices: years to pay in, interest, power and the overhead on it (PUE), purchase prices."""

    years: float
    interest_per_year: float
    usd_per_kwh: float
    pue: float = 1.0
    capex_usd: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Price:
    """One offer: US dollars per hour and device; date is ISO 8601, to the precision the source has.

    provenance is listed (somebody offers it) or assumed (an estimate, its assumption told in source).
    """

    device: str
    usd_per_hour: float
    kind: str = "on-demand"
    provider: str = "own"
    region: str = ""
    instance: str = ""
    devices_per_instance: int = 1
    date: str = ""
    provenance: str = "listed"
    source: str = ""


def load(
    device_name: str, kind: str = "on-demand", path: Path | str | None = None, region: str | None = None
) -> Price | None:
    """Return the price of a device: the lowest of its kind in the list, a listed one before an assumed one.

    With a region only what is offered there counts.
    Spot rows of the catalogue are medians over the zones of a region, so that no single lucky zone sets the price.
    path is the user's own list, asked instead of the catalogue; None means that the list has no such price.
    ValueError names the file, line and column that are wrong, or the kinds there are.
    """
    if kind not in LISTED_KINDS:
        raise ValueError(f"unknown kind of price {kind!r}; known: {', '.join(LISTED_KINDS)}")
    offers = read(CATALOGUE if path is None else Path(path), own_devices=(device_name,))
    fitting = [offer for offer in offers if (offer.device, offer.kind) == (device_name, kind)]
    fitting = [offer for offer in fitting if region in (None, offer.region)]
    return min(fitting, key=_preference, default=None)


def read(path: Path, own_devices: Collection[str] = ()) -> tuple[Price, ...]:
    """Return all offers of a price list: CSV with at least the columns device and usd_per_hour.

    Devices are catalogue names or own_devices. ValueError names the file, line and column of the first flaw.
    """
    known = {*device.names(), *own_devices}
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        header = next(rows, None)
        if header is None:
            raise ValueError(f"{path}:1:1: empty price list; expected the columns device,usd_per_hour")
        _check_header(path, header)
        offers = (_offer(path, rows.line_num, header, row, known) for row in rows if row)
        return tuple(offers)


def owned_usd_per_hour(owned: Device, terms: Ownership | None = None) -> float | None:
    """Return what owning a device costs an hour, or None where its purchase price or power is unknown.

    The purchase is an annuity, capex * rate / (1 - (1 + rate)**-years), and it draws its TDP around the clock; host,
    rack and staff are left out. By default years, rate and electricity are the stated assumptions of ownership.toml.
    """
    terms = terms or _assumed_terms()
    capex_usd = terms.capex_usd.get(owned.name, owned.capex_usd)
    if capex_usd is None or owned.tdp_w is None:
        return None
    rate = terms.interest_per_year
    usd_per_year = capex_usd * rate / (1 - (1 + rate) ** -terms.years) if rate else capex_usd / terms.years
    return float(usd_per_year / HOURS_PER_YEAR + owned.tdp_w / WATTS_PER_KILOWATT * terms.pue * terms.usd_per_kwh)


def _assumed_terms() -> Ownership:
    with OWNERSHIP.open("rb") as file:
        terms = tomllib.load(file)
    return Ownership(terms["years"], terms["interest_per_year"], terms["usd_per_kwh"])


def _preference(offer: Price) -> tuple[bool, float, str, str, str]:
    return offer.provenance == "assumed", offer.usd_per_hour, offer.provider, offer.instance, offer.region


def _check_header(path: Path, header: list[str]) -> None:
    for number, column in enumerate(header, 1):
        if column not in COLUMNS:
            raise ValueError(f"{path}:1:{number}: unknown column {column!r}; known: {', '.join(COLUMNS)}")
    missing = [column for column in ("device", "usd_per_hour") if column not in header]
    if missing:
        raise ValueError(f"{path}:1:1: missing column {', '.join(missing)}; found: {', '.join(header)}")


def _offer(path: Path, line: int, header: list[str], row: list[str], known: Collection[str]) -> Price:
    if len(row) != len(header):
        raise ValueError(f"{path}:{line}:{len(row)}: {len(row)} columns where the header has {len(header)}")
    cells = {column: cell.strip() for column, cell in zip(header, row, strict=True) if cell.strip()}

    def flaw(column: str, message: str) -> ValueError:
        return ValueError(f"{path}:{line}:{header.index(column) + 1}: {message}")

    if cells.get("device") not in known:
        raise flaw("device", str(toml_file.unknown_name("device", cells.get("device", ""), known)))
    for column, choices in (("kind", LISTED_KINDS), ("provenance", PROVENANCES)):
        if cells.get(column, choices[0]) not in choices:
            raise flaw(column, f"{column} {cells[column]!r} is none of {', '.join(choices)}")
    usd_per_hour = _positive(cells.get("usd_per_hour", ""))
    if usd_per_hour is None:
        raise flaw("usd_per_hour", f"usd_per_hour must be a positive number, not {cells.get('usd_per_hour', '')!r}")
    devices_per_instance = _positive(cells.pop("devices_per_instance", "1"))
    if devices_per_instance is None or devices_per_instance % 1:
        raise flaw("devices_per_instance", "devices_per_instance must be a positive whole number")
    del cells["usd_per_hour"]
    return Price(**cells, usd_per_hour=usd_per_hour, devices_per_instance=int(devices_per_instance))  # type: ignore[arg-type]


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
