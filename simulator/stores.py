"""Stores: host memory, disks and shared pools that keep prefix blocks below lanes' memories, and what passed there."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.step import PICOSECONDS_PER_SECOND
from simulator.layout import NONE, State
from simulator.tiers import (
    BELOW,
    BLOCK_SHIFT,
    CAPACITY_BLOCKS,
    EVICTION,
    EVICTIONS,
    IS_SHARED,
    LATENCY_PS,
    MAIN,
    MOVES_UP,
    NEAREST,
    NEWEST,
    OLDEST,
    OPERATION_BLOCKS,
    OPERATION_PS,
    PIPE_OPERATION_PS,
    PIPE_PS_PER_TOKEN,
    PS_PER_TOKEN,
    QUOTA_BLOCKS,
    READ_TOKENS,
    SHELF_WORDS,
    SHELVES_WORDS,
    STORE_WORDS,
    TENANTS,
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
class Tier:
    """A place for prefix blocks below a replica's memory: each replica has its own, or all of a pool share one.

    A replica moves bytes_per_s each way; a shared tier carries total_bytes_per_s for all together. A transfer also
    takes its latency, and operation_s for every operation_blocks KV blocks. eviction is "lru", "fifo" or "s3-fifo",
    which a scan does not flush. quotas are shares of the capacity by tenant, or by class where a trace names no
    tenants: who holds most beyond its own gives first. With writes_through it takes prompts when they are computed,
    else what the tier above evicts. What was read stays, so that of a conversation that comes back only the new part
    is written; unless moves_up.

    >>> Tier("dram", 256e9, 50e9).eviction
    'lru'
    """

    name: str
    capacity_bytes: float
    bytes_per_s: float
    latency_s: float = 0.0
    operation_s: float = 0.0
    operation_blocks: int = 1
    is_shared: bool = False
    total_bytes_per_s: float = math.inf
    eviction: str = "lru"
    quotas: Mapping[str, float] = field(default_factory=dict)
    writes_through: bool = False
    moves_up: bool = False

    def __post_init__(self) -> None:
        if self.eviction not in EVICTIONS:
            raise ValueError(f"unknown eviction {self.eviction!r} of tier {self.name}; known: {', '.join(EVICTIONS)}")
        for name in ("capacity_bytes", "bytes_per_s", "total_bytes_per_s", "operation_blocks"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of tier {self.name} must be positive, got {getattr(self, name):g}")
        if min(self.latency_s, self.operation_s) < 0:
            raise ValueError(f"latency_s and operation_s of tier {self.name} must not be negative")
        shares = list(self.quotas.values())
        if shares and (min(shares) < 0 or sum(shares) > 1 + 1e-9):
            raise ValueError(f"quotas of tier {self.name} must be shares that add up to at most 1, got {shares}")


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the stores of one tier of a pool read and wrote in a run [tokens], and hold at its end."""

    pool: int
    tier: str
    read_tokens: int
    written_tokens: int
    held_tokens: int


def check_tiers(pool: "Pool") -> None:
    """Raise ValueError where a pool's tiers cannot be."""
    if not pool.tiers:
        return
    name = pool.engine.name
    if not pool.engine.limits.caching:
        raise ValueError(f"pool {name} has tiers but no prefix cache that they could lie below")
    if pool.engine.kv_bytes_per_token <= 0:
        raise ValueError(f"pool {name} has tiers, but how many bytes of KV a token takes is not known")
    if any(tier.is_shared for tier in pool.tiers[:-1]):
        raise ValueError(f"pool {name} has a tier below a shared one; only the last can be shared")


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
                layers = pool.engine.layers if pool.fetches_layerwise else 0
                lane["tiers_at"] = add(np.array([below, 0, layers]))
            first_lane += pool.engine.lanes
        first_lane += 0 if pool.tiers else pool.replicas * pool.engine.lanes
        most_nodes += 2 * contents * len(pool.tiers)
    return most_nodes


def _store(tier: Tier, pool: "Pool", below: int, tenants: tuple[str, ...]) -> Words:
    """Return an empty store, and its shelves after it."""
    owners = [0.0, *(tier.quotas.get(name, 0.0) for name in tenants)] if tier.quotas else [0.0]
    words = np.zeros(STORE_WORDS + SHELVES_WORDS * len(owners), np.int64)
    limits, token_bytes = pool.engine.limits, pool.engine.kv_bytes_per_token
    pipe_bytes_per_s = tier.total_bytes_per_s if tier.is_shared else tier.bytes_per_s
    words[BELOW], words[TENANTS], words[IS_SHARED] = below, len(owners), tier.is_shared
    words[BLOCK_SHIFT] = (limits.block_tokens - 1).bit_length()
    words[CAPACITY_BLOCKS] = int(tier.capacity_bytes / (token_bytes * limits.block_tokens))
    words[EVICTION], words[WRITES_THROUGH] = EVICTIONS[tier.eviction], tier.writes_through
    words[MOVES_UP] = tier.moves_up
    words[PS_PER_TOKEN] = _ps(token_bytes / min(tier.bytes_per_s, pipe_bytes_per_s))
    words[PIPE_PS_PER_TOKEN] = _ps(token_bytes / pipe_bytes_per_s)
    words[LATENCY_PS], words[OPERATION_PS] = _ps(tier.latency_s), _ps(tier.operation_s)
    words[OPERATION_BLOCKS] = tier.operation_blocks
    words[PIPE_OPERATION_PS] = 0 if tier.is_shared else _ps(tier.operation_s)
    shelves = words[STORE_WORDS:].reshape(-1, SHELF_WORDS)
    shelves[:, [OLDEST, NEWEST]] = NONE
    shelves[MAIN // SHELF_WORDS :: SHELVES_WORDS // SHELF_WORDS, QUOTA_BLOCKS] = np.rint(
        np.array(owners) * words[CAPACITY_BLOCKS]
    )
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
