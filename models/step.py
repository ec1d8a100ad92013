"""One engine step of a mixed batch, and many decode steps in a row, priced from tables in whole picoseconds.

Whole picoseconds make sums exact: a run of steps taken in one go ends at the very instant that single steps reach.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.compiled import kernel

PICOSECONDS_PER_SECOND = 1_000_000_000_000
PICOSECONDS_PER_NANOSECOND = 1_000

Int64 = npt.NDArray[np.int64]

ALONE, BESIDE_PREFILL = 0, 1


class StepTable(NamedTuple):
    """What the steps of one or more Engines cost; the first axis is the engine.

    token_ps[e, tokens] is all that depends on the new tokens alone: projections, experts, collectives, host.
    sequence_ps[e, sequences] is the head, the sampler and the host's work per scheduled sequence.
    decode_ps[e, ALONE | BESIDE_PREFILL, sequences, cell] is attention of decodes at the lower edge of a cell of
    2**cell_shift[e] context tokens, decode_slope_ps its growth per context token within the cell.
    prefill_ps[e, chunk] + prefill_slope_ps[e, chunk] * past + window_slope_ps[e, chunk] * min(past, window)
    is attention of one prefill chunk.
    """

    token_ps: Int64
    sequence_ps: Int64
    decode_ps: Int64
    decode_slope_ps: Int64
    cell_shift: Int64
    prefill_ps: Int64
    prefill_slope_ps: Int64
    window_slope_ps: Int64
    window_tokens: Int64


def stack(tables: list[StepTable]) -> StepTable:
    """Put the tables of several Engines on one engine axis, padded with zeros to the largest."""
    return StepTable(*(_stack_padded(columns) for columns in zip(*tables, strict=True)))


def _stack_padded(arrays: tuple[Int64, ...]) -> Int64:
    shape = np.max([array.shape for array in arrays], axis=0)
    shape[0] = sum(array.shape[0] for array in arrays)
    stacked = np.zeros(shape, np.int64)
    first = 0
    for array in arrays:
        corner = (slice(first, first + array.shape[0]), *(slice(0, size) for size in array.shape[1:]))
        stacked[corner] = array
        first += array.shape[0]
    return stacked


@kernel
def decode_ps(table, engine, beside, sequences, context_tokens):
    """Return the attention time of `sequences` decodes that read `context_tokens` of KV in all."""
    shift = table.cell_shift[engine]
    cell = context_tokens >> shift
    inside = context_tokens - (cell << shift)
    return (
        table.decode_ps[engine, beside, sequences, cell]
        + table.decode_slope_ps[engine, beside, sequences, cell] * inside
    )


@kernel
def prefill_ps(table, engine, chunk_tokens, past_tokens):
    """Return the attention time of one prefill chunk that follows `past_tokens` already in the KV cache."""
    return (
        table.prefill_ps[engine, chunk_tokens]
        + table.prefill_slope_ps[engine, chunk_tokens] * past_tokens
        + table.window_slope_ps[engine, chunk_tokens] * min(past_tokens, table.window_tokens[engine])
    )


@kernel
def decode_run_ps(table, engine, sequences, context_tokens, steps, limit_ps):
    """Run up to `steps` decode steps and stop after the first that ends later than `limit_ps`.

    `context_tokens` is the KV held before the first step; each step reads one more token per sequence.
    Within a cell the step time is an arithmetic progression, so the run is summed in closed form. Returns
    (steps taken, their time).
    """
    shift = table.cell_shift[engine]
    fixed_ps = table.token_ps[engine, sequences] + table.sequence_ps[engine, sequences]
    taken, elapsed_ps = 0, 0
    while taken < steps:
        context = context_tokens + (taken + 1) * sequences
        first_ps = fixed_ps + decode_ps(table, engine, ALONE, sequences, context)
        growth_ps = table.decode_slope_ps[engine, ALONE, sequences, context >> shift] * sequences
        in_cell = (((context >> shift) + 1 << shift) - 1 - context) // sequences + 1
        count = min(in_cell, steps - taken)
        run_ps = count * first_ps + growth_ps * (count * (count - 1) // 2)
        if elapsed_ps + run_ps > limit_ps:
            count = _steps_beyond(first_ps, growth_ps, limit_ps - elapsed_ps)
            return taken + count, elapsed_ps + count * first_ps + growth_ps * (count * (count - 1) // 2)
        taken += count
        elapsed_ps += run_ps
    return taken, elapsed_ps


@kernel
def _steps_beyond(first_ps, growth_ps, limit_ps):
    """Return the least n with n * first + growth * n (n - 1) / 2 > limit: a quadratic's root, mended to be exact."""
    if limit_ps < 0:
        return 1
    half = 0.5 * growth_ps
    linear = first_ps - half
    root = (
        (-linear + np.sqrt(linear * linear + 4.0 * half * limit_ps)) / (2.0 * half) if half > 0 else limit_ps / linear
    )
    count = max(1, np.int64(root))
    while count * first_ps + growth_ps * (count * (count - 1) // 2) <= limit_ps:
        count += 1
    while count > 1 and (count - 1) * first_ps + growth_ps * ((count - 1) * (count - 2) // 2) > limit_ps:
        count -= 1
    return count
