"""The work of a request on an engine: the least replica time that the step tables let it take, within its promises.

A lane turns prompts and decodes into steps of P prefill tokens and D decodes over C tokens of KV, of duration
t(P, D, C). Prices per token under which no step earns more than it takes, t >= prefill * P + decode * D +
context * C for every (P, D, C), bound from below the time of any schedule whatever. The best such prices for a demand
are a linear programme in four unknowns: the dual of choosing the mix of steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.step import ALONE, PICOSECONDS_PER_SECOND
from simulator.fleet import PricedEngine

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Worth = tuple[float, float, float]  # prefill tokens, decode steps, KV tokens read


EXACT_UP_TO = 16
FINE_RATIO = 1.01
CHUNK_RATIO = 1.05
MOST_CHUNK = 8192


@dataclass(frozen=True, slots=True)
class Detail:
    """How many steps prices of tokens are found with: one by one up to a count, then in a ratio; and are held against.

    The ratio of those that they are held against, `held`, is that of cells of steps: prices are valid whatever it is.
    """

    ratio: float
    one_by_one: int
    held: float


FINE = Detail(1.2, EXACT_UP_TO, FINE_RATIO)
COARSE = Detail(1.7, 1, 1.1)


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """Replica time per prefill token, decode step, KV token that a decode holds, and pair of query and key [s each].

    chunk_s is what attention takes besides per token of a prompt of at most so many tokens (chunk_edges).
    """

    prefill_s: float
    decode_s: float
    context_s: float
    pair_s: float
    chunk_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Alone:
    """The times of requests that have an idle lane to themselves, one entry per request [s]."""

    ttft: Array
    tpot: Array
    e2e: Array


def token_prices(priced: PricedEngine, worth: Worth, tpot_limit_s: float = math.inf) -> TokenPrices:
    """Return the prices, valid for every step of the engine, under which so many tokens together take longest.

    Decodes sit in steps of at most tpot_limit_s on average and hold at most the lane's KV, each with a multiplier.
    The programme sees a grid of steps; its answer is then scaled so that it holds for all. Where a step decodes more
    than one token of a sequence, what is a step's share is shared by those.
    """
    return token_prices_of([priced], worth, tpot_limit_s)[0]


def token_prices_of(
    engines: Sequence[PricedEngine], worth: Worth, tpot_limit_s: float = math.inf, detail: Detail = FINE
) -> list[TokenPrices]:
    """Return the token prices of several engines, of one programme in blocks."""
    from scipy.optimize import linprog
    from scipy.sparse import block_diag

    blocks = [_block(one, worth, tpot_limit_s, detail) for one in engines]
    found = linprog(
        np.concatenate([block.lane_s for block in blocks]),
        A_ub=block_diag([-block.rates for block in blocks], format="csc"),
        b_ub=np.concatenate([-block.wanted for block in blocks]),
        bounds=(0, None),
        method="highs-ds",
    )
    assert found.status == 0, found.message
    duals = -found.ineqlin.marginals.reshape(len(blocks), -1)
    return [_valid(*each, detail) for each in zip(engines, blocks, duals, strict=True)]


@dataclass(frozen=True, slots=True)
class _Block:
    """The mix of steps that does an engine's work soonest: lane time of steps, what they do, and what is wanted.

    Rows are prefill, decodes, KV and patience with TPOT, scaled so that all are of order one: four instead of the
    thousands that the prices themselves would have. Without a step that is fast enough, TPOT is left out.
    """

    lane_s: Array
    rates: Array
    wanted: Array
    scale: Array
    tpot_limit_s: float


def _block(priced: PricedEngine, worth: Worth, tpot_limit_s: float, detail: Detail) -> _Block:
    prefill, decodes = _grid(priced, detail)
    kv_tokens = priced.limits.total_blocks * priced.limits.block_tokens
    step_s = _step_s(priced, prefill, decodes)
    tpot_limit_s *= growth_of(priced)
    if step_s[decodes > 0].min() > tpot_limit_s:
        tpot_limit_s = math.inf
    late_s = decodes * (step_s - tpot_limit_s) if math.isfinite(tpot_limit_s) else np.zeros(step_s.size)
    scale = 1.0 / np.array([prefill.max(), decodes.max(), kv_tokens, decodes.max()])
    rates = np.stack([prefill, decodes, np.where(decodes > 0, kv_tokens, 0), -late_s]) * scale[:, None]
    wanted = np.array([*worth, 0.0]) * scale
    return _Block(step_s / priced.lanes, rates, wanted / wanted.max(), scale, tpot_limit_s)


def _valid(priced: PricedEngine, block: _Block, duals: Array, detail: Detail) -> TokenPrices:
    """Return the prices that a programme found, scaled so that they hold for every step."""
    prefill_s, decode_s, kv_s, patience = duals * block.scale
    kv_tokens = priced.limits.total_blocks * priced.limits.block_tokens
    share = _valid_share(priced, prefill_s, decode_s, kv_s * kv_tokens, patience, block.tpot_limit_s, detail.held)
    growth = growth_of(priced)
    context_s = float(share * kv_s + context_floor_s(priced) / priced.lanes) / growth
    return TokenPrices(float(share * prefill_s), float(share * decode_s) / growth, context_s, *_attention_s(priced))


def prompt_prices(priced: PricedEngine) -> TokenPrices:
    """Return the highest price of a prompt's token where decodes are free: that of the step that is best at prompts."""
    tokens_s, sequences_s = floor_s(priced.table.token_ps[0]), floor_s(priced.table.sequence_ps[0])
    tokens = np.arange(1, priced.limits.max_batched_tokens + 1)
    least_s = ((tokens_s[tokens] + sequences_s[1]) / tokens).min() / priced.lanes
    return TokenPrices(float(least_s), 0.0, 0.0, *_attention_s(priced))


