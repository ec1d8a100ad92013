"""Toy markets: engines with round numbers at round prices, and traces that one can think through."""

import itertools

import numpy as np
import toys

from planners.bounds.bound import rigorous_usd_per_hour, windows_of
from planners.offers.engines import Offer
from planners.slo import Slo, holds, parse_all
from simulator.fleet import Fleet, Pool
from simulator.replay import replay

PROMISES = ("ttft:p90<=40ms", "tpot:p90<=4ms")


def promises(*texts: str) -> tuple[Slo, ...]:
    return parse_all(texts or PROMISES)


def offer(name: str, usd_per_hour: float, step_ms: float = 1.0, token_us: float = 100.0, **limits) -> Offer:
    """An engine whose steps take so many ms, and so many us for each new token."""
    bounds = toys.limits(**{"max_sequences": 8, "max_batched_tokens": 64, "total_blocks": 64, **limits})
    engine = toys.engine(bounds, name=name, step_ps=int(step_ms * toys.PS_PER_MS), token_ps=int(token_us * 1e6))
    return Offer(engine, usd_per_hour)


def two_offers() -> list[Offer]:
    """A small one, and one that is three times as fast for two and a half times the price."""
    return [offer("small", 1.0, 3.0, 300.0), offer("large", 2.5, 1.0, 100.0)]


def bursty_trace(seed: int, requests: int = 300, gap_ms: float = 4.0):
    """Gamma arrivals with a coefficient of variation of 2, mixed prompts and answers."""
    rng = np.random.default_rng(seed)
    gaps_s = rng.gamma(0.25, gap_ms * 4e-3, requests)
    return toys.trace(np.cumsum(gaps_s), rng.integers(1, 60, requests), rng.integers(1, 20, requests))


def random_market(seed: int):
    """A random trace and up to three random engines of random price."""
    rng = np.random.default_rng(seed)
    offers = [
        offer(
            f"toy{number}",
            float(rng.integers(4, 20)) / 4,
            float(rng.uniform(0.5, 3)),
            float(rng.uniform(20, 300)),
            max_sequences=int(rng.integers(2, 9)),
        )
        for number in range(rng.integers(1, 4))
    ]
    return bursty_trace(seed, int(rng.integers(40, 160)), float(rng.uniform(3, 12))), offers


def siblings_raise_the_bound(market, siblings) -> bool:
    """Say whether the bound with siblings is higher by a hundredth, after checking that no cheaper fleet survives all.

    Fleets of up to three replicas of each offer that cost no less than the bound of the trace alone are replayed.
    """
    alone, bound = (rigorous_usd_per_hour(market, windows_of(market, some)) for some in ((), siblings))
    assert bound >= alone * (1 - 1e-5)
    for counts in itertools.product(range(4), repeat=len(market.offers)):
        chosen = list(zip(market.offers, counts, strict=True))
        cost = sum(offer.usd_per_hour * count for offer, count in chosen)
        if sum(counts) and alone <= cost < bound:
            fleet = Fleet(tuple(Pool(offer.priced, count) for offer, count in chosen if count))
            runs = [replay(one, fleet) for one in (market.trace, *siblings)]
            assert not all(holds(run, market.slos) for run in runs), counts
    return bound > alone * 1.01
