"""`plan trace`: what happened to each request, as a timeline for Perfetto."""

from pathlib import Path

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import json_flag


@click.command()
@click.argument("fleet", metavar="[PLAN]", default="plan.json")
@click.option("--trace", metavar="FILE", help="Replay this trace; the plan's own, or the sample, by default.")
@click.option("--window", default="0,60", show_default=True, metavar="FROM,TO", help="Seconds of the trace to show.")
@click.option(
    "-o", "--out", "path", default="timeline.json.gz", show_default=True, metavar="FILE", help="File to write."
)
@json_flag
def trace(fleet: str, trace: str | None, window: str, path: str, as_json: bool) -> None:
    """Write the timeline of a replay of PLAN (a plan.json or fleet.yaml); open it at ui.perfetto.dev.

    It shows each request's wait, prefill, hand-over and decode, each lane's steps, and each pool's queue.
    """
    from planners import plan_file
    from planners.commands.simulate import read_trace
    from planners.fleet_yaml import fleet_file
    from planners.report import perfetto
    from simulator.replay import replay

    start_s, end_s = _window(window)
    is_plan = plan_file.is_plan(Path(fleet).read_text(encoding="utf-8"))
    if trace is None and is_plan:
        requests = plan_file.read_trace(plan_file.read(fleet).inputs, fleet)
    else:
        requests = read_trace(trace)
    run = replay(requests, fleet_file.read(fleet).fleet, log_s=(start_s, end_s))
    assert run.steps is not None
    events = perfetto.write(run, Path(path), window_s=(start_s, end_s))
    result = {"file": path, "events": events, "steps": run.steps.rows.size, "steps_left_out": run.steps.not_logged}
    words = f"{events:,} events written to {path}\nNext    drag it into https://ui.perfetto.dev"
    left_out = f"{run.steps.not_logged:,} runs of steps found no room: choose a shorter --window"
    warnings = (left_out,) if run.steps.not_logged else ()
    give(Answer("trace", {"fleet": fleet, "trace": trace, "window": window}, result, warnings), as_json, words)


def _window(text: str) -> tuple[float, float]:
    try:
        start_s, end_s = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"cannot read the window {text!r}; expected FROM,TO in seconds, as 0,60") from None
    if not 0 <= start_s < end_s:
        raise ValueError(f"window {text!r} does not run forward from 0 or later")
    return start_s, end_s
