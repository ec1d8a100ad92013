"""How a benchmark's scripts launch the servers that its rows were measured on: launches.toml, by engine and model."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FACTS = Path(__file__).with_name("launches.toml")
FEW_CLIENTS = 16


@dataclass(frozen=True, slots=True)
class Launch:
    """What a script sets: tokens of a step and the KV dtype (None: the usual), memory, steps between two looks."""

    budget_tokens: int | None = None
    kv_dtype: str | None = None
    memory_fraction: float = 0.9
    poll_steps: tuple[int, int] = (1, 1)
    drafts_tokens: int = 0
    fuse_allreduce_rms: bool = False
    graph_tokens: int | None = None
    moe_backend: str = ""

    def polls(self, clients: float) -> int:
        """Return the steps between two looks of the scheduler at its requests, with so many clients."""
        return self.poll_steps[clients >= FEW_CLIENTS]


def find(engine: str, model: str, device: str, dtype: str, tp: int, ep: int) -> Launch:
    """Return how an engine of measurement tables was launched for a model; as it comes, where nothing is known."""
    asked = {"engine": engine, "device": device, "dtype": dtype, "cut": (tp, ep)}
    fitting = [entry for entry in _entries() if _fits(entry, asked, model)]
    if not fitting:
        return Launch()
    told: dict[str, Any] = {name: value for name, value in fitting[-1].items() if name in Launch.__slots__}
    if "poll_steps" in told:
        told["poll_steps"] = tuple(told["poll_steps"])
    return Launch(**told)


def _fits(entry: dict[str, Any], asked: dict[str, Any], model: str) -> bool:
    return (
        entry["engine"] == asked["engine"]
        and any(model.startswith(start) for start in entry.get("models", [""]))
        and asked["device"] in entry.get("devices", [asked["device"]])
        and asked["dtype"] in entry.get("dtypes", [asked["dtype"]])
        and asked["cut"] == tuple(entry.get("cut", asked["cut"]))
    )


@cache
def _entries() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = tomllib.loads(FACTS.read_text())["launch"]
    return entries
