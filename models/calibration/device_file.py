"""The text of a device file that stands for a device: what it is, and what its user measured on it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models import device as devices
from models.device import Device

Table = Mapping[str, Any]


def with_scalars(device: Device, framework: str, version: str, scalars: Mapping[str, float], source: str) -> str:
    """Return the text of a device file with a framework's scalars, beside those of others that it has."""
    kept = [row for row in device.serving if (row["framework"], row.get("versions", "")) != (framework, version)]
    row = {"framework": framework, "versions": version, **scalars, "source": source}
    return _text(device, [*kept, row], device.operators)


def with_operators(device: Device, operators: Sequence[Table]) -> str:
    """Return the text of a device file with the scalars of some operators, beside those of others that it has."""
    new = {_key(row) for row in operators}
    return _text(device, device.serving, [*(row for row in device.operators if _key(row) not in new), *operators])


def _key(row: Table) -> tuple[str, str, str]:
    return row["op"], row["dtype"], row.get("kv_dtype", "")


def _text(device: Device, serving: Sequence[Table], operators: Sequence[Table]) -> str:
    path = Path(device.file) if device.file else devices.FOLDER / f"{device.name}.toml"
    head = path.read_text().split("\n[[")[0].rstrip()
    if not head.startswith("name = "):
        head = f'name = "{device.name}"\n{head}'
    lines = [head]
    for name, tables in (("serving", serving), ("operator", operators)):
        for table in tables:
            lines += ["", f"[[{name}]]", *(f"{key} = {_written(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _written(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else f"{value:.4g}"
