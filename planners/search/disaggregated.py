"""Fleets whose pools prefill or decode, hand in hand: which engines are worth a place there, and the search over them.

A prefill pool takes prompts by the router that foresees when each is done; a prompt that cannot be in time gives way.
So a decode never waits beside a long prefill, and bursts of prompts are cut down to the misses that promises allow.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from models.engine import Settings
from models.step import PICOSECONDS_PER_SECOND
from planners.bounds.windows import Row
from planners.bounds.work import decode_work_s, prompt_prices, token_prices, worth_of
from planners.demand import Market, sizes
from planners.offers.engines import Offer, name_of, offer, suffix_of
from planners.offers.tariffs import ON_DEMAND
from planners.search.hunt import CHEAPER_BY, Hunt
from planners.search.rehearsal import Candidate, split_candidate
from planners.search.roles import close_in
from traces import Trace

STEP_TOKENS = 128  # what prefill steps are whole multiples of
STEP_SHARE = 0.25  # of the time to first token that a prefill step takes at most
DECODE_TOKENS = 1024
DECODE_SEQUENCES = 512
MOST_OFFERS = 5  # of each role
MOST_PAIRS = 4  # to rehearse
EFFORT_REQUESTS = 24_000_000  # to replay in closing in on the cheapest, were replays not over once a promise breaks
MOST_REHEARSED = 250  # fleets, however few those are
HEADROOM = 2.0  # decode replicas, in their mean load, that are certainly enough

# A step that is formed while the one before runs leaves out what comes meanwhile: prompts would wait a step longer.
PREFILL = Settings(scheduling_policy="priority", async_scheduling=False)
DECODE = Settings(max_num_batched_tokens=DECODE_TOKENS, max_num_seqs=DECODE_SEQUENCES)


def role_offers(
    trace: Trace, offers: Sequence[Offer], tpot_limit_s: float, ttft_limit_s: float = math.inf
) -> tuple[Offer, ...]:
    """Return the engines that prefill, and those that decode, at the lowest prices: at most one of a device each.

    offers are those for both; where they are toy hardware, made of no catalogue device, there are none. Engines
    that draft take no role of their own.
    """
    inputs, outputs = sizes(trace)
    answers = (0.0, *worth_of(inputs, outputs)[1:])
    if not answers[1]:
        return ()
    prompt_usd, answer_usd = [], []
    for one in offers:
        if one.priced.engine is not None and not one.is_cautious and one.priced.limits.verified_tokens == 1:
            prompt_usd.append((one.usd_per_hour * prompt_prices(one.priced).prefill_s, one))
            prices = token_prices(one.priced, answers, tpot_limit_s)
            answer_usd.append((one.usd_per_hour * float(decode_work_s(prices, inputs, outputs).sum()), one))
    chosen = [
        _in_role(one, "prefill", replace(PREFILL, max_num_batched_tokens=step_tokens(one, ttft_limit_s)))
        for one in _best(prompt_usd)
    ]
    return (*chosen, *(_in_role(one, "decode", DECODE) for one in _best(answer_usd)))


def search(hunt: Hunt, effort: int) -> None:
    """Rehearse pairs of a prefill and a decode engine, the most promising first, and keep the cheapest survivor.

    For each pair the fewest prefill replicas beside ample decode replicas are found, then the fewest decode replicas
    beside those; then the search closes in on the cheapest fleet of any engines (planners/search/roles.py).
    """
    spent = len(hunt.verdicts)
    for prefill, decode in _pairs(hunt):
        if len(hunt.verdicts) - spent < effort:
            _fewest(hunt, prefill, decode)
    best = hunt.best
    if best is not None and _is_split(hunt.market, best.candidate):
        needed = {"prefill": partial(_least_prefill, hunt), "decode": partial(_mean_decodes, hunt.market)}
        roles = {place: one.role for place, one in enumerate(hunt.market.offers) if one.role != "both"}
        least = {place: needed[role](place) for place, role in roles.items()}
        hunt.split_usd = close_in(hunt, least, min(MOST_REHEARSED, EFFORT_REQUESTS // len(hunt.market.trace)))


def _best(priced: list[tuple[float, Offer]]) -> list[Offer]:
    """Return the cheapest engine of each device, the cheapest devices first."""
    devices: dict[str, Offer] = {}
    for _, one in sorted(priced, key=lambda entry: (entry[0], entry[1].name)):
        devices.setdefault(one.device_name, one)
    return list(devices.values())[:MOST_OFFERS]


def step_tokens(one: Offer, ttft_limit_s: float) -> int:
    """Return the tokens of a prefill step in which each takes least time, of steps that leave time to wait for them."""
    table = one.priced.table
    tokens = np.arange(STEP_TOKENS, one.priced.limits.max_batched_tokens + 1, STEP_TOKENS)
    step_s = (table.token_ps[0, tokens] + table.sequence_ps[0, 1]) / PICOSECONDS_PER_SECOND
    is_short = step_s <= max(STEP_SHARE * ttft_limit_s, step_s[0])
    return int(tokens[np.argmin(np.where(is_short, step_s / tokens, np.inf))])


def _in_role(one: Offer, role: str, settings: Settings) -> Offer:
    engine = one.priced.engine
    assert engine is not None, "only catalogue devices take roles"
    alone = replace(engine, settings=settings)
    name = f"{name_of(alone)}/{role}{suffix_of(one.price.kind if one.price else ON_DEMAND)}"
    made = offer(alone)
    return replace(one, priced=replace(made.priced, name=name), role=role)


def _pairs(hunt: Hunt) -> list[tuple[int, int]]:
    """Return the pairs of engines that cost least, by what bounds the prompts and by the mean load of answers."""
    market = hunt.market
    engines = {
        role: [place for place, one in enumerate(market.offers) if one.role == role] for role in ("prefill", "decode")
    }
    pairs = []
    for prefill in engines["prefill"]:
        for decode in engines["decode"]:
            least = _least_prefill(hunt, prefill), _mean_decodes(market, decode)
            usd = float(np.dot(least, market.usd_per_hour[[prefill, decode]]))
            if _keep_kv_alike(market.offers[prefill], market.offers[decode]):
                pairs.append((usd, prefill, decode))
    pairs.sort()
    return [(prefill, decode) for _, prefill, decode in pairs[:MOST_PAIRS]]


def _keep_kv_alike(prefill: Offer, decode: Offer) -> bool:
    """Say whether one engine's KV is what the other reads."""
    one, other = prefill.priced.engine, decode.priced.engine
    return one is None or other is None or one.kv_dtype == other.kv_dtype


