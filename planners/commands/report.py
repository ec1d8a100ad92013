"""`plan report`: one offline HTML page about a plan."""

import shlex
from pathlib import Path

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import json_flag


@click.command()
@click.argument("plan_path", metavar="[PLAN]", default="plan.json")
@click.option("--trace", metavar="FILE", help="Replay this trace; the plan's own by default.")
@click.option(
    "-o", "--out", "path", default="report.html", show_default=True, metavar="FILE", help="The page to write."
)
@json_flag
def report(plan_path: str, trace: str | None, path: str, as_json: bool) -> None:
    """Write an HTML page about PLAN (a plan.json, or a fleet.yaml with --trace): one file, no network."""
    from planners import plan_file, whatif
    from planners.commands.simulate import read_trace
    from planners.exports.deployment import of_plan
    from planners.exports.shell import vllm
    from planners.fleet_yaml import fleet_file
    from planners.report.page import Report, page, verdict_words
    from simulator.replay import replay

    command = ["plan", "report", plan_path, *(["--trace", trace] if trace else []), "-o", path]
    if plan_file.is_plan(Path(plan_path).read_text(encoding="utf-8")):
        saved = plan_file.read(plan_path)
        requests = read_trace(trace) if trace else plan_file.read_trace(saved.inputs, plan_path)
        run = replay(requests, saved.plan.fleet())
        lost = tuple(whatif.losses(saved.plan, requests, saved.slos))
        scripts = vllm(of_plan(saved.plan, saved.llm.name, promises=tuple(map(str, saved.slos))))
        shown = "\n".join(line for text in scripts.values() for line in text.splitlines() if line.startswith("exec "))
        about = Report(run, saved.slos, saved.plan, lost, shown, shlex.join(command))
    else:
        read = fleet_file.read(plan_path)
        about = Report(replay(read_trace(trace), read.fleet), read.slos, reproduce=shlex.join(command))
    text = page(about)
    Path(path).write_text(text, encoding="utf-8")
    result = {"file": path, "bytes": len(text.encode()), "verdict": verdict_words(about)}
    give(Answer("report", {"plan": plan_path, "trace": trace}, result), as_json, f"{result['verdict']}\nWritten {path}")
