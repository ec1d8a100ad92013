"""Which of several engines on the same devices are worth a look: those that no other is as good as.

An engine that holds no less than another, and takes no longer for any step, can do whatever the other does at least as
soon. Prices per token that are valid for the faster one's steps are valid for the slower one's too: so a lower bound
over those that are left holds for fleets with the others as well. For a given trace it is enough to be no worse at its
requests; that guides a search, while the bound is still taken over all.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from models.step import StepTable
from simulator.fleet import PricedEngine

if TYPE_CHECKING:
    from planners.demand import Market
    from planners.offers.engines import Offer

Array = npt.NDArray[np.float64]


def undominated(offers: "Sequence[Offer]") -> "list[Offer]":
    """Return the offers that no other on as many of the same devices dominates; of equal ones the first stays."""
    kept: list[Offer] = []
    for offer in offers:
        if any(_beats(other, offer) for other in kept):
            continue
        kept = [*(other for other in kept if not _beats(offer, other)), offer]
    return kept


def shortlist(market: "Market") -> list[int]:
    """Return the engines that no other on as many of the same devices beats in price, every load and idle latency."""
    demand, kept = market.demand, list[int]()
    by_kind: dict[tuple[object, ...], list[int]] = {}
    for engine, offer in enumerate(market.offers):
        by_kind.setdefault(_kind(offer), []).append(engine)
    for rivals in by_kind.values():
        lost = demand.lost[:, rivals].transpose(1, 0, 2).reshape(len(rivals), -1)
        usd = market.usd_per_hour[rivals, None]
        traits = np.concatenate([usd, demand.load[rivals], lost, market.alone_s[:, rivals].T], axis=1)
        for place, own in enumerate(traits):
            no_worse = (traits <= own).all(axis=1)
            better = no_worse & (traits < own).any(axis=1)
            if not better.any() and np.flatnonzero(no_worse)[0] == place:
                kept.append(rivals[place])
    return sorted(kept)


def _beats(one: "Offer", other: "Offer") -> bool:
    return _kind(one) == _kind(other) and dominates(one.priced, other.priced)


def _kind(offer: "Offer") -> tuple[object, ...]:
    """Return what two offers share where one can stand for the other whatever the limits and prices.

    Drafts pay in small batches and cost in full ones, which loads and idle latencies do not tell: they stand apart.
    """
    engine = offer.priced.engine
    devices = engine.devices if engine else 1
    limits = offer.priced.limits.verified_tokens, offer.least, offer.most
    return offer.device_name, devices, offer.is_cautious, offer.is_spot, offer.role, *limits


def dominates(one: PricedEngine, other: PricedEngine) -> bool:
    """Say whether an engine holds no less than another and takes no longer for any step of it."""
    mine, its = one.limits, other.limits
    alike = ("max_sequences", "max_batched_tokens", "long_prefill_tokens", "growth_parts", "part_shift", "block_tokens")
    is_alike = all(getattr(mine, name) == getattr(its, name) for name in alike)
    is_alike = is_alike and (one.lanes, one.stages, one.ranks) == (other.lanes, other.stages, other.ranks)
    if not is_alike or mine.total_blocks < its.total_blocks or mine.max_context_tokens < its.max_context_tokens:
        return False
    return _is_no_slower(one.table, other.table, float(its.total_blocks * its.block_tokens << its.part_shift))


def _is_no_slower(mine: StepTable, its: StepTable, most_context: float) -> bool:
    plain = ("token_ps", "sequence_ps", "prefill_ps", "prefill_slope_ps", "window_slope_ps")
    if any((getattr(mine, name) > getattr(its, name)).any() for name in plain):
        return False
    corners = np.union1d(_edges(mine), _edges(its))
    corners = corners[corners <= most_context]
    return bool((_decode_ps(mine, corners) <= _decode_ps(its, corners)).all())


def _edges(table: StepTable) -> Array:
    """Return where the lines of a table's decode attention meet, in tokens (or parts of them) of context."""
    edges: Array = np.arange(table.decode_ps.shape[-1] + 1, dtype=np.float64) * (1 << int(table.cell_shift[0]))
    return edges


def _decode_ps(table: StepTable, contexts: Array) -> Array:
    """Return the attention of decodes [alone or beside, sequences, context], a line within each cell."""
    shift = int(table.cell_shift[0])
    cell = np.minimum(contexts.astype(np.int64) >> shift, table.decode_ps.shape[-1] - 1)
    into = contexts - (cell << shift)
    found: Array = table.decode_ps[0][..., cell] + table.decode_slope_ps[0][..., cell] * into
    return found
