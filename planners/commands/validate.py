"""`plan validate`: compares what the cost model predicts with measurements it reads from a file."""

from pathlib import Path
from typing import Any

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import json_flag
from planners.commands.tables import table

UNITS = {"time": ("us", 1e6), "throughput": ("tokens_per_s", 1.0), "power": ("w", 1.0), "energy": ("j", 1.0)}
KINDS = ("operators", "collectives", "end-to-end", "requests")


@click.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--predictions", metavar="OUT.parquet", type=click.Path(dir_okay=False, path_type=Path), help="Write a row each."
)
@json_flag
def validate(kind: str, file: Path, predictions: Path | None, as_json: bool) -> None:
    """Predict every row of a measurement table FILE and report the errors.

    Errors are fractions of the measured value; coverage is the share of measurements inside the stated 90 % interval.
    Measured times are read to compare, never to predict.
    """
    frame, found, result = _compare(kind, file)
    if predictions is not None:
        _write(predictions, frame, found)
    give(Answer("validate", {"kind": kind, "file": str(file)}, result), as_json, _words(result))


def _compare(kind: str, file: Path) -> tuple[Any, Any, dict[str, Any]]:
    from models.calibration import end_to_end, validation
    from simulator.request_log import validate_requests

    compare = {
        "operators": validation.validate_operators,
        "collectives": validation.validate_collectives,
        "end-to-end": end_to_end.validate_end_to_end,
        "requests": validate_requests,
    }
    try:
        return compare[kind](file)
    except KeyError as error:
        raise ValueError(f"{file}: column {error} is missing; validate {kind} needs the table's columns") from error


def _write(path: Path, frame: Any, found: Any) -> None:
    """Write one row for each row of the table, in its order: predicted value, interval, provenance, or the reason."""
    import pandas

    columns = {"row": range(len(frame))}
    for metric in found.value:
        unit, factor = UNITS.get(metric, ("ms", 1e3))
        columns[f"{metric}_{unit}_predicted"] = found.value[metric] * factor
        columns[f"{metric}_{unit}_low"] = found.low[metric] * factor
        columns[f"{metric}_{unit}_high"] = found.high[metric] * factor
    columns |= {"provenance": found.provenance, "reason": found.reason}
    pandas.DataFrame(columns).to_parquet(path, index=False)


FIGURES = ("median", "mean", "p90", "bias")


def _words(result: dict[str, Any]) -> str:
    rows = _rows(result["groups"], ("device", "engine", "op", "dtype"))
    for metric, errors in result["overall"].items():
        rows.append(["all", "", "", "", metric, str(result["predicted"]), *(f"{errors[name]:.1%}" for name in FIGURES)])
    lines = [table(rows, right=[5, 6, 7, 8, 9]), ""]
    if "pairs" in result:
        lines += [table(_rows(result["pairs"], ("model", "device")), right=[3, 4, 5, 6, 7]), ""]
    lines += [f"{result['predicted']} of {result['n']} rows predicted"]
    lines += [f"  {count} not: {reason}" for reason, count in result["unpredicted"].items()]
    return "\n".join(lines)


def _rows(groups: list[dict[str, Any]], keys: tuple[str, ...]) -> list[list[str]]:
    """Return a head and a row for each group: its keys, its metric, how many rows it has, and their errors."""
    rows = [[*keys, "metric", "rows", *FIGURES]]
    for group in groups:
        names = [str(group.get(name, "")) for name in (*keys, "metric")]
        rows.append([*names, str(group["n"]), *(f"{group[name]:.1%}" for name in FIGURES)])
    return rows
