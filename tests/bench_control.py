"""Benchmark of the control plane: a large fleet with prefix-aware routing, hand-over, migration and autoscaling.

python tests/bench_control.py [--requests 200000]
"""

import argparse
import time
from dataclasses import replace

import numpy as np
from bench_replay import LIMITS, engine

from simulator.control.autoscalers import target_tracking
from simulator.control.migration import link, one_mover, pairing
from simulator.control.plane import Controller, operate
from simulator.control.scaling import autoscale, waiting
from simulator.fleet import Fleet, Link, Pool, PricedEngine
from traces.trace import Ragged, Trace

PREFILL_LANES = DECODE_LANES = 32
RATE_PER_S = 64 * 0.65
SWING, SWING_S = 0.6, 200.0  # by which the rate swings about its mean, and a 2 pi-th of how long that takes
BLOCK_TOKENS, PROMPT_BLOCKS, SHARED_BLOCKS, PREFIXES = 512, 3, 2, 400


def workload(requests: int, seed: int = 0) -> Trace:
    """Return prompts of which two thirds are one of some hundred shared beginnings."""
    rng = np.random.default_rng(seed)
    even_s = np.cumsum(rng.exponential(1 / RATE_PER_S, requests))
    arrival_ns = np.rint((even_s - SWING * np.sin(even_s / SWING_S) * SWING_S) * 1e9).astype(np.int64)
    prefix = np.minimum(rng.zipf(1.3, requests), PREFIXES)[:, None] * SHARED_BLOCKS + np.arange(SHARED_BLOCKS)
    own = (
        10_000
        + np.arange(requests)[:, None] * (PROMPT_BLOCKS - SHARED_BLOCKS)
        + np.arange(PROMPT_BLOCKS - SHARED_BLOCKS)
    )
    blocks = np.concatenate([prefix, own], axis=1)
    offsets = np.arange(requests + 1, dtype=np.int64) * PROMPT_BLOCKS
    outputs = np.rint(rng.exponential(200, requests)).astype(np.int32) + 1
    inputs = np.full(requests, PROMPT_BLOCKS * BLOCK_TOKENS, np.int32)
    columns = {"prefix_blocks": Ragged(offsets, blocks.ravel())}
    status = np.zeros(requests, np.int8)
    return Trace("shared beginnings", arrival_ns, inputs, outputs, status, columns, {"block_tokens": BLOCK_TOKENS})


def fleet() -> Fleet:
    """Return prefill and decode lanes of one kind, prompts kept where they were computed."""
    served: PricedEngine = replace(engine(), limits=replace(LIMITS, caching=True), kv_bytes_per_token=160e3, layers=80)
    pools = (Pool(served, PREFILL_LANES, role="prefill"), Pool(served, DECODE_LANES, role="decode"))
    return Fleet(pools, "prefix-aware", link=Link(50e9))


def controllers() -> list[Controller]:
    """Return migration between decode lanes and an autoscaler of the prefill lanes."""
    return [
        pairing(one_mover(link(50e9)), low=45_000.0, high=60_000.0, every_s=1.0),
        autoscale(0, target_tracking(0.05, stabilisation_s=60.0), waiting, every_s=15.0, initial=24, least=8),
    ]


def measure(requests: int, acting: list[Controller]) -> float:
    """Return requests per CPU second, and print what was done."""
    trace, served = workload(requests), fleet()
    start_s = time.process_time()
    operation = operate(trace, served, controllers=acting)
    per_s = requests / (time.process_time() - start_s)
    counts = operation.run.counts()
    assert counts["finished"] == requests, counts
    hit = operation.run.outcome.cached_tokens.sum() / trace.input_tokens.sum()
    print(f"{per_s:10.0f} requests per CPU s, {hit:.0%} of prompt tokens found cached, {operation.ledger.actions}")
    return per_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    requests = parser.parse_args().requests
    measure(2_000, controllers())
    print(f"{PREFILL_LANES} prefill and {DECODE_LANES} decode lanes, {requests} requests, without controllers:")
    without = measure(requests, [])
    print("with migration and autoscaling:")
    print(f"{measure(requests, controllers()) / without:.2f} of the speed without")


if __name__ == "__main__":
    main()
