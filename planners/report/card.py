"""A plan as a notebook shows it: the fleet, what it costs, how sure that is, and what its rehearsal showed."""

from typing import TYPE_CHECKING

from planners.commands.tables import seconds
from planners.report.verdict import fleet_name
from traces.card import html_rows

if TYPE_CHECKING:
    from planners.plan import Plan


def html_card(plan: "Plan") -> str:
    """Return HTML with the fleet, its cost and bound, promises, latencies, the cheaper fleet that fails, and notes."""
    gap = f"no fleet of these engines below {plan.usd_per_hour_bound:,.2f} USD/h, gap {plan.gap:.1%}"
    rows = [("cost", f"{plan.usd_per_hour:,.2f} USD/h; {gap}")]
    for pool in plan.pools:
        busy = f", busy {pool.busy:.0%}" if pool.busy is not None else ""
        rows.append((f"{pool.replicas} x {pool.name}", f"{pool.usd_per_hour:,.2f} USD/h{busy}"))
    for kept in plan.promises:
        rows.append((kept.promise, f"{seconds(kept.value_s)} of {seconds(kept.limit_s)}"))
    if plan.attainment is not None:
        rows.append(("in time", f"{plan.attainment:.2%} of requests"))
    for metric, values in plan.latency_s.items():
        rows.append((metric.upper(), ", ".join(f"{label} {seconds(value)}" for label, value in values.items())))
    if plan.single_device and fleet_name(plan.single_device.pools) != fleet_name(plan.pools):
        rows.append(
            ("best of one device", f"{plan.single_device.describe()}: {plan.single_device.usd_per_hour:,.2f} USD/h")
        )
    if plan.cheaper:
        rows.append(("cheaper, but fails", f"{plan.cheaper.describe()}: {plan.cheaper.fails}"))
    rows.append(("bottleneck", plan.bottleneck or "none: the smallest fleet there is has room to spare"))
    rows += [("beware", note) for note in plan.notes]
    proof = "" if plan.is_rehearsed else ", estimated and not rehearsed"
    return html_rows(f"Plan: {fleet_name(plan.pools)}{proof}", rows)
