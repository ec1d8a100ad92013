"""Latency against load: attainment, percentiles, distributions, and speed against throughput."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from planners.report.colours import BAD, NEUTRAL, of_device
from planners.report.plots.axes import dress, label_line, say_nothing_to_show
from planners.slo import Slo, broken
from simulator.run import PERCENTILES, Run

SHADES = {"p50": 0.45, "p90": 0.7, "p99": 1.0}
TARGETS = (0.9, 0.99)


def attainment_by_rate(
    ax: Any,
    runs: Mapping[float, Run],
    slos: Sequence[Slo],
    name: str = "fleet",
    measured: Mapping[float, float] | None = None,
) -> Any:
    """Draw the fraction of requests within every limit against the rate [1/s]; runs are keyed by rate, and so are the
    fractions that were measured, drawn as crosses."""
    if not runs:
        return say_nothing_to_show(ax, "Attainment by rate", "no runs")
    rates = sorted(runs)
    limits_s = {slo.metric: slo.limit_s for slo in slos}
    kept = [float(runs[rate].keeps(limits_s).mean()) for rate in rates]
    colour = _colour(runs[rates[0]])
    ax.plot(rates, kept, "o-", color=colour)
    label_line(ax, rates[-1], kept[-1], name, colour)
    _crosses(ax, measured or {})
    for target in TARGETS:
        ax.axhline(target, color=NEUTRAL, linewidth=0.7, linestyle=":")
    good = [rate for rate, share in zip(rates, kept, strict=True) if share >= TARGETS[-1]]
    finding = f"{TARGETS[-1]:.0%} of requests keep all limits up to {max(good):.3g}/s" if good else "Never 99% in time"
    ax.set_ylim(-0.02, 1.04)
    return dress(ax, finding, "requests per second", "fraction within all limits")


def latency_by_rate(ax: Any, runs: Mapping[float, Run], metric: str = "ttft", limit_s: float | None = None) -> Any:
    """Draw p50, p90 and p99 of a metric against the rate [1/s], and where p99 leaves its limit."""
    if not runs:
        return say_nothing_to_show(ax, f"{metric.upper()} by rate", "no runs")
    rates = sorted(runs)
    colour = _colour(runs[rates[0]])
    curves = {
        label: np.array([runs[rate].percentile_s(metric, percent) for rate in rates])
        for label, percent in PERCENTILES.items()
    }
    clearest = _furthest_apart(np.array(list(curves.values())))
    for label, values in curves.items():
        shown = np.where(np.isfinite(values), values, np.nan)
        ax.plot(rates, shown, "o-", color=colour, alpha=SHADES[label])
        label_line(ax, rates[clearest], shown[clearest], label, colour)
    tails = curves["p99"].tolist()
    ax.set_yscale("log")
    if limit_s is not None:
        ax.axhline(limit_s, color=BAD, linewidth=1)
    within = [rate for rate, value in zip(rates, tails, strict=True) if limit_s is None or value <= limit_s]
    finding = f"{metric.upper()} p99 is within {limit_s:g} s up to {max(within):.3g}/s" if limit_s and within else ""
    finding = finding or f"{metric.upper()} p99 reaches {tails[-1]:.3g} s at {rates[-1]:.3g}/s"
    return dress(ax, finding, "requests per second", f"{metric.upper()} [s]")


def latency_cdf(
    ax: Any,
    runs: Mapping[str, Run],
    metric: str = "ttft",
    slos: Sequence[Slo] = (),
    measured_s: Sequence[float] = (),
) -> Any:
    """Draw the distribution of a metric for each run, its promised limits beside it, and what was measured in black."""
    drawn = 0
    if len(measured_s):
        values = np.sort(np.asarray(measured_s, np.float64))
        ax.plot(*_thinned(values, np.arange(1, values.size + 1) / values.size), color="black", linewidth=1)
        _name_beside(ax, len(runs), "measured", "black")
    for name, run in runs.items():
        values = run.metric_s(metric)
        values = np.sort(values[np.isfinite(values)])
        if not values.size:
            continue
        colour = _colour(run) if len(runs) == 1 else f"C{drawn}"
        ax.plot(*_thinned(values, np.arange(1, values.size + 1) / run.metric_s(metric).size), color=colour)
        _name_beside(ax, drawn, name, colour)
        drawn += 1
    if not drawn:
        return say_nothing_to_show(ax, f"{metric.upper()}: no request was served", "no finished requests")
    promised = [slo for slo in slos if slo.metric == metric]
    for slo in promised:
        ax.axvline(slo.limit_s, color=BAD, linewidth=1)
        ax.axhline(slo.percent / 100, color=BAD, linewidth=0.6, linestyle=":")
    ax.set_xscale("log")
    late = [name for name, run in runs.items() if broken(run, promised)]
    kept = "every promise holds" if promised else "as simulated"
    finding = f"{metric.upper()}: {', '.join(late) + ' is late' if late else kept}"
    return dress(ax, finding, f"{metric.upper()} [s]", "fraction of requests")


def throughput_and_speed(ax: Any, engines: Mapping[str, Any], context_tokens: int = 1024) -> Any:
    """Draw output tokens per second and device against those per user, as the batch grows; engines are priced."""
    best = ("", 0.0)
    for name, priced in engines.items():
        batches, per_user, per_device = _decode_speeds(priced, context_tokens)
        colour = of_device(priced.engine.device.name) if priced.engine else NEUTRAL
        ax.plot(per_user, per_device, "-", color=colour)
        label_line(ax, per_user[-1], per_device[-1], f"{name}, batch {batches[-1]}", colour)
        best = max(best, (name, float(per_device.max())), key=lambda each: each[1])
    finding = f"{best[0]} decodes most: {best[1]:,.0f} tokens/s a device" if engines else "No engines"
    return dress(ax, finding, "tokens per second and user", "tokens per second and device")


def _name_beside(ax: Any, place: int, words: str, colour: str) -> None:
    """Write a curve's name to the right of the ax, one below the other."""
    ax.annotate(words, (1.01, 0.97 - 0.07 * place), xycoords="axes fraction", color=colour, fontsize=8, va="center")


