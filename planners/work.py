"""The work of a request on an engine: the least replica time that the step tables let it take, within its promises.

A lane turns prompts and decodes into steps of P prefill tokens and D decodes over C tokens of KV, of duration
t(P, D, C). Prices per token under which no step earns more than it takes, t >= prefill * P + decode * D +
context * C for every (P, D, C), bound from below the time of any schedule whatever. The best such prices for a demand
are a linear programme in four unknowns: the dual of choosing the mix of steps.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.step import PICOSECONDS_PER_SECOND
from simulator.fleet import PricedEngine

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

EXACT_UP_TO = 16
GRID_RATIO = 1.1


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """Replica time per prefill token, per decode step, and per KV token that a decode step holds [s each]."""

    prefill_s: float
    decode_s: float
    context_s: float


@dataclass(frozen=True, slots=True)
class Alone:
    """The times of requests that have an idle lane to themselves, one entry per request [s]."""

    ttft: Array
    tpot: Array
    e2e: Array


def token_prices(priced: PricedEngine, inputs: Counts, outputs: Counts, tpot_limit_s: float = math.inf) -> TokenPrices:
    """Return the prices, valid for every step of the engine, under which these requests together take longest.

    Decodes sit in steps of at most tpot_limit_s on average and hold at most the lane's KV, each with a multiplier.
    The programme sees a grid of steps; its answer is then scaled so that it holds for all.
    """
    from scipy.optimize import linprog

    prefill, decodes = _grid(priced)
    kv_tokens = priced.limits.total_blocks * priced.limits.block_tokens
    step_s = _step_s(priced, prefill, decodes)
    late_s = decodes * (step_s - tpot_limit_s) if math.isfinite(tpot_limit_s) else np.zeros(step_s.size)
    # Unknowns: prefill, decode, KV multiplier, TPOT multiplier; scaled so that all are of order one.
    scale = 1.0 / np.array([prefill.max(), decodes.max(), kv_tokens, decodes.max()])
    rows = np.stack([prefill, decodes, np.where(decodes > 0, kv_tokens, 0), -late_s], 1) * scale
    worth = np.array([*(float(column.sum()) for column in _per_request(inputs, outputs)), 0.0]) * scale
    found = linprog(-worth / worth.max(), A_ub=rows, b_ub=step_s / priced.lanes, bounds=(0, None), method="highs")
    assert found.status == 0, found.message
    prefill_s, decode_s, kv_s, patience = found.x * scale
    share = _valid_share(priced, prefill_s, decode_s, kv_s * kv_tokens, patience, tpot_limit_s)
    reading_s = _context_s(priced) / priced.lanes
    return TokenPrices(float(share * prefill_s), float(share * decode_s), float(share * kv_s + reading_s))


def request_work_s(priced: PricedEngine, prices: TokenPrices, inputs: Counts, outputs: Counts) -> Array:
    """Return the replica time that each request takes at least: new tokens, its KV while decoding, its attention."""
    prefill, decodes, context = _per_request(inputs, outputs)
    attention_s = _prefill_attention_s(priced, prefill) / priced.lanes
    return prefill * prices.prefill_s + decodes * prices.decode_s + context * prices.context_s + attention_s


def alone(priced: PricedEngine, inputs: Counts, outputs: Counts) -> Alone:
    """Return what each request would see with an idle lane to itself; infinite where it can never fit."""
    table, limits = priced.table, priced.limits
    prompts = np.maximum(inputs, 1)
    chunk = min(limits.max_batched_tokens, limits.long_prefill_tokens)
    full, last = (prompts - 1) // chunk, (prompts - 1) % chunk + 1
    sequence_s = _seconds(table.sequence_ps[0, 1])
    ttft_s = full * (_seconds(table.token_ps[0, chunk]) + sequence_s) + _seconds(table.token_ps[0, last]) + sequence_s
    ttft_s = ttft_s + _prefill_attention_s(priced, prompts)
    cell = np.minimum((prompts + 1) >> table.cell_shift[0], table.decode_ps.shape[3] - 1)
    tpot_s = _floor(table.token_ps[0])[1] + sequence_s + _seconds(table.decode_ps[0, 0, 1, cell])
    steps = np.maximum(outputs, 1) - 1
    fits = prompts + np.maximum(outputs, 1) <= limits.max_context_tokens
    return Alone(
        np.where(fits, ttft_s, np.inf),
        np.where(fits, np.where(steps > 0, tpot_s, np.nan), np.inf),
        np.where(fits, ttft_s + steps * tpot_s, np.inf),
    )


def _per_request(inputs: Counts, outputs: Counts) -> tuple[Array, Array, Array]:
    """Return prefill tokens, decode steps and the sum over those of the KV tokens read."""
    prefill = np.maximum(inputs, 1).astype(np.float64)
    steps = np.maximum(outputs, 1) - 1.0
    return prefill, steps, steps * prefill + steps * (steps + 1) / 2


def _valid_share(
    priced: PricedEngine, prefill_s: float, decode_s: float, kv_full_s: float, patience: float, tpot_limit_s: float
) -> float:
    """Return the largest factor on all prices at which no step whatever earns more than it takes."""
    limits = priced.limits
    tokens_s, sequences_s = _floor(priced.table.token_ps[0]), _floor(priced.table.sequence_ps[0])
    share = 1.0
    for decodes in range(min(limits.max_sequences, limits.max_batched_tokens) + 1):
        prefill = np.arange(decodes == 0, limits.max_batched_tokens - decodes + 1)
        step_s = tokens_s[prefill + decodes] + sequences_s[max(decodes, 1)]
        earned_s = prefill * prefill_s + (decodes * decode_s + kv_full_s if decodes else 0.0)
        if decodes and patience > 0:
            earned_s = earned_s - patience * decodes * (step_s - tpot_limit_s)
        share = min(share, 1 / max(1.0, float((earned_s * priced.lanes / step_s).max())))
    return share


def _grid(priced: PricedEngine) -> tuple[Counts, Counts]:
    """Return (prefill tokens, decodes) of a grid of legal steps."""
    limits = priced.limits
    most_decodes = min(limits.max_sequences, limits.max_batched_tokens)
    prefill, decodes = np.meshgrid(_spread(limits.max_batched_tokens), _spread(most_decodes), indexing="ij")
    legal = (prefill + decodes <= limits.max_batched_tokens) & (prefill + decodes > 0)
    return prefill[legal], decodes[legal]


def _spread(most: int) -> Counts:
    """Return counts from 0 to `most`: one by one at first, then in a constant ratio."""
    counts = list(range(min(EXACT_UP_TO, most) + 1))
    while counts[-1] < most:
        counts.append(min(most, max(counts[-1] + 1, int(counts[-1] * GRID_RATIO))))
    return np.array(counts, np.int64)


def _step_s(priced: PricedEngine, prefill: Counts, decodes: Counts) -> Array:
    """Return what steps with at least so many prefill tokens and decodes take at least, attention aside."""
    tokens_s, sequences_s = _floor(priced.table.token_ps[0]), _floor(priced.table.sequence_ps[0])
    step_s: Array = tokens_s[prefill + decodes] + sequences_s[np.maximum(decodes, 1)]
    return step_s


def _floor(column_ps: npt.NDArray[np.int64]) -> Array:
    """Return, for each count, the least time of that count or any larger one [s]."""
    floor: Array = np.minimum.accumulate(column_ps[::-1])[::-1] / PICOSECONDS_PER_SECOND
    return floor


def _context_s(priced: PricedEngine) -> float:
    """Return the least time per KV token that attention of decodes takes, over all batches and contexts.

    Within a cell the ratio of a line to its argument is monotone, so the cells' ends tell.
    """
    start_ps = priced.table.decode_ps[0, :, 1:]
    slope_ps, width = priced.table.decode_slope_ps[0, :, 1:], 1 << int(priced.table.cell_shift[0])
    low = np.arange(start_ps.shape[2]) * width
    most = np.arange(1, start_ps.shape[1] + 1)[:, None] * priced.limits.max_context_tokens
    reachable = low <= most
    end_ratios = np.where(reachable, (start_ps + slope_ps * width) / (low + width), np.inf)
    start_ratios = np.where(reachable, start_ps / np.maximum(low, 1), np.inf)[..., 1:]
    least_ps = min(end_ratios.min(), slope_ps[..., 0].min(), start_ratios.min(initial=np.inf))
    return float(least_ps) / PICOSECONDS_PER_SECOND


def _prefill_attention_s(priced: PricedEngine, prompts: npt.NDArray[np.number]) -> Array:
    """Return the attention time of prompts prefilled in the largest chunks there are."""
    table = priced.table
    prompts = prompts.astype(np.int64)
    chunk = min(priced.limits.max_batched_tokens, priced.limits.long_prefill_tokens)
    full, last = (prompts - 1) // chunk, (prompts - 1) % chunk + 1
    attention_ps = full * table.prefill_ps[0, chunk] + table.prefill_slope_ps[0, chunk] * (
        chunk * (full * (full - 1) // 2)
    )
    attention_ps += table.prefill_ps[0, last] + table.prefill_slope_ps[0, last] * (full * chunk)
    return _seconds(attention_ps)


def _seconds(picoseconds: npt.NDArray[np.int64]) -> Array:
    seconds: Array = np.asarray(picoseconds) / PICOSECONDS_PER_SECOND
    return seconds
