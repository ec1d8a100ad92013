"""`plan completion`: lets the shell complete commands, devices and models."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.option("--json", "as_json", is_flag=True, hidden=True)
def completion(shell: str, as_json: bool) -> None:
    """Print the script that completes `plan` in SHELL; bash: eval "$(plan completion bash)"."""
    from planners.cli import main

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "plan", "_PLAN_COMPLETE").source())
