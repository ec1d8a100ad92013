"""Several regions: whose requests go where, and which fleet to run there, under network latency and data residency.

Requests have an origin. Sent to a region they arrive half a round trip later and their answer half a round trip later
still, so that a region's fleet has to keep the promises less the round trip; where no round trip is given, residency
forbids. An origin's requests are cut into equal parts, each of which goes to one region, as a resolver of names sends
it. An assignment costs what the regions' fleets cost, each planned and rehearsed on what comes to it; assignments are
tried in the order of what divisible replicas that never pause would cost there, until those cost more than the best.

The bound holds for any split of the requests, one by one: the offers of all regions are one market, in which an engine
is late for requests that it could not serve in time from where it stands.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from planners.bounds.bound import rigorous_usd_per_hour
from planners.bounds.work import alone, asked_for
from planners.classes import COLUMN, members
from planners.demand import Market, sizes, survey
from planners.offers.engines import Offer
from planners.offers.limits import Limits
from planners.plan import Plan
from planners.search.infeasible import Infeasible
from planners.search.search import Found, Sought, find, fluid_mix
from planners.sharing.portfolio import Portfolio, plan_together
from planners.slo import Slo
from traces import Labels, Trace
from traces.joining import merge
from traces.trace import NS_PER_S, take
from traces.transform import mix

MOST_ASSIGNMENTS = 5_000
MOST_PLANNED = 40  # fleets of a region
WAITED_FOR = ("ttft", "e2e")  # what the network adds to

Part = tuple[str, int]  # of an origin
Traffic = tuple[Part, ...]  # what comes to a region
Assignment = Mapping[str, Traffic]  # by region


@dataclass(frozen=True, slots=True)
class Origin:
    """Where requests come from, and the round trip [s] to each region that they may go to."""

    name: str
    trace: Trace
    round_trip_s: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Region:
    """Where fleets may stand: what is on offer there, and the limits on the fleet there."""

    name: str
    offers: tuple[Offer, ...]
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Tried:
    """One assignment: by origin and region the fraction sent there, and what it costs; infinite where none does."""

    fractions: Mapping[str, Mapping[str, float]]
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class Regional:
    """The plans by region with the traces that come to them, who goes where, and what no assignment costs less than.

    is_exhausted says that no assignment was left that divisible replicas could carry for less.
    """

    portfolio: Portfolio
    traffic: Mapping[str, Trace]
    slos: Mapping[str, tuple[Slo, ...]]
    chosen: Tried
    tried: tuple[Tried, ...]
    usd_per_hour_bound: float
    is_exhausted: bool

    @property
    def plans(self) -> Mapping[str, Plan]:
        """Return the plan of each region that has requests."""
        return self.portfolio.plans

    @property
    def usd_per_hour(self) -> float:
        """Return what all fleets cost together."""
        return self.portfolio.usd_per_hour

    @property
    def gap(self) -> float:
        """Return how much dearer the fleets may be than the best ones, as a fraction of their cost."""
        return max(0.0, 1 - self.usd_per_hour_bound / self.usd_per_hour)


def plan_regions(
    origins: Sequence[Origin],
    regions: Sequence[Region],
    slos: Sequence[Slo],
    *,
    shared: Limits | None = None,
    parts: int = 1,
    align: str = "start",
    seed: int = 0,
    tell: Callable[[str], None] = lambda words: None,
) -> Regional:
    """Return the cheapest assignment found, with its plans; Infeasible where none keeps the promises.

    Promises are to all requests of every origin; shared limits are on all regions together. align says how the traces
    lie over each other, as traces.transform.mix has it.
    """
    atlas = Atlas(tuple(origins), tuple(regions), tuple(slos), parts, align, seed)
    assignments = sorted(atlas.assignments(), key=lambda one: (atlas.floor_usd(one), str(one)))
    best: tuple[Portfolio, Assignment] | None = None
    tried: list[Tried] = []
    reasons: dict[str, None] = {}
    is_exhausted = True
    for assignment in assignments:
        floor_usd = atlas.floor_usd(assignment)
        if math.isinf(floor_usd) or (best is not None and floor_usd >= best[0].usd_per_hour):
            break
        if len(atlas.found) >= MOST_PLANNED:
            is_exhausted = False
            break
        usd = math.inf
        try:
            portfolio = plan_together(
                {name: atlas.plan(name, own) for name, own in assignment.items()}, shared or Limits()
            )
            usd = portfolio.usd_per_hour
            if best is None or usd < best[0].usd_per_hour:
                best = portfolio, assignment
        except Infeasible as error:
            reasons |= dict.fromkeys(error.reasons)
        tried.append(Tried(atlas.fractions(assignment), usd))
        words = "none" if math.isinf(usd) else f"{usd:.2f} USD/h"
        tell(f"{describe(tried[-1].fractions)}: {words}")
    if best is None:
        raise Infeasible(tuple(reasons) or atlas.reasons())
    portfolio, assignment = best
    return Regional(
        portfolio=portfolio,
        traffic={name: atlas.traffic(name, own) for name, own in assignment.items()},
        slos={name: atlas.promises(name, own) for name, own in assignment.items()},
        chosen=Tried(atlas.fractions(assignment), portfolio.usd_per_hour),
        tried=tuple(tried),
        usd_per_hour_bound=min(atlas.bound_usd, portfolio.usd_per_hour),
        is_exhausted=is_exhausted,
    )


def describe(fractions: Mapping[str, Mapping[str, float]]) -> str:
    """Return in words who goes where."""
    return ", ".join(
        f"{origin} to {region}" + ("" if part == 1 else f" ({part:.0%})")
        for origin, own in fractions.items()
        for region, part in own.items()
    )


@dataclass
class Atlas:
    """Origins and regions with what is known of them so far: traffic, floors and searches by region."""

    origins: tuple[Origin, ...]
    regions: tuple[Region, ...]
    slos: tuple[Slo, ...]
    parts: int = 1
    align: str = "start"
    seed: int = 0
    found: dict[tuple[str, Traffic], Found | Infeasible] = field(default_factory=dict)
    floors: dict[tuple[str, Traffic], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = [slo for slo in self.slos if slo.slo_class]
        if named:
            raise ValueError(f"{named[0]} is for a class; promises over regions are for all requests of every origin")
        if not self.origins or not self.regions:
            raise ValueError("expected at least one origin and one region")
        for origin in self.origins:
            if not len(origin.trace):
                raise ValueError(f"origin {origin.name!r} has no requests")

    @cached_property
    def whole(self) -> Trace:
        """Return the requests of all origins, which name their classes."""
        named = []
        for origin in self.origins:
            labels = Labels(np.zeros(len(origin.trace), np.int32), (origin.name,))
            named.append(replace(origin.trace, columns={**origin.trace.columns, COLUMN: labels}))
        return mix(named, self.seed, align=self.align)

    @cached_property
    def numbers(self) -> npt.NDArray[np.int64]:
        """Return the number of the part that each request is of: sessions stay whole, else every other request."""
        found = np.zeros(len(self.whole), np.int64)
        sessions = self.whole.columns.get("session_id")
        for origin in self.origins:
            rows = np.flatnonzero(members(self.whole, origin.name))
            codes = sessions.codes[rows] if isinstance(sessions, Labels) else np.arange(rows.size)
            found[rows] = codes % self.parts
        return found

    def allowed(self, origin: Origin) -> list[str]:
        """Return the regions that an origin's requests may go to and be answered from in time at all."""
        waits_s = min((slo.limit_s for slo in self.slos if slo.metric in WAITED_FOR), default=math.inf)
        trips = origin.round_trip_s
        return [one.name for one in self.regions if trips.get(one.name, math.inf) < waits_s]

    def assignments(self) -> Iterator[Assignment]:
        """Yield every way to send the origins' parts to regions."""
        ways = []
        for origin in self.origins:
            split = itertools.combinations_with_replacement(self.allowed(origin), self.parts)
            ways.append([tuple((region, (origin.name, part)) for part, region in enumerate(way)) for way in split])
        if math.prod(map(len, ways)) > MOST_ASSIGNMENTS:
            words = f"{math.prod(map(len, ways)):,} ways to send {len(ways)} origins in {self.parts} parts"
            raise ValueError(f"{words}; at most {MOST_ASSIGNMENTS:,} are looked at: ask for fewer parts")
        for choice in itertools.product(*ways):
            sent: dict[str, list[Part]] = {}
            for region, part in itertools.chain(*choice):
                sent.setdefault(region, []).append(part)
            yield {name: tuple(sorted(sent[name])) for name in sorted(sent)}

    def fractions(self, assignment: Assignment) -> dict[str, dict[str, float]]:
        """Return what part of each origin's requests goes to each region."""
        found: dict[str, dict[str, float]] = {origin.name: {} for origin in self.origins}
        for region, own in assignment.items():
            for name, _ in own:
                found[name][region] = found[name].get(region, 0.0) + 1 / self.parts
        return found

    def traffic(self, region: str, own: Traffic) -> Trace:
        """Return what comes to a region, when it comes there."""
        arriving = []
        for origin in self.origins:
            mine = [part for name, part in own if name == origin.name]
            if mine:
                rows = np.flatnonzero(members(self.whole, origin.name) & np.isin(self.numbers, mine))
                half_ns = round(origin.round_trip_s[region] / 2 * NS_PER_S)
                part = take(self.whole, rows)
                arriving.append(replace(part, arrival_ns=part.arrival_ns + half_ns))
        return replace(merge(arriving), name=f"{self.whole.name} at {region}")

    def promises(self, region: str, own: Traffic) -> tuple[Slo, ...]:
        """Return what a region's fleet has to keep for each origin that it serves."""
        served = [origin for origin in self.origins if any(name == origin.name for name, _ in own)]
        return tuple(
            replace(
                slo,
                limit_s=slo.limit_s - origin.round_trip_s[region] * (slo.metric in WAITED_FOR),
                slo_class=origin.name if len(served) > 1 else "",
            )
            for origin in served
            for slo in self.slos
        )

    def floor_usd(self, assignment: Assignment) -> float:
        """Return what divisible replicas that never pause cost for an assignment; infinite where limits leave none."""
        return sum(self._floor_usd(region, own) for region, own in assignment.items())

    def _floor_usd(self, name: str, own: Traffic) -> float:
        if (name, own) not in self.floors:
            region = self._region(name)
            market = survey(self.traffic(name, own), self.promises(name, own), region.offers)
            found = fluid_mix(market, region.limits.rows(market))
            self.floors[name, own] = math.inf if found is None else found.bound_usd_per_hour
        return self.floors[name, own]

    def plan(self, name: str, own: Traffic) -> Found:
        """Return the search of a region's fleet; Infeasible names the region."""
        if (name, own) not in self.found:
            region = self._region(name)
            sought = Sought(
                self.traffic(name, own), self.promises(name, own), region.offers, region.limits, seed=self.seed
            )
            try:
                market, windows, _ = sought.sketched()
                self.found[name, own] = find(sought, market, windows)
            except Infeasible as error:
                self.found[name, own] = Infeasible(tuple(f"{name}: {reason}" for reason in error.reasons))
        known = self.found[name, own]
        if isinstance(known, Infeasible):
            raise known
        return known

    @cached_property
    def bound_usd(self) -> float:
        """Return what no fleets in these regions cost less than, whichever region each request is sent to.

        With no round trips there are more ways to serve, so that their bound holds as well; at times it is higher.
        """
        slos = tuple(replace(slo, slo_class=origin.name) for origin in self.origins for slo in self.slos)
        offers = [
            replace(offer, priced=replace(offer.priced, name=f"{region.name}:{offer.name}"))
            for region in self.regions
            for offer in region.offers
        ]
        market = survey(self.whole, slos, offers)
        return max(rigorous_usd_per_hour(market), rigorous_usd_per_hour(self._from_afar(market)))

    def _from_afar(self, market: Market) -> Market:
        """Return the market with what is late once the round trip is counted, and what may not go to a region.

        A percentile kept by each of k parts allows up to k - 1 misses more than one kept by all together.
        """
        late = market.late.copy()
        inputs, outputs = sizes(market.trace)
        for origin in self.origins:
            rows = np.flatnonzero(members(market.trace, origin.name))
            places = [place for place, slo in enumerate(market.slos) if slo.slo_class == origin.name]
            for engine, offer in enumerate(market.offers):
                trip_s = origin.round_trip_s.get(offer.name.partition(":")[0], math.inf)
                seen = alone(offer.priced, asked_for(inputs[rows], outputs[rows], market.fresh[rows]))
                for place in places:
                    slo = market.slos[place]
                    waited_s = trip_s if slo.metric in WAITED_FOR or math.isinf(trip_s) else 0.0
                    late[place, engine, rows] |= getattr(seen, slo.metric) + waited_s > slo.limit_s
        views = []
        for view in market.views:
            stood_for = [[place] for place in view.promises] or [
                [place for place, slo in enumerate(market.slos) if slo.metric == one.metric] for one in view.market.slos
            ]
            own = np.array([late[places][:, :, view.rows].any(axis=0) for places in stood_for])
            more = np.array([len(places) * (self.parts - 1) for places in stood_for])
            demand = replace(view.market.demand, allowed=view.market.demand.allowed + more)
            views.append(replace(view, market=replace(view.market, late=own, demand=demand)))
        return replace(market, late=late, views=tuple(views))

    def reasons(self) -> tuple[str, ...]:
        """Return why no assignment is even worth a look."""
        stuck = [origin.name for origin in self.origins if not self.allowed(origin)]
        if stuck:
            return tuple(
                f"requests of {name} may go to no region from which they are answered in time" for name in stuck
            )
        return ("no region's offers carry what may go there within its limits",)

    def _region(self, name: str) -> Region:
        return next(region for region in self.regions if region.name == name)
