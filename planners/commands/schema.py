"""`plan schema`: the JSON Schema of the files that people write."""

import json

import click


@click.command()
@click.argument("kind", type=click.Choice(["plan", "fleet", "portfolio"]), default="plan")
@click.option("--json", "as_json", is_flag=True, help="The same: a schema is JSON.")
def schema(kind: str, as_json: bool) -> None:
    """Print the JSON Schema of plan.yaml, of fleet.yaml, or of portfolio.yaml."""
    from pydantic import TypeAdapter

    from planners import study
    from planners.fleet_yaml.fleet_file import FleetFile
    from planners.sharing.portfolio_file import Studies

    found = study.schema() if kind == "plan" else TypeAdapter(FleetFile if kind == "fleet" else Studies).json_schema()
    click.echo(json.dumps(found, indent=1))
