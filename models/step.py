"""One engine step of a mixed batch, and many decode steps in a row, priced from tables in whole picoseconds.

Whole picoseconds make sums exact: a run of steps taken in one go ends at the very instant that single steps reach.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.compiled import kernel

PICOSECONDS_PER_SECOND = 1_000_000_000_000
PICOSECONDS_PER_NANOSECOND = 1_000

Int64 = npt.NDArray[np.int64]

ALONE, BESIDE_PREFILL = 0, 1


class StepTable(NamedTuple):
    """What the steps of an Engine cost; the first axis, of length one, is the engine.

    token_ps[e, tokens] is all that depends on the new tokens alone: projections, experts, collectives, host.
    sequence_ps[e, sequences] is the head, the sampler and the host's work per scheduled sequence.
    decode_ps[e, ALONE | BESIDE_PREFILL, sequences, cell] is attention of decodes at the lower edge of a cell of
    2**cell_shift[e] context tokens, decode_slope_ps its growth per context token within the cell; the last cell has no
    end, for sequences that share KV may read more than fits.
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


def slowed(table: StepTable, factor: float) -> StepTable:
    """Return the table of steps that take `factor` times as long: of a slow device, or of a share of one."""
    prices = [name for name in table._fields if name not in ("cell_shift", "window_tokens")]
    return table._replace(**{name: np.rint(getattr(table, name) * factor).astype(np.int64) for name in prices})


def first_tokens(table: StepTable, most: int) -> StepTable:
    """Return the table of steps of at most so many new tokens."""
    by_tokens = ("token_ps", "prefill_ps", "prefill_slope_ps", "window_slope_ps")
    return table._replace(**{name: getattr(table, name)[:, : most + 1] for name in by_tokens})


# Where an Engine's prices lie in one flat array: kernels are handed two small things instead of nine tables.
PRICED = [
    ("token_at", "i8"),
    ("sequence_at", "i8"),
    ("alone_at", "i8"),  # [sequences, cell, (price, growth per token)]
    ("beside_at", "i8"),
    ("cells", "i8"),
    ("cell_shift", "i8"),
    ("prefill_at", "i8"),  # [chunk, (price, growth per past token, growth per past token in a window)]
    ("window_tokens", "i8"),
    ("verified_tokens", "i8"),  # that a decoding sequence puts into a step: 1, or a draft and one more
    ("growth_parts", "i8"),  # by which its context grows with a step, in parts of a token
]


def pack(tables: Sequence[StepTable]) -> tuple[npt.NDArray[Any], Int64]:
    """Return the tables' places, a record of PRICED each, and all their prices in one flat array [ps]."""
    places = np.zeros(len(tables), np.dtype(PRICED, align=True))
    parts: list[Int64] = []
    size = 0
    for place, table in zip(places, tables, strict=True):
        decode = np.stack([table.decode_ps[0], table.decode_slope_ps[0]], axis=-1)
        prefill = np.stack([table.prefill_ps[0], table.prefill_slope_ps[0], table.window_slope_ps[0]], axis=-1)
        place["cells"], place["cell_shift"] = decode.shape[2], table.cell_shift[0]
        place["window_tokens"] = table.window_tokens[0]
        place["verified_tokens"] = place["growth_parts"] = 1
        for name, part in (
            ("token_at", table.token_ps[0]),
            ("sequence_at", table.sequence_ps[0]),
            ("alone_at", decode[ALONE]),
            ("beside_at", decode[BESIDE_PREFILL]),
            ("prefill_at", prefill),
        ):
            place[name] = size
            parts.append(part.ravel())
            size += part.size
    return places, np.concatenate(parts)


@kernel
def decode_ps(prices, place, beside, sequences, context):
    """Return the attention time of `sequences` decodes that read so much KV in all, in tokens or parts of tokens."""
    cell = min(context >> place.cell_shift, place.cells - 1)
    start = place.beside_at if beside else place.alone_at
    at = start + 2 * (sequences * place.cells + cell)
    return prices[at] + prices[at + 1] * (context - (cell << place.cell_shift))


@kernel
def prefill_ps(prices, place, chunk_tokens, past_tokens):
    """Return the attention time of one prefill chunk that follows `past_tokens` already in the KV cache."""
    at = place.prefill_at + 3 * chunk_tokens
    return prices[at] + prices[at + 1] * past_tokens + prices[at + 2] * min(past_tokens, place.window_tokens)


@kernel
def decode_run_ps(prices, place, sequences, held, steps, limit_ps):
    """Run up to `steps` decode steps and stop after the first that ends later than `limit_ps`.

    `held` is the KV before the first step, in tokens or parts of tokens; each step reads one more token per sequence,
    or `growth_parts`. Within a cell the step time is an arithmetic progression, so the run is summed in closed form.
    Returns (steps taken, their time).
    """
    shift = place.cell_shift
    fixed_ps = prices[place.token_at + sequences * place.verified_tokens] + prices[place.sequence_at + sequences]
    row = place.alone_at + 2 * sequences * place.cells
    taken, elapsed_ps, growth = 0, 0, sequences * place.growth_parts
    context = held + growth
    while taken < steps:
        cell = min(context >> shift, place.cells - 1)
        slope_ps = prices[row + 2 * cell + 1]
        first_ps = fixed_ps + prices[row + 2 * cell] + slope_ps * (context - (cell << shift))
        growth_ps = slope_ps * growth
        count = steps - taken
        to_edge = (cell + 1 << shift) - 1 - context
        if count * growth > to_edge and cell < place.cells - 1:
            count = min(count, to_edge // growth + 1)
        run_ps = count * first_ps + growth_ps * (count * (count - 1) // 2)
        if elapsed_ps + run_ps > limit_ps:
            count = _steps_beyond(first_ps, growth_ps, limit_ps - elapsed_ps)
            return taken + count, elapsed_ps + count * first_ps + growth_ps * (count * (count - 1) // 2)
        taken += count
        context += count * growth
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