def worth_of(inputs: Counts, outputs: Counts, fresh: Counts | None = None) -> Worth:
    """Return what requests ask for in all: prefill tokens, decode steps, KV tokens read by those.

    fresh are the prompt tokens that no cache can hold, by default all.
    """
    _, decodes, context = pieces_of(inputs, outputs)
    prefill = np.maximum(inputs if fresh is None else fresh, 1)
    return float(prefill.sum()), float(decodes.sum()), float(context.sum())


def prefill_work_s(prices: TokenPrices, fresh: Counts) -> Array:
    """Return the replica time that each prompt of so many uncached tokens takes at least."""
    work_s: Array = np.maximum(fresh, 1) * prices.prefill_s + attention_of(fresh, prices.pair_s, prices.chunk_s)
    return work_s


def attention_of(fresh: Counts, pair: float, chunk: tuple[float, ...]) -> Array:
    """Return what the attention of each prompt of so many uncached tokens takes at a price of pairs and of chunks.

    A prompt of n tokens has n**2 / 2 pairs; none of its chunks is longer than itself (chunk_edges), or cheaper besides.
    """
    prefill, besides = np.maximum(fresh, 1), np.array(chunk or (0.0,))
    cell = np.minimum(np.searchsorted(chunk_edges(), prefill), besides.size - 1)
    attention: Array = prefill.astype(np.float64) ** 2 / 2 * pair + prefill * besides[cell]
    return attention


def decode_work_s(prices: TokenPrices, inputs: Counts, outputs: Counts) -> Array:
    """Return the replica time that each answer takes at least: its steps, and the KV that they hold."""
    _, decodes, context = pieces_of(inputs, outputs)
    work_s: Array = decodes * prices.decode_s + context * prices.context_s
    return work_s


def request_work_s(prices: TokenPrices, inputs: Counts, outputs: Counts, fresh: Counts | None = None) -> Array:
    """Return the replica time that each request takes at least; fresh as in worth_of."""
    return prefill_work_s(prices, inputs if fresh is None else fresh) + decode_work_s(prices, inputs, outputs)


@dataclass(frozen=True, slots=True)
class Asked:
    """What requests ask for: prompt and answer tokens, and the distinct sizes of whole prompts and of what is new."""

    inputs: Counts
    outputs: Counts
    wholes: Counts
    whole_of: Counts  # [request], a place in wholes
    prompts: Counts
    prompt_of: Counts

    def sums(self, bucket: Counts, buckets: int) -> Array:
        """Return, by bucket, new prompt tokens, pairs of a query and a key, decode steps, and KV tokens they read."""
        prefill = self.prompts[self.prompt_of].astype(np.float64)
        _, decodes, context = pieces_of(self.inputs, self.outputs)
        parts = (prefill, prefill * prefill / 2, decodes, context)
        return np.stack([np.bincount(bucket, part, buckets) for part in parts])


def asked_for(inputs: Counts, outputs: Counts, fresh: Counts | None = None) -> Asked:
    """Return what requests ask for; of prompts only the fresh tokens are not cached, as in worth_of."""
    wholes, whole_of = np.unique(np.maximum(inputs, 1), return_inverse=True)
    prompts, prompt_of = np.unique(np.maximum(inputs if fresh is None else fresh, 1), return_inverse=True)
    return Asked(inputs, outputs, wholes, whole_of, prompts, prompt_of)


