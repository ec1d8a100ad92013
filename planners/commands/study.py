"""`plan study`: published serving systems put to the test, each with its claim, control, ablation and sweep."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.commands.envelope import give, note
from planners.commands.options import json_flag
from planners.commands.tables import table

if TYPE_CHECKING:
    from simulator.studies.card import Card, Measured, Outcome

SEEDS = 5
FEWEST_SEEDS = 2  # fewer have no interval
group_option = click.option("--group", metavar="GROUP", help="Only studies of this group, as datacenter.")


@click.group()
def study() -> None:
    """Run studies of published serving systems and compare their claims with what the simulator finds.

    Every claim, its pass band and the margin of its control were written down before the first run. A claim that is
    not reproduced is a finding, not a failure.
    """


@study.command("list")
@group_option
@json_flag
def list_studies(group: str | None, as_json: bool) -> None:
    """List the studies and what they claim."""
    from simulator.studies.registry import find, names

    cards = [find(name).CARD for name in names(group=group)]
    rows = [["name", "group", "class", "claimed", "band", "what"]]
    for card in cards:
        rows += [
            [
                card.name if claim is card.headline else "",
                card.group if claim is card.headline else "",
                claim.grade,
                f"{claim.claimed:g} {claim.unit}",
                claim.band,
                claim.figure,
            ]
            for claim in card.claims
        ]
    result = {"studies": [_card(card) for card in cards]}
    give(Answer("study list", {"group": group}, result), as_json, table(rows))


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a run."""
    for add in reversed(
        (
            group_option,
            click.option("--quick", is_flag=True, help="Shorter runs: some 30 CPU seconds a study."),
            click.option(
                "--seeds",
                type=click.IntRange(min=FEWEST_SEEDS),
                default=SEEDS,
                show_default=True,
                metavar="N",
                help="Repeat with so many seeds; intervals are over them.",
            ),
            click.option(
                "--processes",
                type=click.IntRange(min=1),
                default=1,
                show_default=True,
                metavar="N",
                help="Run so many studies at once; the answer is the same.",
            ),
            json_flag,
        )
    ):
        command = add(command)
    return command


@study.command("run")
@click.argument("name")
@run_options
def run(name: str, group: str | None, quick: bool, seeds: int, processes: int, as_json: bool) -> None:
    """Run the study NAME, or all of them, and give a verdict on each claim."""
    from simulator.studies.registry import names, run_studies

    outcomes = run_studies(names(name, group), range(seeds), quick, processes, note)
    inputs = {"name": name, "group": group, "quick": quick, "seeds": seeds}
    result = {"studies": [_outcome(outcome) for outcome in outcomes]}
    timings = {"cpu_s": sum(outcome.seconds for outcome in outcomes)}
    words = _summary(outcomes) if len(outcomes) != 1 else f"{_summary(outcomes)}\n\n{_details(outcomes[0])}"
    give(Answer("study run", inputs, result, (), timings), as_json, words)


@study.command("all")
@run_options
def run_all(**options: Any) -> None:
    """Run all studies: the same as `plan study run all`."""
    click.get_current_context().invoke(run, name="all", **options)


def _card(card: "Card") -> dict[str, Any]:
    headline = card.headline
    return {
        "name": card.name,
        "group": card.group,
        "paper": card.paper,
        "sentence": card.sentence,
        "class": headline.grade,
        "claimed": headline.claimed,
        "unit": headline.unit,
        "study_pass": card.study_pass,
        "claims": [
            {"figure": claim.figure, "claimed": claim.claimed, "unit": claim.unit, "class": claim.grade,
             "band": claim.band, "neutral": claim.neutral}
            for claim in card.claims
        ],
        "control_means": card.control,
        "control_margin": card.control_margin,
        "hidden_knob": card.hidden_knob,
    }  # fmt: skip


def _outcome(outcome: "Outcome") -> dict[str, Any]:
    card, finding = outcome.card, outcome.finding
    headline = outcome.judgements[0]
    found = _card(card)
    for claim, judged in zip(found["claims"], outcome.judgements, strict=True):
        claim |= {"measured": judged.measured and judged.measured.value, "interval": _interval(judged.measured),
                  "in_band": judged.in_band, "verdict": judged.verdict}  # fmt: skip
    return found | {
        "measured": headline.measured and headline.measured.value,
        "interval": _interval(headline.measured),
        "verdict": outcome.verdict,
        "in_band": all(each.in_band for each in outcome.judgements),
        "control": outcome.control,
        "control_ratios": {name: [each.value, each.low, each.high] for name, each in finding.control.items()},
        "seconds": outcome.seconds,
        "curve": finding.curve,
        "ablation": finding.ablation,
        "sweep": finding.sweep,
        "note": finding.note,
    }


def _interval(measured: "Measured | None") -> list[float] | None:
    return None if measured is None else [measured.low, measured.high]


def _summary(outcomes: "Sequence[Outcome]") -> str:
    rows = [["name", "class", "figure", "claimed", "measured", "interval", "band", "verdict"]]
    for outcome in outcomes:
        for place, judged in enumerate(outcome.judgements):
            claim, measured = judged.claim, judged.measured
            value = "-" if measured is None else f"{measured.value:.3g}"
            interval = "-" if measured is None else f"{measured.low:.3g} to {measured.high:.3g}"
            rows.append([
                "" if place else outcome.card.name, claim.grade, claim.figure, f"{claim.claimed:g} {claim.unit}",
                value, interval, claim.band, judged.verdict,
            ])  # fmt: skip
    lines = [table(rows, right=[4]), ""]
    for outcome in outcomes:
        lines.append(f"{outcome.card.name}: {outcome.verdict}; control {outcome.control}; {outcome.seconds:.0f} CPU s")
        if outcome.finding.note:
            lines.append(f"  {outcome.finding.note}")
    return "\n".join(lines)


def _details(outcome: "Outcome") -> str:
    finding = outcome.finding
    parts = [f"{outcome.card.paper}: {outcome.card.sentence}", f"pass: {outcome.card.study_pass}"]
    titles = {
        "curve": finding.curve,
        "ablation": finding.ablation,
        f"sweep of {outcome.card.hidden_knob}": finding.sweep,
    }
    for title, rows in titles.items():
        if rows:
            heads = list(rows[0])
            body = [[_cell(row.get(head)) for head in heads] for row in rows]
            parts.append(f"{title}\n{table([heads, *body], right=range(1, len(heads)), indent='  ')}")
    return "\n\n".join(parts)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)