def _least_prefill(hunt: Hunt, prefill: int) -> float:
    """Return the replicas, parts of one allowed, that the windows of prompts alone ask for."""
    needed = [_needed(row, prefill) for row in hunt.windows.rows if not row.relief]
    return max([1.0, *(count for count in needed if math.isfinite(count))])


def _needed(row: Row, engine: int) -> float:
    return row.demand / float(row.power[engine]) if row.power[engine] > 0 else math.inf


def _mean_decodes(market: Market, decode: int) -> float:
    inputs, outputs = sizes(market.trace)
    work_s = float(decode_work_s(market.prices[decode], inputs, outputs).sum())
    return max(1.0, work_s / max(market.trace.span_s, 1e-9))


def _fewest(hunt: Hunt, prefill: int, decode: int) -> None:
    """Find the fewest replicas of a pair that survive, while they may cost less than the best fleet."""
    market = hunt.market
    usd_prefill, usd_decode = (float(market.usd_per_hour[engine]) for engine in (prefill, decode))
    few = math.ceil(_mean_decodes(market, decode) - 1e-9)
    ample = math.ceil(HEADROOM * few) + 1

    def survives(prefills: int, decodes: int) -> bool:
        return hunt.attempt(split_candidate(market, [(prefill, prefills), (decode, decodes)]))[0].survives

    def most(decodes: int) -> int:
        if hunt.best is None:
            return 4 * math.ceil(_least_prefill(hunt, prefill)) + 1
        return math.ceil((hunt.best.usd_per_hour * (1 - CHEAPER_BY) - decodes * usd_decode) / usd_prefill) - 1

    low, high = math.ceil(_least_prefill(hunt, prefill) - 1e-9) - 1, most(few)
    if high <= low or not survives(high, ample):
        return
    high = _first(low, high, lambda prefills: survives(prefills, ample))
    for prefills in (high, high + 1):
        room = math.inf if hunt.best is None else hunt.best.usd_per_hour * (1 - CHEAPER_BY) - prefills * usd_prefill
        top = min(ample, math.ceil(room / usd_decode) - 1) if math.isfinite(room) else ample
        if top >= few and (top == ample or survives(prefills, top)):
            _first(few - 1, top, lambda decodes, prefills=prefills: survives(prefills, decodes))  # type: ignore[misc]


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the smallest count in (low, high] that holds, where high does and more never hurts."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _is_split(market: Market, chosen: Candidate) -> bool:
    return any(market.offers[engine].role != "both" for engine, _ in chosen.pools)
