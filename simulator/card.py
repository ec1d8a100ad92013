"""A run as a notebook shows it: what it cost, what requests saw, and how many were there over time."""

import math

import numpy as np

from simulator.run import Run
from traces.card import BARS, html_bars, html_rows
from traces.trace import NS_PER_S

LATE = "indianred"


def html_card(run: Run) -> str:
    """Return HTML with the fleet, its cost, the fate of requests, their latencies, and the requests in the fleet."""
    counts = run.counts()
    fleet = " + ".join(f"{pool.replicas} x {pool.engine.name}" for pool in run.fleet.pools[:4])
    fleet += f" + {len(run.fleet.pools) - 4} pools more" if len(run.fleet.pools) > 4 else ""
    busy = ", ".join(f"{share:.0%}" for share in run.busy_fraction()[:4])
    rows = [
        ("fleet", f"{fleet}, {run.fleet.usd_per_hour:,.2f} USD/h"),
        ("requests", ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items() if count)),
        ("busy", busy or "-"),
    ]
    for metric, values in run.latency_s().items():
        rows.append((metric.upper(), ", ".join(f"{label} {_seconds(value)}" for label, value in values.items())))
    title = f"Run of {run.trace.name}"
    return html_rows(title, rows) + html_bars(_in_fleet(run), "requests in the fleet over time", LATE)


def _in_fleet(run: Run) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return how many requests have come and not gone, at even times; those never served are left out."""
    times_s = np.linspace(0.0, run.span_s, BARS)
    served = run.is_finished
    came = np.sort(run.trace.arrival_ns[served] / NS_PER_S)
    left = np.sort((run.trace.arrival_ns / NS_PER_S + run.e2e_s)[served])
    inside: np.ndarray[tuple[int], np.dtype[np.int64]] = np.searchsorted(came, times_s, "right") - np.searchsorted(
        left, times_s, "right"
    )
    return inside


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return "never" if value > 0 else "-"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
