"""Mélange's input: what each kind of replica costs and can do by size of request, and how common the sizes are."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from planners.answer import plain
from planners.exports.deployment import Deployment
from simulator.fleet import Fleet, Pool, PricedEngine
from simulator.run import Run
from traces.trace import Trace

INPUT_EDGES = (1, 128, 512, 1024, 2048, 4096, 8192)
OUTPUT_EDGES = (1, 32, 128, 512, 1024)
BATCHES = 4  # of requests of one size, all there from the start, are what a throughput is read from
SLICE_FACTOR = 4  # enough in most cases, say its authors
NEVER_PER_S = 1e-9  # where a size cannot be served at all: its inverse must exist

Matrix = npt.NDArray[np.float64]


def config(deployment: Deployment, run: Run) -> dict[str, str]:
    """Return the configuration of Mélange's solver: one entry a pool, throughputs of one replica in requests/s.

    A throughput is that of a replay in which a replica never waits for requests, at the largest batch that keeps the
    promise on TPOT where there is one; rows are input sizes, columns output sizes, from the edges given beside them.
    """
    from planners.slo import limit_s, parse_all

    tpot_limit_s = limit_s(parse_all(deployment.promises), "tpot") if deployment.promises else math.inf
    trace = run.trace
    counts, inputs, outputs = cells(trace)
    gpus: dict[str, Any] = {}
    for deployed, pool in zip(deployment.pools, run.fleet.pools, strict=True):
        shown = [
            [throughput_per_s(pool.engine, int(inputs[row, column]), int(outputs[row, column]), tpot_limit_s)
             for column in range(len(OUTPUT_EDGES))]
            for row in range(len(INPUT_EDGES))
        ]  # fmt: skip
        gpus[deployed.name] = {"cost": deployed.usd_per_hour / deployed.replicas, "tputs": shown}
    content = {
        "gpu_info": gpus,
        "workload_distribution": counts / counts.sum(),
        "total_request_rate": trace.rate_per_s,
        "slice_factor": SLICE_FACTOR,
        "input_token_edges": INPUT_EDGES,
        "output_token_edges": OUTPUT_EDGES,
        "about": deployment.about,
    }
    return {"melange.json": json.dumps(plain(content), indent=1) + "\n"}


def cells(trace: Trace) -> tuple[Matrix, Matrix, Matrix]:
    """Return, for each input and output size, how many requests are so and their mean lengths; of an empty cell the
    lengths are the geometric middle of its edges."""
    shape = len(INPUT_EDGES), len(OUTPUT_EDGES)
    places = [
        np.maximum(np.searchsorted(edges, lengths, side="right") - 1, 0)
        for edges, lengths in ((INPUT_EDGES, trace.input_tokens), (OUTPUT_EDGES, trace.output_tokens))
    ]
    cell = places[0] * shape[1] + places[1]
    counts, inputs, outputs = (
        np.bincount(cell, weights=weights, minlength=shape[0] * shape[1]).reshape(shape)
        for weights in (None, trace.input_tokens, trace.output_tokens)
    )
    middles = np.meshgrid(_middles(INPUT_EDGES), _middles(OUTPUT_EDGES), indexing="ij")
    known = np.maximum(counts, 1)
    mean_in, mean_out = (
        np.where(counts > 0, np.maximum(np.round(sums / known), 1), middle)
        for sums, middle in zip((inputs, outputs), middles, strict=True)
    )
    return counts.astype(float), mean_in, mean_out


def throughput_per_s(engine: PricedEngine, input_tokens: int, output_tokens: int, tpot_limit_s: float) -> float:
    """Return how many requests of one size a replica finishes a second at the largest batch that keeps TPOT."""
    low, batch, high = 0, engine.limits.max_sequences, engine.limits.max_sequences
    best = NEVER_PER_S
    while low < high:
        per_s, tpot_s = _saturated(engine, input_tokens, output_tokens, batch)
        if per_s == 0.0:
            break
        if tpot_s <= tpot_limit_s:
            low, best = batch, per_s
        else:
            high = batch - 1
        batch = (low + high + 1) // 2
    return best


def _saturated(engine: PricedEngine, input_tokens: int, output_tokens: int, batch: int) -> tuple[float, float]:
    from simulator.replay import replay

    capped = replace(engine, limits=replace(engine.limits, max_sequences=batch))
    ones = np.ones(BATCHES * batch, np.int32)
    at_once, status = np.zeros(len(ones), np.int64), np.zeros(len(ones), np.int8)
    requests = Trace("saturated", at_once, ones * input_tokens, ones * output_tokens, status)
    run = replay(requests, Fleet((Pool(capped, 1),)))
    if not run.is_finished.all():
        return 0.0, math.inf
    tpot_s = run.percentile_s("tpot", 99)
    return len(requests) / run.span_s, 0.0 if math.isnan(tpot_s) else tpot_s


def _middles(edges: tuple[int, ...]) -> Matrix:
    above = (*edges[1:], 2 * edges[-1])
    return np.array([round(math.sqrt(low * high)) for low, high in zip(edges, above, strict=True)], np.float64)
