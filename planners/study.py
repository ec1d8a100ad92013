"""plan.yaml: what is to be planned, written down once; its smallest form is trace, model and slo."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from models.toml_file import unknown_name
from planners import marked_yaml
from planners.strict import strict

if TYPE_CHECKING:
    from planners.offers.engines import Variants
    from planners.offers.limits import Limits
    from planners.offers.racks import Rack
    from planners.offers.tariffs import Carbon, Tariff

FILE = "plan.yaml"
SCHEMA_FILE = "plan.schema.json"

_USD_PER_HOUR = re.compile(r"\$?\s*(?P<usd>[0-9]+(\.[0-9]+)?)\s*(USD)?\s*(/\s*h(our)?)?", re.IGNORECASE)


@strict
@dataclass(frozen=True, slots=True)
class Engines:
    """What of the engines on offer may vary: dtypes of weights and of KV, ranks that share experts, drafts as 3:0.7.

    "native" is the format of the published weights; "none" among speculative ones drafts nothing.
    """

    dtypes: tuple[str, ...] = ("native", "bf16", "fp8")
    kv_dtypes: tuple[str, ...] = ("bf16",)
    dp: tuple[int, ...] = (1,)
    speculative: tuple[str, ...] = ("none",)

    @property
    def variants(self) -> "Variants":
        """Return them as the planner takes them; ValueError names one that cannot be read."""
        from models import dtype, speculation
        from planners.offers.engines import Variants

        for ranks in self.dp:
            if ranks < 1:
                raise ValueError(f"dp must be at least 1, not {ranks}")
        if not (self.dtypes and self.kv_dtypes and self.dp and self.speculative):
            raise ValueError("of dtypes, kv_dtypes, dp and speculative, each needs at least one")
        drafts = tuple(None if text == "none" else speculation.parse(text) for text in self.speculative)
        weights = tuple(name if name == dtype.NATIVE else dtype.canonical(name) for name in self.dtypes)
        return Variants(weights, tuple(map(dtype.canonical, self.kv_dtypes)), self.dp, drafts)


@strict
@dataclass(frozen=True, slots=True)
class Keeping:
    """A fleet that is there, by its plan.json; a replica added or removed costs usd_per_change, spread over hours."""

    plan: str | None = None
    usd_per_change: float = 0.0
    hours: float = 720.0

    def check(self) -> None:
        """Raise ValueError for a cost below 0, or hours that are not above it."""
        if not (0 <= self.usd_per_change < float("inf")):
            raise ValueError(f"usd_per_change must be from 0 on, not {self.usd_per_change:g}")
        if not self.hours > 0:
            raise ValueError(f"hours must be above 0, not {self.hours:g}")


@strict
@dataclass(frozen=True, slots=True)
class Owned:
    """The terms of devices that are bought: a purchase price of one's own by device, else the catalogue's."""

    years: float = 4.0
    interest_per_year: float = 0.08
    usd_per_kwh: float = 0.40
    pue: float = 1.0
    capex_usd: Mapping[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ValueError for terms that nobody has."""
        from models import device

        for name in self.capex_usd:
            device.load(name)
        if not (self.years > 0 and self.interest_per_year >= 0 and self.usd_per_kwh >= 0 and self.pue >= 1):
            raise ValueError("expected years above 0, interest_per_year and usd_per_kwh from 0 on, and pue from 1 on")


@strict
@dataclass(frozen=True, slots=True)
class Emissions:
    """What the grid emits, the data centre's overhead on power (PUE), and what a kilogram costs; none by default."""

    kg_per_kwh: float = 0.0
    pue: float = 1.0
    usd_per_kg: float = 0.0

    def check(self) -> None:
        """Raise ValueError for what cannot be."""
        if not (self.kg_per_kwh >= 0 and self.usd_per_kg >= 0 and self.pue >= 1):
            raise ValueError("expected kg_per_kwh and usd_per_kg from 0 on, and pue from 1 on")


@strict
@dataclass(frozen=True, slots=True)
class RackFacts:
    """A rack: by device the sizes of its nodes, each one NVLink domain, the power for all of them, and its zone."""

    nodes: Mapping[str, tuple[int, ...]]
    power_w: float | None = None
    zone: str = ""

    @property
    def rack(self) -> "Rack":
        """Return it as the planner takes it; ValueError for unknown devices, empty nodes, no power."""
        from models import device
        from planners.offers.racks import Rack

        for name, sizes in self.nodes.items():
            device.load(name)
            if min(sizes, default=1) < 1:
                raise ValueError(f"a node of {name} must have at least 1 device, not {min(sizes)}")
        if self.power_w is not None and not self.power_w > 0:
            raise ValueError(f"power_w must be above 0, not {self.power_w:g}")
        return Rack(self.nodes, float("inf") if self.power_w is None else self.power_w, self.zone)


