"""`plan completion`: lets the shell complete commands, devices and models."""

import click
from click.shell_completion import get_completion_class

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import json_flag

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@json_flag
def completion(shell: str, as_json: bool) -> None:
    """Print the script that completes `plan` in SHELL; bash: eval "$(plan completion bash)"."""
    from planners.cli import main

    found = get_completion_class(shell)
    assert found is not None
    script = found(main, {}, "plan", "_PLAN_COMPLETE").source()
    give(Answer("completion", {"shell": shell}, {"script": script}), as_json, script)
