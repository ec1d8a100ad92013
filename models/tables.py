"""Builds the table of an Engine's step times: operators priced once on a grid, laid out in whole picoseconds."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from models import forward
from models.engine import Engine
from models.forward import Call
from models.framework import Framework, of_engine
from models.step import ALONE, BESIDE_PREFILL, PICOSECONDS_PER_SECOND, Int64, StepTable

Floats = npt.NDArray[np.float64]
Cost = Callable[[Engine, Call], Floats]

CELLS = 128  # per decode row: contexts up to the KV pool in equal parts
CONTEXT_POINTS = 28
PAST_TOKENS = (0.0, 4096.0)  # prefill attention is a line in the past through these two
REFERENCE_CHUNK_TOKENS = 1024.0  # beside which decodes in a mixed batch are priced


def step_table(engine: Engine, cost: Cost | None = None, framework: Framework | None = None) -> StepTable:
    """Return the step table of an Engine.

    `cost` prices one operator call in seconds, by default as calibrated; `framework` adds the host's time and what
    fusing operators saves, by default as fitted on the device.
    """
    if cost is None:
        from models.calibration.predict import call_s

        cost = call_s
    framework = framework or of_engine(engine)
    tokens = engine.settings.max_num_batched_tokens
    slope_s, window_slope_s, chunk_s = (
        framework.prefill_factor * seconds for seconds in _prefill_s(engine, cost, tokens)
    )
    edges, shift = _decode_edges_ps(engine, cost, framework.decode_factor)
    slopes = np.diff(edges, axis=-1) >> shift
    edges[..., 1:] = edges[..., :1] + np.cumsum(slopes << shift, axis=-1)
    return StepTable(
        token_ps=_whole_ps(_token_s(engine, cost, framework))[None],
        sequence_ps=_whole_ps(_sequence_s(engine, cost, framework))[None],
        decode_ps=edges[None, ..., :-1],
        decode_slope_ps=slopes[None],
        cell_shift=np.array([shift]),
        prefill_ps=_whole_ps(chunk_s)[None],
        prefill_slope_ps=_whole_ps(slope_s)[None],
        window_slope_ps=_whole_ps(window_slope_s)[None],
        window_tokens=np.array([engine.llm.window_tokens]),
    )


def total_s(engine: Engine, cost: Cost, calls: Sequence[Call]) -> Floats:
    """Return the summed seconds of all calls of a step, one entry per row of their shapes."""
    return np.asarray(np.sum([call.times * cost(engine, call) for call in calls], axis=0))


def _whole_ps(seconds: Floats) -> Int64:
    return np.rint(seconds * PICOSECONDS_PER_SECOND).astype(np.int64)


def _token_s(engine: Engine, cost: Cost, framework: Framework) -> Floats:
    """Return the time by new tokens, 0 to the budget; small batches are padded to the size of their CUDA graph.

    As many tokens as sequences may run are priced as decodes, what lies above as prefills.
    """
    tokens = np.arange(engine.settings.max_num_batched_tokens + 1)
    padded = framework.padded_tokens(tokens)
    points = _token_grid(padded, framework.graph_max_tokens)
    seconds = total_s(engine, cost, forward.token_calls(engine, points))
    most_decodes = framework.padded_tokens(np.array([engine.settings.max_num_seqs]))
    decodes_s = np.interp(np.minimum(padded, most_decodes), points, seconds)
    prefills_s = np.interp(padded, points, seconds) - decodes_s
    device_s = framework.decode_factor * decodes_s + framework.prefill_factor * prefills_s
    launched_s = np.where(tokens > framework.graph_max_tokens, framework.eager_layer_s * engine.llm.layers, 0.0)
    device_s = np.maximum(device_s, launched_s)
    return np.asarray(framework.step_s(engine.llm.layers) + device_s)


def _token_grid(padded: Int64, graph_max_tokens: int) -> Floats:
    """Return every graph size, then multiples of 16 and of 64: as fine as kernels' tiles, yet few."""
    largest = int(padded[-1])
    graphs = np.unique(padded[(padded > 0) & (padded <= graph_max_tokens)])
    fine = np.arange(graph_max_tokens, min(2048, largest) + 1, 16)
    coarse = np.arange(2048, largest + 1, 64)
    points = np.unique(np.concatenate([graphs, fine, coarse, [largest]]))
    return points[points <= largest].astype(np.float64)


