"""Ordinary pools beside split ones: fleets in which some replicas do both, and others prefill or decode hand in hand.

A split fleet wants whole replicas of both roles; what is left of the load may be cheaper on a replica that does both,
and a few of those take the bursts. So around the cheapest split fleet, and the cheapest ordinary one, replicas of the
one kind are traded for those of the other.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from planners.demand import Market
from planners.offers.limits import keeps
from planners.search.hunt import CHEAPER_BY, Hunt, Replicas
from planners.search.rehearsal import Candidate, Verdict, split_candidate

MOST_TRADED = 2  # replicas away, and replicas instead
ORDINARY = 6  # engines that do both to trade with
ROUTERS = ("in-time", "join-shortest-queue")


def search(hunt: Hunt, effort: int) -> None:
    """Rehearse mixed fleets that are cheaper than the best, the most powerful first, and again around a survivor.

    A fleet that fails under every routing is not tried again, nor one that has no more replicas of any engine.
    """
    spent = len(hunt.verdicts)
    failed: list[Replicas] = []
    while hunt.best is not None:
        before = hunt.best
        for replicas in _near(hunt):
            if any(all(few <= many for few, many in zip(replicas, other, strict=True)) for other in failed):
                continue
            chosen = split_candidate(hunt.market, [(engine, count) for engine, count in enumerate(replicas) if count])
            for routed in _routed(hunt.market, chosen):
                if len(hunt.verdicts) - spent >= effort:
                    return
                if hunt.attempt(routed)[0].survives:
                    break
            else:
                failed.append(replicas)
            if hunt.best is not before:
                break
        if hunt.best is before:
            return


def is_mixed(market: Market, engines: Iterable[int]) -> bool:
    """Say whether of a fleet's engines some do both, and others each of the two."""
    return {market.offers[engine].role for engine in engines} == {"both", "prefill", "decode"}


def _near(hunt: Hunt) -> list[Replicas]:
    """Return the mixed fleets near the cheapest survivors of each kind that cost less than the best.

    First come those with most power to spare in the window that leaves them least, then the dearest.
    """
    market, ceiling = hunt.market, _ceiling_usd(hunt)
    rows = hunt.windows.rows
    power = np.array([row.power / row.demand for row in rows]).reshape(len(rows), len(market.offers))
    found: dict[Replicas, tuple[float, float]] = {}
    for verdict in _cheapest_of_each_kind(hunt):
        for pools in _trades(hunt, Counter(dict(verdict.candidate.pools))):
            replicas = tuple(pools[engine] for engine in range(len(market.offers)))
            usd = float(np.dot(market.usd_per_hour, replicas))
            may_do = usd < ceiling and keeps(hunt.rows, replicas) and hunt.windows.may_survive(replicas)
            if replicas not in found and may_do and is_mixed(market, pools):
                found[replicas] = float((power @ np.array(replicas)).min(initial=np.inf)), usd
    return sorted(found, key=lambda replicas: (-found[replicas][0], -found[replicas][1], replicas))


def _routed(market: Market, chosen: Candidate) -> Iterator[Candidate]:
    """Yield a mixed fleet under the routers that look at load, and with some requests kept to replicas that do both.

    Those are a class of them, or where there are none the shortest prompts, or the longest: buckets hold about as many
    prompt tokens each, and ordinary replicas get as many of them as is their part of those that take prompts.
    """
    counts = [count * (market.offers[engine].role != "decode") for engine, count in chosen.pools]
    ordinary = [count * (market.offers[engine].role == "both") for engine, count in chosen.pools]
    split = [count - own for count, own in zip(counts, ordinary, strict=True)]
    for is_theirs in _parts(market, sum(ordinary) / sum(counts)):
        rows = [ordinary if mine else split for mine in is_theirs]
        shares = tuple(tuple(count / sum(row) for count in row) for row in rows)
        yield replace(chosen, router="planned", shares=shares)
    for router in ROUTERS:
        yield replace(chosen, router=router)


def _parts(market: Market, fraction: float) -> list[npt.NDArray[np.bool_]]:
    """Return the sets of buckets that replicas which do both may have to themselves, being such a fraction of all."""
    sized, bucket = len(market.input_edges), np.arange(market.buckets)
    if market.classes:
        return [bucket // sized == code for code in range(len(market.classes))]
    theirs = min(max(1, round(sized * fraction)), sized - 1)
    return [bucket < theirs, bucket >= sized - theirs] if sized > 1 else []


def _cheapest_of_each_kind(hunt: Hunt) -> list[Verdict]:
    """Return the cheapest survivor that is split, ordinary or mixed, of each kind that there is."""
    cheapest: dict[frozenset[str], Verdict] = {}
    for verdict in hunt.verdicts.values():
        roles = frozenset(hunt.market.offers[engine].role for engine, _ in verdict.candidate.pools)
        if verdict.survives and (roles not in cheapest or verdict.usd_per_hour < cheapest[roles].usd_per_hour):
            cheapest[roles] = verdict
    return list(cheapest.values())


def _trades(hunt: Hunt, pools: Counter[int]) -> Iterator[Counter[int]]:
    """Yield fleets with a few replicas less, and a few others more."""
    offers = hunt.market.offers
    roles = [engine for engine, offer in enumerate(offers) if offer.role != "both"]
    used = [engine for engine in pools if offers[engine].role == "both"]
    others = sorted({*used, *_ordinary(hunt), *roles})
    for away in range(MOST_TRADED + 1):
        for removed in itertools.combinations_with_replacement(sorted(pools), away):
            left = Counter(pools)
            left.subtract(removed)
            if min(left.values()) < 0:
                continue
            for more in range(1, MOST_TRADED + 1):
                for added in itertools.combinations_with_replacement(others, more):
                    yield +(left + Counter(added))


def _ordinary(hunt: Hunt) -> list[int]:
    """Return the engines that do both and serve the load at least cost."""
    usd = hunt.market.usd_per_hour * hunt.market.load
    return sorted(hunt.engines, key=lambda engine: (usd[engine], engine))[:ORDINARY]


def _ceiling_usd(hunt: Hunt) -> float:
    assert hunt.best is not None, "something survived"
    return hunt.best.usd_per_hour * (1 - CHEAPER_BY)
