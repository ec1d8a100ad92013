"""Builds the table of an Engine's step times: operators priced once on a grid, laid out in whole picoseconds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
PAST_TOKENS = (0.0, 4096.0)  # prefill attention is a line in the past through these two
REFERENCE_CHUNK_TOKENS = 1024.0  # beside which decodes in a mixed batch are priced


@dataclass(frozen=True, slots=True)
class Grid:
    """Where operators are priced; between the points of a table lie straight lines.

    Sequences and chunks are priced one by one up to 16, then in steps of `ratio`, new tokens at every graph's size and
    at multiples of 16 and 64, or likewise in steps of `token_ratio`. A grid that is alone takes decodes to cost as much
    beside a prefill as they do alone.
    """

    ratio: float = 1.07
    contexts: int = 28
    token_ratio: float = 1.0
    is_alone: bool = False


FINE = Grid()
COARSE = Grid(ratio=1.6, contexts=7, token_ratio=1.35, is_alone=True)


def step_table(
    engine: Engine, cost: Cost | None = None, framework: Framework | None = None, grid: Grid = FINE
) -> StepTable:
    """Return the step table of an Engine.

    `cost` prices one operator call in seconds, by default as calibrated; `framework` adds the host's time and what
    fusing operators saves, by default as fitted on the device; `grid` says where operators are priced.
    """
    if cost is None:
        from models.calibration.predict import call_s

        cost = call_s
    framework = framework or of_engine(engine)
    slope_s, window_slope_s, chunk_s = (
        framework.prefill_factor * seconds for seconds in _prefill_s(engine, cost, grid)
    )
    edges, shift = _decode_edges_ps(engine, cost, framework.decode_factor, grid)
    slopes = np.diff(edges, axis=-1) >> shift
    edges[..., 1:] = edges[..., :1] + np.cumsum(slopes << shift, axis=-1)
    return StepTable(
        token_ps=_whole_ps(_token_s(engine, cost, framework, grid))[None],
        sequence_ps=_whole_ps(_sequence_s(engine, cost, framework, grid))[None],
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


def _token_s(engine: Engine, cost: Cost, framework: Framework, grid: Grid) -> Floats:
    """Return the time by new tokens, 0 to the budget; small batches are padded to the size of their CUDA graph.

    As many tokens as sequences may run are priced as decodes, what lies above as prefills.
    """
    tokens = np.arange(engine.settings.max_num_batched_tokens + 1)
    padded = framework.padded_tokens(tokens)
    points = _token_points(padded, framework.graph_max_tokens, grid)
    seconds = total_s(engine, cost, forward.token_calls(engine, points))
    most_decodes = framework.padded_tokens(np.array([engine.settings.max_num_seqs]))
    decodes_s = np.interp(np.minimum(padded, most_decodes), points, seconds)
    prefills_s = np.interp(padded, points, seconds) - decodes_s
    device_s = framework.decode_factor * decodes_s + framework.prefill_factor * prefills_s
    launched_s = np.where(tokens > framework.graph_max_tokens, framework.eager_s(engine.llm), 0.0)
    device_s = np.maximum(device_s, launched_s)
    return np.asarray(framework.step_s(engine.llm.layers) + device_s)


def _token_points(padded: Int64, graph_max_tokens: int, grid: Grid) -> Floats:
    """Return every graph size, then multiples of 16 and of 64: as fine as kernels' tiles, yet few."""
    largest = int(padded[-1])
    if grid.token_ratio > 1.0:
        return _spread(largest, grid.token_ratio)
    graphs = np.unique(padded[(padded > 0) & (padded <= graph_max_tokens)])
    fine = np.arange(graph_max_tokens, min(2048, largest) + 1, 16)
    coarse = np.arange(2048, largest + 1, 64)
    points = np.unique(np.concatenate([graphs, fine, coarse, [largest]]))
    return points[points <= largest].astype(np.float64)


def _sequence_s(engine: Engine, cost: Cost, framework: Framework, grid: Grid) -> Floats:
    """Return the time by scheduled sequences, 0 to the most: head, sampler and the host's share."""
    sequences = np.arange(engine.settings.max_num_seqs + 1)
    points = _spread(engine.settings.max_num_seqs, grid.ratio)
    seconds = total_s(engine, cost, forward.sequence_calls(engine, points))
    device_s = np.where(sequences > 0, np.interp(sequences, points, seconds), 0.0)
    return np.asarray(framework.decode_factor * device_s + framework.host_sequence_s * sequences)


def _spread(largest: int, ratio: float) -> Floats:
    """Return 1 to 16, then steps of about a ratio, up to the largest; with large ratios, only those from the start."""
    first = 16 if ratio < 1.1 else 1
    steps = 1 + int(np.ceil(np.log(max(first + 1, largest) / first) / np.log(ratio)))
    upper = np.geomspace(first, max(first + 1, largest), steps)
    points = np.unique(np.concatenate([np.arange(1, first + 1), np.rint(upper)]))
    return np.unique(np.concatenate([points[points <= largest], [largest]])).astype(np.float64)


