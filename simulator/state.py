"""Lays out a run's state: one row per request and per lane, and the tables that price every engine's steps."""

import numpy as np

from models.step import PICOSECONDS_PER_NANOSECOND, stack
from simulator.dataplane import CLOCK, FAR, LANE, NONE, REQUEST, State
from simulator.fleet import Fleet, Pool
from simulator.routing import ROUTERS
from traces import Trace


def lay_out(trace: Trace, fleet: Fleet, *, arrivals: int, fast_forward: bool = True) -> State:
    """Return the state before the first event; the data plane itself routes the first `arrivals` requests."""
    engines = list({pool.engine.name: pool.engine for pool in fleet.pools}.values())
    lanes = _lane_rows(fleet, [engine.name for engine in engines])
    widest = int(lanes["max_sequences"].max())
    blocks = int(lanes["block_tokens"].max())
    return State(
        clock=_clock(fleet.router, arrivals, fast_forward),
        requests=_request_rows(trace, fleet.input_edges),
        lanes=lanes,
        finish_step=np.zeros((lanes.size, widest), np.int64),
        finish_request=np.zeros((lanes.size, widest), np.int64),
        crossings=np.zeros((lanes.size, blocks), np.int64),
        stage_free_ps=np.zeros((fleet.replicas, int(lanes["stages"].max())), np.int64),
        next_event=_tournament(lanes.size),
        pools=_pool_ranges(fleet.pools),
        shares=fleet.share_matrix(),
        credits=np.zeros((len(fleet.input_edges), len(fleet.pools))),
        table=stack([engine.table for engine in engines]),
    )


def _clock(router: str, arrivals: int, fast_forward: bool) -> np.ndarray:
    clock = np.zeros(1, CLOCK)
    clock["router"] = ROUTERS[router]
    clock["arrivals"] = arrivals
    clock["fast_forward"] = fast_forward
    return clock


def _request_rows(trace: Trace, input_edges: tuple[int, ...]) -> np.ndarray:
    """Return a row per request; one that has no token in or out still computes and emits one."""
    rows = np.zeros(len(trace), REQUEST)
    rows["arrival_ps"] = trace.arrival_ns
    rows["arrival_ps"] *= PICOSECONDS_PER_NANOSECOND
    rows["input_tokens"] = np.maximum(trace.input_tokens, 1)
    rows["output_tokens"] = np.maximum(trace.output_tokens, 1)
    rows["bucket"] = np.searchsorted(input_edges, rows["input_tokens"], side="right") - 1
    rows["lane"] = NONE
    for name in ("scheduled_ps", "first_token_ps", "finish_ps"):
        rows[name] = FAR
    return rows


def _lane_rows(fleet: Fleet, engine_names: list[str]) -> np.ndarray:
    rows = [
        (pool_index, pool, replica)
        for pool_index, pool in enumerate(fleet.pools)
        for replica in range(pool.replicas)
        for _ in range(pool.engine.lanes)
    ]
    lanes = np.zeros(len(rows), LANE)
    first_replica = np.cumsum([0] + [pool.replicas for pool in fleet.pools])
    for lane, (pool_index, pool, replica) in zip(lanes, rows, strict=True):
        limits = pool.engine.limits
        lane["engine"] = engine_names.index(pool.engine.name)
        lane["pool"] = pool_index
        lane["replica"] = first_replica[pool_index] + replica
        lane["stages"] = pool.engine.stages
        lane["max_sequences"] = limits.max_sequences
        lane["max_batched_tokens"] = limits.max_batched_tokens
        lane["long_prefill_tokens"] = limits.long_prefill_tokens
        lane["chunked_prefill"] = limits.chunked_prefill
        lane["block_tokens"] = limits.block_tokens
        lane["total_blocks"] = lane["free_blocks"] = limits.total_blocks
        lane["watermark_blocks"] = limits.watermark_blocks
        lane["max_context_tokens"] = limits.max_context_tokens
        lane["cost"] = pool.engine.lanes / pool.speed
    lanes["end_ps"] = FAR
    for name in ("first_waiting", "last_waiting", "first_prefill", "last_prefill", "last_running"):
        lanes[name] = NONE
    return lanes


def _pool_ranges(pools: tuple[Pool, ...]) -> np.ndarray:
    beyond = np.cumsum([pool.replicas * pool.engine.lanes for pool in pools])
    return np.stack([np.concatenate([[0], beyond[:-1]]), beyond], axis=1).astype(np.int64)


def _tournament(lanes: int) -> np.ndarray:
    """Return a tree of lane numbers: leaf i is lane i, every inner place the winner of the two under it."""
    leaves = 1 << max(0, (lanes - 1).bit_length())
    tree = np.full(2 * leaves, NONE, np.int64)
    tree[leaves : leaves + lanes] = np.arange(lanes)
    for place in range(leaves - 1, 0, -1):
        tree[place] = tree[2 * place] if tree[2 * place] != NONE else tree[2 * place + 1]
    return tree
