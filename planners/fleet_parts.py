"""Parts of a pool in fleet.yaml beyond its engine: tiers below its memory, variants of its steps, shared devices."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from models.step import StepTable
    from simulator.fleet import Pool, PricedEngine
    from simulator.stores import Tier

FORBID = {"extra": "forbid"}


class Wrong(ValueError):
    """A mistake, and the keys that lead to it."""

    def __init__(self, keys: tuple[str | int, ...], words: str) -> None:
        super().__init__(words)
        self.keys = keys


@dataclass(frozen=True, slots=True)
class TierLine:
    """A place for prefix blocks below a replica's memory, each replica's own or one that all of the pool share.

    total_bytes_per_s is what a shared one carries for all. eviction is lru, fifo or s3-fifo; quotas are shares of the
    capacity by tenant. With writes_through it takes prompts when they are computed, else what is evicted above; with
    moves_up what is read leaves it.
    """

    __pydantic_config__: ClassVar = FORBID

    name: str
    capacity_bytes: float
    bytes_per_s: float
    latency_s: float = 0.0
    operation_s: float = 0.0
    operation_blocks: int = 1
    is_shared: bool = False
    total_bytes_per_s: float | None = None
    eviction: str = "lru"
    quotas: dict[str, float] = field(default_factory=dict)
    writes_through: bool = False
    moves_up: bool = False


def tiers(lines: tuple[TierLine, ...]) -> "tuple[Tier, ...]":
    """Return the tiers that lines say; Wrong names the one with a mistake."""
    from simulator.stores import Tier

    made = []
    for place, line in enumerate(lines):
        about = asdict(line)
        if line.total_bytes_per_s is None:
            about["total_bytes_per_s"] = math.inf
        try:
            made.append(Tier(**about))
        except ValueError as error:
            raise Wrong(("tiers", place), str(error)) from None
    return tuple(made)


def variants(times_longer: tuple[float, ...], engine: "PricedEngine") -> "tuple[StepTable, ...]":
    """Return tables of steps that take so many times longer."""
    from models.step import slowed

    for place, factor in enumerate(times_longer):
        if not factor > 0:
            raise Wrong(("variants", place), f"must be positive, got {factor:g}")
    return tuple(slowed(engine.table, factor) for factor in times_longer)


def twins(
    prefill: "Pool", decode: "Pool", place: int, splits: tuple[tuple[float, float], ...], index: int
) -> "tuple[Pool, Pool]":
    """Return a prefill pool, the fleet's `place`, and a decode pool, its `index`, as lanes of the same devices."""
    from simulator.systems.semi_pd import SPLITS, side_by_side

    for number, shares in enumerate(splits):
        if not all(0 < share <= 1 for share in shares):
            raise Wrong((index, "splits", number), f"shares must be above 0 and at most 1, got {list(shares)}")
    if decode.engine.name != prefill.engine.name:
        words = f"{decode.engine.name} cannot share the devices of {prefill.engine.name}"
        raise Wrong((index, "twin_of"), words)
    return side_by_side(prefill, decode, place, splits or SPLITS)


def each_its_model(pools: "tuple[Pool, ...]") -> "tuple[Pool, ...]":
    """Return pools of several models such that each serves its own, where nothing else was said."""
    models = [pool.engine.engine.llm.name if pool.engine.engine else "" for pool in pools]
    if len(set(models)) == 1:
        return pools
    return tuple(replace(pool, serves=pool.serves or (name,)) for pool, name in zip(pools, models, strict=True))
