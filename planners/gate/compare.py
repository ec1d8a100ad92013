"""Two or more answers side by side, and for each difference the inputs that explain it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planners.answer import SCHEMA

FIGURES = (
    *("usd_per_hour", "usd_per_hour_bound", "gap", "attainment"),
    *(f"slo.{metric}.{label}" for metric in ("ttft", "tpot", "e2e") for label in ("p50", "p90", "p99")),
    *("requests.arrived", "requests.finished", "requests.rejected"),
)
INPUTS = ("trace.identity", "trace.requests", "model", "slo", "devices", "prices", "kinds", "limits", "seed", "fleet")
ENOUGH = 1e-9


@dataclass(frozen=True, slots=True)
class Compared:
    """One plan, run or benchmark file: its name, inputs, fleet in words, and figures by dotted name."""

    name: str
    inputs: Mapping[str, Any]
    fleet: str
    figures: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class FigureRow:
    """One figure of every answer, and the relative change of each from the first."""

    figure: str
    values: tuple[float | None, ...]
    changes: tuple[float | None, ...]


def read(path: str | Path) -> Compared:
    """Return a plan.json, the --json answer of a run, or the result of `vllm bench serve`; ValueError for others."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        content = json.JSONDecoder().raw_decode(text.lstrip())[0]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    if isinstance(content, dict) and content.get("schema") == SCHEMA:
        return _answer(str(path), content)
    if isinstance(content, dict) and {"completed", "duration"} <= set(content):
        return _benchmark(str(path), content)
    raise ValueError(f"{path}:1:1: neither a plan, a run (schema {SCHEMA}) nor a result of vllm bench serve")


def rows(answers: Sequence[Compared]) -> Iterator[FigureRow]:
    """Yield every figure that any of the answers has."""
    for figure in FIGURES:
        values = tuple(each.figures.get(figure) for each in answers)
        if any(value is not None for value in values):
            yield FigureRow(figure, values, tuple(_change(values[0], value) for value in values))


def reasons(first: Compared, other: Compared) -> list[str]:
    """Return which inputs differ, in words; where none does, the fleet or the version is the reason."""
    found = []
    for name in INPUTS:
        was, now = _dig(first.inputs, name), _dig(other.inputs, name)
        if was != now and not (was is None or now is None):
            found.append(f"{name}: {_short(was)} became {_short(now)}")
    if first.fleet != other.fleet:
        found.append(f"fleet: {first.fleet} became {other.fleet}")
    same = all(_change(first.figures.get(name), other.figures.get(name)) in (None, 0.0) for name in FIGURES)
    if not found and not same:
        found.append("same inputs, same fleet: step times, prices or the version differ")
    return found


def _answer(name: str, content: Mapping[str, Any]) -> Compared:
    result = content["result"]
    pools = result.get("pools", ())
    fleet = " + ".join(f"{pool['replicas']} x {_engine(pool)}" for pool in pools)
    return Compared(name, content["inputs"], fleet, {figure: _number(_dig(result, figure)) for figure in FIGURES})


def _benchmark(name: str, content: Mapping[str, Any]) -> Compared:
    """Return a vLLM benchmark, whose latencies are in milliseconds and whose end to end is called e2el."""
    figures: dict[str, float | None] = {}
    for metric, theirs in (("ttft", "ttft"), ("tpot", "tpot"), ("e2e", "e2el")):
        for label in ("p50", "p90", "p99"):
            key = (
                f"median_{theirs}_ms"
                if label == "p50" and f"p50_{theirs}_ms" not in content
                else f"{label}_{theirs}_ms"
            )
            value = _number(content.get(key))
            figures[f"slo.{metric}.{label}"] = None if value is None else value / 1e3
    failed = content.get("failed", 0)
    figures["requests.finished"] = _number(content["completed"])
    figures["requests.arrived"] = _number(content["completed"] + failed)
    inputs = {"model": content.get("model_id"), "trace": {"requests": content.get("num_prompts")}}
    return Compared(name, inputs, "measured", figures)


def _engine(pool: Mapping[str, Any]) -> str:
    name = str(pool.get("name") or pool.get("engine") or pool.get("device"))
    return name.partition("/")[2] or name


def _dig(content: Any, dotted: str) -> Any:
    for key in dotted.split("."):
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _change(first: float | None, other: float | None) -> float | None:
    if first is None or other is None:
        return None
    if abs(other - first) <= ENOUGH * max(abs(first), abs(other)):
        return 0.0
    return other / first - 1 if first else None


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
