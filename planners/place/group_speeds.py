"""How fast a group of devices passes tokens through some of a model's layers, by the cost model.

A group is a tensor-parallel engine of the whole model, of which it holds the part of the layers that it has: decode
steps of so many sequences, their time in proportion to the layers held, and room in proportion as well.
"""

from typing import TYPE_CHECKING

import numpy as np

from models import device, llm
from models.engine import BYTES_PER_ACTIVATION, Engine, Settings
from models.estimate import StepCosts
from models.llm import Llm
from planners.place.pipelines import Cluster, Group

if TYPE_CHECKING:
    from planners.place.place_file import GroupFacts, Layers

MEMORY_FRACTION = Settings().memory_fraction
BITS_PER_BYTE = 8
BITS_PER_GBIT = 1e9
TOKEN_BYTES = 4


def cluster_of(asked: "Layers") -> tuple[Cluster, int]:
    """Return the groups with their speeds, links in tokens per second, and the model's layers.

    ValueError where a model cannot be cut over so many devices, or a group has no room for one layer.
    """
    model = llm.load(asked.model)
    groups, islands = [], []
    for name, facts in asked.groups.items():
        speeds = layer_speeds(model, facts, asked)
        for number in range(facts.count):
            groups.append(Group(name if facts.count == 1 else f"{name}-{number + 1}", speeds))
            islands.append(facts.island)
    near = asked.gbit_per_s * BITS_PER_GBIT / BITS_PER_BYTE
    far = near if asked.between_gbit_per_s is None else asked.between_gbit_per_s * BITS_PER_GBIT / BITS_PER_BYTE
    same = np.array([[one == other for other in islands] for one in islands])
    links = np.where(same, near, far) / (model.hidden * BYTES_PER_ACTIVATION)
    return Cluster(tuple(groups), links, near / TOKEN_BYTES), model.layers


def layer_speeds(model: Llm, facts: "GroupFacts", asked: "Layers") -> tuple[float, ...]:
    """Return the tokens per second through 1, 2, ... layers, as many as the group's memory holds with their KV."""
    if facts.devices < 1 or facts.count < 1:
        raise ValueError(f"a group must have at least 1 device, not {facts.devices}")
    if model.heads % facts.devices:
        raise ValueError(f"{model.name} has {model.heads} heads, which {facts.devices} devices do not divide")
    settings = Settings(max_num_seqs=asked.sequences)
    engine = Engine(
        model, device.load(facts.device), tp=facts.devices, dtype=model.format_of(asked.dtype), settings=settings
    )
    step_s = StepCosts(engine).decode(asked.sequences, asked.sequences * float(asked.context_tokens))
    kv_bytes = asked.sequences * asked.context_tokens * engine.kv_bytes_per_token_per_device
    room = engine.device.memory_bytes * MEMORY_FRACTION - engine.reserve_bytes
    most = int(model.layers * room / (engine.weight_bytes_per_device + kv_bytes))
    per_s = asked.sequences * model.layers / step_s
    return tuple(per_s / layers for layers in range(1, min(most, model.layers) + 1))
