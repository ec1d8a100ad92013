"""Interactive charts for the page: the same figures as the plots, for looking closer."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from planners.report import colours
from planners.report.plots.timeline import counted, in_system
from planners.slo import Slo
from simulator.run import Run
from traces.trace import NS_PER_S

HEIGHT = 300
POINTS = 500
GREY = "#808080"


def charts_of(run: Run, slos: Sequence[Slo]) -> dict[str, Any]:
    """Return the charts by title; none where no request was served."""
    if not run.is_finished.any():
        return {}
    found = {f"{metric.upper()}, all requests": cdf(run, metric, slos) for metric in ("ttft", "tpot", "e2e")}
    found["Requests waiting and running"] = queues(run)
    found["Arrivals"] = arrivals(run)
    found["Cost by pool"] = costs(run)
    return found


def cdf(run: Run, metric: str, slos: Sequence[Slo]) -> Any:
    """Return the distribution of a metric with its promised limits."""
    values = run.metric_s(metric)
    finite = np.sort(values[np.isfinite(values)])
    figure = _figure(f"{metric.upper()} [s]", "fraction of requests", x_axis_type="log", tooltip="@y{0.0%} within @x s")
    if finite.size:
        places = np.unique(np.linspace(0, finite.size - 1, min(POINTS, finite.size)).astype(int))
        answered = int((~np.isnan(values)).sum())
        figure.line(np.maximum(finite[places], 1e-6), (places + 1) / answered, line_width=2, color=_colour(run))
    for slo in slos:
        if slo.metric == metric:
            _mark(figure, slo.limit_s, slo.percent / 100)
    return figure


def queues(run: Run) -> Any:
    """Return the requests that wait and that run, over time."""
    times_s, waiting, running = in_system(run)
    figure = _figure("time [s]", "requests", tooltip="@x{0} s: @y{0}")
    figure.line(times_s, running, color=colours.GOOD, line_width=1.5, legend_label="running")
    figure.line(times_s, waiting, color=colours.BAD, line_width=1.5, legend_label="waiting")
    figure.legend.click_policy = "hide"
    figure.legend.orientation = "horizontal"
    figure.add_layout(figure.legend[0], "above")
    return figure


def arrivals(run: Run) -> Any:
    """Return arrivals per second over time."""
    edges_s = np.linspace(0.0, max(run.trace.span_s, 1.0), 121)
    counts = np.diff(counted(run.trace.arrival_ns / NS_PER_S, edges_s))
    figure = _figure("time [s]", "arrivals per second", tooltip="@x{0} s: @y{0.00}/s")
    figure.step(edges_s[:-1], counts / np.diff(edges_s), color=GREY, mode="after", line_width=1.5)
    return figure


def costs(run: Run) -> Any:
    """Return what each pool costs an hour."""
    pools = run.fleet.pools
    names = [f"{index + 1}. {_device(pool)}" for index, pool in enumerate(pools)]
    usd = [pool.usd_per_hour * pool.replicas for pool in pools]
    figure = _figure("", "USD per hour", x_range=names, tooltip="@x: @top{0.00} USD/h")
    figure.vbar(x=names, top=usd, width=0.8, color=[colours.of_device(_device(pool)) for pool in pools])
    figure.xaxis.major_label_orientation = 0.9 if len(names) > 4 else 0.0
    figure.xaxis.visible = len(names) <= 40
    return figure


def _figure(x: str, y: str, tooltip: str, **options: Any) -> Any:
    from bokeh.plotting import figure

    chart = figure(
        height=HEIGHT,
        sizing_mode="stretch_width",
        x_axis_label=x,
        y_axis_label=y,
        tools="pan,box_zoom,wheel_zoom,reset,hover",
        tooltips=tooltip,
        background_fill_alpha=0,
        border_fill_alpha=0,
        outline_line_color=None,
        **options,
    )
    chart.toolbar.logo = None
    for axis in (*chart.xaxis, *chart.yaxis):
        axis.axis_label_text_color = axis.major_label_text_color = axis.axis_line_color = GREY
    chart.grid.grid_line_color = GREY
    chart.grid.grid_line_alpha = 0.25
    return chart


def _mark(figure: Any, limit_s: float, fraction: float) -> None:
    from bokeh.models.annotations import Span

    figure.add_layout(Span(location=limit_s, dimension="height", line_color=colours.BAD))
    figure.add_layout(Span(location=fraction, dimension="width", line_color=colours.BAD, line_dash="dotted"))


def _device(pool: Any) -> str:
    return str(pool.engine.engine.device.name if pool.engine.engine else pool.engine.name)


def _colour(run: Run) -> str:
    largest = max(run.fleet.pools, key=lambda pool: pool.replicas * pool.usd_per_hour)
    return colours.of_device(_device(largest))
