"""A fleet that is there already: what of it to keep, where adding a replica and taking one away cost something.

Let e replicas of an engine be there and n be planned. A change of c USD/h each makes n cost usd * n + c * |n - e|. That
is a kept engine at usd - c, of which there are e at most, beside a new one at usd + c, and c * e in any case: so search
and bound know only prices and a limit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planners.offers.engines import Offer

if TYPE_CHECKING:
    from planners.plan import Outcome, Plan

KEPT = "/kept"
CHEAPEST = 0.01  # of its price is what a kept replica counts for at least


@dataclass(frozen=True, slots=True)
class Keep:
    """What is there, as engines at today's prices and their replicas, and what each change costs [USD/h].

    A replica that costs about as much to take away as to run stays in any case, and counts for CHEAPEST of its price:
    so the bound stays valid, as taking it away costs more still.
    """

    there: tuple[tuple[Offer, int], ...]
    usd_per_hour_per_change: float

    @property
    def usd_per_hour(self) -> float:
        """Return what it would cost, as it counts, to take all away."""
        return sum(self._saved(one) * count for one, count in self.there)

    def _saved(self, one: Offer) -> float:
        return min(self.usd_per_hour_per_change, (1 - CHEAPEST) * one.usd_per_hour)

    def offers(self, offers: Sequence[Offer]) -> tuple[Offer, ...]:
        """Return what is on offer, kept and new."""
        return (*self._kept(), *(_changed(one, self.usd_per_hour_per_change) for one in offers))

    def _kept(self) -> Iterator[Offer]:
        for one, count in self.there:
            kept = _changed(one, -self._saved(one))
            stays = self.usd_per_hour_per_change > self._saved(one)
            named = replace(one.priced, name=one.name + KEPT)
            yield replace(kept, priced=named, least=count if stays else 0, most=count)

    def settled(self, plan: "Plan") -> "Plan":
        """Return a plan among those offers with its real cost, changes included, and what changes."""
        at_first = {one.name: count for one, count in self.there}
        now = {pool.name.removesuffix(KEPT): pool.replicas for pool in plan.pools if pool.name.endswith(KEPT)}
        removed = {name: count - now.get(name, 0) for name, count in at_first.items() if count > now.get(name, 0)}
        added = {pool.name: pool.replicas for pool in plan.pools if not pool.name.endswith(KEPT)}
        changes = sum(removed.values()) + sum(added.values())
        change_usd = self.usd_per_hour_per_change * changes
        total = sum(pool.usd_per_hour for pool in plan.pools) + change_usd
        conditional = plan.conditional_usd_per_hour
        return replace(
            plan,
            usd_per_hour=total,
            usd_per_hour_bound=min(total, plan.usd_per_hour_bound + self.usd_per_hour),
            conditional_usd_per_hour=None if conditional is None else min(total, conditional + self.usd_per_hour),
            single_device=self._dearer(plan.single_device),
            cheaper=self._dearer(plan.cheaper),
            change={"usd_per_hour": change_usd, "kept": now, "added": added, "removed": removed},
        )

    def _dearer(self, outcome: "Outcome | None") -> "Outcome | None":
        return outcome and replace(outcome, usd_per_hour=outcome.usd_per_hour + self.usd_per_hour)


def keep_of(plan: "Plan", offers: Sequence[Offer], usd_per_hour_per_change: float) -> Keep:
    """Return the fleet of a plan as one that is there, each engine at the price of its like on offer or of the list."""
    from planners.offers.engines import offer

    known = {one.name: one for one in offers}
    there: dict[str, tuple[Offer, int]] = {}
    for pool in plan.pools:
        name = pool.name.removesuffix(KEPT)
        one = known.get(name)
        if one is None and pool.engine is None:
            raise ValueError(f"pool {pool.name!r} is toy hardware; it cannot be kept")
        if one is None and pool.engine is not None:
            made = offer(pool.engine)
            one = replace(made, priced=replace(made.priced, name=name), role=pool.role)
        assert one is not None, "made or known"
        there[name] = one, there.get(name, (one, 0))[1] + pool.replicas
    return Keep(tuple(there.values()), usd_per_hour_per_change)


def _changed(one: Offer, usd_per_hour: float) -> Offer:
    return replace(one, usd_per_hour=one.usd_per_hour + usd_per_hour, change_usd_per_hour=usd_per_hour)
