"""Resampled siblings of a trace: what a plan is trained and tried on."""

from collections.abc import Sequence

import numpy as np

from planners.demand import Counts, fresh_tokens, sizes
from traces import Trace

BLOCK_S = 60.0
FEWEST_BLOCKS = 20
SEEDS_APART = 10_000


def siblings_of(trace: Trace, numbers: Sequence[int], seed: int) -> tuple[Trace, ...]:
    """Return resampled siblings of a trace: blocks of it in random order, so that its bursts stay; one for each number.

    Blocks are of BLOCK_S, or shorter where the trace has fewer than FEWEST_BLOCKS of those.
    """
    from traces import transform

    block_s = min(BLOCK_S, trace.span_s / FEWEST_BLOCKS)
    return tuple(transform.resample(trace, SEEDS_APART * seed + number, block_s) for number in numbers)


def origins(trace: Trace, sibling: Trace) -> Counts | None:
    """Return for each request of a sibling one of the trace of the same size.

    None where prompts may be cached: then a request asks for something else in every order.
    """
    inputs, outputs = sizes(trace)
    if (fresh_tokens(trace) != inputs).any():
        return None
    known, first = np.unique(_key(inputs, outputs), return_index=True)
    keys = _key(*sizes(sibling))
    places = np.minimum(np.searchsorted(known, keys), known.size - 1)
    return first[places] if (known[places] == keys).all() else None


def _key(inputs: Counts, outputs: Counts) -> Counts:
    key: Counts = (inputs << 32) + outputs
    return key
