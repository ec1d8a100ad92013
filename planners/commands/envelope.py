"""Handing an answer over: as JSON or in words; results alone on stdout, everything else on stderr."""

import click

from planners.answer import Answer


def give(answer: Answer, as_json: bool, words: str = "") -> None:
    """Print the answer to stdout: as JSON, or the words; its warnings go to stderr as words."""
    if as_json:
        click.echo(answer.to_json())
        return
    click.echo(words)
    for warning in answer.warnings:
        note(f"warning: {warning}")


def note(text: str) -> None:
    """Say something on stderr."""
    click.echo(text, err=True)
