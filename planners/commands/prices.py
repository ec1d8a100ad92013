"""`plan prices`: the dated offers that plans are priced with, lists of others made ours, and prices pinned."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import Name, json_flag
from planners.commands.tables import table

if TYPE_CHECKING:
    from models.price import Price


class ShowsByDefault(click.Group):
    """A group that takes `plan prices h100-sxm` for `plan prices show h100-sxm`."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Put the default in front of arguments that name no command and ask for no help."""
        if not args or (args[0] not in self.commands and args[0] not in context.help_option_names):
            args = ["show", *args]
        return super().parse_args(context, args)


@click.group(cls=ShowsByDefault)
def prices() -> None:
    """List prices (plan prices [DEVICE]), import a list of others, or pin today's in plan.yaml."""


@prices.command("show")
@click.argument("device", required=False, type=Name("device"))
@click.option("--file", "file", metavar="FILE", help="A price list of your own, checked to its last row.")
@json_flag
def show(device: str | None, file: str | None, as_json: bool) -> None:
    """List all offers, or those of DEVICE, cheapest first; a plan takes the cheapest on demand."""
    from dataclasses import asdict

    from models import device as devices
    from models import price

    if device is not None:
        devices.load(device)
    offers = price.read(price.CATALOGUE if file is None else Path(file))
    chosen = _sorted(offer for offer in offers if device in (None, offer.device))
    answer = Answer("prices show", {"device": device, "file": file}, [asdict(each) for each in chosen])
    give(answer, as_json, _table(chosen))


@prices.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--out", required=True, metavar="FILE.csv", help="Where our list goes.")
@click.option("--map", "names", multiple=True, metavar="THEIRS=DEVICE[:COUNT]", help="What an accelerator or SKU is.")
@click.option("--provider", default="own", show_default=True, metavar="NAME", help="Whose list it is.")
@click.option("--date", metavar="YYYY-MM-DD", help="Of when it is; today where nothing is said.")
@json_flag
def import_list(file: str, out: str, names: tuple[str, ...], provider: str, date: str | None, as_json: bool) -> None:
    """Read FILE, a SkyPilot catalogue (vms.csv) or FOCUS rows of a bill or contract, and write a list of our form."""
    from datetime import UTC, datetime

    from planners.offers import price_lists

    found = price_lists.imported(
        Path(file),
        dict(map(price_lists.naming, names)),
        provider,
        date or datetime.now(UTC).date().isoformat(),
    )
    if not found.offers:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in found.left_out.items())
        raise ValueError(f"{file}: no row is an offer of a known device ({reasons}); --map names them")
    offers = _sorted(found.offers)
    Path(out).write_text(price_lists.text_of(offers), encoding="utf-8")
    result = {
        "out": out,
        "offers": len(offers),
        "devices": sorted({offer.device for offer in offers}),
        "rows_read": found.rows_read,
        "left_out": found.left_out,
    }
    lines = [f"{out}: {len(offers)} offers of {len(result['devices'])} devices, from {found.rows_read} rows"]  # type: ignore[arg-type]
    lines += [f"left out, {reason}: {count}" for reason, count in sorted(found.left_out.items())]
    give(Answer("prices import", {"file": file, "map": names, "provider": provider}, result), as_json, "\n".join(lines))


@prices.command("pin")
@click.argument("devices", nargs=-1, type=Name("device"))
@click.option("-f", "--file", "file", default="plan.yaml", show_default=True, metavar="FILE", help="The plan.yaml.")
@click.option("--list", "price_list", metavar="FILE.csv", help="A price list of your own instead of ours.")
@json_flag
def pin(devices: tuple[str, ...], file: str, price_list: str | None, as_json: bool) -> None:
    """Write the prices of DEVICES (those of plan.yaml, else the ten default ones) into plan.yaml, to stay so."""
    from models import price
    from planners import study
    from planners.offers import price_lists
    from planners.offers.engines import DEFAULT_DEVICES

    asked = devices or study.read(file).devices or DEFAULT_DEVICES
    found = {name: price.load(name, path=price_list) for name in asked}
    known = {name: offer for name, offer in found.items() if offer is not None}
    if not known:
        raise ValueError(f"{price_list or 'the price list'} has no on-demand price of {', '.join(asked)}")
    latest = max(offer.date for offer in known.values())
    usd = {name: offer.usd_per_hour for name, offer in known.items()}
    whose = Path(price_list).name if price_list else "our list"
    note = f"pinned: the cheapest on demand of {whose}" + (f", as of {latest}" if latest else "")
    text = price_lists.pinned(Path(file).read_text(encoding="utf-8"), usd, note)
    Path(file).write_text(text, encoding="utf-8")
    study.read(file)
    warnings = tuple(f"{name} has no on-demand price and is not pinned" for name in asked if name not in known)
    words = "\n".join([f"{file} now holds", *(f"  {name}  {value:.6g} USD/h" for name, value in sorted(usd.items()))])
    give(Answer("prices pin", {"file": file, "list": price_list}, usd, warnings), as_json, words)


def _sorted(offers: Any) -> "list[Price]":
    return sorted(
        offers,
        key=lambda offer: (offer.device, offer.kind, offer.usd_per_hour, offer.provider, offer.instance, offer.region),
    )


def _table(offers: "list[Price]") -> str:
    rows = [["Device", "USD/h", "Kind", "Provider", "Instance", "Date", ""]]
    for offer in offers:
        assumed = "assumed" if offer.provenance == "assumed" else ""
        usd = f"{offer.usd_per_hour:.4g}"
        rows.append([offer.device, usd, offer.kind, offer.provider, offer.instance or "-", offer.date or "-", assumed])
    return table(rows, [1])
