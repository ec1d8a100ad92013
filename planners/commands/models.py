"""`plan models`: the language models of the catalogue, or any local config.json."""

from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import Name, json_flag
from planners.commands.tables import quantity, table

if TYPE_CHECKING:
    from models.llm import Llm


@click.group(invoke_without_command=True)
@click.pass_context
def models(context: click.Context) -> None:
    """List models, or show one or a config.json."""
    if context.invoked_subcommand is None:
        context.invoke(list_models, as_json=False)


@models.command("list")
@json_flag
def list_models(as_json: bool) -> None:
    """List every model of the catalogue."""
    from models import llm

    result = [_facts(llm.load(name)) for name in llm.names()]
    rows = [["name", "parameters", "active", "layers", "attention", "KV bytes/token", "context"]]
    for facts in result:
        counts = [quantity(facts["parameters"]), quantity(facts["active_parameters"]), str(facts["layers"])]
        kv_bytes, context = quantity(facts["kv_bytes_per_token"]), quantity(facts["context_tokens"])
        rows.append([str(facts["name"]), *counts, str(facts["attention"]), kv_bytes, context])
    give(Answer("models list", {}, result), as_json, table(rows, right=[1, 2, 3, 5, 6]))


@models.command("show")
@click.argument("name", type=Name("model"))
@json_flag
def show_model(name: str, as_json: bool) -> None:
    """Show one model: a catalogue name, a config.json, the folder that holds one, or a TOML file."""
    from dataclasses import asdict

    from models import llm

    one = llm.load(name)
    facts = _facts(one)
    shapes = {key: value for key, value in asdict(one).items() if value not in (0, "", None, False)}
    rows = [[key, quantity(value, 4) if isinstance(value, float) else str(value)] for key, value in facts.items()]
    rows += [[key, str(value)] for key, value in shapes.items() if key not in facts]
    give(Answer("models show", {"name": name}, facts | {"shapes": shapes}), as_json, table(rows))


def _facts(one: "Llm") -> dict[str, Any]:
    return {
        "name": one.name,
        "parameters": one.parameters,
        "active_parameters": one.active_parameters,
        "layers": one.layers,
        "attention": one.attention,
        "kv_bytes_per_token": one.kv_bytes_per_token("bf16"),
        "state_bytes_per_sequence": one.kv_fixed_bytes("bf16"),
        "weight_bytes_bf16": one.weight_bytes("bf16"),
        "context_tokens": one.context_tokens,
    }
