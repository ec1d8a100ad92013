"""Plots, each a function that draws on an `ax` and returns it; the title says what is to be seen."""

from planners.report.plots.latency import (
    attainment_by_rate,
    latency_by_rate,
    latency_cdf,
    throughput_and_speed,
)
from planners.report.plots.money import cost_and_promise, cost_bars, cost_tornado
from planners.report.plots.steps import roofline
from planners.report.plots.timeline import fleet_timeline, replica_heatmap, request_gantt
from planners.report.plots.workload import trace_overview

__all__ = [
    "attainment_by_rate",
    "cost_and_promise",
    "cost_bars",
    "cost_tornado",
    "fleet_timeline",
    "latency_by_rate",
    "latency_cdf",
    "replica_heatmap",
    "request_gantt",
    "roofline",
    "throughput_and_speed",
    "trace_overview",
]
