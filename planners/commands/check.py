"""`plan check`: would the same decision be taken today, and does the locked fleet still keep its promises?"""

import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planners.answer import Answer
from planners.cli import DRIFT, Failure
from planners.commands.envelope import give, note
from planners.commands.options import json_flag

if TYPE_CHECKING:
    from planners.gate.lock import Scenario

LOCK_FILE = "plan.lock.json"


@click.command()
@click.argument("file", metavar="[FILE]", default=LOCK_FILE)
@click.option("--only", multiple=True, metavar="NAME", help="Check this scenario only; repeat for more.")
@click.option("--against", metavar="REF", help="Hold today against the file as it is at this Git revision.")
@click.option("--fresh-prices", is_flag=True, help="Plan at the list's prices instead of the locked ones.")
@click.option("--fail-on", metavar="CLASSES", help="Classes that fail, joined by commas.")
@click.option("--exit-zero", is_flag=True, help="Report only: end with 0 whatever was found.")
@click.option("--junit", metavar="FILE", help="Write JUnit XML.")
@click.option("--markdown", metavar="FILE", help="Write Markdown; in a GitHub run the step summary gets it anyway.")
@json_flag
def check(
    file: str,
    only: tuple[str, ...],
    against: str | None,
    fresh_prices: bool,
    fail_on: str | None,
    exit_zero: bool,
    junit: str | None,
    markdown: str | None,
    as_json: bool,
) -> None:
    """Check the decisions of FILE (plan.lock.json, or a plan.json) against what would be decided today.

    Classes: INPUT, BROKEN, SLO, DECISION, COST, DRIFT, EQUIVALENT, IMPROVED. BROKEN, SLO, DECISION and COST end with
    exit code 3.
    """
    from planners.gate import drift
    from planners.report import findings as reports

    failing = _classes(fail_on) if fail_on is not None else drift.FAILING
    scenarios = _chosen(_scenarios(file, against), only, file)
    found = {}
    for name, scenario in scenarios.items():
        note(f"checking {name}")
        _, found[name] = drift.check(scenario, file, fresh_prices=fresh_prices)
    if junit:
        Path(junit).write_text(reports.junit(found, file, failing), encoding="utf-8")
    _write_markdown(markdown, reports.markdown(found, failing))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in reports.annotations(found, file, failing):
            note(line)
    drifted = any(drift.fails(each, failing) for each in found.values())
    result = {
        "drift": drifted,
        "scenarios": {name: [asdict(finding) for finding in each] for name, each in found.items()},
    }
    give(Answer("check", {"file": file, "fail_on": failing}, result), as_json, reports.words(found))
    if drifted and not exit_zero:
        raise click.exceptions.Exit(DRIFT)


def _scenarios(file: str, against: str | None) -> "dict[str, Scenario]":
    from planners import plan_file
    from planners.gate import lock

    text = Path(file).read_text(encoding="utf-8") if against is None else _at_revision(file, against)
    if not plan_file.is_plan(text):
        return lock.parse(file, text)
    saved = plan_file.parse(file, text)
    trace = plan_file.read_trace(saved.inputs, file)
    return {f"{trace.name}-{saved.llm.name}": lock.scenario_of(saved, trace)}


def _at_revision(file: str, revision: str) -> str:
    path = Path(file)
    command = ["git", "show", f"{revision}:./{path.name}"]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{file} at {revision}: {done.stderr.strip()}")
    return done.stdout


def _chosen(scenarios: "dict[str, Scenario]", only: tuple[str, ...], file: str) -> "dict[str, Scenario]":
    unknown = [name for name in only if name not in scenarios]
    if unknown:
        raise ValueError(f"{file} has no scenario {unknown[0]!r}; it has: {', '.join(scenarios)}")
    return {name: each for name, each in scenarios.items() if not only or name in only}


def _classes(text: str) -> tuple[str, ...]:
    from planners.gate.drift import CLASSES

    chosen = tuple(word.strip().upper() for word in text.split(",") if word.strip())
    for each in chosen:
        if each not in CLASSES:
            raise Failure(f"unknown class {each!r}; known: {', '.join(CLASSES)}", 2)
    return chosen


def _write_markdown(path: str | None, text: str) -> None:
    if path:
        Path(path).write_text(text, encoding="utf-8")
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary and summary != path:
        with open(summary, "a", encoding="utf-8") as file:
            file.write(text)
