"""regions.yaml: where requests come from, where fleets may stand, what lies between, and what is promised to all."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from planners import marked_yaml, study
from planners.offers.limits import Limits
from planners.strict import strict
from planners.study import Emissions, Engines, RackFacts, Study

if TYPE_CHECKING:
    from planners.sharing.regions import Origin, Region

FILE = "regions.yaml"
MS_PER_S = 1000


@strict
@dataclass(frozen=True, slots=True)
class Source:
    """An origin: its trace (null for the bundled sample), at so many times its rate, as 2x, and where data may go."""

    trace: str | None = None
    scale: str | None = None
    stays_in: tuple[str, ...] | None = None


@strict
@dataclass(frozen=True, slots=True)
class Site:
    """A region: what a plan.yaml says of devices, prices, limits, racks and carbon, for the fleet there.

    priced_as names a region of the price list: only what is offered there can be had; null takes the whole list.
    """

    devices: tuple[str, ...] | None = None
    priced_as: str | None = None
    prices: Mapping[str, float | str] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    racks: Mapping[str, RackFacts] = field(default_factory=dict)
    carbon: Emissions = field(default_factory=Emissions)


@strict
@dataclass(frozen=True, slots=True)
class Regions:
    """What is planned over regions: model and promises as in plan.yaml, latency_ms from origin to region and back.

    Requests of an origin go to a region only if a latency is given and, where it has stays_in, that names the region.
    An origin's requests may be split into equal parts. limits are on all regions together. align says how traces lie
    over each other: their starts, their dates, or the hours of their weeks.
    """

    model: str
    slo: tuple[str, ...]
    origins: Mapping[str, Source]
    regions: Mapping[str, Site]
    latency_ms: Mapping[str, Mapping[str, float]]
    limits: Mapping[str, float] = field(default_factory=dict)
    parts: int = 1
    align: str = "start"
    seed: int = 0
    kinds: tuple[str, ...] = ("on-demand",)
    price_list: str | None = None
    engines: Engines = field(default_factory=Engines)

    @property
    def shared(self) -> Limits:
        """Return the limits on all regions together."""
        return study.limits_of(self.limits)

    def study_at(self, name: str) -> Study:
        """Return what a plan.yaml would say of one region."""
        site = self.regions[name]
        return Study(
            model=self.model,
            slo=self.slo,
            devices=site.devices,
            prices=site.prices,
            kinds=self.kinds,
            limits=site.limits,
            seed=self.seed,
            engines=self.engines,
            price_list=self.price_list,
            carbon=site.carbon,
            racks=site.racks,
        )

    def priced_study_at(self, name: str) -> Study:
        """Return the same with the devices that can be had in the region, at the prices there."""
        from planners.offers.engines import devices_named

        own = self.study_at(name)
        tariff = replace(own.tariff, region=self.regions[name].priced_as)
        devices, _ = devices_named(own.devices, tariff)
        listed = {each.name: tariff.price(each, self.kinds[0]) for each in devices}
        prices = {device: price.usd_per_hour for device, price in listed.items() if price is not None}
        return study.changed(own, {"devices": tuple(listed), "prices": {**prices, **own.prices}})

    def round_trip_s(self, origin: str) -> dict[str, float]:
        """Return the round trip to each region that an origin's requests may go to."""
        stays_in = self.origins[origin].stays_in
        trips = self.latency_ms.get(origin, {})
        return {name: ms / MS_PER_S for name, ms in trips.items() if stays_in is None or name in stays_in}


def read(path: str | Path) -> Regions:
    """Return what is in a file; relative paths are seen from its folder, every mistake is listed with its place."""
    text = Path(path).read_text(encoding="utf-8")
    written = marked_yaml.parse(str(path), text, Regions)
    mistakes = [f"{marked_yaml.place_of(str(path), text, place)}: {words}" for place, words in _mistakes(written)]
    for name in written.regions:
        mistakes += study.mistakes(written.study_at(name), str(path), text, ("regions", name))
    if mistakes:
        raise ValueError("\n".join(dict.fromkeys(mistakes)))
    origins = {
        name: replace(each, trace=study.seen_from_file(path, each.trace)) for name, each in written.origins.items()
    }
    seen = {key: study.seen_from_file(path, getattr(written, key)) for key in ("model", "price_list")}
    return replace(written, origins=origins, **seen)  # type: ignore[arg-type]


def _mistakes(written: Regions) -> list[tuple[marked_yaml.Place, str]]:
    """Return what does not fit together, each with its place."""
    found: list[tuple[marked_yaml.Place, str]] = []
    known = ", ".join(written.regions)
    for origin, trips in written.latency_ms.items():
        if origin not in written.origins:
            words = f"latency_ms.{origin}: unknown origin; known: {', '.join(written.origins)}"
            found.append((("latency_ms", origin, "key"), words))
        for name, ms in trips.items():
            if name not in written.regions:
                words = f"latency_ms.{origin}.{name}: unknown region; known: {known}"
                found.append((("latency_ms", origin, name, "key"), words))
            if not 0 <= ms < float("inf"):
                found.append((("latency_ms", origin, name), f"latency_ms.{origin}.{name}: {ms:g} is below 0"))
    for origin, source in written.origins.items():
        for name in source.stays_in or ():
            if name not in written.regions:
                words = f"origins.{origin}.stays_in: unknown region {name!r}; known: {known}"
                found.append((("origins", origin, "stays_in"), words))
        if not written.round_trip_s(origin):
            found.append(
                (("origins", origin), f"origins.{origin}: no latency_ms to a region that its requests may go to")
            )
    if written.parts < 1:
        found.append((("parts",), f"parts: must be at least 1, not {written.parts}"))
    if written.align not in ("start", "date", "week"):
        found.append((("align",), f"align: unknown {written.align!r}; known: start, date, week"))
    try:
        _ = written.shared
    except ValueError as error:
        found.append((("limits",), f"limits: {error}"))
    return found


def origins_of(written: Regions) -> "tuple[Origin, ...]":
    """Return the origins with their traces read."""
    import traces
    from planners import plan_file
    from planners.sharing.regions import Origin

    found = []
    for name, source in written.origins.items():
        trace = traces.sample() if source.trace is None else traces.read(source.trace)
        trips = written.round_trip_s(name)
        found.append(Origin(name, plan_file.scaled(trace, source.scale, written.seed), trips))
    return tuple(found)


def regions_of(written: Regions) -> "tuple[Region, ...]":
    """Return the regions with what is on offer there."""
    from models import llm
    from planners.sharing.regions import Region
    from planners.slo import parse_all
    from planners.whatif import Question
    from traces import sample

    model, slos = llm.load(written.model), parse_all(written.slo)
    found = []
    for name, site in written.regions.items():
        own = written.study_at(name)
        question = Question(
            sample(),
            model,
            slos,
            own.devices,
            tariff=replace(own.tariff, region=site.priced_as),
            variants=own.engines.variants,
            usd_per_device_hour=own.usd_per_device_hour,
        )
        found.append(Region(name, question.offers(), own.limits_on_fleet))
    return tuple(found)
