"""`plan simulate`: replay a trace on a fleet that a plan.json or fleet.yaml describes."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.cli import FAILED
from planners.commands.envelope import give
from planners.commands.options import folder_option, json_flag, slo_option
from planners.commands.tables import seconds, table

if TYPE_CHECKING:
    from planners.slo import Slo
    from simulator.fleet import Fleet
    from simulator.run import Run
    from traces import Trace


@click.command()
@click.argument("trace", required=False)
@click.option("--fleet", "fleet", required=True, metavar="FILE", help="plan.json or fleet.yaml.")
@slo_option
@click.option("--enforce", is_flag=True, help="End with 1 where a promise is broken.")
@click.option(
    "--speculative", metavar="D:A", help="Let all engines draft D tokens a step, accepted with chance A: 3:0.7."
)
@click.option(
    "--siblings", type=click.IntRange(2), metavar="N", help="Also replay N resampled traces: intervals for all figures."
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of the resampling.")
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Processes for them."
)
@folder_option
@json_flag
def simulate(
    trace: str | None,
    fleet: str,
    slo: tuple[str, ...],
    enforce: bool,
    speculative: str | None,
    siblings: int | None,
    seed: int,
    workers: int,
    folder: str | None,
    as_json: bool,
) -> None:
    """Replay TRACE on the fleet of a plan.json or fleet.yaml; the bundled sample where no TRACE is named.

    Promises are those of --slo, else those of the file. With -o, requests.parquet is written. With --siblings, blocks
    of the trace are drawn in random order again and again, and every figure gets an interval of 95 % over them.
    """
    from time import process_time

    from models.speculation import parse
    from planners.classes import classified
    from planners.fleet_yaml import fleet_file
    from planners.plan_file import trace_facts
    from planners.slo import broken, parse_all
    from simulator.fleet import drafting

    read = fleet_file.read(fleet)
    slos = parse_all(slo) if slo else read.slos
    requests = classified(read_trace(trace), read.classes)
    chosen = drafting(read.fleet, parse(speculative)) if speculative else read.fleet
    started_s = process_time()
    run = read.play(requests, chosen)
    timings = {"simulate_cpu_s": process_time() - started_s}
    if folder:
        write_requests(run, Path(folder))
    inputs: dict[str, Any] = {"trace": trace_facts(requests), "fleet": str(fleet), "slo": [str(each) for each in slos]}
    if speculative:
        inputs["speculative"] = speculative
    missed = broken(run, slos)
    warnings = (*read.warnings, *(f"{each} is broken" for each in missed))
    result = result_of(run, slos)
    if siblings and read.control is not None:
        raise ValueError(f"{fleet}: --siblings does not go with a fleet under control; leave out one of them")
    if siblings:
        inputs = {**inputs, "siblings": siblings, "seed": seed}
        result["intervals"] = intervals(requests, chosen, slos, siblings, seed, workers)
    answer = Answer("simulate", inputs, result, warnings, timings)
    give(answer, as_json, words(run, slos))
    if missed and enforce:
        raise click.exceptions.Exit(FAILED)


def read_trace(path: str | None) -> "Trace":
    """Return the trace in a file, or the bundled sample for None."""
    import traces

    return traces.sample() if path is None else traces.read(path)


def write_requests(run: "Run", folder: Path) -> Path:
    """Write requests.parquet into a folder, made if need be."""
    from planners.report import requests_table

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "requests.parquet"
    requests_table.write(run, path)
    return path


def result_of(run: "Run", slos: "tuple[Slo, ...]") -> dict[str, Any]:
    """Return the figures of a run under the keys of schema plan/1."""
    from planners.classes import by_class
    from planners.slo import kept
    from simulator.saturation import verdict
    from simulator.usage import energy_j

    in_time = kept(run, slos)
    return {
        "usd": run.usd,
        "usd_per_hour": run.fleet.usd_per_hour,
        "pools": pools_of(run),
        "slo": run.latency_s(),
        "attainment": float(in_time.mean()) if in_time.size else None,
        "attainment_by_class": by_class(run.trace, in_time),
        "goodput_per_s": float(in_time.sum()) / run.span_s if run.span_s else 0.0,
        "saturation": verdict(run),
        "energy": {"joules": energy_j(run), "provenance": "modelled"},
        "requests": run.counts(),
        "span_s": run.span_s,
        **({"tiers": [asdict(each) for each in run.traffic]} if run.traffic else {}),
    }


def pools_of(run: "Run") -> list[dict[str, Any]]:
    """Return what each pool is, and what it was used for."""
    from simulator.usage import usage

    return [
        {"engine": pool.engine.name, "replicas": pool.replicas, "usd_per_hour": pool.usd_per_hour, **asdict(used)}
        for pool, used in zip(run.fleet.pools, usage(run), strict=True)
    ]


def intervals(
    trace: "Trace", fleet: "Fleet", slos: "tuple[Slo, ...]", siblings: int, seed: int, workers: int
) -> dict[str, dict[str, Any]]:
    """Return the interval of every figure over replays of resampled siblings of a trace."""
    from simulator.replication import figures_of, replicate

    found = replicate(
        partial(_sibling_run, trace, fleet, seed),
        range(1, siblings + 1),
        partial(figures_of, limits_s=limits_of(slos)),
        workers=workers,
    )
    return {name: asdict(each) for name, each in found.items()}


def _sibling_run(trace: "Trace", fleet: "Fleet", seed: int, number: int) -> "Run":
    from planners.siblings import siblings_of
    from simulator.replay import replay

    return replay(siblings_of(trace, [number], seed)[0], fleet)


def limits_of(slos: "tuple[Slo, ...]") -> dict[str, float]:
    """Return the longest time that any promise to all requests allows, by metric."""
    from planners.slo import limit_s

    return {slo.metric: limit_s(slos, slo.metric) for slo in slos if not slo.slo_class}


def words(run: "Run", slos: "tuple[Slo, ...]") -> str:
    """Return a run as a short table for people."""
    from simulator import saturation

    latency = run.latency_s()
    rows = [["", *("p50", "p90", "p99")]]
    rows += [[name.upper(), *(seconds(value) for value in latency[name].values())] for name in latency]
    counts = run.counts()
    lines = [
        f"Trace     {run.trace.name}: {counts['arrived']} requests in {run.trace.span_s:.0f} s",
        *(
            f"Pool      {pool.replicas} x {pool.engine.name}, busy {busy:.0%}"
            for pool, busy in zip(run.fleet.pools, run.busy_fraction(), strict=True)
        ),
        f"Requests  {counts['finished']} finished, {counts['rejected']} rejected; fleet {saturation.verdict(run)}",
        f"Cost      {run.usd:.2f} USD for {run.span_s:.0f} s at {run.fleet.usd_per_hour:.2f} USD/h",
        "",
        table(rows, right=[1, 2, 3]),
    ]
    if slos:
        from planners.slo import broken, kept

        in_time = kept(run, slos)
        missed = broken(run, slos)
        verdict = f"breaks {', '.join(map(str, missed))}" if missed else "every promise holds"
        lines += ["", f"Promises  {verdict}; {in_time.mean() if in_time.size else 1.0:.2%} of requests keep all limits"]
    return "\n".join(lines)
