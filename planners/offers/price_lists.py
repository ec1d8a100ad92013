"""Price lists of others made ours: SkyPilot catalogues, FOCUS rows of a bill; and prices pinned in plan.yaml."""

import csv
import io
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from models import device
from models.price import COLUMNS, Price
from planners.exports.deployment import ACCELERATORS

SKY = frozenset({"acceleratorname", "acceleratorcount", "price"})
FOCUS = frozenset({"skuid", "pricingunit", "billingcurrency"})
FOCUS_PRICES = ("contractedunitprice", "listunitprice")  # what was agreed before what is asked of anybody
HOURS = {"hour", "hours", "hrs", "hr", "h"}


@dataclass(frozen=True, slots=True)
class Imported:
    """What a foreign list gave: offers, how many rows were read, and those left out by reason."""

    offers: tuple[Price, ...]
    rows_read: int
    left_out: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Naming:
    """What a name of a foreign list is: a device, and how many of them its price is for."""

    device: str
    count: int | None = None


def imported(path: Path, names: Mapping[str, Naming], provider: str, date: str) -> Imported:
    """Return the offers in a foreign price list; names say what its accelerators or SKUs are, before our own table.

    ValueError names the file, line and column of a bad cell, or the columns of the lists that are known.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
        columns = set(reader.fieldnames)
        rows = [(reader.line_num, {name: (cell or "").strip() for name, cell in row.items()}) for row in reader]
    if columns >= SKY:
        read = _sky_rows
    elif columns >= FOCUS and columns & set(FOCUS_PRICES):
        read = _focus_rows
    else:
        known = f"{', '.join(sorted(SKY))} (SkyPilot), or {', '.join(sorted(FOCUS))} and a unit price (FOCUS)"
        raise ValueError(f"{path}:1:1: no known price list; expected the columns {known}")
    left_out: Counter[str] = Counter()
    offers = tuple(read(path, rows, {**sky_names(), **names}, (provider, date), left_out))
    return Imported(offers, len(rows), dict(left_out))


def sky_names() -> dict[str, Naming]:
    """Return the devices that SkyPilot's accelerator names stand for; of several, the first of our table."""
    table = tomllib.loads(ACCELERATORS.read_text(encoding="utf-8"))["devices"]
    found: dict[str, Naming] = {}
    for name, facts in table.items():
        if "sky" in facts:
            found.setdefault(facts["sky"], Naming(name))
    return found


def naming(text: str) -> tuple[str, Naming]:
    """Return what a text like "p5.48xlarge=h100-sxm:8" says; ValueError says what would do.

    >>> naming("p5.48xlarge=h100-sxm:8")
    ('p5.48xlarge', Naming(device='h100-sxm', count=8))
    """
    found = re.fullmatch(r"(?P<theirs>.+)=(?P<device>[^=:]+)(:(?P<count>[1-9][0-9]*))?", text.strip())
    if found is None:
        raise ValueError(f"cannot read {text!r}; expected THEIRS=DEVICE, or THEIRS=DEVICE:COUNT for several")
    return found["theirs"], Naming(device.load(found["device"]).name, int(found["count"]) if found["count"] else None)


def text_of(offers: Iterable[Price]) -> str:
    """Return offers as the CSV that `plan prices --file` and ours are."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(offer) for offer in offers)
    return text.getvalue()


def pinned(text: str, prices: Mapping[str, float], note: str) -> str:
    """Return a plan.yaml whose `prices` are these, the rest of it as it was, comments included."""
    block = [f"prices:  # {note}", *(f"  {name}: {usd:.6g}" for name, usd in sorted(prices.items()))]
    lines = text.splitlines()
    start = next((row for row, line in enumerate(lines) if re.match(r"prices\s*:", line)), None)
    if start is None:
        return "\n".join([*lines, *([""] if lines and lines[-1].strip() else []), *block]) + "\n"
    end = start + 1
    while end < len(lines) and re.match(r"\s+\S", lines[end]):
        end += 1
    return "\n".join([*lines[:start], *block, *lines[end:]]) + "\n"


Rows = Sequence[tuple[int, Mapping[str, str]]]


def _sky_rows(
    path: Path, rows: Rows, names: Mapping[str, Naming], about: tuple[str, str], left_out: Counter[str]
) -> Iterable[Price]:
    """The Price of a SkyPilot row is that of the whole machine."""
    for line, row in rows:
        theirs = row["acceleratorname"]
        if not theirs:
            left_out["no accelerator"] += 1
            continue
        named = names.get(theirs)
        if named is None:
            left_out[f"unknown accelerator {theirs}"] += 1
            continue
        count = _number(path, line, "AcceleratorCount", row["acceleratorcount"])
        if not count or count % 1:
            left_out["a part of an accelerator"] += 1
            continue
        for kind, column in (("on-demand", "price"), ("spot", "spotprice")):
            usd = _number(path, line, column, row.get(column, ""))
            if usd:
                machine = row.get("instancetype", ""), row.get("region", "")
                yield _offer(path, named.device, usd / count, kind, about, machine, int(count))


def _focus_rows(
    path: Path, rows: Rows, names: Mapping[str, Naming], about: tuple[str, str], left_out: Counter[str]
) -> Iterable[Price]:
    for line, row in rows:
        named = names.get(row["skuid"])
        if named is None:
            left_out["SKU that --map does not name"] += 1
        elif row["pricingunit"].lower() not in HOURS:
            left_out[f"priced by {row['pricingunit'] or 'nothing'}, not by hours"] += 1
        elif row["billingcurrency"].upper() != "USD":
            raise ValueError(f"{path}:{line}:1: BillingCurrency is {row['billingcurrency']!r}; expected USD")
        else:
            column = next(name for name in FOCUS_PRICES if row.get(name))
            usd, count = _number(path, line, column, row[column]), named.count or 1
            kind = "spot" if row.get("pricingcategory", "").lower() in ("dynamic", "spot") else "on-demand"
            if usd:
                yield _offer(
                    path, named.device, usd / count, kind, about, (row["skuid"], row.get("regionid", "")), count
                )


def _offer(
    path: Path, name: str, usd: float, kind: str, about: tuple[str, str], machine: tuple[str, str], count: int
) -> Price:
    provider, date = about
    instance, region = machine
    return Price(name, round(usd, 6), kind, provider, region, instance, count, date, "listed", path.name)


def _number(path: Path, line: int, column: str, cell: str) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise ValueError(f"{path}:{line}:1: {column} is {cell!r}; expected a number from 0 on")
    return value or None
