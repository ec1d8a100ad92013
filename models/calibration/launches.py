"""How a benchmark's scripts launch the servers that its rows were measured on: launches.toml, by engine and model."""

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from models.closed_loop import Load, Scheduler

FACTS = Path(__file__).with_name("launches.toml")
FEW_CLIENTS = 16


@dataclass(frozen=True, slots=True)
class Launch:
    """What a script sets: tokens of a step and the KV dtype (None: the usual), memory, steps between two looks.

    budget_prompts is of servers set up for one load, where a step takes the tokens of so many prompts; with one_prompt
    it takes one beside a token of each client.
    front_request_s, front_token_s and steps_ahead stand before those of the framework. Prompts wait for up to
    wait_steps until a step is filled to wait_share. Unless it splits_attention, no rank has tokens of its own.
    """

    budget_tokens: int | None = None
    kv_dtype: str | None = None
    memory_fraction: float = 0.9
    poll_steps: tuple[int, int] = (1, 1)
    drafts_tokens: int = 0
    fuse_allreduce_rms: bool = False
    graph_tokens: int | None = None
    moe_backend: str = ""
    budget_prompts: float | None = None
    one_prompt: bool = False
    front_request_s: float | None = None
    front_token_s: float | None = None
    steps_ahead: int | None = None
    splits_attention: bool = True
    cuts_prompts: bool = True
    wait_steps: int = 0
    wait_share: float = 0.0

    def schedule(self, usual: Scheduler, load: Load) -> Scheduler:
        """Return how a scheduler so launched forms steps under a load."""
        budget_tokens = usual.budget_tokens
        if self.budget_prompts is not None:
            budget_tokens = min(budget_tokens, round(self.budget_prompts * load.input_tokens))
        if self.one_prompt:
            budget_tokens = min(budget_tokens, load.input_tokens + load.concurrency)
        found = replace(
            usual,
            budget_tokens=budget_tokens,
            poll_steps=self.poll_steps[load.concurrency >= FEW_CLIENTS],
            cuts_prompts=self.cuts_prompts,
            wait_steps=self.wait_steps,
            wait_tokens=self.wait_share * budget_tokens,
        )
        own = {name: getattr(self, name) for name in ("front_request_s", "front_token_s", "steps_ahead")}
        return replace(found, **{name: value for name, value in own.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Asked:
    """What a launch depends on, as measurement tables call it; the cut is (tp, ep), lengths (prompt, answer) tokens."""

    engine: str
    model: str
    device: str
    dtype: str
    cut: tuple[int, int]
    version: str = ""
    lengths: tuple[float, float] = (0, 0)


def find(asked: Asked) -> Launch:
    """Return how an engine of measurement tables was launched for a model; as it comes, where nothing is known."""
    fitting = [entry for entry in _facts()["launch"] if _fits(entry, asked)]
    return _launch(fitting[-1]) if fitting else Launch()


def generated(engine: str) -> Launch:
    """Return how an engine was launched whose settings a configurator wrote for the load to come."""
    own = [entry for entry in _facts()["generated"] if entry["engine"] == engine]
    return _launch(own[0]) if own else Launch()


def _launch(entry: dict[str, Any]) -> Launch:
    told = {name: value for name, value in entry.items() if name in Launch.__slots__}
    if "poll_steps" in told:
        told["poll_steps"] = tuple(told["poll_steps"])
    return Launch(**told)


def _fits(entry: dict[str, Any], asked: Asked) -> bool:
    return (
        entry["engine"] == asked.engine
        and any(asked.model.startswith(start) for start in entry.get("models", [""]))
        and asked.version in entry.get("versions", [asked.version])
        and asked.device in entry.get("devices", [asked.device])
        and asked.dtype in entry.get("dtypes", [asked.dtype])
        and asked.cut == tuple(entry.get("cut", asked.cut))
        and asked.cut[0] <= entry.get("most_tp", asked.cut[0])
        and asked.lengths == tuple(entry.get("lengths", asked.lengths))
    )


@cache
def _facts() -> dict[str, Any]:
    return tomllib.loads(FACTS.read_text())