def alone(priced: PricedEngine, asked: Asked) -> Alone:
    """Return what each request would see with an idle lane to itself; infinite where it can never fit."""
    ttft_s = _first_token_s(priced, asked.prompts)[asked.prompt_of]
    tpot_s = _decode_step_s(priced, asked.wholes)[asked.whole_of]
    steps = np.maximum(asked.outputs, 1) - 1
    fits = asked.inputs + np.maximum(asked.outputs, 1) <= priced.limits.max_context_tokens
    return Alone(
        np.where(fits, ttft_s, np.inf),
        np.where(fits, np.where(steps > 0, tpot_s, np.nan), np.inf),
        np.where(fits, ttft_s + steps * tpot_s, np.inf),
    )


def _first_token_s(priced: PricedEngine, prompts: Counts) -> Array:
    table, limits = priced.table, priced.limits
    chunk = min(limits.max_batched_tokens, limits.long_prefill_tokens)
    full, last = (prompts - 1) // chunk, (prompts - 1) % chunk + 1
    sequence_s = _seconds(table.sequence_ps[0, 1])
    ttft_s = full * (_seconds(table.token_ps[0, chunk]) + sequence_s) + _seconds(table.token_ps[0, last]) + sequence_s
    return ttft_s + _attention_alone_s(priced, prompts)


def _decode_step_s(priced: PricedEngine, wholes: Counts) -> Array:
    table = priced.table
    cell = np.minimum((wholes + 1) >> table.cell_shift[0], table.decode_ps.shape[3] - 1)
    fixed_s = floor_s(table.token_ps[0])[1] + _seconds(table.sequence_ps[0, 1])
    step_s: Array = (fixed_s + _seconds(table.decode_ps[0, 0, 1, cell])) / growth_of(priced)
    return step_s


def growth_of(priced: PricedEngine) -> float:
    """Return the tokens of a sequence that one decode step yields: more than one where drafts are verified."""
    return priced.limits.growth_parts / (1 << priced.limits.part_shift)


def pieces_of(inputs: Counts, outputs: Counts) -> tuple[Array, Array, Array]:
    """Return prefill tokens, decode steps and the sum over those of the KV tokens read."""
    prefill = np.maximum(inputs, 1).astype(np.float64)
    steps = np.maximum(outputs, 1) - 1.0
    return prefill, steps, steps * prefill + steps * (steps + 1) / 2


def _valid_share(
    priced: PricedEngine,
    prefill_s: float,
    decode_s: float,
    kv_full_s: float,
    patience: float,
    tpot_limit_s: float,
    ratio: float,
) -> float:
    """Return the largest factor on all prices at which no step whatever earns more than it takes."""
    limits = priced.limits
    most_decodes = min(limits.max_sequences, limits.max_batched_tokens)
    tokens_s, sequences_s = floor_s(priced.table.token_ps[0]), floor_s(priced.table.sequence_ps[0])
    edges = spread(limits.max_batched_tokens, ratio)
    low, high = edges[:, None], np.append(edges[1:] - 1, edges[-1])[:, None]  # cells of prefill tokens
    decodes = np.arange(most_decodes + 1)[None, :]
    high = np.minimum(high, limits.max_batched_tokens - decodes)
    legal = (low <= high) & (high + decodes > 0)
    step_s = tokens_s[np.minimum(np.maximum(low, decodes == 0) + decodes, limits.max_batched_tokens)]
    step_s = step_s + sequences_s[np.maximum(decodes, 1)]
    earned_s = high * prefill_s + decodes * decode_s + np.where(decodes > 0, kv_full_s, 0.0)
    if patience > 0:
        earned_s = earned_s - patience * decodes * (step_s - tpot_limit_s)
    ratios = np.where(legal, earned_s * priced.lanes / step_s, 0.0)
    return float(1 / max(1.0, ratios.max()))


def _grid(priced: PricedEngine, detail: Detail) -> tuple[Counts, Counts]:
    """Return (prefill tokens, decodes) of a grid of legal steps."""
    limits = priced.limits
    most_decodes = min(limits.max_sequences, limits.max_batched_tokens)
    counts = [spread(most, detail.ratio, detail.one_by_one) for most in (limits.max_batched_tokens, most_decodes)]
    prefill, decodes = np.meshgrid(*counts, indexing="ij")
    legal = (prefill + decodes <= limits.max_batched_tokens) & (prefill + decodes > 0)
    return prefill[legal], decodes[legal]


def spread(most: int, ratio: float, one_by_one: int = EXACT_UP_TO) -> Counts:
    """Return counts from 0 to `most`: one by one at first, then in a constant ratio."""
    counts = list(range(min(one_by_one, most) + 1))
    while counts[-1] < most:
        counts.append(min(most, max(counts[-1] + 1, int(counts[-1] * ratio))))
    return np.array(counts, np.int64)


