"""`plan prices`: the dated offers that plans are priced with."""

from pathlib import Path

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import Name, json_flag
from planners.commands.tables import table


@click.command()
@click.argument("device", required=False, type=Name("device"))
@click.option("--file", "file", metavar="FILE", help="A price list of your own, checked to its last row.")
@json_flag
def prices(device: str | None, file: str | None, as_json: bool) -> None:
    """List all offers, or those of DEVICE, cheapest first; a plan takes the cheapest on demand."""
    from dataclasses import asdict

    from models import device as devices
    from models import price

    if device is not None:
        devices.load(device)
    offers = price.read(price.CATALOGUE if file is None else Path(file))
    chosen = sorted(
        (offer for offer in offers if device in (None, offer.device)),
        key=lambda offer: (offer.device, offer.kind, offer.usd_per_hour, offer.provider, offer.instance, offer.region),
    )
    rows = [["Device", "USD/h", "Kind", "Provider", "Instance", "Date", ""]]
    for offer in chosen:
        assumed = "assumed" if offer.provenance == "assumed" else ""
        usd = f"{offer.usd_per_hour:.4g}"
        rows.append([offer.device, usd, offer.kind, offer.provider, offer.instance or "-", offer.date or "-", assumed])
    give(
        Answer("prices", {"device": device, "file": file}, [asdict(each) for each in chosen]), as_json, table(rows, [1])
    )
