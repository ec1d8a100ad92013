"""Closing in on the cheapest fleet of pools that prefill or decode: propose the cheapest left, replay, rule out.

What is ruled out is learned, not proven: that fewer replicas serve no better; that a broken promise on the first token
is the fault of the prefill pools, and one on the time per token that of the decode pools, whatever is beside them; and
that engines add up, so that shares of what each of them lacks when alone in its role are not enough together.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from planners.demand import Market
from planners.search.hunt import CHEAPER_BY, Hunt
from planners.search.rehearsal import Candidate, split_candidate
from planners.solver import BY_COUNTING, mathopt, solve

ROLES = {"prefill": "ttft", "decode": "tpot"}  # and the promise that each is to keep
BEYOND = 1e-6  # of what was seen to be too little


@dataclass(slots=True)
class Lessons:
    """What was too little: of an engine alone in its role, and of pools together, {engine: replicas} each."""

    alone: dict[int, float]
    together: list[dict[int, int]] = field(default_factory=list)


def close_in(hunt: Hunt, least: Mapping[int, float], effort: int) -> float:
    """Replay the cheapest split fleets not ruled out until none is cheaper than the best, or for so many replays.

    least are replicas of each engine below which its role is not done by it alone. Returns what no split fleet that is
    not ruled out costs less than [USD/h].
    """
    spent = len(hunt.verdicts)
    while True:
        best = hunt.best
        assert best is not None, "there is a fleet to close in on"
        lessons = Lessons({engine: count * (1 - 2 * BEYOND) for engine, count in least.items()})
        if not _learn_alone(hunt, best.candidate, lessons):
            continue
        while len(hunt.verdicts) - spent < effort:
            found = _cheapest(hunt, lessons)
            if found is None or _usd(hunt.market, found) >= best.usd_per_hour * (1 - CHEAPER_BY):
                return best.usd_per_hour
            if _survives(hunt, split_candidate(hunt.market, list(found.items())), lessons):
                break
        else:
            found = _cheapest(hunt, lessons)
            cost = math.inf if found is None else _usd(hunt.market, found)
            return min(cost, best.usd_per_hour)


def _learn_alone(hunt: Hunt, best: Candidate, lessons: Lessons) -> bool:
    """Find out whether any engine can take over a whole role of the best fleet at less cost; say whether none can."""
    market, most_usd = hunt.market, _usd(hunt.market, dict(best.pools)) * (1 - CHEAPER_BY)
    for role in ROLES:
        others = [pool for pool in best.pools if market.offers[pool[0]].role != role]
        for engine, one in enumerate(market.offers):
            count = math.ceil((most_usd - _usd(market, dict(others))) / one.usd_per_hour) - 1
            if one.role == role and count >= lessons.alone[engine]:
                if _survives(hunt, split_candidate(market, [(engine, count), *others]), lessons):
                    return False
                lessons.alone[engine] = max(count, lessons.alone[engine])
    return True


def _survives(hunt: Hunt, chosen: Candidate, lessons: Lessons) -> bool:
    """Replay a fleet, unless that was done before, and learn from what broke; say whether it is the new best."""
    verdict = hunt.verdicts.get(chosen) or hunt.attempt(chosen)[0]
    if verdict.survives and hunt.best is not None and hunt.best.candidate == chosen:
        return True
    roles = [role for role, metric in ROLES.items() if verdict.broken == {metric}] or list(ROLES)
    pools, offers = dict(chosen.pools), hunt.market.offers
    lessons.together.append({e: pools.get(e, 0) for e in lessons.alone if offers[e].role in roles})
    return False


def _cheapest(hunt: Hunt, lessons: Lessons) -> dict[int, int] | None:
    """Return the cheapest split fleet that is not ruled out, or None."""
    market, model = hunt.market, mathopt().Model()
    counts = {engine: model.add_integer_variable(lb=0) for engine in lessons.alone}
    for role in ROLES:
        shares = [count * (1 / lessons.alone[e]) for e, count in counts.items() if market.offers[e].role == role]
        model.add_linear_constraint(sum(shares) >= 1 + BEYOND)
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
