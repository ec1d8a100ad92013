"""A tier: what is told of a place for prefix blocks below a replica's memory, and of what a memory evicts."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

EVICTIONS = ("lru", "fifo", "s3-fifo")
IN_MEMORY = ("lru", "s3-fifo")  # of these, where what was in use is the newest again
FETCHES = ("before", "layer-wise", "outside")


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

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: str
    capacity_bytes: float
    bytes_per_s: float
    latency_s: float = 0.0
    operation_s: float = 0.0
    operation_blocks: int = 1
    is_shared: bool = False
    total_bytes_per_s: float | None = None  # no limit
    eviction: str = "lru"
    quotas: dict[str, float] = field(default_factory=dict)
    writes_through: bool = False
    moves_up: bool = False

    def __post_init__(self) -> None:
        check_eviction(f"tier {self.name}", self.eviction, self.quotas, EVICTIONS)
        for name in ("capacity_bytes", "bytes_per_s", "total_bytes_per_s", "operation_blocks"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} of tier {self.name} must be positive, got {value:g}")
        if min(self.latency_s, self.operation_s) < 0:
            raise ValueError(f"latency_s and operation_s of tier {self.name} must not be negative")


def check_eviction(what: str, eviction: str, quotas: Mapping[str, float], known: Iterable[str]) -> None:
    """Raise ValueError where a memory or tier cannot evict so."""
    if eviction not in known:
        raise ValueError(f"unknown eviction {eviction!r} of {what}; known: {', '.join(known)}")
    shares = list(quotas.values())
    if shares and (min(shares) < 0 or sum(shares) > 1 + 1e-9):
        raise ValueError(f"quotas of {what} must be shares that add up to at most 1, got {shares}")
