"""`plan compare`: plans, runs and benchmark files side by side."""

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import json_flag
from planners.commands.tables import table


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="A B [C ...]")
@json_flag
def compare(files: tuple[str, ...], as_json: bool) -> None:
    """Show the figures of plans (plan.json), runs (--json answers) and vLLM benchmark results side by side.

    Changes are from the first file; each difference comes with the inputs that explain it.
    """
    from dataclasses import asdict

    from planners.gate import compare as comparison

    if len(files) < 2:
        raise ValueError(f"{len(files)} file to compare; expected at least 2")
    answers = [comparison.read(file) for file in files]
    found = list(comparison.rows(answers))
    why = {other.name: comparison.reasons(answers[0], other) for other in answers[1:]}
    cells = [["Figure", *(answer.name for answer in answers)]]
    cells += [[row.figure, *map(_cell, row.values, row.changes)] for row in found]
    lines = [table(cells, right=range(1, len(cells[0])))]
    for name, causes in why.items():
        lines += [
            "",
            f"{name} differs because" if causes else f"{name} does not differ",
            *(f"  - {each}" for each in causes),
        ]
    result = {"figures": [asdict(row) for row in found], "reasons": why, "fleets": [each.fleet for each in answers]}
    give(Answer("compare", {"files": files}, result), as_json, "\n".join(lines))


def _cell(value: float | None, change: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" + (f" ({change:+.1%})" if change else "")
