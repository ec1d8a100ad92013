"""`plan traces synth` and `plan traces fit`: traces made, and the law that a trace follows."""

from collections.abc import Callable, Mapping
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import json_flag
from planners.commands.reading_options import changed, read_file, reading_options
from planners.commands.tables import quantity
from planners.commands.traces_written import write_and_tell

if TYPE_CHECKING:
    from traces import Trace


@click.command("synth")
@click.option("--law", metavar="NAME", help="An arrival law, its parameters by --set.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter: a number, or several by commas."
)
@click.option("--like", metavar="FILE", help="Fit this trace and make another like it.")
@click.option("--pool", metavar="PATH", help="A ServeGen pool of clients.")
@click.option("--spec", metavar="FILE.toml", help="Conversations, agents or a closed loop, with prefixes and adapters.")
@click.option("--profile", metavar="FILE.csv", help="Requests per minute, hour or day.")
@click.option("--service", metavar="NAME", help="Which service of the profile.")
@click.option("--lengths-from", metavar="FILE", help="Draw pairs of lengths from this trace.")
@click.option("--input-tokens", type=int, default=512, show_default=True, help="Where nothing else says.")
@click.option("--output-tokens", type=int, default=128, show_default=True, help="Where nothing else says.")
@click.option("--start-s", type=float, default=0.0, show_default=True, help="Where in a pool to begin.")
@click.option("--duration-s", type=float, default=3600.0, show_default=True)
@click.option("--factor", type=float, default=1.0, show_default=True, help="Multiply the rates of a pool or profile.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--out", required=True, metavar="FILE", help="Where the trace goes.")
@json_flag
def synth(out: str, as_json: bool, **options: Any) -> None:
    """Make a trace: by a law, like another, from a pool of clients, along a profile, or as a specification says."""
    ways = [name for name in SYNTHS if options[name]]
    if len(ways) != 1:
        raise click.UsageError(f"name one of {', '.join(f'--{name}' for name in SYNTHS)}")
    made = SYNTHS[ways[0]](options)
    inputs = {name: value for name, value in options.items() if value not in (None, ())}
    write_and_tell("traces synth", inputs, made, out, as_json)


def _lengths(options: Mapping[str, Any]) -> Any:
    from traces import reading
    from traces.length_laws import fixed_lengths

    if options["lengths_from"]:
        return reading.read(options["lengths_from"])
    return fixed_lengths(options["input_tokens"], options["output_tokens"])


def _by_law(options: Mapping[str, Any]) -> "Trace":
    from traces.generate import generate

    parameters = dict(_setting(each) for each in options["settings"])
    return generate(options["law"], parameters, _lengths(options), options["duration_s"], options["seed"])


def _by_pool(options: Mapping[str, Any]) -> "Trace":
    from traces.generate import from_pool
    from traces.servegen import read_pool

    return from_pool(
        read_pool(options["pool"]), options["duration_s"], options["seed"], start_s=options["start_s"],
        factor=options["factor"], lengths=_lengths(options),
    )  # fmt: skip


def _by_profile(options: Mapping[str, Any]) -> "Trace":
    from traces.generate import generate, read_profile

    times_s, rates_per_s = read_profile(options["profile"], options["service"])
    shifted = [time_s - options["start_s"] for time_s in times_s]
    parameters = {"times_s": shifted, "rates_per_s": [rate * options["factor"] for rate in rates_per_s]}
    return generate("nhpp", parameters, _lengths(options), options["duration_s"], options["seed"])


def _by_likeness(options: Mapping[str, Any]) -> "Trace":
    from traces import reading
    from traces.likeness import fit_trace

    source = reading.read(options["like"])
    found: Trace = fit_trace(source, options["seed"]).generate(options["duration_s"], options["seed"], source)
    return found


def _by_spec(options: Mapping[str, Any]) -> "Trace":
    import tomllib

    from traces.sessions import from_spec

    return from_spec(tomllib.loads(Path(options["spec"]).read_text()), options["seed"])


SYNTHS: dict[str, Callable[[Mapping[str, Any]], "Trace"]] = {
    "law": _by_law,
    "like": _by_likeness,
    "pool": _by_pool,
    "profile": _by_profile,
    "spec": _by_spec,
}


def _setting(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    parts = value.split(",")
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        if len(parts) == 1 and sign:
            return name, value
        raise click.UsageError(f"--set {text!r}: expected NAME=NUMBER or NAME=NUMBER,NUMBER") from None
    return name, numbers[0] if len(numbers) == 1 else numbers


@click.command("fit")
@click.argument("file")
@click.option(
    "--fleet", "fleet", metavar="FILE", help="plan.json or fleet.yaml: compare p99 TTFT of real and made on it."
)
@click.option("--seed", type=int, default=0, show_default=True)
@reading_options
@json_flag
def fit(file: str, fleet: str | None, seed: int, as_json: bool, **options: Any) -> None:
    """Find the arrival law that FILE follows, and judge it on time it was not fitted to."""
    from traces.likeness import fit_trace

    started_s = process_time()
    trace = read_file(file, options)
    found = fit_trace(trace, seed)
    result, words = found.as_dict(), found.words()
    if fleet is not None:
        result["ttft"] = _ttft(trace, [found.generate(trace.span_s, seed + each, trace) for each in range(24)], fleet)
        words += "".join(f"\np99 TTFT at {each['load']:.0%} load: real {quantity(each['real_ttft_p99_s'])} s, "
                         f"made {quantity(each['made_ttft_p99_s'])} s ({each['error']:+.0%}, give or take "
                         f"{2 * each['standard_error']:.0%})" for each in result["ttft"])  # fmt: skip
    timings = {"cpu_s": process_time() - started_s}
    inputs = {"file": file, "fleet": fleet, "seed": seed, **changed(options)}
    give(Answer("traces fit", inputs, result, (), timings), as_json, words)


def _ttft(trace: "Trace", made: "list[Trace]", fleet: str) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from planners.fleet_yaml import fleet_file
    from planners.resemblance import resemblances

    return [asdict(each) for each in resemblances(trace, made, fleet_file.read(fleet).fleet)]
