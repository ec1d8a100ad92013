"""Infeasible: no fleet can keep the promises, and why."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from models.device import Device
    from models.llm import Llm
    from planners.demand import Market
    from planners.search.rehearsal import Verdict

BYTES_PER_GB = 1e9


@dataclass(frozen=True, slots=True)
class Reachable:
    """The best value of a promised percentile that any engine of a device reaches when every request is alone [s]."""

    promise: str
    device: str
    engine: str
    best_s: float


class Infeasible(Exception):
    """No fleet of the offered engines keeps the promises; reasons says which of them bind and what can be reached."""

    def __init__(self, reasons: tuple[str, ...], reachable: tuple[Reachable, ...] = ()) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons
        self.reachable = reachable

    def result(self) -> dict[str, Any]:
        """Return what the JSON answer says: reasons in words, and the best value by promise and device."""
        from planners.answer import plain

        rows = [
            {"promise": row.promise, "device": row.device, "engine": row.engine, "best_s": row.best_s}
            for row in self.reachable
        ]
        return {"reasons": list(self.reasons), "reachable": [plain(row) for row in rows]}


def nothing_fits(llm: "Llm", devices: Sequence["Device"]) -> Infeasible:
    """Return the reason for a model that no node of any device can hold."""
    largest = max(devices, key=lambda one: one.memory_bytes * one.node_size)
    have_gb = largest.memory_bytes * largest.node_size / BYTES_PER_GB
    need_gb = llm.weight_bytes("fp8") / BYTES_PER_GB
    return Infeasible(
        (
            f"{llm.name} fits on no engine offered: its weights take {need_gb:.0f} GB in fp8, and the largest node, "
            f"{largest.node_size} x {largest.name}, has {have_gb:.0f} GB before KV cache and reserves",
        )
    )


def why(market: "Market", is_possible: Callable[["Market"], bool]) -> Infeasible:
    """Return the promises that no engine keeps even when idle, with the best value that each device reaches.

    is_possible says of a market with fewer promises whether some mix keeps them; the fewest to give up are named.
    """
    reachable = tuple(row for promise in range(len(market.slos)) for row in _best_by_device(market, promise))
    reasons = []
    for promise, slo in enumerate(market.slos):
        best = int(np.argmin(market.alone_s[promise]))
        if market.alone_s[promise, best] > slo.limit_s:
            reasons.append(
                f"{slo} cannot be kept: the best of {len(market.offers)} engines, {market.offers[best].short_name}, "
                f"reaches {_seconds(market.alone_s[promise, best])} with every request alone on an idle replica"
            )
    if not reasons:
        promises = " and ".join(map(str, market.slos))
        reasons.append(f"{promises} cannot be kept together: no engine keeps all of them, though each is kept by some")
    given_up = _fewest_to_give_up(market, is_possible)
    if given_up:
        words = " and ".join(f"{market.slos[place]} (best {_seconds(_best_s(market, place))})" for place in given_up)
        reasons.append(f"the fewest promises to give up or loosen: {words}")
    if not np.isfinite(market.load).any():
        reasons.append("no engine holds the KV cache of the longest requests")
    return Infeasible(tuple(reasons), reachable)


def nothing_survived(verdicts: Iterable["Verdict"]) -> Infeasible:
    """Return what the fleet that breaks fewest promises of those tried failed at: each alone might be kept."""
    nearest = fewest_broken(verdicts)
    assert nearest is not None, "something was tried"
    return Infeasible((f"no fleet tried keeps all promises under this trace; the nearest misses: {nearest.fails}",))


def fewest_broken(verdicts: Iterable["Verdict"]) -> "Verdict | None":
    """Return the fleet that breaks the fewest promises, of those the least strained, then the cheapest."""
    failed = [verdict for verdict in verdicts if not verdict.survives]
    return min(failed, key=lambda each: (each.fails.count(", promised "), each.strain, each.usd_per_hour), default=None)


def _fewest_to_give_up(market: "Market", is_possible: Callable[["Market"], bool]) -> tuple[int, ...]:
    """Return the places of the fewest promises without which some mix keeps the others, idle; () where none helps."""
    everyone = range(len(market.slos))
    for size in range(1, len(market.slos)):
        possible = [
            some
            for some in itertools.combinations(everyone, size)
            if is_possible(market.promising([place for place in everyone if place not in some]))
        ]
        if possible:  # those that are broken by least
            return min(possible, key=lambda some: max(_best_s(market, p) / market.slos[p].limit_s for p in some))
    return ()


def _best_s(market: "Market", promise: int) -> float:
    return float(market.alone_s[promise].min())


def _best_by_device(market: "Market", promise: int) -> list[Reachable]:
    best: dict[str, Reachable] = {}
    for engine, offer in enumerate(market.offers):
        value = float(market.alone_s[promise, engine])
        if offer.device_name not in best or value < best[offer.device_name].best_s:
            best[offer.device_name] = Reachable(str(market.slos[promise]), offer.device_name, offer.short_name, value)
    return sorted(best.values(), key=lambda row: (row.best_s, row.device))


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