def _decode_edges_ps(engine: Engine, cost: Cost, factor: float, grid: Grid) -> tuple[Int64, int]:
    """Return attention of decodes [alone or beside a prefill, sequences, cell edge], and the cells' log2 width."""
    capacity = engine.limits.total_blocks * engine.settings.block_tokens
    shift = max(0, (capacity // CELLS).bit_length())
    edges_tokens = np.arange((capacity >> shift) + 3, dtype=np.float64) * (1 << shift)
    rows = _spread(engine.settings.max_num_seqs, grid.ratio)
    longest = min(capacity, engine.llm.context_tokens)
    contexts = np.unique(np.rint(np.geomspace(1, max(2, longest), grid.contexts)))
    sequences, means = (mesh.ravel() for mesh in np.meshgrid(rows, contexts, indexing="ij"))
    alone = total_s(engine, cost, forward.decode_calls(engine, sequences, means))
    beside = alone if grid.is_alone else np.maximum(alone, _beside_prefill_s(engine, cost, sequences, means))
    counts = np.arange(1, engine.settings.max_num_seqs + 1)
    edges = np.zeros((2, counts.size + 1, edges_tokens.size), np.int64)
    for kind, seconds in ((ALONE, alone), (BESIDE_PREFILL, beside)):
        priced = seconds.reshape(rows.size, contexts.size)
        priced = np.maximum.accumulate(np.maximum.accumulate(priced, axis=1), axis=0)
        every = _between_rows(rows, priced, counts)
        edges[kind, 1:] = _whole_ps(factor * _between_points(edges_tokens / counts[:, None], contexts, every))
    return edges, shift


def _between_rows(rows: Floats, values: Floats, counts: Int64) -> Floats:
    """Return values [row, point] at counts, on the straight lines between rows."""
    upper = np.searchsorted(rows, counts)
    lower = np.maximum(upper - 1, 0)
    weight = np.where(rows[upper] == counts, 1.0, (counts - rows[lower]) / np.maximum(rows[upper] - rows[lower], 1.0))
    between: Floats = (1 - weight)[:, None] * values[lower] + weight[:, None] * values[upper]
    return between


def _between_points(places: Floats, points: Floats, values: Floats) -> Floats:
    """Return for each row of places what numpy.interp does with the same row of values at points."""
    left = np.clip(np.searchsorted(points, places, side="right") - 1, 0, points.size - 2)
    slopes = np.diff(values, axis=1) / np.diff(points)
    rows = np.arange(len(values))[:, None]
    inside = slopes[rows, left] * (np.clip(places, points[0], points[-1]) - points[left]) + values[rows, left]
    between: Floats = np.where(
        places >= points[-1], values[:, -1:], np.where(places <= points[0], values[:, :1], inside)
    )
    return between


def _beside_prefill_s(engine: Engine, cost: Cost, sequences: Floats, means: Floats) -> Floats:
    """Return what decodes add to a call that also holds a chunk of reference size: more than they cost alone."""
    chunk, past = np.full_like(sequences, REFERENCE_CHUNK_TOKENS), np.zeros_like(sequences)
    mixed = total_s(engine, cost, forward.mixed_calls(engine, chunk, past, sequences, means))
    return mixed - total_s(engine, cost, forward.prefill_calls(engine, chunk[:1], past[:1]))


def _prefill_s(engine: Engine, cost: Cost, grid: Grid) -> tuple[Floats, Floats, Floats]:
    """Return by chunk size: seconds per past token in full attention, in windows, and of a chunk without past."""
    chunks = np.arange(engine.settings.max_num_batched_tokens + 1)
    points = _spread(engine.settings.max_num_batched_tokens, grid.ratio)
    none, some = (np.full_like(points, past) for past in PAST_TOKENS)
    fresh = [(call, cost(engine, call)) for call in forward.prefill_calls(engine, points, none)]
    later = [cost(engine, call) for call in forward.prefill_calls(engine, points, some)]
    slopes = {"full": np.zeros_like(points), "window": np.zeros_like(points)}
    for (call, first_s), second_s in zip(fresh, later, strict=True):
        growth = np.maximum(second_s - first_s, 0.0) * call.times
        window = float(call.shape["window"][0]) if "window" in call.shape else 0.0
        reach = min(window, PAST_TOKENS[1]) if window else PAST_TOKENS[1]
        slopes["window" if window else "full"] += growth / reach
    chunk_s = np.interp(chunks, points, np.sum([call.times * seconds for call, seconds in fresh], axis=0))
    chunk_s[0] = 0.0
    full_s, window_s = (np.interp(chunks, points, slopes[kind]) for kind in ("full", "window"))
    return full_s, window_s, chunk_s