def _crosses(ax: Any, measured: Mapping[float, float]) -> None:
    """Draw what was measured where it was measured."""
    if measured:
        ax.plot(list(measured), list(measured.values()), "x", color="black")
        rate = max(measured)
        label_line(ax, rate, measured[rate], "measured", "black")


def _furthest_apart(curves: Any) -> int:
    """Return the column in which the curves [curve, column], in ascending order, are furthest apart in proportion."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.min(curves[1:] / curves[:-1], axis=0)
    return int(np.argmax(np.where(np.isfinite(ratios), ratios, 0.0)))


def _decode_speeds(priced: Any, context_tokens: int) -> tuple[Any, Any, Any]:
    from models.step import PICOSECONDS_PER_SECOND

    limits, table = priced.limits, priced.table
    room = limits.total_blocks * limits.block_tokens // context_tokens
    most = max(1, min(limits.max_sequences, room))
    batches = np.unique(np.geomspace(1, most, 24).astype(int))
    devices = priced.engine.devices if priced.engine else 1
    step_s = np.array([_decode_step_ps(table, batch, batch * context_tokens) for batch in batches])
    step_s = step_s / PICOSECONDS_PER_SECOND
    return batches, 1 / step_s, batches * priced.lanes / step_s / devices


def _decode_step_ps(table: Any, sequences: int, context_tokens: int) -> float:
    """Return the time of one decode step, read from the table."""
    cell, rest = divmod(context_tokens, 1 << int(table.cell_shift[0]))
    attention = table.decode_ps[0, 0, sequences, cell] + rest * table.decode_slope_ps[0, 0, sequences, cell]
    return float(table.token_ps[0, sequences] + table.sequence_ps[0, sequences] + attention)


def _thinned(x: Any, y: Any, most: int = 800) -> tuple[Any, Any]:
    """Return at most so many points of a curve, its ends among them."""
    places = np.unique(np.linspace(0, x.size - 1, min(most, x.size)).astype(int))
    return x[places], y[places]


def _colour(run: Run) -> str:
    """Return the colour of the fleet's largest device."""
    pool = max(run.fleet.pools, key=lambda each: each.replicas * each.usd_per_hour)
    return of_device(pool.engine.engine.device.name) if pool.engine.engine else NEUTRAL
