"""Find the cheapest fleet that keeps its promises on a trace: offers, mix, rehearsal, plan."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from models.llm import Llm
from planners.answer import plain
from planners.bounds import work
from planners.bounds.bound import Windows, rigorous_usd_per_hour, windows_of
from planners.classes import classified
from planners.demand import Market, survey
from planners.facts import Facts
from planners.offers.dominance import shortlist
from planners.offers.engines import AS_USUAL, Offer, Variants, devices_named, offers_for
from planners.offers.keeping import Keep
from planners.offers.limits import Limits, keeps, overruns
from planners.offers.tariffs import LISTED, Tariff
from planners.plan import Outcome, OutOfSample, Plan, PlannedPool, PromiseKept
from planners.search import disaggregated, mix, mixed_pools, rehearsal
from planners.search.disaggregated import role_offers
from planners.search.explain import explain, limits_used
from planners.search.fluid import Limit, least_relaxation
from planners.search.hunt import Hunt, describe, undominated
from planners.search.infeasible import Infeasible, fewest_broken, nothing_fits, nothing_survived, why
from planners.search.mix import Demand
from planners.search.naive_routing import naive_routing
from planners.search.rehearsal import Candidate, Rehearsed, Verdict
from planners.search.roles import ASSUMED
from planners.siblings import siblings_of
from planners.slo import Slo, kept, latency_of_class_s, limit_s, tightest_s, value_s
from simulator.run import Run
from traces import Trace

__all__ = ["Infeasible", "Progress", "find_plan"]


ROUGH = (
    "analytic: step times are straight lines between few points, and the bound is that of the mean load;"
    " bursts, siblings and replays are left out"
)
TRAINING = 6  # siblings that the search sees
NO_CLASSES: Mapping[str, str] = MappingProxyType({})
EFFORT_MIXED = 40  # fleets of such pools beside ordinary ones
EFFORT_SPLIT = 60  # fleets of pools hand in hand to rehearse


@dataclass(frozen=True, slots=True)
class Progress:
    """What the search has to tell on its way: a stage ("engines", "analytic", "rehearsal"), words, and a first plan."""

    stage: str
    message: str
    plan: Plan | None = None


Listener = Callable[[Progress], None]


def find_plan(
    trace: Trace,
    llm: Llm | None,
    slos: Sequence[Slo],
    devices: Sequence[str] | None = None,
    *,
    seed: int = 0,
    offers: Sequence[Offer] | None = None,
    progress: Listener | None = None,
    analytic: bool = False,
    siblings: int = 0,
    limits: Limits | None = None,
    tariff: Tariff = LISTED,
    split: bool = False,
    notes: tuple[str, ...] = (),
    variants: Variants = AS_USUAL,
    classes: Mapping[str, str] = NO_CLASSES,
    keep: Keep | None = None,
    facts: Facts | None = None,
) -> Plan:
    """Return the cheapest Plan found that keeps every promise in a replay of the whole trace.

    devices are catalogue names, by default ten; `offers` replaces them and the model by priced engines of one's own.
    analytic=True answers soon from few step times and the mean load, without a rehearsal. With siblings, the plan also
    survives TRAINING resampled siblings of the trace, and is then tried on so many others that the search never saw.
    limits are on the whole fleet; tariff has the kinds of price to choose from. With split, pools that only prefill
    beside pools that only decode are tried too; the bound then holds for those as well. variants are those of engines
    to choose from; of many the search looks at those that no other is as good as for this trace, and the bound holds
    for all. classes name requests by rules, for promises to them. keep is a fleet that is there; the cost then holds
    what changing it costs. notes are what else to be wary of, and go into the plan. Raises Infeasible with the reasons
    that bind, ValueError for bad input.
    """
    if len(trace) == 0:
        raise ValueError(f"trace {trace.name!r} holds no requests; there is nothing to plan for")
    tell = progress or _say_nothing
    trace = classified(trace, classes)
    if offers is None:
        if llm is None:
            raise ValueError("find_plan needs a model, or offers of one's own")
        offers, more = _offers(llm, devices, slos, tariff, variants, analytic)
        notes = (*notes, *more)
    tell(Progress("engines", f"{len(offers)} engines fit"))
    if split:
        offers = (*offers, *role_offers(trace, offers, tightest_s(slos, "tpot"), tightest_s(slos, "ttft")))
    if siblings and not analytic:
        notes = (*notes, f"the lower bound is that of fleets which survive {TRAINING} siblings of the trace, too")
    if keep is not None:
        offers, limits = keep.offers(offers), limits or Limits()
    sought = Sought(trace, tuple(slos), tuple(offers), limits, variants, seed, siblings, notes, tell, facts or Facts())
    plan = sought.sketched(is_rough=True)[2] if analytic else find(sought, *sought.sketched()[:2]).plan
    return plan if keep is None else keep.settled(plan)


@dataclass(frozen=True, slots=True)
class Sought:
    """What a fleet is sought for, engines at hand; all as find_plan takes it."""

    trace: Trace
    slos: tuple[Slo, ...]
    offers: tuple[Offer, ...]
    limits: Limits | None = None
    variants: Variants = AS_USUAL
    seed: int = 0
    siblings: int = 0
    notes: tuple[str, ...] = ()
    tell: Listener = lambda progress: None
    facts: Facts = field(default_factory=Facts)

    def training(self) -> tuple[Trace, ...]:
        """Return the siblings that a fleet has to survive, too."""
        return siblings_of(self.trace, range(1, TRAINING + 1), self.seed) if self.siblings else ()

    def sketched(self, is_rough: bool = False) -> tuple[Market, Windows, Plan]:
        """Return the market, the windows that every fleet is held against, and a plan that nobody has rehearsed.

        Rough ones come soon: of all windows only the whole trace, and prices of tokens from few steps.
        """
        market = survey(self.trace, self.slos, self.offers, work.COARSE if is_rough else work.FINE, self.facts)
        fluid = fluid_mix(market, (self.limits or Limits()).rows(market)) or fluid_mix(market)
        if fluid is None:
            raise why(market, lambda some: fluid_mix(some) is not None)
        windows = windows_of(market, only_whole=True) if is_rough else windows_of(market, self.training())
        bound_usd = rigorous_usd_per_hour(market, windows)
        notes = (*self.notes, ROUGH) if is_rough else self.notes
        sketch = _sketch(market, fluid, bound_usd, notes)
        self.tell(Progress("analytic", f"before rehearsal: at least ${bound_usd:.2f}/h, whatever the fleet", sketch))
        return market, windows, sketch


@dataclass(frozen=True, slots=True)
class Found:
    """A search that is over: all that was on offer, what fails alone [engine of it], the bound, and the hunt itself."""

    sought: Sought
    market: Market
    windows: Windows
    hunt: Hunt
    fails_alone: npt.NDArray[np.bool_]
    usd_per_hour_bound: float

    @property
    def plan(self) -> Plan:
        """Return the cheapest fleet that survived as a plan."""
        numbers = range(TRAINING + 1, TRAINING + 1 + self.sought.siblings)
        fresh = siblings_of(self.sought.trace, numbers, self.sought.seed)
        return _plan(self.hunt, self.usd_per_hour_bound, self.sought.notes, fresh)

    def plan_of(self, verdict: Verdict) -> Plan:
        """Return another fleet that survived as a plan; what is known of cheaper ones is known for it, too."""
        hunt = copy(self.hunt)
        assert hunt.best is not None, "something survived"
        if hunt.is_exhausted:
            hunt.conditional_usd, hunt.is_exhausted = hunt.best.usd_per_hour, False
        hunt.best = verdict
        hunt.best_rehearsed = Rehearsed(hunt.market, verdict.candidate, hunt.market.trace)
        return replace(self, hunt=hunt).plan


def find(sought: Sought, market: Market, windows: Windows) -> Found:
    """Return the outcome of the search on a market; raises Infeasible where nothing survives."""
    looked_at = list(range(len(market.offers))) if sought.variants == AS_USUAL else shortlist(market)
    hunt = Hunt(
        market.only(looked_at),
        windows.only(looked_at),
        lambda words: sought.tell(Progress("rehearsal", words)),
        sought.training(),
        sought.limits,
    )
    search_all(hunt)
    if hunt.best is None:
        raise _too_limited(hunt) if hunt.rows else nothing_survived(hunt.verdicts.values())
    fails_alone = np.zeros(len(market.offers), bool)
    fails_alone[looked_at] = hunt.fails_alone()
    bound_usd = rigorous_usd_per_hour(market, windows, fails_alone)
    return Found(sought, market, windows, hunt, fails_alone, bound_usd)


def search_all(hunt: Hunt) -> None:
    """Let a hunt go through all that it knows to try."""
    disaggregated.search(hunt, EFFORT_SPLIT)
    hunt.single_engines()
    hunt.mixes()
    hunt.refine()
    hunt.shrink()
    if any(offer.role != "both" for offer in hunt.market.offers):
        mixed_pools.search(hunt, EFFORT_MIXED)


def _too_limited(hunt: Hunt) -> Infeasible:
    """Return what would have to give for the cheapest fleet there is without the limits, or, if less, for any mix."""
    unlimited = Hunt(hunt.market, hunt.windows, hunt.tell, hunt.siblings, replace(Limits(), spare=hunt.limits.spare))
    search_all(unlimited)
    if unlimited.best is None:
        return nothing_survived(unlimited.verdicts.values())
    chosen = unlimited.best.candidate
    replicas = _replicas(hunt, chosen)
    needs = f"without limits {describe(hunt.market, chosen)} at ${unlimited.best.usd_per_hour:.2f}/h keeps the promises"
    reasons = [f"no fleet within the limits keeps the promises; {needs}", *overruns(hunt.rows, replicas)]
    scale = unlimited.best.usd_per_hour / max(_fluid_usd(hunt.market), 1e-9)
    least = least_relaxation(hunt.market.usd_per_hour, hunt.market.demand.load * scale, hunt.rows)
    reasons += [f"the fewest limits to raise, by estimate: {row.name}, by {row.by:.3g}" for row in least or ()]
    within = [verdict for verdict in hunt.verdicts.values() if keeps(hunt.rows, _replicas(hunt, verdict.candidate))]
    nearest = fewest_broken(within)
    if nearest is not None:
        fleet = describe(hunt.market, nearest.candidate)
        reasons.append(
            f"or within the limits the fewest promises to loosen, of fleets tried: {nearest.fails} ({fleet})"
        )
    return Infeasible(tuple(reasons))


def _replicas(hunt: Hunt, chosen: Candidate) -> list[int]:
    return [dict(chosen.pools).get(engine, 0) for engine in range(len(hunt.market.offers))]


def _fluid_usd(market: Market) -> float:
    """Return what the load costs were replicas divisible and never idle."""
    return float(np.min(market.demand.load * market.usd_per_hour[:, None], axis=0).sum())


def fluid_mix(market: Market, limits: Sequence[Limit] = ()) -> mix.Mix | None:
    """Return the cheapest mix if every pool could be busy without a pause; None where promises or limits forbid all."""
    engines = undominated(market, limits)
    demand = Demand(market.demand.load[engines], market.demand.lost[:, engines], market.demand.allowed)
    capacity = []
    for load in demand.load:
        most = max(1, math.ceil(load[np.isfinite(load)].sum()))
        capacity.append({size: float(size) for size in mix.sizes_up_to(most)})
    rows = [replace(row, weights=tuple(row.weights[engine] for engine in engines)) for row in limits]
    found = mix.cheapest_mix(market.usd_per_hour[engines], demand, capacity, limits=rows)
    if found is None:
        return None
    replicas = [0] * len(market.offers)
    shares = np.zeros(market.demand.load.shape)
    for place, engine in enumerate(engines):
        replicas[engine] = found.replicas[place]
        shares[engine] = found.shares[place]
    return mix.Mix(tuple(replicas), shares, found.usd_per_hour, found.bound_usd_per_hour)


def _offers(
    llm: Llm, devices: Sequence[str] | None, slos: Sequence[Slo], tariff: Tariff, variants: Variants, is_rough: bool
) -> tuple[tuple[Offer, ...], tuple[str, ...]]:
    chosen, notes = devices_named(devices, tariff)
    tpot_limit_s = tightest_s(slos, "tpot")
    offers = offers_for(llm, chosen, tpot_limit_s=tpot_limit_s, tariff=tariff, variants=variants, is_rough=is_rough)
    if not offers:
        raise nothing_fits(llm, chosen)
    return offers, notes


def _say_nothing(_: Progress) -> None:
    """Listen to no progress."""


def _sketch(market: Market, fluid: mix.Mix, bound_usd: float, notes: tuple[str, ...]) -> Plan:
    """Return the fluid mix as a plan that nobody has rehearsed."""
    chosen = rehearsal.candidate(fluid.replicas, fluid.shares)
    return Plan(
        pools=_pools(market, chosen),
        usd_per_hour=fluid.usd_per_hour,
        usd_per_hour_bound=min(bound_usd, fluid.usd_per_hour),
        router=chosen.router,
        input_edges=market.input_edges,
        shares=chosen.shares,
        classes=market.classes,
        notes=(*notes, "not rehearsed: this fleet carries the mean load only if it never pauses; bursts need more"),
        is_rehearsed=False,
    )


def _plan(hunt: Hunt, bound_usd: float, notes: tuple[str, ...], fresh: Sequence[Trace]) -> Plan:
    market, best, rehearsed = hunt.market, hunt.best, hunt.best_rehearsed
    assert best is not None, "something survived"
    assert rehearsed is not None, "what survived was rehearsed"
    run = rehearsed.run()
    ttft_limit_s = limit_s(market.slos, "ttft")
    failed = hunt.cheaper_failure()
    is_split = all(market.offers[engine].role != "both" for engine, _ in best.candidate.pools)
    return Plan(
        pools=_pools(market, best.candidate, run),
        usd_per_hour=best.usd_per_hour,
        usd_per_hour_bound=min(bound_usd, best.usd_per_hour),
        router=best.candidate.router,
        input_edges=market.input_edges,
        shares=best.candidate.shares,
        ttft_limit_s=ttft_limit_s if best.candidate.router == "in-time" and math.isfinite(ttft_limit_s) else None,
        classes=market.classes,
        latency_s=run.latency_s(),
        latency_by_class_s={name: latency_of_class_s(run, name) for name in market.classes},
        attainment=float(kept(run, market.slos).mean()),
        requests=run.counts(),
        promises=tuple(PromiseKept(str(slo), value_s(run, slo), slo.limit_s) for slo in market.slos),
        single_device=_outcome(market, hunt.best_single),
        cheaper=_outcome(market, failed),
        bottleneck=_bottleneck(market, best.candidate, run),
        notes=(*notes, ASSUMED) if is_split else notes,
        effort={"engines": len(market.offers), "fleets_rehearsed": len(hunt.verdicts), "mixes_proposed": hunt.rounds},
        conditional_usd_per_hour=min(max(hunt.learned_usd(), bound_usd), best.usd_per_hour),
        out_of_sample=_out_of_sample(market, best.candidate, fresh) if fresh else None,
        explain=_explanation(hunt, best),
        naive_routing=naive_routing(market, best.candidate),
    )


def _out_of_sample(market: Market, chosen: Candidate, fresh: Sequence[Trace]) -> OutOfSample:
    passed = [not Rehearsed(market, chosen, sibling).told()[1] for sibling in fresh]
    return OutOfSample(len(passed), sum(passed))


def _explanation(hunt: Hunt, best: Verdict) -> Mapping[str, Any]:
    used = [engine for engine, _ in best.candidate.pools]
    limits = limits_used(hunt.market, hunt.rows, _replicas(hunt, best.candidate), best.usd_per_hour)
    result: Mapping[str, Any] = plain(explain(hunt.market, hunt.windows, best.usd_per_hour, used, limits).result())
    return result


def _pools(market: Market, chosen: Candidate, run: Run | None = None) -> tuple[PlannedPool, ...]:
    fleet = rehearsal.fleet_of(market, chosen)
    busy = run.busy_fraction() if run is not None else [None] * len(fleet.pools)
    pools = []
    for place, ((engine, count), pool) in enumerate(zip(chosen.pools, fleet.pools, strict=True)):
        offer = market.offers[engine]
        pools.append(
            PlannedPool(
                name=offer.name,
                device=offer.device_name,
                replicas=count,
                usd_per_hour=count * (offer.usd_per_hour - offer.change_usd_per_hour),
                speed=pool.speed,
                busy=busy[place],
                engine=offer.priced.engine,
                priced=offer.priced,
                role=offer.role,
            )
        )
    return tuple(pools)


def _outcome(market: Market, verdict: Verdict | None) -> Outcome | None:
    if verdict is None:
        return None
    return Outcome(_pools(market, verdict.candidate), verdict.usd_per_hour, verdict.fails)


def _bottleneck(market: Market, chosen: Candidate, run: Run) -> str:
    """Say which promise is closest to its limit, and which pool is the most strained."""
    counted = [slo for slo in market.slos if not math.isnan(value_s(run, slo))]
    tightest = max(counted, key=lambda slo: value_s(run, slo) / slo.limit_s)
    strains = [rehearsal.pool_strain(run, pool, market.slos) for pool in range(len(chosen.pools))]
    engine, count = chosen.pools[strains.index(max(strains))]
    used = value_s(run, tightest) / tightest.limit_s
    return (
        f"{tightest} is at {used:.0%} of its limit; {count} x {market.offers[engine].short_name} is the tightest pool"
    )
