"""Rules of thumb: staff for a fixed utilisation, as planners without a rehearsal do; each rule's fleet is replayed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planners.demand import Market
from planners.search import mix, rehearsal
from planners.search.hunt import undominated
from planners.search.mix import Demand
from planners.search.rehearsal import ROUTERS, Candidate

RULES = (0.9, 0.8, 0.7, 0.6)


@dataclass(frozen=True, slots=True)
class Ruled:
    """The cheapest fleet that carries the mean load at a fixed utilisation, and whether it survives its replay."""

    utilisation: float
    candidate: Candidate
    usd_per_hour: float
    fails: str

    @property
    def survives(self) -> bool:
        """Say whether every promise was kept, under either ordinary router."""
        return not self.fails


def by_rules(market: Market, rules: Sequence[float] = RULES) -> tuple[Ruled, ...]:
    """Return what each rule buys for a market; rules that leave no fleet are left out."""
    return tuple(found for rule in rules if (found := _ruled(market, rule)) is not None)


def _ruled(market: Market, utilisation: float) -> Ruled | None:
    engines = undominated(market)
    demand = Demand(market.demand.load[engines], market.demand.lost[:, engines], market.demand.allowed)
    capacity = []
    for load in demand.load:
        most = max(1, math.ceil(load[np.isfinite(load)].sum() / utilisation))
        capacity.append({size: utilisation * size for size in mix.sizes_up_to(most)})
    found = mix.cheapest_mix(market.usd_per_hour[engines], demand, capacity, rough=True)
    if found is None:
        return None
    replicas, shares = [0] * len(market.offers), np.zeros(market.demand.load.shape)
    for place, engine in enumerate(engines):
        replicas[engine], shares[engine] = found.replicas[place], found.shares[place]
    planned = rehearsal.candidate(replicas, shares)
    verdicts = []
    for router in ROUTERS:
        chosen = Candidate(planned.pools, planned.shares, router)
        verdicts.append(rehearsal.judge(market, chosen)[0])
        if verdicts[-1].survives:
            break
    best = min(verdicts, key=lambda verdict: verdict.strain)
    return Ruled(utilisation, best.candidate, best.usd_per_hour, best.fails)
