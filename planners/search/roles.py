"""Closing in on the cheapest fleet of pools that prefill or decode: propose the cheapest left, replay, rule out.

What is ruled out is learned, not proven: that fewer replicas serve no better; that pools which break the promise of
their role beside those of the best fleet do so whatever is beside them; that what breaks on a fraction of the trace
would take as much more for all of it; and that engines add up, so that shares of what each of them takes when alone in
its role, less a margin, are not enough together.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from planners.demand import Market
from planners.search.hunt import CHEAPER_BY, Hunt
from planners.search.rehearsal import Candidate, judge, split_candidate, thinned
from planners.solver import BY_COUNTING, mathopt, solve
from traces.trace import take

ROLES = {"prefill": "ttft", "decode": "tpot"}  # and the promise that each is to keep
TOGETHER = 0.98  # of what engines take when alone that may do when they are together: they do not quite add up
LEAST_FRACTION = 0.75  # of a trace, on which pools that break on all of it are tried
PROBES = 4
ASSUMED = (
    "the conditional bound takes it that pools which broke the promise of their role beside this fleet break it "
    "beside any, that what breaks on a fraction of the trace takes as much more for all of it, and that engines of a "
    f"role add up but for {1 - TOGETHER:.0%}"
)


@dataclass(slots=True)
class Lessons:
    """What was too little: of an engine alone in its role, and of pools together, {engine: replicas} each.

    carries is the fraction of the trace that so many replicas of an engine, alone in its role, do not carry.
    """

    alone: dict[int, float]
    together: list[dict[int, int]] = field(default_factory=list)
    carries: dict[tuple[int, int], float] = field(default_factory=dict)


def close_in(hunt: Hunt, least: Mapping[int, float], effort: int) -> float:
    """Replay the cheapest split fleets not ruled out until none is cheaper than the best, or for so many replays.

    least are replicas of each engine below which its role is not done by it alone. Returns what no split fleet that is
    not ruled out costs less than [USD/h].
    """
    spent, carries = len(hunt.verdicts), dict[tuple[int, int], float]()
    while True:
        best = hunt.best
        assert best is not None, "there is a fleet to close in on"
        lessons = Lessons(dict(least), carries=carries)
        if not _learn_alone(hunt, best.candidate, lessons):
            continue
        margins = [1.0, TOGETHER]  # the likeliest fleets first
        while margins:
            found = _cheapest(hunt, lessons, margins[0])
            if found is None or _usd(hunt.market, found) >= best.usd_per_hour * (1 - CHEAPER_BY):
                margins.pop(0)
            elif len(hunt.verdicts) - spent >= effort:
                found = _cheapest(hunt, lessons, TOGETHER)
                return best.usd_per_hour if found is None else min(_usd(hunt.market, found), best.usd_per_hour)
            elif _survives(hunt, split_candidate(hunt.market, list(found.items())), lessons):
                break
        else:
            return best.usd_per_hour


def _learn_alone(hunt: Hunt, best: Candidate, lessons: Lessons) -> bool:
    """Find out whether any engine can take over a whole role of the best fleet at less cost; say whether none can."""
    market, most_usd = hunt.market, _usd(hunt.market, dict(best.pools)) * (1 - CHEAPER_BY)
    for role in ROLES:
        others = [pool for pool in best.pools if market.offers[pool[0]].role != role]
        for engine, one in enumerate(market.offers):
            count = math.ceil((most_usd - _usd(market, dict(others))) / one.usd_per_hour) - 1
            if one.role == role and count >= LEAST_FRACTION * lessons.alone[engine]:
                chosen = split_candidate(market, [(engine, count), *others])
                if _is_best(hunt, chosen):
                    return False
                if (engine, count) not in lessons.carries:
                    lessons.carries[engine, count] = _least_breaking(hunt, chosen)
                lessons.alone[engine] = max(count / lessons.carries[engine, count], lessons.alone[engine])
    return True


def _least_breaking(hunt: Hunt, chosen: Candidate) -> float:
    """Return the least fraction of the trace that broke a fleet on which it was seen to break, too."""
    broke_on, low, high = hunt.verdicts[chosen].broke_on, LEAST_FRACTION, 1.0
    for _ in range(PROBES):
        middle = (low + high) / 2
        low, high = (low, middle) if _breaks(hunt, chosen, broke_on, middle) else (middle, high)
    return high


def _breaks(hunt: Hunt, chosen: Candidate, number: int, fraction: float = 1.0) -> bool:
    """Say whether a fleet breaks a promise on a sibling, or on the trace, number 0, or on an even fraction of it."""
    market, trace = hunt.market, (hunt.market.trace, *hunt.siblings)[number]
    if fraction < 1:
        trace = take(trace, np.flatnonzero(thinned(market, trace, np.arange(len(trace)), fraction)))
    return not judge(replace(market, trace=trace), chosen, to_the_end=False)[0].survives


def _survives(hunt: Hunt, chosen: Candidate, lessons: Lessons) -> bool:
    """Replay a fleet, unless that was done before, and learn from what broke; say whether it is the new best."""
    if _is_best(hunt, chosen):
        return True
    pools, offers = dict(chosen.pools), hunt.market.offers
    for roles in to_blame(hunt, chosen):
        lessons.together.append({e: pools.get(e, 0) for e in lessons.alone if offers[e].role in roles})
    return False


def _is_best(hunt: Hunt, chosen: Candidate) -> bool:
    """Replay a fleet, unless that was done before; say whether it is the new best."""
    verdict = hunt.verdicts.get(chosen) or hunt.attempt(chosen)[0]
    return verdict.survives and hunt.best is not None and hunt.best.candidate == chosen


def to_blame(hunt: Hunt, chosen: Candidate) -> list[list[str]]:
    """Return the roles whose pools are too little: of the promise broken, or beside the best fleet; else together."""
    verdict, best, market = hunt.verdicts[chosen], hunt.best, hunt.market
    alone = [role for role, metric in ROLES.items() if verdict.broken == {metric}]
    if alone or best is None:
        return [alone or list(ROLES)]
    guilty = []
    for role in ROLES:
        own = [pool for pool in chosen.pools if market.offers[pool[0]].role == role]
        others = [pool for pool in best.candidate.pools if market.offers[pool[0]].role != role]
        if _breaks(hunt, split_candidate(market, [*own, *others]), verdict.broke_on):
            guilty.append([role])
    return guilty or [list(ROLES)]


def _cheapest(hunt: Hunt, lessons: Lessons, margin: float) -> dict[int, int] | None:
    """Return the cheapest split fleet not ruled out, where shares less a margin are not enough, or None."""
    market, model = hunt.market, mathopt().Model()
    counts = {engine: model.add_integer_variable(lb=0) for engine in lessons.alone}
    for role in ROLES:
        shares = [count * (1 / lessons.alone[e]) for e, count in counts.items() if market.offers[e].role == role]
        model.add_linear_constraint(sum(shares) >= margin)
    for lacking in lessons.together:
        more = {engine: model.add_binary_variable() for engine in lacking}
        for engine, is_more in more.items():
            model.add_linear_constraint(counts[engine] >= (lacking[engine] + 1) * is_more)
        model.add_linear_constraint(sum(more.values()) >= 1)
    for row in hunt.rows:
        model.add_linear_constraint(sum(row.weights[e] * count for e, count in counts.items()) <= row.most)
    model.minimize(sum(float(market.usd_per_hour[e]) * count for e, count in counts.items()))
    found = solve(model, by=BY_COUNTING)
    if found is None:
        return None
    chosen = {engine: round(found.variable_values(count)) for engine, count in counts.items()}
    return {engine: count for engine, count in chosen.items() if count}


def _usd(market: Market, pools: Mapping[int, int]) -> float:
    return sum(float(market.usd_per_hour[engine]) * count for engine, count in pools.items())
