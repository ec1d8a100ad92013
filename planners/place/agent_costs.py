"""What a stage of an agent takes on a class of hardware: as written down, or by the cost model of its engine.

A prompt is computed alone in the largest steps there are, an answer written among as many sequences as the class
decodes together, which share its replica.
"""

import math
from typing import TYPE_CHECKING

from models import device, llm, price
from models.engine import Engine, Settings
from models.estimate import StepCosts
from planners.place.agents import Way

if TYPE_CHECKING:
    from planners.place.place_file import ClassFacts, StageFacts

BYTES_PER_GB = 1e9
MS_PER_S = 1e3


def way(name: str, stage: "StageFacts", on: str, hardware: "ClassFacts") -> Way:
    """Return how a stage runs on a class; ValueError names what is needed to tell."""
    facts = stage.runs_on[on]
    if facts.ms is not None:
        busy_s = None if facts.busy_ms is None else facts.busy_ms / MS_PER_S
        return Way(facts.ms / MS_PER_S, busy_s, facts.usd, facts.memory_gb * BYTES_PER_GB)
    if stage.model is None or hardware.device is None or stage.prefill_tokens + stage.decode_tokens <= 0:
        needed = "ms, or a model with prefill_tokens or decode_tokens on a class with a device"
        raise ValueError(f"stages.{name}: nothing tells what it takes on {on!r}: expected {needed}")
    if min(hardware.devices, hardware.sequences) < 1:
        raise ValueError(f"classes.{on}: devices and sequences must be at least 1")
    settings = Settings(max_num_seqs=hardware.sequences)
    found = device.load(hardware.device)
    model = llm.load(stage.model)
    dtype = model.format_of(hardware.dtype)
    engine = Engine(model, found, tp=hardware.devices, dtype=dtype, settings=settings)
    costs = StepCosts(engine)
    prefill_s, decode_s = _prefill_s(costs, stage.prefill_tokens), _decode_s(costs, stage, hardware.sequences)
    weight_bytes = engine.weight_bytes_per_device * engine.devices
    return Way(prefill_s + decode_s, prefill_s + decode_s / hardware.sequences, facts.usd, weight_bytes)


def usd_per_hour(name: str, hardware: "ClassFacts") -> float:
    """Return what a replica costs: as written, else the list's price of its devices; free where it has none."""
    if hardware.usd_per_hour is not None or hardware.device is None:
        return hardware.usd_per_hour or 0.0
    listed = price.load(hardware.device)
    if listed is None:
        raise ValueError(f"classes.{name}: {hardware.device!r} has no on-demand price; give usd_per_hour")
    return listed.usd_per_hour * hardware.devices


def memory_bytes(hardware: "ClassFacts") -> float:
    """Return what a replica holds: as written, else the memory of its devices; without end where neither is known."""
    if hardware.memory_gb is not None:
        return hardware.memory_gb * BYTES_PER_GB
    if hardware.device is None:
        return math.inf
    return device.load(hardware.device).memory_bytes * hardware.devices * Settings().memory_fraction


def _prefill_s(costs: StepCosts, tokens: int) -> float:
    most = costs.engine.settings.max_num_batched_tokens
    return sum(costs.prefill(0, min(most, tokens - past), float(past)) for past in range(0, tokens, most))


def _decode_s(costs: StepCosts, stage: "StageFacts", sequences: int) -> float:
    if not stage.decode_tokens:
        return 0.0
    mean = stage.context_tokens + stage.prefill_tokens + stage.decode_tokens / 2
    return stage.decode_tokens * costs.decode(sequences, sequences * mean)
