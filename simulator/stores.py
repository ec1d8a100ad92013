"""Stores: host memory, disks and shared pools that keep prefix blocks below lanes' memories, and what passed there."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.step import PICOSECONDS_PER_SECOND
from simulator.layout import NONE, State
from simulator.shelves import (
    MAIN,
    NEWEST,
    OLDEST,
    QUOTA_BLOCKS,
    RULE,
    SHELF_WORDS,
    SHELVES_AT,
    SHELVES_WORDS,
    TENANTS,
)
from simulator.tier import EVICTIONS, FETCHES, IN_MEMORY, Tier, check_eviction
from simulator.tiers import (
    BELOW,
    BLOCK_SHIFT,
    CAPACITY_BLOCKS,
    IS_SHARED,
    LATENCY_PS,
    MOVES_UP,
    NEAREST,
    OPERATION_BLOCKS,
    OPERATION_PS,
    OUTSIDE,
    PIPE_OPERATION_PS,
    PIPE_PS_PER_TOKEN,
    PS_PER_TOKEN,
    READ_TOKENS,
    STORE_WORDS,
    USED_BLOCKS,
    WRITES_THROUGH,
    WRITTEN_TOKENS,
)

if TYPE_CHECKING:
    from simulator.fleet import Fleet, Pool

Rows = npt.NDArray[Any]
Words = npt.NDArray[np.int64]


class Tenants(NamedTuple):
    """The tenant of each content block, an index into names, -1 where none is named: that of the first who asked it."""

    codes: npt.NDArray[np.int64]
    names: tuple[str, ...]


NO_TENANTS = Tenants(np.zeros(0, np.int64), ())


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the stores of one tier of a pool read and wrote in a run [tokens], and hold at its end."""

    pool: int
    tier: str
    read_tokens: int
    written_tokens: int
    held_tokens: int


def check_tiers(pool: "Pool") -> None:
    """Raise ValueError where a pool's tiers, or the eviction from its memory, cannot be."""
    name = pool.engine.name
    check_eviction(f"pool {name}", pool.eviction, pool.quotas, IN_MEMORY)
    if pool.fetches not in FETCHES:
        raise ValueError(f"unknown way {pool.fetches!r} in which pool {name} fetches; known: {', '.join(FETCHES)}")
    if keeps_shelves(pool) and not pool.engine.limits.caching:
        raise ValueError(f"pool {name} has no prefix cache to evict from by {pool.eviction} or quotas")
    if not pool.tiers:
        return
    if not pool.engine.limits.caching:
        raise ValueError(f"pool {name} has tiers but no prefix cache that they could lie below")
    if pool.engine.kv_bytes_per_token <= 0:
        raise ValueError(f"pool {name} has tiers, but how many bytes of KV a token takes is not known")
    if any(tier.is_shared for tier in pool.tiers[:-1]):
        raise ValueError(f"pool {name} has a tier below a shared one; only the last can be shared")


def keeps_shelves(pool: "Pool") -> bool:
    """Say whether a pool's memory evicts in another way than the least recently freed first."""
    return pool.eviction != "lru" or bool(pool.quotas)


def lay_out_memories(fleet: "Fleet", lanes: Rows, tenants: tuple[str, ...], add: Callable[[Words], int]) -> None:
    """Add the shelves of memories to the words of a run, empty, and tell each lane where."""
    lanes["shelves_at"] = NONE
    for lane in lanes:
        pool = fleet.pools[lane["pool"]]
        if keeps_shelves(pool):
            lane["shelves_at"] = add(_shelves(pool.eviction, pool.quotas, int(lane["total_blocks"]), tenants))


