"""Lays out a run's state: a row per lane, the lists that lanes keep, and the prices of every engine's steps."""

from typing import Any

import numpy as np
import numpy.typing as npt

from models.step import PICOSECONDS_PER_SECOND, PRICED, StepTable, pack
from simulator.fleet import ROLES, Fleet
from simulator.layout import (
    CLOCK,
    DECODE,
    FAR,
    LANE,
    LOGGED,
    NODE,
    NONE,
    PATIENCE_PS,
    PS_PER_STEP,
    REQUEST,
    Plan,
    State,
)
from simulator.routing import PLANNED, ROUND_ROBIN, ROUTERS
from simulator.step_log import Window
from simulator.stores import NO_TENANTS, Tenants, lay_out_memories, lay_out_stores
from simulator.tournament import tree_of

Rows = npt.NDArray[Any]


def lay_out(
    fleet: Fleet,
    contents: npt.NDArray[np.int64],
    content_tokens: int,
    *,
    tenants: Tenants = NO_TENANTS,
    fast_forward: bool = True,
    log: Window | None = None,
) -> tuple[State, Plan]:
    """Return the state before the first event, with no slot yet for requests, and what a planned router looks up.

    contents are the content blocks of all requests in order, of so many tokens each, and tenants whose each is. Steps
    are logged in a window.
    """
    tables, first_variants = _tables(fleet)
    variants, prices = pack(tables)
    lanes = _lane_rows(fleet, variants, first_variants)
    clock = np.zeros(1, CLOCK)
    clock["router"], clock["fast_forward"], clock["hands_over"] = ROUTERS[fleet.router], fast_forward, True
    clock["fetches"] = True
    words = Words()
    _place_lists(words, lanes)
    clock["events_at"] = words.add(tree_of(range(lanes.size), lanes["end_ps"]))
    clock["event_leaves"] = _leaves(lanes.size)
    clock["front_lanes"] = (lanes["role"] != DECODE).sum()
    clock["patience_ps"] = np.rint(min(fleet.patience_s * PICOSECONDS_PER_SECOND, float(FAR)))
    decoding = np.flatnonzero(lanes["role"] == DECODE)
    clock["decode_tree"] = _place_tree(words, lanes, decoding) if decoding.size else NONE
    shares = fleet.share_matrix()
    plan = Plan(_place_loads(words, fleet, lanes), shares, np.zeros(shares.shape), _prompts(fleet))
    most_nodes = lay_out_stores(fleet, lanes, tenants.names, words.add, contents.size)
    lay_out_memories(fleet, lanes, tenants.names, words.add)
    clock["tenants_at"] = words.add(tenants.codes)
    nodes = _nodes(lanes, contents.size, most_nodes)
    clock["content_tokens"], clock["vacant_node"] = content_tokens, 0 if nodes.size else NONE
    buckets = np.full(1 << max(0, nodes.size - 1).bit_length(), NONE, np.int64)
    coming, rows = np.zeros(0, np.int64), np.zeros(0, REQUEST)
    timers = np.zeros(0, np.int64)
    notices = np.zeros(0, np.int64)
    logged = np.zeros(log.most_rows if log else 0, LOGGED)
    if log:
        clock["log_from_ps"], clock["log_until_ps"] = log.from_ps, log.until_ps
    changing = (words.joined(), prices, nodes, buckets, contents, timers, notices, variants, logged)
    has_extras = ((lanes["tiers_at"] != NONE) | (lanes["shelves_at"] != NONE)).any()
    return State(clock, rows, lanes, coming, *changing, (1,) if has_extras else ()), plan


def _tables(fleet: Fleet) -> tuple[list[StepTable], list[int]]:
    """Return all tables of step times, a pool's variants after its own, and where each pool's own is."""
    tables: list[StepTable] = []
    shared: dict[int, int] = {}
    firsts = []
    for pool in fleet.pools:
        if pool.variants:
            firsts.append(len(tables))
            tables += [pool.engine.table, *pool.variants]
        else:
            firsts.append(shared.setdefault(id(pool.engine.table), len(tables)))
            tables += [pool.engine.table][: firsts[-1] == len(tables)]
    return tables, firsts


def _nodes(lanes: Rows, contents: int, below: int) -> Rows:
    """Return vacant nodes, enough for all content that lanes can hold or will see, each naming the next; more below."""
    caching = lanes[lanes["caching"] > 0]
    left_by_preempted = 2 * int(caching["max_sequences"].sum())
    names = int((lanes["shelves_at"] != NONE).any())  # of what left memories, as many as there is content
    count = (1 + names) * min(int(caching["total_blocks"].sum()), contents + left_by_preempted) + below
    nodes = np.zeros(count, NODE)
    nodes["next"] = np.append(np.arange(1, count), NONE)[:count]
    return nodes


