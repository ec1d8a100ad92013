"""Parts of a pool in fleet.yaml beyond its engine: what its memory evicts, variants of its steps, shared devices."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.step import StepTable
    from simulator.fleet import Pool, PricedEngine


class Wrong(ValueError):
    """A mistake, and the keys that lead to it."""

    def __init__(self, keys: tuple[str | int, ...], words: str) -> None:
        super().__init__(words)
        self.keys = keys


def memory(fetches: str, eviction: str, quotas: dict[str, float]) -> dict[str, Any]:
    """Return what a pool's memory evicts and how it fetches from below; Wrong where it cannot."""
    from simulator.tier import FETCHES, IN_MEMORY, check_eviction

    if fetches not in FETCHES:
        raise Wrong(("fetches",), f"unknown way {fetches!r}; known: {', '.join(FETCHES)}")
    for key, rule, shares in (("eviction", eviction, {}), ("quotas", "lru", quotas)):
        try:
            check_eviction("the pool", rule, shares, IN_MEMORY)
        except ValueError as error:
            raise Wrong((key,), str(error)) from None
    return {"fetches": fetches, "eviction": eviction, "quotas": quotas}


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
