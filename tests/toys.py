"""Toy hardware with round numbers, so that expected values are arithmetic one can do in one's head."""

from dataclasses import replace

import numpy as np

from models.drafting import with_speculation
from models.engine import UNLIMITED_TOKENS, Limits
from models.speculation import PART_SHIFT, Speculation
from models.step import StepTable
from simulator.fleet import Fleet, Pool, PricedEngine
from traces.trace import Ragged, Trace

PS_PER_MS = 1_000_000_000


def limits(**changes) -> Limits:
    chosen = (
        dict(max_sequences=8, max_batched_tokens=64, block_tokens=4, total_blocks=64, max_context_tokens=200) | changes
    )
    return Limits(**{"long_prefill_tokens": UNLIMITED_TOKENS, **chosen})


def drafting(bounds: Limits, chosen: Speculation) -> Limits:
    """The limits of a lane whose decodes draft and verify."""
    return replace(
        bounds,
        max_context_tokens=min(bounds.max_context_tokens, bounds.total_blocks * bounds.block_tokens)
        - chosen.draft_tokens,
        verified_tokens=chosen.verified_tokens,
        growth_parts=chosen.growth_parts,
        part_shift=PART_SHIFT,
    )


def table(
    bounds: Limits,
    *,
    step_ps: int = PS_PER_MS,
    token_ps: int = 0,
    sequence_ps: int = 0,
    context_ps: int = 0,
    beside_ps: int = 0,
    pair_ps: int = 0,
    cell_shift: int = 3,
    rng: np.random.Generator | None = None,
) -> StepTable:
    """A step costs `step_ps`, and so much per new token, sequence, context token and (query, key) pair.

    With `rng`, decode attention is a random non-decreasing piecewise line instead.
    """
    tokens, sequences = bounds.max_batched_tokens + 1, bounds.max_sequences + 1
    cells = (bounds.total_blocks * bounds.block_tokens >> cell_shift) + 2
    slope = np.full((1, 2, sequences, cells), context_ps, np.int64)
    if rng is not None:
        slope = rng.integers(0, 5_000_000, slope.shape)
    start = np.concatenate([np.zeros((1, 2, sequences, 1), np.int64), np.cumsum(slope << cell_shift, -1)[..., :-1]], -1)
    start[:, 1] += beside_ps
    chunk = np.arange(tokens, dtype=np.int64)
    return StepTable(
        token_ps=(step_ps + token_ps * chunk)[None],
        sequence_ps=(sequence_ps * np.arange(sequences, dtype=np.int64))[None],
        decode_ps=start,
        decode_slope_ps=slope,
        cell_shift=np.array([cell_shift]),
        prefill_ps=(pair_ps * chunk * (chunk + 1) // 2)[None],
        prefill_slope_ps=(pair_ps * chunk)[None],
        window_slope_ps=np.zeros((1, tokens), np.int64),
        window_tokens=np.zeros(1, np.int64),
    )


def engine(
    bounds: Limits | None = None,
    *,
    name: str = "toy",
    stages: int = 1,
    ranks: int = 1,
    kv_bytes: float = 0.0,
    speculation: Speculation | None = None,
    **costs,
):
    bounds = bounds or limits()
    prices = table(bounds, **costs)
    if speculation is not None:
        bounds, prices = drafting(bounds, speculation), with_speculation(prices, speculation, layers=1)
    lanes = stages * ranks
    return PricedEngine(name, bounds, prices, stages, lanes, ranks=ranks, kv_bytes_per_token=kv_bytes)


def fleet(replicas: int = 1, router: str = "join-shortest-queue", max_sequences: int = 8, **costs) -> Fleet:
    bounds = costs.pop("bounds", limits(max_sequences=max_sequences))
    return Fleet((Pool(engine(bounds, **costs), replicas),), router)


def trace(arrivals_s, inputs, outputs, contents=None, content_tokens=16, **columns) -> Trace:
    """A trace of so many tokens in and out; contents are the content blocks of each request."""
    arrival_ns = np.sort(np.rint(np.asarray(arrivals_s) * 1e9).astype(np.int64))
    return Trace(
        name="toy",
        arrival_ns=arrival_ns,
        input_tokens=np.broadcast_to(np.asarray(inputs, np.int32), arrival_ns.shape),
        output_tokens=np.broadcast_to(np.asarray(outputs, np.int32), arrival_ns.shape),
        status=np.zeros(arrival_ns.size, np.int8),
        columns=columns if contents is None else {"prefix_blocks": ragged(contents), **columns},
        metadata={} if contents is None else {"block_tokens": content_tokens},
    )


def ragged(rows) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return Ragged(offsets.astype(np.int64), np.array([value for row in rows for value in row], np.int64))
