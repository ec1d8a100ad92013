"""`plan whatif`: the plan under other rates, prices, promises, speeds and devices."""

from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.commands.envelope import give, note
from planners.commands.options import json_flag, study_options
from planners.commands.tables import seconds, table

if TYPE_CHECKING:
    from planners.study import Study
    from planners.whatif import Case


@click.command()
@study_options
@click.option("--vary", multiple=True, required=True, metavar="NAME=VALUES", help='What varies, as "rate=0.5x,1x,2x".')
@click.option("--tornado", is_flag=True, help="Change one thing at a time instead of all combinations.")
@click.option("--losses", is_flag=True, help="Also replay with one replica of each pool lost.")
@json_flag
def whatif(
    study: "Study",
    vary: tuple[str, ...],
    tornado: bool,
    losses: bool,
    as_json: bool,
) -> None:
    """Plan again with things changed: every combination of the values given, or one at a time with --tornado.

    NAME is rate, prompts, answers, price, price.DEVICE, speed, speed.DEVICE, calibration, calibration.DEVICE, hit,
    failures, slo, slo.METRIC:pPERCENT or devices. A value is a factor as 2x, a price in USD per device-hour, an end of
    the 90 % interval of fitted step times (low, fitted, high), the fraction of prompt tokens that a prefix cache finds
    (0.5), how many replicas may fail together (1), a limit as 500ms, or names as h100-sxm+l4.
    """
    from planners import whatif as changes

    question = changes.question_of(study)
    axes = [changes.parse_axis(text) for text in vary]
    cases = []
    for case in (changes.tornado if tornado else changes.grid)(question, axes):
        note(f"{_changes(case)}: {_fleet(case)}")
        cases.append(case)
    rows = [["Change", "USD/h", "Fleet", "TTFT p99", "TPOT p99"]]
    rows += [[_changes(case), *_cells(case)] for case in cases]
    words = table(rows, right=[1, 3, 4])
    result: dict[str, Any] = {"cases": [_plain(case) for case in cases]}
    base = cases[0].plan
    if losses and base is not None:
        found = list(changes.losses(base, question.trace, question.slos))
        result["losses"] = [{"pool": loss.pool, "holds": loss.holds, "slo": loss.latency_s} for loss in found]
        said = [["Lost", "Promises", "TTFT p99", "TPOT p99"]]
        for loss in found:
            late = [seconds(loss.latency_s[name]["p99"]) if loss.latency_s else "never" for name in ("ttft", "tpot")]
            said.append([f"1 x {loss.pool}", "hold" if loss.holds else "break", *late])
        words += "\n\n" + table(said, right=[2, 3])
    inputs = {"trace": question.trace.name, "model": study.model, "slo": study.slo, "vary": vary, "tornado": tornado}
    give(Answer("whatif", inputs, result), as_json, words)


def _changes(case: "Case") -> str:
    return ", ".join(f"{name} {value}" for name, value in case.changes.items()) or "as it is"


def _fleet(case: "Case") -> str:
    from planners.report.verdict import fleet_name

    return fleet_name(case.plan.pools) if case.plan else f"no fleet: {case.reasons[0]}"


def _cells(case: "Case") -> list[str]:
    if case.plan is None:
        return ["-", _fleet(case), "-", "-"]
    late = [seconds(case.plan.latency_s[name]["p99"]) for name in ("ttft", "tpot")]
    return [f"{case.plan.usd_per_hour:.2f}", _fleet(case), *late]


def _plain(case: "Case") -> dict[str, Any]:
    told: dict[str, Any] = {"changes": case.changes, "fleet": _fleet(case)}
    if case.plan is None:
        return told | {"infeasible": {"reasons": case.reasons}}
    plan = case.plan
    return told | {
        "usd_per_hour": plan.usd_per_hour,
        "usd_per_hour_bound": plan.usd_per_hour_bound,
        "slo": plan.latency_s,
        "attainment": plan.attainment,
    }