def _sequence_s(engine: Engine, cost: Cost, framework: Framework) -> Floats:
    """Return the time by scheduled sequences, 0 to the most: head, sampler and the host's share."""
    sequences = np.arange(engine.settings.max_num_seqs + 1)
    points = _spread(engine.settings.max_num_seqs)
    seconds = total_s(engine, cost, forward.sequence_calls(engine, points))
    device_s = np.where(sequences > 0, np.interp(sequences, points, seconds), 0.0)
    return np.asarray(framework.decode_factor * device_s + framework.host_sequence_s * sequences)


def _spread(largest: int) -> Floats:
    """Return 1 to 16, then steps of about 7 %, up to the largest."""
    upper = np.geomspace(16, max(17, largest), 1 + int(np.ceil(np.log(max(17, largest) / 16) / np.log(1.07))))
    points = np.unique(np.concatenate([np.arange(1, 17), np.rint(upper)]))
    return np.unique(np.concatenate([points[points <= largest], [largest]])).astype(np.float64)


def _decode_edges_ps(engine: Engine, cost: Cost, factor: float) -> tuple[Int64, int]:
    """Return attention of decodes [alone or beside a prefill, sequences, cell edge], and the cells' log2 width."""
    capacity = engine.limits.total_blocks * engine.settings.block_tokens
    shift = max(0, (capacity // CELLS).bit_length())
    edges_tokens = np.arange((capacity >> shift) + 3, dtype=np.float64) * (1 << shift)
    rows = _spread(engine.settings.max_num_seqs)
    longest = min(capacity, engine.llm.context_tokens)
    contexts = np.unique(np.rint(np.geomspace(1, max(2, longest), CONTEXT_POINTS)))
    sequences, means = (grid.ravel() for grid in np.meshgrid(rows, contexts, indexing="ij"))
    alone = total_s(engine, cost, forward.decode_calls(engine, sequences, means))
    beside = np.maximum(alone, _beside_prefill_s(engine, cost, sequences, means))
    shape = (rows.size, contexts.size)
    edges = np.zeros((2, engine.settings.max_num_seqs + 1, edges_tokens.size), np.int64)
    for kind, seconds in ((ALONE, alone), (BESIDE_PREFILL, beside)):
        grid = np.maximum.accumulate(np.maximum.accumulate(seconds.reshape(shape), axis=1), axis=0)
        for count in range(1, engine.settings.max_num_seqs + 1):
            row = _between_rows(rows, grid, count)
            edges[kind, count] = _whole_ps(factor * np.interp(edges_tokens / count, contexts, row))
    return edges, shift


def _between_rows(rows: Floats, grid: Floats, count: int) -> Floats:
    upper = int(np.searchsorted(rows, count))
    if rows[upper] == count:
        return np.asarray(grid[upper])
    weight = (count - rows[upper - 1]) / (rows[upper] - rows[upper - 1])
    return np.asarray((1 - weight) * grid[upper - 1] + weight * grid[upper])


def _beside_prefill_s(engine: Engine, cost: Cost, sequences: Floats, means: Floats) -> Floats:
    """Return what decodes add to a call that also holds a chunk of reference size: more than they cost alone."""
    chunk, past = np.full_like(sequences, REFERENCE_CHUNK_TOKENS), np.zeros_like(sequences)
    mixed = total_s(engine, cost, forward.mixed_calls(engine, chunk, past, sequences, means))
    return mixed - total_s(engine, cost, forward.prefill_calls(engine, chunk[:1], past[:1]))


def _prefill_s(engine: Engine, cost: Cost, most_tokens: int) -> tuple[Floats, Floats, Floats]:
    """Return by chunk size: seconds per past token in full attention, in windows, and of a chunk without past."""
    chunks = np.arange(most_tokens + 1)
    points = _spread(most_tokens)
    none, some = (np.full_like(points, past) for past in PAST_TOKENS)
    fresh = forward.prefill_calls(engine, points, none)
    later = forward.prefill_calls(engine, points, some)
    slopes = {"full": np.zeros_like(points), "window": np.zeros_like(points)}
    for first, second in zip(fresh, later, strict=True):
        growth = np.maximum(cost(engine, second) - cost(engine, first), 0.0) * first.times
        window = float(first.shape["window"][0]) if "window" in first.shape else 0.0
        reach = min(window, PAST_TOKENS[1]) if window else PAST_TOKENS[1]
        slopes["window" if window else "full"] += growth / reach
    chunk_s = np.interp(chunks, points, total_s(engine, cost, fresh))
    chunk_s[0] = 0.0
    full_s, window_s = (np.interp(chunks, points, slopes[kind]) for kind in ("full", "window"))
    return full_s, window_s, chunk_s
