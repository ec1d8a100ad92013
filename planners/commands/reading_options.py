"""The flags that say how to read what a trace file leaves open, and the file read as they say."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from traces import Trace

Function = TypeVar("Function", bound=Callable[..., Any])
UNITS = ("s", "ms", "us", "ns")


def reading_options(function: Function) -> Function:
    """Add the flags that say how to read what a file leaves open; they arrive as one dict `reading`."""
    for option in reversed(READING):
        function = option(function)
    return function


READING = (
    click.option("--format", "form", metavar="NAME", help="Insist on a format instead of telling it by content."),
    click.option("--lenient", is_flag=True, help="Drop and count bad rows instead of stopping at the first."),
    click.option("--max-bad", "max_bad_fraction", type=float, default=0.001, help="Most bad rows, as a fraction."),
    click.option("--time-unit", type=click.Choice(UNITS), help="Unit of numeric times, where the format's is wrong."),
    click.option("--restarts", type=click.Choice(["error", "append", "sort"]), default="error",
                 help="What to do with files glued together."),
    click.option("--lengths-only", is_flag=True, help="Read token counts where times are absent."),
    click.option("--block-tokens", type=int, help="Tokens in a prefix block, where the format's number is wrong."),
    click.option("--context", type=click.Choice(["cumulative", "delta"]), help="Whether turns carry those before."),
    click.option("--rename", multiple=True, metavar="FROM=TO", help="Rename a column of the file; repeat for more."),
    click.option("--map", "map_file", type=click.Path(exists=True, dir_okay=False),
                 help="TOML that says which column (unit, constant) each of our fields is in."),
    click.option("--where", multiple=True, metavar="CONDITION",
                 help='Keep rows of which this holds, as "model=gpt-4" or "input_tokens<=4096"; repeat for more.'),
    click.option("--time-range", metavar="FROM,TO", help="Keep what arrives in these seconds after the first row."),
    click.option("--limit", type=int, help="Keep the first rows only."),
)  # fmt: skip


AS_THEY_ARE = ("max_bad_fraction", "time_unit", "restarts", "lengths_only", "block_tokens", "context", "limit")


def wishes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of `traces.read` that the reading flags stand for."""
    found = {name: options[name] for name in AS_THEY_ARE}
    pairs = [each.partition("=") for each in options["rename"]]
    if bad := [before for before, sign, _ in pairs if not sign]:
        raise click.UsageError(f"--rename {bad[0]!r}: expected FROM=TO")
    found["where"] = options["where"]
    if options["time_range"]:
        from traces.selection import time_range

        found["time_range"] = time_range(options["time_range"])
    found |= {"format": options["form"], "strict": not options["lenient"], "columns": None}
    found["rename"] = {before: after for before, _, after in pairs} or None
    if options["map_file"]:
        import tomllib

        found["columns"] = tomllib.loads(Path(options["map_file"]).read_text())
    return found


def changed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reading flags that were given, for the record."""
    default = {"max_bad_fraction": 0.001, "restarts": "error", "lenient": False, "lengths_only": False}
    default |= {"rename": (), "where": ()}
    return {name: value for name, value in options.items() if value not in (None, default.get(name))}


def read_file(file: str, options: Mapping[str, Any]) -> "Trace":
    """Return the trace in a file, read as the flags say; `sample` is the bundled one unless a file has that name."""
    from traces import reading

    if file == "sample" and not Path(file).exists():
        return reading.sample()
    return reading.read(file, **wishes(options))
