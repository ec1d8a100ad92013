"""`plan fleet`: the cheapest fleet that keeps its promises on a trace."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.cli import FAILED, Failure
from planners.commands.envelope import give, note
from planners.commands.options import folder_option, json_flag, study_options

if TYPE_CHECKING:
    from models.llm import Llm
    from planners.search.search import Progress
    from planners.study import Study
    from traces import Trace

PLAN_FILE = "plan.json"


@click.command()
@study_options
@click.option("--analytic", is_flag=True, help="Answer at once from the mean load, without a rehearsal.")
@click.option("--split", is_flag=True, help="Also try pools that only prefill beside pools that only decode.")
@click.option("--scale", metavar="X", help="Scale the rate, as 5x; the structure of its bursts stays.")
@click.option("--explain", "is_explained", is_flag=True, help="Also print the reasons for the plan.")
@click.option("--siblings", default=0, metavar="N", help="Also try the plan on N resampled traces it never saw.")
@folder_option
@json_flag
def fleet(
    study: "Study",
    analytic: bool,
    split: bool,
    scale: str | None,
    is_explained: bool,
    siblings: int,
    folder: str | None,
    as_json: bool,
) -> None:
    """Find the cheapest fleet that keeps every promise on TRACE; on the bundled sample where no TRACE is named.

    Requests can be of several classes, named by the trace's column slo_class or by --class, and promised to by
    --slo "NAME/ttft:p99<=1s". In what engines may vary beside their cut is said by --variants: dtypes and
    kv_dtypes, dp as 1,8 ranks that share experts, speculative as 3 tokens drafted and taken with a chance of 0.7.

    plan.json is written to the working folder, or to DIR with requests.parquet beside it.
    """
    from time import process_time

    from planners import plan_file
    from planners.search.infeasible import Infeasible
    from planners.whatif import question_of

    started_s = process_time()
    question = question_of(study)
    requests, chosen, slos = plan_file.scaled(question.trace, scale, study.seed), question.llm, question.slos
    _guess(requests, chosen, study.devices)
    inputs = plan_file.inputs_of(study, requests, analytic, siblings)
    inputs |= {"split": True} if split else {}
    inputs |= {"scale": scale} if scale else {}
    try:
        plan = replace(question, trace=requests).plan(analytic=analytic, split=split, siblings=siblings, progress=_tell)
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
    words = verdict(plan, requests, chosen, slos, written)
    if is_explained:
        from planners.commands.explain import reasons

        words += "\n\n" + reasons(plan)
    give(answer, as_json, words)


def _write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN_FILE
    path.write_text(text, encoding="utf-8")
    return path


def _guess(requests: "Trace", llm: "Llm", names: tuple[str, ...] | None) -> None:
    """Say at once what the data sheets alone let one expect: the plan takes longer."""
    from planners.offers.engines import devices_named
    from planners.search.first_guess import first_guess

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
