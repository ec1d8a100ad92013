"""Windows as plain values that can be kept, and back."""

from dataclasses import fields
from typing import Any

import numpy as np

from planners.bounds.windows import Row


def row_values(row: Row) -> dict[str, Any]:
    """Return a row as plain values by the names of its fields."""
    values = {one.name: getattr(row, one.name) for one in fields(row)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def row_told(values: dict[str, Any]) -> Row:
    """Return the row that row_values described."""
    kept: dict[str, Any] = {
        name: (np.array(value) if name == "power" else _tuples(value)) for name, value in values.items()
    }
    return Row(**kept)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
