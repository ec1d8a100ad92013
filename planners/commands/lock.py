"""`plan lock`: write down a decision, so that a check can tell when it would be another."""

import os
from pathlib import Path

import click

from planners.answer import Answer
from planners.cli import BAD_INPUT, Failure
from planners.commands.envelope import give
from planners.commands.options import json_flag

LOCK_FILE = "plan.lock.json"


@click.command()
@click.argument("plan_path", metavar="[PLAN]", default="plan.json")
@click.option("-f", "--file", "lock_file", default=LOCK_FILE, show_default=True, help="The lock file.")
@click.option("--name", metavar="NAME", help="Name of the scenario; the trace's and the model's by default.")
@click.option("--update", is_flag=True, help="Replace a scenario that is locked otherwise.")
@click.option("--reason", default="", metavar="WORDS", help="Why it is locked so; kept in the file.")
@click.option("--force", is_flag=True, help="Update even in a CI run.")
@json_flag
def lock(
    plan_path: str, lock_file: str, name: str | None, update: bool, reason: str, force: bool, as_json: bool
) -> None:
    """Lock the decision of PLAN (a plan.json) in plan.lock.json, to be committed and checked with `plan check`."""
    from planners import plan_file
    from planners.gate import lock as locks
    from planners.gate.drift import Today, findings
    from planners.report.findings import words

    saved = plan_file.read(plan_path)
    trace = plan_file.read_trace(saved.inputs, plan_path)
    scenario = locks.scenario_of(saved, trace, reason)
    scenarios = locks.read(lock_file) if Path(lock_file).exists() else {}
    chosen = name or f"{trace.name}-{saved.llm.name}"
    changes = []
    if chosen in scenarios:
        facts = {key: value for key, value in scenario.facts.items() if not key.startswith("usd")}
        today = Today(scenario.hashes, scenario.prices, facts, scenario.facts["usd_per_hour"], saved.plan)
        changes = findings(scenarios[chosen], today)
        if changes and not update:
            told = words({chosen: changes})
            raise Failure(f"{chosen} is locked otherwise; --update replaces it\n{told}", BAD_INPUT)
        if changes and os.environ.get("CI") == "true" and not force:
            raise Failure("a CI run does not change the lock; --force does", BAD_INPUT)
    scenarios[chosen] = scenario
    Path(lock_file).write_text(locks.text_of(scenarios), encoding="utf-8")
    result = {"file": lock_file, "scenario": chosen, "changes": [_plain(each) for each in changes]}
    told = words({chosen: changes}) + "\n\n" if changes else ""
    give(Answer("lock", {"plan": plan_path}, result), as_json, f"{told}{chosen} is locked in {lock_file}")


def _plain(finding: object) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(finding)  # type: ignore[call-overload, no-any-return]
