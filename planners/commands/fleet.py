"""`plan fleet`: the cheapest fleet that keeps its promises on a trace."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.cli import FAILED, Failure
from planners.commands.envelope import give, note
from planners.commands.options import Name, folder_option, json_flag, model_option, slo_option

if TYPE_CHECKING:
    from models.llm import Llm
    from planners.search import Progress
    from traces import Trace

PLAN_FILE = "plan.json"


@click.command()
@click.argument("trace", required=False)
@model_option()
@slo_option
@click.option(
    "--devices", type=Name("device", several=True), metavar="A,B,...", help="Devices to choose from; ten by default."
)
@click.option("--seed", default=0, show_default=True, help="Seed of whatever is drawn.")
@click.option("--analytic", is_flag=True, help="Stop at the first estimate, before the rehearsal.")
@folder_option
@json_flag
def fleet(
    trace: str | None,
    model: str,
    slo: tuple[str, ...],
    devices: str | None,
    seed: int,
    analytic: bool,
    folder: str | None,
    as_json: bool,
) -> None:
    """Find the cheapest fleet that keeps every promise on TRACE; on the bundled sample where no TRACE is named.

    plan.json is written to the working folder, or to DIR with requests.parquet beside it.
    """
    from time import process_time

    from models import llm
    from planners import plan_file
    from planners import slo as promises
    from planners.commands.simulate import read_trace
    from planners.search import Infeasible, find_plan

    started_s = process_time()
    slos = promises.parse_all(slo)
    chosen = llm.load(model)
    names = None if devices is None else split_names(devices)
    requests = read_trace(trace)
    _guess(requests, chosen, names)
    inputs = plan_file.inputs_of(requests, trace, model, slos, names, seed, analytic)
    try:
        plan = find_plan(requests, chosen, slos, names, seed=seed, analytic=analytic, progress=_tell)
    except Infeasible as error:
        if as_json:
            timings = {"total_cpu_s": process_time() - started_s}
            give(Answer("fleet", inputs, {"infeasible": error.result()}, (), timings), as_json)
        raise Failure("no fleet keeps these promises\n" + _bullets(error.reasons), FAILED) from error
    written = _write(Path(folder or "."), plan_file.text_of(plan, inputs))
    if folder:
        from planners.commands.simulate import write_requests
        from simulator.replay import replay

        write_requests(replay(requests, plan.fleet()), Path(folder))
    from planners.report.verdict import verdict

    timings = {"total_cpu_s": process_time() - started_s}
    answer = Answer("fleet", inputs, plan.result(), plan.notes, timings)
    give(answer, as_json, verdict(plan, requests, chosen, slos, written))


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a list joined by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN_FILE
    path.write_text(text, encoding="utf-8")
    return path


def _guess(requests: "Trace", llm: "Llm", names: tuple[str, ...] | None) -> None:
    """Say at once what the data sheets alone let one expect: the plan takes longer."""
    from planners.engines import devices_named
    from planners.first_guess import first_guess

    devices, _ = devices_named(names)
    note(f"{requests.name}: {len(requests):,} requests in {requests.span_s:,.0f} s")
    guess = first_guess(requests, llm, devices)
    if guess is not None:
        note(f"first guess: {guess.describe()}")


def _tell(progress: "Progress") -> None:
    note(f"{progress.stage}: {progress.message}")
    if progress.plan is not None:
        found: Any = progress.plan
        from planners.report.verdict import fleet_name

        note(f"first estimate (analytic): {fleet_name(found.pools)} at {found.usd_per_hour:.2f} USD/h")


def _bullets(lines: tuple[str, ...]) -> str:
    return "\n".join(f"  - {line}" for line in lines)
