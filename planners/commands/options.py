"""The flags that commands share, each defined once."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

Function = TypeVar("Function", bound=Callable[..., Any])

CUTS = {
    "tp": "Tensor-parallel devices.",
    "pp": "Pipeline stages.",
    "ep": "Expert-parallel devices.",
    "dp": "Data-parallel ranks.",
}


class Name(click.ParamType[str]):
    """A name of a catalogue, completed by the shell; several joined by commas where `several`."""

    def __init__(self, kind: str, several: bool = False) -> None:
        self.name, self.several = kind, several

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the catalogue's names that begin as typed."""
        typed = incomplete.rpartition(",")[2] if self.several else incomplete
        before = incomplete[: len(incomplete) - len(typed)]
        return [CompletionItem(before + name) for name in _names(self.name) if name.startswith(typed)]


def json_flag(function: Function) -> Function:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object (schema plan/1).")(function)


def folder_option(function: Function) -> Function:
    """Add -o DIR."""
    return click.option(
        "-o", "--out", "folder", metavar="DIR", type=click.Path(file_okay=False), help="Also write files here."
    )(function)


def engine_options(function: Function) -> Function:
    """Add the flags that say how a model is cut over devices, in which number format, under which framework."""
    decorators = [
        click.option("--engine", default="vllm", show_default=True, help="Serving framework."),
        click.option("--engine-version", "framework_version", metavar="RELEASE", help="Its release; newest measured."),
        *(
            click.option(f"--{name}", type=click.IntRange(1), default=1, show_default=True, help=words)
            for name, words in CUTS.items()
        ),
        click.option(
            "--dtype", default="native", show_default=True, help="Number format of the weights; native: as published."
        ),
    ]
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def study_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add TRACE and the flags that say what is to be planned, and hand over the Study that they ask for."""
    from planners.commands.inputs import Flags, study_of

    @wraps(function)
    def on_study(**given: Any) -> None:
        flags = Flags(**{name: given.pop(name) for name in Flags.__slots__})
        function(study_of(flags), **given)

    decorators = (
        click.argument("trace", required=False),
        click.option("--model", type=Name("model"), metavar="NAME", help="Catalogue name, or a local config.json."),
        slo_option,
        click.option("--devices", type=Name("device", several=True), metavar="A,B,...", help="Devices to choose from."),
        click.option(
            "--kinds", metavar="KINDS", help="Prices: on-demand (by default), spot, reserved-1y or -3y, owned."
        ),
        click.option(
            "--limit", "limits", multiple=True, metavar="KEY=VALUE", help="A limit: usd_per_hour, power_w, zones, ..."
        ),
        click.option(
            "--class", "classes", multiple=True, metavar="NAME=RULE", help="A class: chat=input_tokens<2000; repeat."
        ),
        click.option(
            "--variants",
            multiple=True,
            metavar="KEY=VALUES",
            help="Engines: dtypes, kv_dtypes, dp, speculative=none,3:0.7.",
        ),
        click.option(
            "--keep", metavar="PLAN", help="A fleet that is there; --set keep.usd_per_change=100 for a change."
        ),
        click.option("--seed", type=int, metavar="N", help="Seed of whatever is drawn; 0 by default."),
        click.option("-f", "--file", "file", metavar="FILE", help="A plan.yaml; the one in this folder by default."),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a key of it."),
    )
    decorated: Callable[..., None] = on_study
    for decorate in reversed(decorators):
        decorated = decorate(decorated)
    return decorated


def slo_option(function: Function) -> Function:
    """Add --slo, repeatable."""
    return click.option(
        "--slo", "slo", multiple=True, metavar="PROMISE", help='A promise, as "ttft:p99<=2s"; "chat/..." for a class.'
    )(function)


def _names(kind: str) -> tuple[str, ...]:
    if kind == "device":
        from models import device

        return device.names()
    from models import llm

    return llm.names()
