"""The `plan` command: lists its commands without importing them, and turns every error into words and an exit code."""

import importlib
import importlib.util
from typing import Any

import click

COMMANDS = {
    "init": ("planners.commands.init:init", "Write a commented plan.yaml to start from."),
    "fleet": ("planners.commands.fleet:fleet", "Find the cheapest fleet that serves a trace within its promises."),
    "simulate": ("planners.commands.simulate:simulate", "Replay a trace on a given fleet."),
    "estimate": ("planners.commands.estimate:estimate", "Estimate what steps and requests take on an engine."),
    "calibrate": ("planners.commands.calibrate:calibrate", "Fit the cost model to benchmark files."),
    "validate": ("planners.commands.validate:validate", "Compare predictions with measurements."),
    "whatif": ("planners.commands.whatif:whatif", "Plan again under other rates, prices, promises and devices."),
    "schedule": ("planners.commands.schedule:schedule", "Schedule a week: a reserved base, the rest by the hour."),
    "regret": ("planners.commands.regret:regret", "Choose a plan when the future is one of several."),
    "portfolio": ("planners.commands.portfolio:portfolio", "Plan fleets of several models within shared limits."),
    "regions": ("planners.commands.regions:regions", "Choose whose requests go to which region, and the fleets."),
    "place": ("planners.commands.place:place", "Place replicas, agents' stages, layers, tenants or experts."),
    "compare": ("planners.commands.compare:compare", "Show plans, runs and benchmark files side by side."),
    "lock": ("planners.commands.lock:lock", "Lock the decision of a plan in plan.lock.json."),
    "check": ("planners.commands.check:check", "Check locked decisions against today's; 3 means drift."),
    "report": ("planners.commands.report:report", "Write an offline HTML page about a plan."),
    "trace": ("planners.commands.trace:trace", "Write the timeline of a replay for Perfetto."),
    "export": ("planners.commands.export:export", "Write a plan as Kubernetes objects, Helm values or command lines."),
    "traces": ("planners.commands.traces:traces", "Describe, convert, transform and generate traces."),
    "study": ("planners.commands.study:study", "Put the claims of published serving systems to the test."),
    "devices": ("planners.commands.devices:devices", "List devices, or show one."),
    "models": ("planners.commands.models:models", "List models, or show one or a config.json."),
    "prices": (
        "planners.commands.prices:prices",
        "List prices, import lists of others, pin them in plan.yaml.",
    ),
    "explain": ("planners.commands.explain:explain", "Explain a word of an answer, or why a plan is as it is."),
    "schema": ("planners.commands.schema:schema", "Print the JSON Schema of plan.yaml or fleet.yaml."),
    "doctor": ("planners.commands.doctor:doctor", "Check versions, solver and kernel cache."),
    "completion": ("planners.commands.completion:completion", "Let the shell complete devices and models."),
}

OK, FAILED, BAD_INPUT, DRIFT, INTERRUPTED = 0, 1, 2, 3, 130


class Failure(click.ClickException):
    """An error that ends the command with words on stderr and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]


class LazyGroup(click.Group):
    """A group that knows its commands by place and imports one only to run it."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of the commands that are installed, in the order of the table."""
        return [name for name, (place, _) in COMMANDS.items() if _is_installed(place)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Import a command by name; None where there is no such command."""
        if name not in self.list_commands(context):
            return None
        module, attribute = COMMANDS[name][0].split(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands from what the table above says of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(context)])

    def resolve_command(self, context: click.Context, args: list[str]) -> Any:
        """Find the command, or name the nearest one there is."""
        name = args[0]
        if name not in self.list_commands(context) and not name.startswith("-"):
            import difflib

            known = self.list_commands(context)
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
            raise click.UsageError(f"no such command {name!r}{hint}", context)
        return super().resolve_command(context, args)

    def invoke(self, context: click.Context) -> Any:
        """Run the command; bad input ends with 2, what cannot be done with 1, an interruption with 130."""
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            raise Failure("interrupted", INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            raise Failure(_words(error), BAD_INPUT) from error
        except RuntimeError as error:
            if isinstance(error, click.exceptions.Exit | click.exceptions.Abort):
                raise
            raise Failure(str(error), FAILED) from error


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=lambda *args: _show_version(*args))
def main() -> None:
    """Find the cheapest mix of accelerators that serves your traffic within your latency promises.

    Start with `plan fleet --model llama-3.1-8b --slo "ttft:p99<=2s" --slo "tpot:p99<=80ms"`: it plans for the
    bundled sample trace. Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 no such fleet or
    failure, 2 bad input, 3 drift found by a check, 130 interrupted.
    """


def _show_version(context: click.Context, option: click.Parameter, is_asked: bool) -> None:
    """Print the version and end."""
    if not is_asked or context.resilient_parsing:
        return
    from importlib import metadata

    try:
        version = metadata.version("fleetplan")
    except metadata.PackageNotFoundError:
        version = "of a source tree that is not installed"
    click.echo(f"plan, version {version}")
    context.exit()


def _is_installed(place: str) -> bool:
    return importlib.util.find_spec(place.split(":")[0]) is not None


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