def _prompts(fleet: Fleet) -> npt.NDArray[np.int64]:
    """Return what a router that foresees prompts knows of each lane they arrive at: a full step's price, and a pair's.

    A pair is one query and one key of an earlier step.
    """
    columns = []
    for pool in fleet.pools:
        table, most = pool.engine.table, pool.engine.limits.max_batched_tokens
        slope_ps = int(table.prefill_slope_ps[0, most])
        step_ps = int(table.token_ps[0, most] + table.sequence_ps[0, 1] + table.prefill_ps[0, most])
        patience_ps = int(min(fleet.ttft_limit_s * PICOSECONDS_PER_SECOND, float(FAR)))
        columns += [[step_ps, slope_ps // most, patience_ps]] * (pool.replicas * pool.engine.lanes)
    prompts = np.array(columns, np.int64).T.copy()
    assert prompts[PS_PER_STEP].min() >= 0
    assert prompts[PATIENCE_PS].max() <= FAR
    return prompts


class Words:
    """Lists laid end to end."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.int64]] = []
        self._size = 0

    def add(self, part: npt.NDArray[np.int64]) -> int:
        """Append a list and return where it begins."""
        self._parts.append(part)
        self._size += part.size
        return self._size - part.size

    def joined(self) -> npt.NDArray[np.int64]:
        """Return all lists as one."""
        return np.concatenate(self._parts)


def _lane_rows(fleet: Fleet, variants: Rows, first_variants: list[int]) -> Rows:
    """Return the lanes, pool by pool, replica by replica."""
    rows = []
    for index, (pool, variant) in enumerate(zip(fleet.pools, first_variants, strict=True)):
        limits = pool.engine.limits
        row = np.zeros(pool.replicas * pool.engine.lanes, LANE)
        for name, _ in PRICED:
            row[name] = variants[variant][name]
        row["variant"] = row["next_variant"] = variant
        row["pool"], row["stages"], row["role"] = index, pool.engine.stages, ROLES.index(pool.role)
        row["ranks"] = pool.engine.ranks
        row["link_ps_per_token"] = round(
            pool.engine.kv_bytes_per_token / fleet.link.bytes_per_s * PICOSECONDS_PER_SECOND
        )
        row["link_latency_ps"] = round(fleet.link.latency_s * PICOSECONDS_PER_SECOND)
        row["link_layers"] = pool.engine.layers if fleet.link.is_layerwise else 0
        for name in (
            *("max_sequences", "max_batched_tokens", "long_prefill_tokens", "chunked_prefill"),
            *("asynchronous", "caching"),
            *("prefill_first", "reserves", "by_priority"),
            *("swap_ps_per_token", "swap_operation_ps", "swap_operation_blocks", "swap_keeps_copies"),
            *("reserve", "reserve_least", "reserve_fall"),
            *("total_blocks", "watermark_blocks", "max_context_tokens"),
            *("verified_tokens", "growth_parts", "part_shift"),
        ):
            row[name] = getattr(limits, name)
        row["block_shift"] = (limits.block_tokens - 1).bit_length()
        row["period_shift"] = row["block_shift"] + row["part_shift"]
        row["free_blocks"] = row["plain_blocks"] = limits.total_blocks
        row["load"] = row["cost"] = pool.engine.lanes / pool.speed
        rows.append(row)
    lanes = np.concatenate(rows)
    lanes["number"] = np.arange(lanes.size)
    lanes["first_rank"] = _first_ranks(lanes["ranks"])
    decoding = lanes["role"] == DECODE
    if decoding.any():
        lanes["max_context_tokens"] = np.minimum(
            lanes["max_context_tokens"], lanes["max_context_tokens"][decoding].min()
        )
    lanes["end_ps"] = FAR
    _pair_twins(fleet, lanes)
    for name in (
        *("first_waiting", "last_waiting", "first_prefill", "last_prefill", "last_running"),
        *("oldest_node", "newest_node", "load_tree", "first_ready", "last_ready"),
    ):
        lanes[name] = NONE
    return lanes


def _pair_twins(fleet: Fleet, lanes: Rows) -> None:
    """Name the lanes that share a memory to each other."""
    lanes["twin"] = NONE
    for index, pool in enumerate(fleet.pools):
        if pool.twin_of is not None:
            here, other = (np.flatnonzero(lanes["pool"] == which) for which in (index, pool.twin_of))
            lanes["twin"][here], lanes["twin"][other] = other, here


def _first_ranks(ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return, lane by lane, the first of the lanes that it steps together with."""
    firsts = np.arange(ranks.size)
    for lane in range(1, ranks.size):
        if ranks[lane] > 1 and lane - firsts[lane - 1] < ranks[lane] and ranks[lane - 1] == ranks[lane]:
            firsts[lane] = firsts[lane - 1]
    return firsts


def _place_lists(words: Words, lanes: Rows) -> None:
    """Give every lane its heap and its block crossings, and every replica, which is `stages` lanes, its stages."""
    first_of_replica = 0
    for lane in lanes:
        lane["finishes_at"] = words.add(np.zeros(2 * lane["max_sequences"], np.int64))
        lane["crossings_at"] = words.add(np.zeros(1 << lane["period_shift"], np.int64))
        if lane["number"] == first_of_replica:
            first_of_replica += lane["stages"]
            stages_at = words.add(np.zeros(lane["stages"], np.int64))
        lane["stages_at"] = stages_at


def _place_loads(words: Words, fleet: Fleet, lanes: Rows) -> npt.NDArray[np.int64]:
    """Add the tournaments of queues that the router asks: one over all lanes, or one a pool; return their places."""
    router = ROUTERS[fleet.router]
    if router == ROUND_ROBIN:
        return np.zeros(1, np.int64)
    front = np.flatnonzero(lanes["role"] != DECODE)
    groups = [front]
    if router == PLANNED:
        groups = [front[lanes["pool"][front] == pool] for pool in np.unique(lanes["pool"][front])]
    return np.array([_place_tree(words, lanes, group) for group in groups], np.int64)


def _place_tree(words: Words, lanes: Rows, group: npt.NDArray[np.int64]) -> int:
    """Add the tournament of the queues of lanes that follow each other, and return its place."""
    first = int(group[0])
    tree = words.add(tree_of(range(first, first + group.size), lanes["load"]))
    lanes["load_tree"][group] = tree
    lanes["load_leaf"][group] = _leaves(group.size) + np.arange(group.size)
    return tree


def _leaves(lanes: int) -> int:
    return 1 << max(0, (lanes - 1).bit_length())