def lay_out_stores(
    fleet: "Fleet", lanes: Rows, tenants: tuple[str, ...], add: Callable[[Words], int], contents: int
) -> int:
    """Add the stores of a fleet to the words of a run, empty, and tell each lane where; return the nodes they need."""
    lanes["tiers_at"] = NONE
    first_lane, most_nodes = 0, 0
    for pool in fleet.pools:
        shared: dict[str, int] = {}
        for _ in range(pool.replicas if pool.tiers else 0):
            below = NONE
            for tier in reversed(pool.tiers):
                place = shared.get(tier.name, NONE)
                if place == NONE:
                    place = add(_store(tier, pool, below, tenants))
                if tier.is_shared:
                    shared[tier.name] = place
                below = place
            for lane in lanes[first_lane : first_lane + pool.engine.lanes]:
                layers = {"before": 0, "layer-wise": pool.engine.layers, "outside": OUTSIDE}[pool.fetches]
                lane["tiers_at"] = add(np.array([below, 0, layers]))
            first_lane += pool.engine.lanes
        first_lane += 0 if pool.tiers else pool.replicas * pool.engine.lanes
        most_nodes += 2 * contents * len(pool.tiers)
    return most_nodes


def _store(tier: Tier, pool: "Pool", below: int, tenants: tuple[str, ...]) -> Words:
    """Return an empty store, and its shelves after it."""
    words = np.zeros(STORE_WORDS, np.int64)
    limits, token_bytes = pool.engine.limits, pool.engine.kv_bytes_per_token
    pipe_bytes_per_s = (tier.total_bytes_per_s or math.inf) if tier.is_shared else tier.bytes_per_s
    words[BELOW], words[IS_SHARED] = below, tier.is_shared
    words[BLOCK_SHIFT] = (limits.block_tokens - 1).bit_length()
    words[CAPACITY_BLOCKS] = int(tier.capacity_bytes / (token_bytes * limits.block_tokens))
    words[WRITES_THROUGH], words[MOVES_UP] = tier.writes_through, tier.moves_up
    words[PS_PER_TOKEN] = _ps(token_bytes / min(tier.bytes_per_s, pipe_bytes_per_s))
    words[PIPE_PS_PER_TOKEN] = _ps(token_bytes / pipe_bytes_per_s)
    words[LATENCY_PS], words[OPERATION_PS] = _ps(tier.latency_s), _ps(tier.operation_s)
    words[OPERATION_BLOCKS] = tier.operation_blocks
    words[PIPE_OPERATION_PS] = 0 if tier.is_shared else _ps(tier.operation_s)
    shelves = _shelves(tier.eviction, tier.quotas, int(words[CAPACITY_BLOCKS]), tenants)
    return np.concatenate([words, shelves])


def _shelves(eviction: str, quotas: Mapping[str, float], capacity_blocks: int, tenants: tuple[str, ...]) -> Words:
    """Return empty shelves, those of content that no tenant asked for first."""
    owners = np.array([0.0, *(quotas.get(name, 0.0) for name in tenants)] if quotas else [0.0])
    words = np.zeros(SHELVES_AT + SHELVES_WORDS * owners.size, np.int64)
    words[RULE], words[TENANTS] = EVICTIONS.index(eviction), owners.size
    shelves = words[SHELVES_AT:].reshape(-1, SHELF_WORDS)
    shelves[:, [OLDEST, NEWEST]] = NONE
    main_shelves = shelves[MAIN // SHELF_WORDS :: SHELVES_WORDS // SHELF_WORDS]
    main_shelves[:, QUOTA_BLOCKS] = np.rint(owners * capacity_blocks)
    return words


def _ps(seconds: float) -> int:
    return round(seconds * PICOSECONDS_PER_SECOND)


def traffic(fleet: "Fleet", state: State) -> tuple[Traffic, ...]:
    """Return what passed through each tier of each pool, all replicas together."""
    words, found = state.words, []
    for index, pool in enumerate(fleet.pools):
        places = state.lanes["tiers_at"][state.lanes["pool"] == index] + NEAREST
        for tier in pool.tiers:
            places = np.unique(words[places])
            held_tokens = int((words[places + USED_BLOCKS] << words[places + BLOCK_SHIFT]).sum())
            read_tokens, written_tokens = (int(words[places + each].sum()) for each in (READ_TOKENS, WRITTEN_TOKENS))
            found.append(Traffic(index, tier.name, read_tokens, written_tokens, held_tokens))
            places = places + BELOW
    return tuple(found)
