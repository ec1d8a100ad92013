"""One page for a ticket or a manager: a single HTML file that needs no network, the verdict first."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planners.commands.tables import seconds
from planners.plan import Outcome, Plan
from planners.report.charts import charts_of
from planners.report.verdict import fleet_name, trace_words
from planners.slo import Slo, broken, kept
from planners.whatif import Loss
from simulator.run import Run

TEMPLATE = Path(__file__).parent / "page.html"


@dataclass(frozen=True, slots=True)
class Report:
    """What a page is about: a run, its promises, and the plan it comes from, where there is one."""

    run: Run
    slos: tuple[Slo, ...]
    plan: Plan | None = None
    losses: tuple[Loss, ...] = ()
    commands: str = ""
    reproduce: str = ""
    notes: tuple[str, ...] = ()


def page(report: Report) -> str:
    """Return the page as HTML; whatever a trace or model is called is escaped."""
    import jinja2

    charts = charts_of(report.run, report.slos)
    library, script, divisions = _interactive(charts)
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    missed = broken(report.run, report.slos)
    return template.render(
        title=f"fleetplan: {report.run.trace.name}",
        verdict=verdict_words(report),
        broken=bool(missed),
        subtitle=trace_words(report.run.trace),
        fleets=_fleets(report),
        latencies=_latencies(report),
        attainment=_attainment(report),
        assumptions=_assumptions(report),
        charts=[{"title": title, "div": division} for title, division in zip(charts, divisions, strict=True)],
        library=library,
        script=script,
        still=_still(report) if charts else "",
        bottleneck=report.plan.bottleneck if report.plan else "",
        pools=_pools(report.run),
        losses=[_loss(loss) for loss in report.losses],
        commands=report.commands,
        reproduce=report.reproduce,
        footer=f"fleetplan; trace {report.run.trace.identity[:16]}; times simulated, prices dated on-demand offers",
    )


def verdict_words(report: Report) -> str:
    """Return the sentence that a reader who stops here should take away."""
    fleet = fleet_name(report.plan.pools) if report.plan else _names(report.run)
    cost = f"{report.run.fleet.usd_per_hour:.2f} USD/h"
    missed = broken(report.run, report.slos)
    if not report.run.is_finished.any():
        return f"{fleet} serves no request of this trace"
    if missed:
        return f"{fleet} for {cost} breaks {', '.join(map(str, missed))}"
    kept = f"keeps {', '.join(map(str, report.slos))}" if report.slos else "serves this trace"
    return f"{fleet} {kept} for {cost}"


def _names(run: Run) -> str:
    names = [f"{pool.replicas} x {pool.engine.name}" for pool in run.fleet.pools]
    return " + ".join(names) if len(names) <= 4 else f"A fleet of {len(names)} pools"


def _fleets(report: Report) -> list[dict[str, str]]:
    plan, run = report.plan, report.run
    name = fleet_name(plan.pools) if plan else _names(run)
    missed = broken(run, report.slos)
    verdict = f"breaks {', '.join(map(str, missed))}" if missed else "keeps every promise"
    rows = [{"name": name, "usd": f"{run.fleet.usd_per_hour:.2f}", "verdict": verdict if report.slos else "as given"}]
    if plan is None:
        return rows
    for outcome, words in ((plan.single_device, "best of a single device"), (plan.cheaper, "cheaper, but fails")):
        if outcome is not None and fleet_name(outcome.pools) != name:
            rows.append(_outcome(outcome, words))
    bound = {
        "name": "lower bound, any router",
        "usd": f"{plan.usd_per_hour_bound:.2f}",
        "verdict": f"proven; gap {plan.gap:.1%}",
    }
    return [*rows, bound]


def _outcome(outcome: Outcome, words: str) -> dict[str, str]:
    said = f"{words}: {outcome.fails}" if outcome.fails else words
    return {"name": fleet_name(outcome.pools), "usd": f"{outcome.usd_per_hour:.2f}", "verdict": said}


def _latencies(report: Report) -> list[dict[str, Any]]:
    rows = []
    for metric, values in report.run.latency_s().items():
        promised = ", ".join(f"p{slo.percent:g} {seconds(slo.limit_s)}" for slo in report.slos if slo.metric == metric)
        rows.append(
            {"name": metric.upper(), "cells": [seconds(value) for value in values.values()], "promised": promised}
        )
    return rows


def _attainment(report: Report) -> str:
    counts = report.run.counts()
    words = (
        f"{counts['arrived']:,} requests arrived, {counts['finished']:,} finished, {counts['rejected']:,} were refused."
    )
    if report.slos:
        in_time = kept(report.run, report.slos).mean()
        words += f" {in_time:.2%} stayed within every limit."
    return words


def _assumptions(report: Report) -> list[str]:
    engines = [pool.engine.engine for pool in report.run.fleet.pools if pool.engine.engine]
    lines = [f"Router: {report.run.fleet.router}; the trace is replayed request by request, bursts included."]
    for device in {engine.device.name: engine.device for engine in engines}.values():
        told = (
            f"{device.title}: step times by a roofline calibrated on {device.calibration}"
            if device.calibration
            else (
                f"{device.title}: step times modelled from its data sheet"
                + (f", efficiencies of {device.kin}" if device.kin else "")
            )
        )
        lines.append(f"{told}; data sheet: {device.source}")
    if report.plan and not report.plan.is_rehearsed:
        lines.append("The plan is an estimate that was not rehearsed.")
    return [*lines, *(report.plan.notes if report.plan else ()), *report.notes]


def _pools(run: Run) -> list[list[str]]:
    pool_of = run.lanes["pool"][np.maximum(run.outcome.lane, 0)]
    sent = np.bincount(pool_of[run.outcome.lane >= 0], minlength=len(run.fleet.pools))
    rows = []
    for index, (pool, busy) in enumerate(zip(run.fleet.pools, run.busy_fraction(), strict=True)):
        device = pool.engine.engine.device.name if pool.engine.engine else "-"
        usd = f"{pool.usd_per_hour * pool.replicas:.2f}"
        rows.append([pool.engine.name, device, str(pool.replicas), usd, f"{busy:.0%}", f"{sent[index]:,}"])
    return rows


def _loss(loss: Loss) -> list[str]:
    late = [seconds(loss.latency_s[name]["p99"]) if loss.latency_s else "never" for name in ("ttft", "tpot")]
    return [f"1 x {loss.pool}", "hold" if loss.holds else "break", *late]


def _interactive(charts: dict[str, Any]) -> tuple[str, str, list[str]]:
    """Return the chart library, the script that draws, and a place for each chart."""
    if not charts:
        return "", "", []
    from bokeh.embed import components
    from bokeh.resources import Resources

    library = Resources(mode="inline", components=["bokeh"]).render_js()
    script, divisions = components(list(charts.values()))
    return library, script, list(divisions)


def _still(report: Report) -> str:
    """Return a picture for readers without scripts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from planners.report import plots

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2))
    plots.latency_cdf(left, {"": report.run}, "ttft", report.slos)
    plots.fleet_timeline(right, report.run)
    figure.tight_layout()
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    plt.close(figure)
    picture = text.getvalue()
    return picture[picture.index("<svg") :]
