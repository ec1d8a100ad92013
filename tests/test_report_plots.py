"""Plots: each draws on the ax it is given, titles it with the finding, and says so where there is nothing to show."""

from collections.abc import Iterator

import numpy as np
import pytest
import toys

from models import device, llm
from models.engine import Engine
from planners.plan import Plan, PlannedPool
from planners.report import colours, plots
from planners.slo import parse_all
from simulator.fleet import priced
from simulator.replay import replay

SLOS = parse_all(["ttft:p99<=5ms", "tpot:p99<=10ms"])


@pytest.fixture
def ax() -> Iterator:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


@pytest.fixture(scope="module")
def run():
    """Twenty requests, ten milliseconds apart, on one toy replica of a millisecond a step."""
    return replay(toys.trace(np.arange(20) / 100, 4, 8), toys.fleet())


@pytest.fixture(scope="module")
def refused():
    """Two requests whose prompts no lane can hold."""
    return replay(toys.trace([0, 1], 10_000, 8), toys.fleet())


def plan_of(*devices: str, usd: float = 2.0) -> Plan:
    pools = tuple(PlannedPool(name, name, 1, usd) for name in devices)
    return Plan(pools, usd * len(pools), usd, "planned", (0,), ((1.0,) * len(pools),))


def title(ax) -> str:
    return ax.get_title(loc="left").replace("\n", " ")


def test_attainment_says_up_to_which_rate_all_limits_hold(ax, run):
    assert plots.attainment_by_rate(ax, {100.0: run, 50.0: run}, SLOS) is ax
    assert title(ax) == "99% of requests keep all limits up to 100/s"
    assert list(ax.lines[0].get_xdata()) == [50.0, 100.0]


def test_latency_by_rate_has_three_percentiles_and_no_mean(ax, run):
    plots.latency_by_rate(ax, {50.0: run, 100.0: run}, "ttft", limit_s=1.0)
    assert [text.get_text() for text in ax.texts] == ["p50", "p90", "p99"]
    assert title(ax) == "TTFT p99 is within 1 s up to 100/s"


def test_the_distribution_ends_at_the_fraction_that_was_served(ax, run):
    plots.latency_cdf(ax, {"toy": run}, "ttft", SLOS)
    assert ax.lines[0].get_ydata()[-1] == 1.0
    assert title(ax) == "TTFT: every promise holds"


def test_what_was_measured_is_drawn_beside_what_is_predicted(ax, run):
    plots.latency_cdf(ax, {"toy": run}, "ttft", SLOS, measured_s=[0.004, 0.002, 0.003])
    assert list(ax.lines[0].get_xdata()) == [0.002, 0.003, 0.004]
    ax.clear()
    plots.attainment_by_rate(ax, {100.0: run}, SLOS, measured={90.0: 0.97})
    assert [tuple(line.get_data()[1]) for line in ax.lines if line.get_marker() == "x"] == [(0.97,)]


def test_speed_per_user_falls_as_throughput_rises(ax):
    engine = toys.engine(sequence_ps=10**8)
    plots.throughput_and_speed(ax, {"toy": engine}, context_tokens=16)
    per_user, per_device = ax.lines[0].get_data()
    assert (np.diff(per_user) < 0).all()
    assert (np.diff(per_device) > 0).all()


def test_bars_add_up_to_the_cost_of_the_plan(ax):
    plots.cost_bars(ax, {"mixed": plan_of("h100-sxm", "l4"), "plain": plan_of("l4", usd=5.0)})
    assert sum(bar.get_width() for bar in ax.patches if bar.get_y() < 0.5) == 4.0
    assert title(ax) == "mixed costs least: 4.00 USD/h"


def test_cost_against_a_promise_marks_where_it_cannot_be_kept(ax):
    plots.cost_and_promise(ax, [(1.0, plan_of("l4", usd=4.0)), (2.0, plan_of("l4", usd=2.0)), (0.5, None)], "ttft:p99")
    assert title(ax) == "ttft:p99 at 1 s costs 2.00 times what 2 s costs"


def test_the_tornado_starts_with_what_moves_the_cost_most(ax):
    plots.cost_tornado(ax, 4.0, {"rate 2x": 8.0, "price 0.5x": 2.0, "no fleet": float("inf")}, flips=["rate 2x"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["rate 2x", "price 0.5x"]
    assert title(ax) == "rate 2x moves the cost most: 4.00 to 8.00 USD/h"


def test_the_timeline_counts_everyone_who_came(ax, run):
    from planners.report.plots.timeline import in_system

    _, waiting, running = in_system(run)
    assert waiting.min() >= 0
    assert running.max() >= 1
    assert waiting[-1] == running[-1] == 0
    plots.fleet_timeline(ax, run, ttft_limit_s=5e-3)
    assert title(ax).endswith("0 first tokens late")


def test_the_heatmap_has_a_row_per_lane(ax, run):
    plots.replica_heatmap(ax, run)
    assert ax.images[0].get_array().shape[0] == run.lanes.size


def test_the_gantt_shows_requests_from_arrival_to_end(ax, run):
    plots.request_gantt(ax, run, most=5)
    left = min(bar.get_x() for bar in ax.patches)
    right = max(bar.get_x() + bar.get_width() for bar in ax.patches)
    assert left == 0.0
    assert right == pytest.approx(0.04 + run.e2e_s[4])
    assert title(ax).startswith("5 requests")


def test_the_overview_holds_the_rate_against_poisson(ax):
    trace = toys.trace(np.arange(1200) / 2, 4, 4)  # two a second, evenly: no variance at all
    plots.trace_overview(ax, trace, window_s=10.0)
    assert "2/s, per 10 s 0.0 times the variance of Poisson" in title(ax)


def test_the_roofline_has_every_step_under_it(ax):
    engine = priced(Engine(llm.load("llama-3.1-8b"), device.load("h100-sxm")))
    plots.roofline(ax, engine)
    bandwidth, peak = engine.engine.device.bandwidth_bytes_per_s, engine.engine.device.flops_per_s["bf16"]
    for line in ax.lines[1:]:
        (intensity,), (flops_per_s,) = line.get_data()
        assert flops_per_s <= 1.05 * min(peak, intensity * bandwidth)


def test_nothing_to_show_is_said(ax, refused):
    for draw in (
        lambda: plots.attainment_by_rate(ax, {}, SLOS),
        lambda: plots.latency_by_rate(ax, {}),
        lambda: plots.latency_cdf(ax, {"toy": refused}),
        lambda: plots.cost_bars(ax, {}),
        lambda: plots.cost_and_promise(ax, [(1.0, None)]),
        lambda: plots.cost_tornado(ax, 1.0, {}),
        lambda: plots.fleet_timeline(ax, refused),
        lambda: plots.replica_heatmap(ax, refused),
        lambda: plots.request_gantt(ax, refused),
        lambda: plots.trace_overview(ax, refused.trace),
    ):
        ax.clear()
        draw()
        assert ax.texts
        assert title(ax)


def test_a_device_has_one_colour_and_the_common_ones_differ():
    assert len(set(colours.COMMON.values())) == len(colours.COMMON)
    names = device.names()
    assert [colours.of_device(name) for name in names] == [colours.of_device(name) for name in names]
    assert all(len(colours.of_device(name)) == 7 for name in names)
