"""Money: what plans cost and by which pools, cost against promises, and what moves the cost most."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from planners.plan import Plan, cut_name
from planners.report.colours import BAD, FAINT, GOOD, NEUTRAL, of_device
from planners.report.plots.axes import dress, label_line, say_nothing_to_show


def cost_bars(ax: Any, plans: Mapping[str, Plan]) -> Any:
    """Draw each plan's cost by pool, and its lower bound as a mark."""
    if not plans:
        return say_nothing_to_show(ax, "Cost by pool", "no plans")
    for row, plan in enumerate(plans.values()):
        start = 0.0
        for pool in plan.pools:
            ax.barh(row, pool.usd_per_hour, left=start, color=of_device(pool.device), edgecolor="white")
            words = f"{pool.replicas} x {cut_name(pool)}"
            if pool.usd_per_hour > 0.15 * max(each.usd_per_hour for each in plans.values()):
                ax.text(start + pool.usd_per_hour / 2, row, words, ha="center", va="center", color="white", fontsize=7)
            start += pool.usd_per_hour
        ax.plot([plan.usd_per_hour_bound] * 2, [row - 0.4, row + 0.4], color=NEUTRAL, linewidth=1.5)
        label_line(ax, start, row, f"{plan.usd_per_hour:.2f}", NEUTRAL)
    ax.set_yticks(range(len(plans)), list(plans))
    ax.invert_yaxis()
    cheapest = min(plans, key=lambda name: plans[name].usd_per_hour)
    return dress(ax, f"{cheapest} costs least: {plans[cheapest].usd_per_hour:.2f} USD/h", "USD per hour; | lower bound")


def cost_and_promise(ax: Any, cases: Sequence[tuple[float, Plan | None]], promise: str = "limit") -> Any:
    """Draw the cheapest plan's cost against how tight a promise is [s]; impossible ones are marked."""
    possible = sorted((limit_s, plan) for limit_s, plan in cases if plan is not None)
    if not possible:
        return say_nothing_to_show(ax, f"No fleet keeps any {promise}", "infeasible throughout")
    limits, costs = [limit for limit, _ in possible], [plan.usd_per_hour for _, plan in possible]
    ax.step(limits, costs, where="post", color=FAINT)
    for limit_s, plan in possible:
        largest = max(plan.pools, key=lambda pool: pool.usd_per_hour)
        ax.plot(limit_s, plan.usd_per_hour, "o", color=of_device(largest.device))
        label_line(ax, limit_s, plan.usd_per_hour, " + ".join(f"{p.replicas} {p.device}" for p in plan.pools), NEUTRAL)
    for impossible_s, found in cases:
        if found is None:
            ax.axvline(impossible_s, color=BAD, linestyle=":", linewidth=1)
    ax.set_xscale("log")
    ratio = costs[0] / costs[-1]
    finding = f"{promise} at {limits[0]:.3g} s costs {ratio:.2f} times what {limits[-1]:.3g} s costs"
    return dress(ax, finding, f"{promise} [s]", "USD per hour")


def cost_tornado(ax: Any, base_usd_per_hour: float, cases: Mapping[str, float], flips: Sequence[str] = ()) -> Any:
    """Draw how far each change moves the cost from the base, largest first; `flips` are those with another fleet."""
    finite = {name: usd - base_usd_per_hour for name, usd in cases.items() if math.isfinite(usd)}
    if not finite:
        return say_nothing_to_show(ax, "What moves the cost", "no feasible change")
    names = sorted(finite, key=lambda name: abs(finite[name]), reverse=True)
    for row, name in enumerate(names):
        ax.barh(row, finite[name], color=BAD if finite[name] > 0 else GOOD)
        label_line(ax, max(finite[name], 0), row, f"{cases[name]:.2f}{' *' if name in flips else ''}", NEUTRAL)
    ax.axvline(0, color=NEUTRAL, linewidth=1)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    finding = f"{names[0]} moves the cost most: {base_usd_per_hour:.2f} to {cases[names[0]]:.2f} USD/h"
    return dress(ax, finding, f"change from {base_usd_per_hour:.2f} USD per hour; * other fleet")
