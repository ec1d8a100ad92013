"""`plan estimate`: what requests see on one engine, and where its time goes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import Name, engine_options, json_flag
from planners.commands.tables import quantity, seconds, table


@click.command()
@click.option(
    "--model", type=Name("model"), metavar="NAME", required=True, help="Catalogue name, or a local config.json."
)
@click.option("--device", type=Name("device"), metavar="NAME", required=True, help="Catalogue name, or a TOML file.")
@engine_options
@click.option("--kv-dtype", default="bf16", show_default=True, help="Number format of the KV cache.")
@click.option("--speculative", metavar="D:A", help="Draft D tokens a step, each accepted with chance A: 3:0.7.")
@click.option("--isl", type=click.IntRange(1), required=True, help="Prompt tokens.")
@click.option("--osl", type=click.IntRange(2), required=True, help="Answer tokens.")
@click.option("--concurrency", type=click.IntRange(1), help="Clients that always have a request open.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Requests a second, instead of --concurrency.")
@click.option("--plot", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Draw the roofline.")
@json_flag
def estimate(
    model: str,
    device: str,
    engine: str,
    isl: int,
    osl: int,
    concurrency: int | None,
    rate: float | None,
    speculative: str | None,
    plot: Path | None,
    as_json: bool,
    **cut: Any,
) -> None:
    """Estimate TTFT, time per token, throughput, memory and power of one replica.

    Every number says where it comes from: `calibrated` on this device, `modelled` from its nearest kin, or `assumed`,
    with the factors between which 90 % of measurements are expected.
    """
    from models import device as devices
    from models import llm as llms
    from models import speculation
    from models.closed_loop import Load
    from models.engine import Engine, Settings
    from models.estimate import StepCosts, at_rate
    from models.estimate import estimate as estimate_load

    if (concurrency is None) == (rate is None):
        raise ValueError("give either --concurrency or --rate")
    drafts = speculation.parse(speculative) if speculative else None
    llm = llms.load(model)
    cut["dtype"] = llm.format_of(cut["dtype"])
    replica = Engine(llm, devices.load(device), framework=engine, settings=Settings(speculation=drafts), **cut)
    costs = StepCosts(replica)
    found = (
        estimate_load(replica, Load(isl, osl, concurrency), costs)
        if concurrency is not None
        else at_rate(replica, isl, osl, rate or 0.0, costs)
    )
    if plot is not None:
        from planners.commands.roofline import draw

        draw(replica, isl, osl, max(1.0, found.mean_batch), plot)
    inputs = {"model": model, "device": device, "engine": engine, **cut, "isl": isl, "osl": osl}
    inputs |= {"concurrency": concurrency, "rate": rate, "speculative": speculative}
    give(Answer("estimate", inputs, asdict(found)), as_json, _words(replica.name, found))


def _words(name: str, found: Any) -> str:
    low, high = found.interval
    rows = [
        ["", ""],
        ["engine", name],
        ["time to first token", seconds(found.ttft_s)],
        ["time per token", seconds(found.tpot_s)],
        ["whole request", seconds(found.e2e_s)],
        ["output tokens/s", quantity(found.output_tokens_per_s)],
        ["requests/s", quantity(found.requests_per_s)],
        ["mean decode batch", quantity(found.mean_batch)],
        ["weights a device", f"{found.weight_bytes_per_device / 1e9:.1f} GB"],
        ["KV tokens", f"{found.kv_tokens:,}"],
        ["power", "-" if found.power_w is None else f"{found.power_w:.0f} W"],
        ["times", f"{found.provenance}; 90 % of measurements within x{low:.2f} to x{high:.2f}"],
    ]
    return "\n\n".join(
        [
            table(rows[1:]),
            _parts("One decode step", found.decode_parts),
            _parts("One prompt", found.prefill_parts),
        ]
    )


def _parts(title: str, parts: dict[str, float]) -> str:
    total = sum(parts.values())
    rows = [[title, "time", "share"]]
    for label, value in sorted(parts.items(), key=lambda pair: -pair[1]):
        rows.append([label, seconds(value), f"{value / total:.1%}"])
    return table([*rows, ["all", seconds(total), ""]], right=[1, 2])
