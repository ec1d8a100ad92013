"""`plan devices`: the devices of the catalogue, with what they can do and cost."""

from typing import TYPE_CHECKING

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import Name, json_flag
from planners.commands.tables import quantity, table

if TYPE_CHECKING:
    from models.device import Device


@click.group(invoke_without_command=True)
@click.pass_context
def devices(context: click.Context) -> None:
    """List devices, or show one."""
    if context.invoked_subcommand is None:
        context.invoke(list_devices, as_json=False)


@devices.command("list")
@json_flag
def list_devices(as_json: bool) -> None:
    """List every device of the catalogue."""
    from models import device, price

    rows = [["name", "kind", "memory GB", "TB/s", "bf16 TFLOP/s", "USD/h", "title"]]
    result = []
    for name in device.names():
        one = device.load(name)
        offer = price.load(name)
        bf16 = _peak(one, "bf16")
        result.append(
            {
                "name": name,
                "title": one.title,
                "kind": one.kind,
                "memory_bytes": one.memory_bytes,
                "bandwidth_bytes_per_s": one.bandwidth_bytes_per_s,
                "bf16_flops_per_s": bf16,
                "usd_per_hour": offer.usd_per_hour if offer else None,
                "price_provenance": offer.provenance if offer else None,
            }
        )
        usd = "-" if offer is None else f"{offer.usd_per_hour:.2f}" + ("?" if offer.provenance == "assumed" else "")
        memory, bandwidth = f"{one.memory_bytes / 1e9:.0f}", f"{one.bandwidth_bytes_per_s / 1e12:.2f}"
        rows.append([name, one.kind, memory, bandwidth, "-" if bf16 is None else f"{bf16 / 1e12:.0f}", usd, one.title])
    words = table(rows, right=[2, 3, 4, 5]) + "\n\nUSD/h on demand, the cheapest known offer; ? marks an assumed price."
    give(Answer("devices list", {}, result), as_json, words)


@devices.command("show")
@click.argument("name", type=Name("device"))
@json_flag
def show_device(name: str, as_json: bool) -> None:
    """Show one device of the catalogue, or of a TOML file of the same form."""
    from dataclasses import asdict

    from models import device, price

    one = device.load(name)
    offer = price.load(one.name)
    result = asdict(one) | {"price": asdict(offer) if offer else None}
    rows = [["", ""]]
    for key, value in result.items():
        if value not in (None, "", ()) and key not in ("note", "source", "price", "flops_per_s"):
            rows.append([key, quantity(value, 4) if isinstance(value, float) else str(value)])
    rows += [[f"{dtype} FLOP/s", quantity(peak, 4)] for dtype, peak in one.flops_per_s.items()]
    if offer:
        rows.append(["price", f"{offer.usd_per_hour:g} USD/h, {offer.provider} {offer.date} ({offer.provenance})"])
    rows += [["source", one.source], ["note", one.note or "-"]]
    give(Answer("devices show", {"name": name}, result), as_json, table(rows[1:]))


def _peak(one: "Device", dtype: str) -> float | None:
    try:
        return float(one.peak_flops_per_s(dtype))
    except ValueError:
        return None
