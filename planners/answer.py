"""What every command answers: one JSON object of one shape, numbers to 6 significant digits."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = "plan/1"
SIGNIFICANT_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a command: what it was given, what it found, what to be wary of, how long it took [CPU s]."""

    command: str
    inputs: Mapping[str, Any]
    result: Any
    warnings: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the object of schema plan/1: keys in a fixed order, 6 significant digits, null for what is no number.

        >>> print(Answer("demo", {}, {"usd": 1 / 3}).to_json().splitlines()[4].strip())
        "usd": 0.333333
        """
        content = {
            "schema": SCHEMA,
            "command": self.command,
            "inputs": self.inputs,
            "result": self.result,
            "warnings": list(self.warnings),
            "timings": self.timings,
        }
        return json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: numbers to 6 significant digits, tuples as lists, NaN and infinity null."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
    return value
