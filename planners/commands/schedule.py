"""`plan schedule`: what to reserve for a week, and what to add from hour to hour."""

from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.commands.envelope import give, note
from planners.commands.options import json_flag, study_options
from planners.commands.tables import table

if TYPE_CHECKING:
    from planners.study import Study


@click.command()
@study_options
@click.option("--profile", required=True, metavar="CSV", help="Requests of every hour: a column requests.")
@click.option("--service", metavar="NAME", help="Which service, where the profile has several.")
@click.option("--reserved", default=0.55, metavar="X", help="Price of a reserved replica as a part of on demand; 0.55.")
@click.option("--spot-share", default=0.0, metavar="X", help="Largest part of an hour's capacity on spot; 0.")
@click.option("--start", "start_s", default=300.0, metavar="S", help="Seconds that a replica takes to start; 300.")
@json_flag
def schedule(
    study: "Study",
    profile: str,
    service: str | None,
    reserved: float,
    spot_share: float,
    start_s: float,
    as_json: bool,
) -> None:
    """Schedule a week: a reserved base, the rest on demand and on spot, every hour replayed.

    Requests have the sizes and burstiness of TRACE, and the rates of the profile.
    """
    from time import process_time

    from planners.schedules import profile as profiles
    from planners.schedules.week import Terms, plan_week
    from planners.whatif import question_of

    started_s = process_time()
    for name, value in (("--reserved", reserved), ("--spot-share", spot_share)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} {value:g} is not between 0 and 1")
    requests = profiles.read(profile, service)
    question = question_of(study)
    terms = Terms(reserved, spot_share, start_s)
    week = plan_week(question.trace, requests, question.slos, question.offers(), terms, study.seed, note)
    names = [one.short_name for one in week.offers]
    rows = [["Hour", "Requests", *names]]
    for hour, count in enumerate(requests):
        own_hour = week.hours[hour]
        cells = [
            f"{base + more + spot}"
            for base, more, spot in zip(week.schedule.reserved, own_hour.on_demand, own_hour.spot, strict=True)
        ]
        rows.append([str(hour), f"{count:.0f}", *cells])
    result: dict[str, Any] = {
        "engines": names,
        "carries": week.carries,
        "reserved": week.schedule.reserved,
        "hours": [{"on_demand": hour.on_demand, "spot": hour.spot} for hour in week.hours],
        "usd": week.usd,
        "usd_bound": week.schedule.usd_bound,
        "usd_bound_relaxed": week.schedule.relaxed_usd,
        "gap": week.gap,
        "mended_hours": week.mended,
        "broken_hours": week.broken,
        "simulated_requests": week.simulated_requests,
    }
    base = " + ".join(f"{n} x {name}" for n, name in zip(week.schedule.reserved, names, strict=True) if n) or "nothing"
    held = len(requests) - len(week.broken)
    words = [
        f"Reserved  {base}",
        f"Cost      {week.usd:.2f} USD for {len(requests)} hours; at these capacities at least "
        f"{week.schedule.usd_bound:.2f} (gap {week.gap:.1%})",
        f"Replayed  {held} of {len(requests)} hours keep every promise; {len(week.mended)} got replicas more",
        "",
        table(rows, right=range(len(rows[0]))),
    ]
    warnings = (f"reserved replicas at {reserved:.0%} of the on-demand price: assumed",)
    inputs = {"trace": question.trace.name, "model": study.model, "slo": study.slo, "profile": profile}
    give(
        Answer("schedule", inputs, result, warnings, {"total_cpu_s": process_time() - started_s}),
        as_json,
        "\n".join(words),
    )