@strict
@dataclass(frozen=True, slots=True)
class Study:
    """What is planned: a trace (null for the bundled sample), a model, promises, and what there is to choose from.

    prices are per device and hour, as 2.99 or "$2.99/h"; a device without one is taken from the price list, at the
    kinds of price named (on-demand, spot). limits are on the whole fleet: usd_per_hour, power_w, spot_share, spare
    (replicas that may fail), spot_spare (spot replicas that may be taken away at once), zones (of which any may fail),
    devices.NAME (how many there are), vendor.NAME (least share of the cost). racks are the nodes there are. engines
    says in what engines may vary beside their cut. classes name requests by rules, as input_tokens<2000, for promises
    to them, as chat/ttft:p99<=1s; where there are none, the trace's column slo_class names them. keep names a
    fleet that is there, and what changing it costs. price_list is a CSV as of `plan prices`; kinds are on-demand, spot,
    reserved-1y, reserved-3y, and owned on the terms of owned. carbon has a price, or a limit: carbon_kg_per_hour.
    """

    model: str
    slo: tuple[str, ...]
    trace: str | None = None
    devices: tuple[str, ...] | None = None
    prices: Mapping[str, float | str] = field(default_factory=dict)
    kinds: tuple[str, ...] = ("on-demand",)
    limits: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    engines: Engines = field(default_factory=Engines)
    classes: Mapping[str, str] = field(default_factory=dict)
    keep: Keeping = field(default_factory=Keeping)
    price_list: str | None = None
    owned: Owned = field(default_factory=Owned)
    carbon: Emissions = field(default_factory=Emissions)
    racks: Mapping[str, RackFacts] = field(default_factory=dict)

    @property
    def limits_on_fleet(self) -> "Limits":
        """Return the limits as the planner takes them; ValueError names what cannot be read."""
        found = limits_of(self.limits, self.emission)
        return replace(found, racks=tuple(each.rack for each in self.racks.values()))

    @property
    def tariff(self) -> "Tariff":
        """Return what devices cost, where there is no price of one's own."""
        from models.price import Ownership
        from planners.offers.tariffs import Tariff

        owned = Ownership(**asdict(self.owned))
        return Tariff(self.kinds, self.price_list, owned, self.emission)

    @property
    def emission(self) -> "Carbon | None":
        """Return what the power of devices emits; None where nothing is said of it."""
        from planners.offers.tariffs import Carbon

        return Carbon(**asdict(self.carbon)) if self.carbon.kg_per_kwh else None

    @property
    def usd_per_device_hour(self) -> dict[str, float]:
        """Return the prices as numbers; ValueError names one that cannot be read."""
        return {device: usd_per_hour(price) for device, price in self.prices.items()}


def read(path: str | Path) -> Study:
    """Return the study in a file; a relative trace or model path is seen from the file's folder.

    ValueError lists every mistake with its place.
    """
    study = marked_yaml.read(path, Study)
    found = mistakes(study, str(path), Path(path).read_text(encoding="utf-8"))
    if found:
        raise ValueError("\n".join(found))
    return seen_from(path, study)


def mistakes(study: Study, file: str, text: str, place: marked_yaml.Place = ()) -> list[str]:
    """Return every mistake in the values of a study that stands at a place of a file."""
    found = []
    for key, check in _CHECKS.items():
        try:
            check(study)
        except ValueError as error:
            where = (*place, key)
            found.append(f"{marked_yaml.place_of(file, text, where)}: {'.'.join(map(str, where))}: {error}")
    return found


def seen_from(file: str | Path, study: Study) -> Study:
    """Return the study with paths of trace and model, where they are relative, as seen from a file's folder."""
    paths = {key: seen_from_file(file, getattr(study, key)) for key in ("trace", "model", "price_list")}
    return changed(study, {**paths, "keep": replace(study.keep, plan=seen_from_file(file, study.keep.plan))})


def seen_from_file(file: str | Path, name: str | None) -> str | None:
    """Return a relative path as seen from a file's folder, where something is there."""
    if name is None or Path(name).is_absolute():
        return name
    seen = Path(file).parent / name
    return str(seen) if seen.exists() else name


def changed(study: Study, changes: Mapping[str, Any]) -> Study:
    """Return the study with fields replaced."""
    return Study(**{name: changes.get(name, getattr(study, name)) for name in Study.__slots__})


