"""What an ordinary load-aware router would make of a plan: whether it holds, and what it would cost until it does."""

from dataclasses import replace

from planners.demand import Market
from planners.plan import NaiveRouting
from planners.search.rehearsal import ROUTERS, Candidate, Rehearsed

ORDINARY = ROUTERS[1]
MOST_ADDED = 8  # replicas


def naive_routing(market: Market, chosen: Candidate) -> NaiveRouting | None:
    """Return what the trace shows of a fleet under an ordinary router; None where the plan is routed so itself.

    Replicas are added one by one to the pool whose replica costs least.
    """
    fleet = replace(chosen, router=ORDINARY)
    if chosen.router == ORDINARY or sum(count for _, count in chosen.pools) == 1:
        return None
    fails = Rehearsed(market, fleet, market.trace).told()[1]
    cheapest = min(range(len(chosen.pools)), key=lambda pool: float(market.usd_per_hour[chosen.pools[pool][0]]))
    for added in range(MOST_ADDED + 1):
        pools = tuple((engine, count + added * (pool == cheapest)) for pool, (engine, count) in enumerate(fleet.pools))
        if not Rehearsed(market, replace(fleet, pools=pools), market.trace).told()[1]:
            usd = sum(float(market.usd_per_hour[engine]) * count for engine, count in pools)
            return NaiveRouting(ORDINARY, fails, added, usd)
    return NaiveRouting(ORDINARY, fails, MOST_ADDED, None)
