"""`plan regret`: which plan to choose when the future is one of several."""

import math
from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.cli import FAILED, Failure
from planners.commands.envelope import give
from planners.commands.options import json_flag, study_options
from planners.commands.tables import table

if TYPE_CHECKING:
    from planners.study import Study

FUTURES = ("rate=1.25x", "calibration=high")


@click.command()
@study_options
@click.option(
    "--scenario", "scenarios", multiple=True, metavar="CHANGES", help='A future, as "rate=1.2x,price.l40s=2x"; repeat.'
)
@json_flag
def regret(
    study: "Study",
    scenarios: tuple[str, ...],
    as_json: bool,
) -> None:
    """Plan for several futures, try every plan in all of them, and choose the one of least worst regret.

    Changes are those of `plan whatif`. By default the futures are a quarter more requests, and steps as slow as one in
    twenty measurements has them.
    """
    from planners import regret as futures
    from planners.report.verdict import fleet_name
    from planners.search.infeasible import Infeasible
    from planners.whatif import question_of

    question = question_of(study)
    try:
        found = futures.regrets(question, [futures.parse_scenario(text) for text in scenarios or FUTURES])
    except Infeasible as error:
        raise Failure("no fleet keeps these promises\n" + "\n".join(error.reasons), FAILED) from error
    rows = [["Plan for", *found.scenarios, "Worst regret", "Fleet"]]
    for place, (name, plan) in enumerate(zip(found.names, found.plans, strict=True)):
        cells = ["breaks" if math.isinf(usd) else f"{usd:.2f}" for usd in found.usd_per_hour[place]]
        worst = found.worst_regret(place)
        mark = " <- choose" if place == found.chosen else ""
        regret_words = "breaks" if math.isinf(worst) else f"{worst:.0%}"
        rows.append([name, *cells, regret_words, fleet_name(plan.pools) + mark])
    result: dict[str, Any] = {
        "scenarios": found.scenarios,
        "plans": [
            {
                "for": name,
                "fleet": fleet_name(plan.pools),
                "usd_per_hour": found.usd_per_hour[place],
                "worst_regret": found.worst_regret(place),
            }
            for place, (name, plan) in enumerate(zip(found.names, found.plans, strict=True))
        ],
        "best_usd_per_hour": found.best_usd_per_hour,
        "chosen": found.names[found.chosen],
    }
    inputs = {"trace": question.trace.name, "model": study.model, "slo": study.slo, "scenarios": scenarios or FUTURES}
    give(Answer("regret", inputs, result), as_json, table(rows, right=range(1, len(found.scenarios) + 2)))