def _step_s(priced: PricedEngine, prefill: Counts, decodes: Counts) -> Array:
    """Return what steps with at least so many prefill tokens and decodes take at least, attention aside."""
    tokens_s, sequences_s = floor_s(priced.table.token_ps[0]), floor_s(priced.table.sequence_ps[0])
    step_s: Array = tokens_s[prefill + decodes] + sequences_s[np.maximum(decodes, 1)]
    return step_s


def floor_s(column_ps: npt.NDArray[np.int64]) -> Array:
    """Return, for each count, the least time of that count or any larger one [s]."""
    floor: Array = np.minimum.accumulate(column_ps[::-1])[::-1] / PICOSECONDS_PER_SECOND
    return floor


def context_floor_s(priced: PricedEngine) -> float:
    """Return the least time per KV token that attention of decodes takes, over all batches and contexts.

    Within a cell time is a line, so its ratio to the context is least at an edge.
    """
    slope_ps, width = priced.table.decode_slope_ps[0, ALONE, 1:], 1 << int(priced.table.cell_shift[0])
    start_ps = priced.table.decode_ps[0, ALONE, 1:, : slope_ps.shape[1]]
    low = np.arange(slope_ps.shape[1]) * width
    most = np.arange(1, slope_ps.shape[0] + 1)[:, None] * priced.limits.max_context_tokens
    ratios = np.where(low <= most, (start_ps + slope_ps * width) / (low + width), np.inf)
    return float(ratios.min()) / PICOSECONDS_PER_SECOND


def pair_floor_s(priced: PricedEngine) -> float:
    """Return the least time per (query, key) pair of prefill, over all chunks: c**2 / 2 pairs, and c for each past."""
    table = priced.table
    chunk = np.arange(1, table.prefill_ps.shape[1])
    ratios = np.minimum(2 * table.prefill_ps[0, 1:] / chunk, table.prefill_slope_ps[0, 1:]) / chunk
    return float(ratios.min()) / PICOSECONDS_PER_SECOND


def chunk_edges() -> Counts:
    """Return lengths of chunks, in a constant ratio: what a prompt's chunks take holds for all up to the next."""
    return spread(MOST_CHUNK, CHUNK_RATIO)[1:]


def chunk_floor_s(priced: PricedEngine) -> Array:
    """Return the least time per token that chunks of up to each of chunk_edges take beside their pairs' floor.

    A chunk of c tokens takes at least pair_floor_s for each of its pairs and besides what it takes as the first of a
    prompt, less that floor of c**2 / 2 pairs. Longer prompts may have chunks of any length.
    """
    chunk = np.arange(1, priced.table.prefill_ps.shape[1])
    first_s = priced.table.prefill_ps[0, 1:] / PICOSECONDS_PER_SECOND
    besides_s = np.minimum.accumulate(np.maximum(first_s / chunk - pair_floor_s(priced) * chunk / 2, 0.0))
    least_s: Array = besides_s[np.minimum(chunk_edges(), chunk.size) - 1]
    least_s[-1] = besides_s[-1]
    return least_s


def _attention_s(priced: PricedEngine) -> tuple[float, tuple[float, ...]]:
    """Return the replica time per pair, and per token of each length of chunks."""
    return pair_floor_s(priced) / priced.lanes, tuple((chunk_floor_s(priced) / priced.lanes).tolist())


def _attention_alone_s(priced: PricedEngine, prompts: Counts) -> Array:
    """Return the attention time of prompts prefilled in the largest chunks there are."""
    table = priced.table
    chunk = min(priced.limits.max_batched_tokens, priced.limits.long_prefill_tokens)
    full, last = (prompts - 1) // chunk, (prompts - 1) % chunk + 1
    window = int(table.window_tokens[0])
    in_window = np.concatenate([[0], np.cumsum(np.minimum(np.arange(full.max() + 1) * chunk, window))])
    attention_ps = full * table.prefill_ps[0, chunk] + table.prefill_ps[0, last]
    attention_ps += table.prefill_slope_ps[0, chunk] * (chunk * (full * (full - 1) // 2))
    attention_ps += table.prefill_slope_ps[0, last] * (full * chunk)
    attention_ps += table.window_slope_ps[0, chunk] * in_window[full]
    attention_ps += table.window_slope_ps[0, last] * np.minimum(full * chunk, window)
    return _seconds(attention_ps)


def _seconds(picoseconds: npt.NDArray[np.int64]) -> Array:
    seconds: Array = np.asarray(picoseconds) / PICOSECONDS_PER_SECOND
    return seconds
