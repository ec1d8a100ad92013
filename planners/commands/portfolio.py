"""`plan portfolio`: the cheapest fleets of several models that share devices, a budget or power."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.cli import FAILED, Failure
from planners.commands.envelope import give, note
from planners.commands.options import folder_option, json_flag
from planners.commands.tables import table

if TYPE_CHECKING:
    from planners.sharing.portfolio import Portfolio

FILE = "portfolio.yaml"


@click.command()
@click.argument("file", metavar="[FILE]", default=FILE)
@folder_option
@json_flag
def portfolio(file: str, folder: str | None, as_json: bool) -> None:
    """Plan the fleets of several models together, within the limits that they share.

    FILE, portfolio.yaml by default, has `plans`, each a name and what a plan.yaml holds, and `limits`, which are those
    of a plan.yaml on all fleets together: devices.NAME, usd_per_hour, power_w, vendor.NAME, spot_share. Every model is
    rehearsed on its own trace; shared limits get prices, at which all are planned again. NAME/plan.json is written for
    each, to simulate, lock, check and export.
    """
    from time import process_time

    from planners.search.infeasible import Infeasible
    from planners.sharing import portfolio_file
    from planners.sharing.portfolio import plan_together
    from planners.whatif import question_of

    started_s = process_time()
    written = portfolio_file.read(file)
    questions = {name: question_of(study) for name, study in written.plans.items()}
    inputs: dict[str, Any] = {"file": file, "limits": dict(written.limits)}
    found = {}
    try:
        for name, question in questions.items():
            note(f"{name}: {question.trace.name}, {len(question.trace):,} requests")
            found[name] = question.found()
            note(f"{name}: {found[name].hunt.best.usd_per_hour:.2f} USD/h by itself")  # type: ignore[union-attr]
        together = plan_together(found, written.shared, note)
    except Infeasible as error:
        if as_json:
            give(Answer("portfolio", inputs, {"infeasible": error.result()}), as_json)
        raise Failure("no fleets keep these promises together\n" + "\n".join(error.reasons), FAILED) from error
    files = []
    for name, plan in together.plans.items():
        from planners import plan_file

        study = replace(written.plans[name], limits=written.allotted(_uses(together, written.limits), name))
        path = Path(folder or ".") / name / "plan.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(plan_file.text_of(plan, plan_file.inputs_of(study, questions[name].trace)), encoding="utf-8")
        files.append(str(path))
    result = {
        "usd_per_hour": together.usd_per_hour,
        "usd_per_hour_bound": together.usd_per_hour_bound,
        "gap": together.gap,
        "shared": [asdict(each) for each in together.shared],
        "rounds": together.rounds,
        "plans": {name: plan.result() for name, plan in together.plans.items()},
        "files": files,
    }
    timings = {"total_cpu_s": process_time() - started_s}
    give(Answer("portfolio", inputs, result, (), timings), as_json, _words(together, files))


def _uses(together: "Portfolio", limits: dict[str, float] | Any) -> dict[str, dict[str, float]]:
    """Return what each plan uses of the limits that can be counted, by their keys."""
    uses: dict[str, dict[str, float]] = {}
    for name, plan in together.plans.items():
        devices = [
            (pool.device, pool.replicas * pool.engine.devices, pool.engine.device) for pool in plan.pools if pool.engine
        ]
        uses[name] = {
            "usd_per_hour": plan.usd_per_hour,
            "power_w": sum(count * (device.tdp_w or 0.0) for _, count, device in devices),
            **{key: float(sum(n for one, n, _ in devices if f"devices.{one}" == key)) for key in limits if "." in key},
        }
    return uses


def _words(together: "Portfolio", files: list[str]) -> str:
    from planners.report.verdict import fleet_name

    rows = [["Plan", "USD/h", "Fleet"]]
    rows += [[name, f"{plan.usd_per_hour:.2f}", fleet_name(plan.pools)] for name, plan in together.plans.items()]
    lines = [
        table(rows, right=[1]),
        "",
        f"Together  {together.usd_per_hour:.2f} USD/h; no fleets within the limits cost less than "
        f"{together.usd_per_hour_bound:.2f} (gap {together.gap:.0%})",
    ]
    for each in together.shared:
        worth = f"; one more is worth {each.usd_per_hour:.3g} USD/h" if each.usd_per_hour else ""
        lines.append(f"Shared    {each.name}: {each.used:.6g} used{worth}")
    return "\n".join([*lines, f"Written   {', '.join(files)}"])
