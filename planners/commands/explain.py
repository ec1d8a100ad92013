"""`plan explain`: what a word of an answer means, or why a plan is as it is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import json_flag
from planners.commands.tables import table

if TYPE_CHECKING:
    from planners.plan import Plan

GLOSSARY = Path(__file__).parent / "glossary.toml"


@click.command()
@click.argument("what", required=False)
@json_flag
def explain(what: str | None, as_json: bool) -> None:
    """Explain WHAT: a word of an answer (ttft, gap, DECISION, ...), or a plan.json; all words without one."""
    if what is not None and Path(what).is_file():
        _explain_plan(what, as_json)
        return
    words = glossary()
    if what is None:
        rows = [[word, meaning] for word, meaning in words.items()]
        give(Answer("explain", {}, words), as_json, table(rows))
        return
    found = words.get(what) or words.get(what.lower()) or words.get(what.upper())
    if found is None:
        from models.toml_file import unknown_name

        raise unknown_name("word", what, words)
    give(Answer("explain", {"what": what}, {"word": what, "meaning": found}), as_json, found)


def glossary() -> dict[str, str]:
    """Return what each word means."""
    import tomllib

    from planners.gate.drift import MEANINGS

    words: dict[str, str] = tomllib.loads(GLOSSARY.read_text(encoding="utf-8"))["words"]
    return words | MEANINGS


def reasons(plan: "Plan") -> str:
    """Return in words why a plan is as it is."""
    from planners.report.verdict import fleet_name

    lines = [f"{fleet_name(plan.pools)} costs {plan.usd_per_hour:.2f} USD/h; {plan.usd_per_hour_bound:.2f} are needed."]
    lines += [plan.bottleneck, *_naive(plan), *plan.notes]
    for name, rows in plan.explain.items():
        lines += ["", name.replace("_", " ").capitalize(), _table(rows)]
    return "\n".join(line for line in lines if line is not None)


def _naive(plan: "Plan") -> list[str]:
    """Return what an ordinary router would make of the plan; nothing where the plan is routed so."""
    naive = plan.naive_routing
    if naive is None:
        return []
    if not naive.fails:
        return [f"Routed by {naive.router}, the fleet holds as well."]
    if naive.usd_per_hour is None:
        more = f"{naive.added} replicas more do not make up for it"
    else:
        more = f"it holds with {naive.added} replicas more, at {naive.usd_per_hour:.2f} USD/h"
    return [f"Routed by {naive.router} instead, {naive.fails}; {more}."]


def _explain_plan(path: str, as_json: bool) -> None:
    from planners import plan_file

    plan = plan_file.read(path).plan
    give(Answer("explain", {"what": path}, plan.explain), as_json, reasons(plan))


def _table(rows: Any) -> str:
    """Return a list of mappings as a table; anything else as it is."""
    if not (isinstance(rows, list | tuple) and rows and isinstance(rows[0], dict)):
        return str(rows)
    cells = [[_cell(row.get(key)) for key in rows[0]] for row in rows]
    return table([[key.replace("_", " ") for key in rows[0]], *cells], right=range(1, len(rows[0])), indent="  ")


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
