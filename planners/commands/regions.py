"""`plan regions`: whose requests go to which region, and the fleet there."""

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
    from planners.sharing.regions import Regional
    from planners.sharing.regions_file import Regions

FILE = "regions.yaml"
MOST_TOLD = 6


@click.command()
@click.argument("file", metavar="[FILE]", default=FILE)
@folder_option
@json_flag
def regions(file: str, folder: str | None, as_json: bool) -> None:
    """Choose the regions that requests of each origin go to, and plan the fleet of each.

    FILE, regions.yaml by default, has `origins`, each with a trace and perhaps the regions that its data stays in;
    `regions`, each with devices, prices, limits and racks as in a plan.yaml, or priced_as a region of the price list;
    `latency_ms` of the round trip from origin to region; and the model and promises, which hold for every origin with
    the round trip in them. Every assignment that may be cheapest is planned and rehearsed. REGION/plan.json and the
    trace that comes to it are written for each, to simulate, lock, check and export.
    """
    from time import process_time

    from planners.search.infeasible import Infeasible
    from planners.sharing import regions_file
    from planners.sharing.regions import plan_regions

    started_s = process_time()
    written = regions_file.read(file)
    inputs: dict[str, Any] = {"file": file, **asdict(written)}
    try:
        found = plan_regions(
            regions_file.origins_of(written),
            regions_file.regions_of(written),
            _promises(written),
            shared=written.shared,
            parts=written.parts,
            align=written.align,
            seed=written.seed,
            tell=note,
        )
    except Infeasible as error:
        if as_json:
            give(Answer("regions", inputs, {"infeasible": error.result()}), as_json)
        raise Failure("no fleets in these regions keep the promises\n" + "\n".join(error.reasons), FAILED) from error
    files = [_write(Path(folder or "."), name, found, written) for name in found.plans]
    result = {
        "usd_per_hour": found.usd_per_hour,
        "usd_per_hour_bound": found.usd_per_hour_bound,
        "gap": found.gap,
        "sent": found.chosen.fractions,
        "tried": [asdict(each) for each in found.tried],
        "is_exhausted": found.is_exhausted,
        "shared": [asdict(each) for each in found.portfolio.shared],
        "plans": {name: plan.result() for name, plan in found.plans.items()},
        "files": files,
    }
    timings = {"total_cpu_s": process_time() - started_s}
    give(Answer("regions", inputs, result, (), timings), as_json, _words(found, files))


def _promises(written: "Regions") -> Any:
    from planners.slo import parse_all

    return parse_all(written.slo)


def _write(folder: Path, name: str, found: "Regional", written: "Regions") -> str:
    """Write what comes to a region, and its plan; return the path of the plan."""
    from planners import plan_file
    from traces.writing import write

    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    write(found.traffic[name], place / "trace.parquet")
    promises = tuple(map(str, found.slos[name]))
    study = replace(written.priced_study_at(name), trace=str(place / "trace.parquet"), slo=promises)
    path = place / "plan.json"
    inputs = plan_file.inputs_of(study, found.traffic[name])
    path.write_text(plan_file.text_of(found.plans[name], inputs), encoding="utf-8")
    return str(path)


def _words(found: "Regional", files: list[str]) -> str:
    from planners.report.verdict import fleet_name
    from planners.sharing.regions import describe

    rows = [["Region", "USD/h", "Requests", "Fleet"]]
    rows += [
        [name, f"{plan.usd_per_hour:.2f}", f"{len(found.traffic[name]):,}", fleet_name(plan.pools)]
        for name, plan in found.plans.items()
    ]
    lines = [table(rows, right=[1, 2]), "", f"Sent      {describe(found.chosen.fractions)}"]
    others = sorted((each for each in found.tried if each != found.chosen), key=lambda each: each.usd_per_hour)
    for each in others[:MOST_TOLD]:
        usd = f"{each.usd_per_hour:.2f} USD/h" if each.usd_per_hour < float("inf") else "no fleet"
        lines.append(f"Or        {describe(each.fractions)}: {usd}")
    left = "no other assignment can be cheaper" if found.is_exhausted else "not all assignments were planned"
    lines.append(
        f"Together  {found.usd_per_hour:.2f} USD/h; {left}; wherever requests go, no fleets cost less than "
        f"{found.usd_per_hour_bound:.2f} (gap {found.gap:.0%})"
    )
    for shared in found.portfolio.shared:
        worth = f"; one more is worth {shared.usd_per_hour:.3g} USD/h" if shared.usd_per_hour else ""
        lines.append(f"Shared    {shared.name}: {shared.used:.6g} used{worth}")
    return "\n".join([*lines, f"Written   {', '.join(files)}"])