def with_settings(study: Study, settings: Sequence[str]) -> Study:
    """Return the study after settings like "seed=3" or "prices.l4=0.5"; a key must exist, the last one wins.

    Values are read as YAML; ValueError names the key that is unknown or the value that does not fit.
    """
    content = asdict(study)
    for setting in settings:
        path, is_given, value = setting.partition("=")
        keys = path.strip().split(".", 1)
        if not is_given:
            raise ValueError(f"--set {setting}: expected KEY=VALUE with KEY one of {', '.join(content)}")
        if keys[0] not in content:
            raise ValueError(f"--set {setting}: {unknown_name('key', keys[0], content)}")
        if len(keys) == 2 and not isinstance(content[keys[0]], dict):
            raise ValueError(f"--set {setting}: {keys[0]} has no parts")
        where = content if len(keys) == 1 else content[keys[0]]
        where[keys[-1]] = yaml.safe_load(value)
    study = marked_yaml.parse("--set", json.dumps(content), Study)
    for check in _CHECKS.values():
        check(study)
    return study


def schema() -> dict[str, Any]:
    """Return the JSON Schema of plan.yaml, for editors."""
    from pydantic import TypeAdapter

    found = TypeAdapter(Study).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": FILE, **found}


def limits_of(written: Mapping[str, float], carbon: "Carbon | None" = None) -> "Limits":
    """Return the limits that a study names; ValueError says which there are.

    >>> limits_of({"devices.l4": 8, "spare": 1}).devices_at_most
    {'l4': 8}
    """
    from planners.offers.limits import Limits

    plain = {key: f"{key}_at_most" for key in ("usd_per_hour", "power_w", "spot_share", "carbon_kg_per_hour")}
    counts = ("spare", "spot_spare", "zones")
    found: dict[str, Any] = {"devices_at_most": {}, "vendor_share_at_least": {}, "carbon": carbon}
    if "carbon_kg_per_hour" in written and carbon is None:
        raise ValueError("a limit on carbon_kg_per_hour needs carbon.kg_per_kwh, what the grid emits")
    for key, value in written.items():
        kind, _, name = key.partition(".")
        if key in plain:
            found[plain[key]] = value
        elif key in counts:
            if value != int(value) or value < (key == "zones"):
                raise ValueError(f"{key} must be a whole number from {int(key == 'zones')} on, not {value:g}")
            found[key] = int(value)
        elif kind == "devices" and name:
            found["devices_at_most"][name] = int(value)
        elif kind == "vendor" and name:
            found["vendor_share_at_least"][name] = value
        else:
            known = ", ".join((*plain, *counts, "devices.NAME", "vendor.NAME"))
            raise ValueError(f"unknown limit {key!r}; known: {known}")
    return Limits(**found)


def usd_per_hour(price: float | str) -> float:
    """Return a price in USD per hour.

    >>> usd_per_hour("$2.99/h"), usd_per_hour(3)
    (2.99, 3.0)
    """
    if isinstance(price, str):
        found = _USD_PER_HOUR.fullmatch(price.strip())
        if found is None:
            raise ValueError(f'cannot read the price {price!r}; expected USD per device-hour, as 2.99 or "$2.99/h"')
        price = float(found["usd"])
    if price <= 0:
        raise ValueError(f"price {price:g} is not above 0")
    return float(price)


def _check_model(study: Study) -> None:
    from models import llm

    if "/" not in study.model and not study.model.endswith((".json", ".toml")):
        llm.load(study.model)


def _check_slo(study: Study) -> None:
    from planners.slo import parse_all

    parse_all(study.slo)


def _check_devices(study: Study) -> None:
    from models import device

    for name in study.devices or ():
        device.load(name)


def _check_prices(study: Study) -> None:
    from models import device

    for name in study.prices:
        device.load(name)
    _ = study.usd_per_device_hour


def _check_kinds(study: Study) -> None:
    from models.price import KINDS

    for kind in study.kinds:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of price {kind!r}; known: {', '.join(KINDS)}")


def _check_limits(study: Study) -> None:
    limits_of(study.limits, study.emission)


def _check_racks(study: Study) -> None:
    for name, each in study.racks.items():
        try:
            _ = each.rack
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _check_price_list(study: Study) -> None:
    from models import price

    if study.price_list is not None and Path(study.price_list).exists():
        price.read(Path(study.price_list))


def _check_engines(study: Study) -> None:
    _ = study.engines.variants


def _check_classes(study: Study) -> None:
    from planners.classes import AND, named
    from planners.slo import parse_all
    from traces.selection import condition

    for rule in study.classes.values():
        for part in rule.split(AND):
            condition(part)
    unknown = [name for name in named(parse_all(study.slo)) if study.classes and name not in study.classes]
    if unknown:
        raise ValueError(f"a promise is for the class {unknown[0]!r}; known: {', '.join(study.classes)}")


_CHECKS = {
    "owned": lambda study: study.owned.check(),
    "carbon": lambda study: study.carbon.check(),
    "price_list": _check_price_list,
    "keep": lambda study: study.keep.check(),
    "classes": _check_classes,
    "engines": _check_engines,
    "model": _check_model,
    "slo": _check_slo,
    "devices": _check_devices,
    "prices": _check_prices,
    "kinds": _check_kinds,
    "limits": _check_limits,
    "racks": _check_racks,
}
