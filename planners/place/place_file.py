"""The files of `plan place`: nodes in racks, stages of agents, groups of devices, experts, tenants; each checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from models.dtype import NATIVE
from planners.strict import strict
from planners.study import RackFacts

if TYPE_CHECKING:
    from planners.place.agents import HardwareClass, Network, Stage
    from planners.place.experts import Experts
    from planners.place.pipelines import Cluster
    from planners.place.placement import Node, Wanted
    from planners.place.tenants import Kind, Tenants
    from planners.plan import Plan

BYTES_PER_GB = 1e9
MS_PER_S = 1e3


@strict
@dataclass(frozen=True, slots=True)
class Racks:
    """Racks with their nodes, as in plan.yaml; which pools are urgent (0 first), and what runs on nodes already.

    Nodes are named RACK/DEVICE/NUMBER, counted from 1. With survives_zone no zone holds more of a pool than half.
    """

    racks: Mapping[str, RackFacts]
    priority: Mapping[str, int] = field(default_factory=dict)
    running: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    survives_zone: bool = False

    def nodes(self) -> "list[Node]":
        """Return the nodes; ValueError for what runs on a node that is not there."""
        from models import device
        from planners.place.placement import Node

        found = []
        for rack, facts in self.racks.items():
            for kind, sizes in facts.rack.nodes.items():
                watts = device.load(kind).tdp_w
                if watts is None and facts.power_w is not None:
                    raise ValueError(f"rack {rack} limits power, but the TDP of {kind!r} is not known")
                for number, size in enumerate(sizes, 1):
                    name = f"{rack}/{kind}/{number}"
                    running = self.running.get(name, {})
                    found.append(Node(name, kind, size, running, rack, facts.zone or rack, watts or 0.0))
        unknown = [name for name in self.running if name not in {node.name for node in found}]
        if unknown:
            raise ValueError(f"running: no node {unknown[0]!r}; known: {', '.join(node.name for node in found)}")
        return found

    def power_w(self) -> dict[str, float]:
        """Return the power of the racks that limit it."""
        return {rack: facts.power_w for rack, facts in self.racks.items() if facts.power_w is not None}

    def wanted(self, plan: "Plan") -> "list[Wanted]":
        """Return a plan's pools; ValueError for a priority of a pool that is not there."""
        from planners.place.placement import Wanted

        names = [pool.name for pool in plan.pools]
        unknown = [name for name in self.priority if name not in names]
        if unknown:
            raise ValueError(f"priority: no pool {unknown[0]!r}; known: {', '.join(names)}")
        found = []
        for pool in plan.pools:
            if pool.engine is None:
                raise ValueError(f"pool {pool.name!r} is toy hardware; it has no devices to place")
            most = (pool.replicas + 1) // 2 if self.survives_zone else None
            priority = self.priority.get(pool.name, 0)
            found.append(Wanted(pool.name, pool.device, pool.engine.devices, pool.replicas, priority, most))
        return found


@strict
@dataclass(frozen=True, slots=True)
class WayFacts:
    """How a stage runs on a class: a request's milliseconds, those that keep a replica busy, its cost, memory.

    Where no milliseconds are given the cost model tells them, and the memory.
    """

    ms: float | None = None
    busy_ms: float | None = None
    usd: float = 0.0
    memory_gb: float = 0.0


@strict
@dataclass(frozen=True, slots=True)
class StageFacts:
    """A stage: ways to run by class, and the megabytes that it passes on by following stage.

    For the cost model it computes prefill_tokens of a prompt, and writes decode_tokens after context_tokens more.
    """

    runs_on: Mapping[str, WayFacts]
    passes_on_mb: Mapping[str, float] = field(default_factory=dict)
    model: str | None = None
    prefill_tokens: int = 0
    decode_tokens: int = 0
    context_tokens: int = 0


@strict
@dataclass(frozen=True, slots=True)
class ClassFacts:
    """A class of hardware: what a replica costs and holds, and how many there are.

    For the cost model a replica is so many of a device, on which sequences decode together; where no price is given,
    that of the list is taken.
    """

    usd_per_hour: float | None = None
    most: int = 1_000
    memory_gb: float | None = None
    device: str | None = None
    devices: int = 1
    dtype: str = NATIVE
    sequences: int = 16


@strict
@dataclass(frozen=True, slots=True)
class Agents:
    """Stages of an agent, classes of hardware, what lies between them, the promise from end to end, and the rate."""

    stages: Mapping[str, StageFacts]
    classes: Mapping[str, ClassFacts]
    limit_ms: float
    requests_per_s: float = 0.0
    utilisation: float = 1.0
    latency_ms: float = 0.0
    gb_per_s: float = float("inf")
    usd_per_gb: float = 0.0

    def graph(self) -> "tuple[list[Stage], list[HardwareClass], Network]":
        """Return stages, classes and network as the planner takes them; ValueError for an unknown class."""
        from planners.place import agent_costs
        from planners.place.agents import HardwareClass, Network, Stage

        if not (self.limit_ms > 0 and self.requests_per_s >= 0 and 0 < self.utilisation <= 1 and self.gb_per_s > 0):
            raise ValueError("expected limit_ms and gb_per_s above 0, requests_per_s from 0, utilisation in (0, 1]")
        stages = []
        for name, facts in self.stages.items():
            unknown = [one for one in facts.runs_on if one not in self.classes]
            if unknown:
                raise ValueError(f"stages.{name}: no class {unknown[0]!r}; known: {', '.join(self.classes)}")
            ways = {one: agent_costs.way(name, facts, one, self.classes[one]) for one in facts.runs_on}
            stages.append(Stage(name, ways, {late: size * 1e6 for late, size in facts.passes_on_mb.items()}))
        classes = [
            HardwareClass(name, agent_costs.usd_per_hour(name, one), one.most, agent_costs.memory_bytes(one))
            for name, one in self.classes.items()
        ]
        network = Network(self.latency_ms / MS_PER_S, self.gb_per_s * BYTES_PER_GB, self.usd_per_gb / BYTES_PER_GB)
        return stages, classes, network


@strict
@dataclass(frozen=True, slots=True)
class GroupFacts:
    """So many devices of a kind in one NVLink domain, which act as one group; count such groups."""

    device: str
    devices: int = 1
    count: int = 1
    island: str = ""


@strict
@dataclass(frozen=True, slots=True)
class Layers:
    """A model over groups of devices: links in Gb/s within an island and between islands, and to users.

    sequences decode together in each group at a mean context of so many tokens, whose KV it holds beside its weights.
    """

    model: str
    groups: Mapping[str, GroupFacts]
    gbit_per_s: float = 10.0
    between_gbit_per_s: float | None = None
    sequences: int = 32
    context_tokens: int = 1024
    dtype: str = NATIVE

    def cluster(self) -> "tuple[Cluster, int]":
        """Return the groups with their speeds from the cost model, and the model's layers."""
        from planners.place.group_speeds import cluster_of

        return cluster_of(self)


@strict
@dataclass(frozen=True, slots=True)
class ExpertFacts:
    """An expert: by kind of query its quality, energy and delay, and what it draws by running, in joules a query."""

    quality: Mapping[str, float]
    energy_j: Mapping[str, float]
    delay_ms: Mapping[str, float]
    standby_j: float = 0.0


@strict
@dataclass(frozen=True, slots=True)
class Edge:
    """Experts at the edge, the shares of queries by kind, the budgets, and how many experts answer each query."""

    queries: Mapping[str, float]
    experts: Mapping[str, ExpertFacts]
    energy_j: float
    delay_ms: float
    answering: int = 1

    def choice(self) -> "Experts":
        """Return the experts as the planner takes them; ValueError names what an expert says nothing of."""
        import numpy as np

        from planners.place.experts import Experts

        if not (self.queries and self.experts and min(self.queries.values()) >= 0 and sum(self.queries.values()) > 0):
            raise ValueError("expected experts, and queries with shares from 0 on, not all 0")
        if not (self.energy_j > 0 and self.delay_ms > 0 and 1 <= self.answering <= len(self.experts)):
            raise ValueError(f"expected energy_j and delay_ms above 0, and answering from 1 to {len(self.experts)}")
        rows = {}
        for key in ("quality", "energy_j", "delay_ms"):
            for name, one in self.experts.items():
                missing = [query for query in self.queries if query not in getattr(one, key)]
                if missing:
                    raise ValueError(f"experts.{name}.{key}: nothing said of {missing[0]!r}")
            rows[key] = np.array([[getattr(one, key)[q] for one in self.experts.values()] for q in self.queries])
        shares = np.array(list(self.queries.values()))
        standby_j = np.array([one.standby_j for one in self.experts.values()])
        return Experts(rows["quality"], rows["energy_j"], rows["delay_ms"] / MS_PER_S, standby_j, shares / shares.sum())


@strict
@dataclass(frozen=True, slots=True)
class TenantFacts:
    """So many tenants alike, each with its memory and compute, which one replica has to hold whole."""

    memory_gb: float
    compute: float
    count: int = 1


@strict
@dataclass(frozen=True, slots=True)
class KindFacts:
    """A kind of replica: its price, memory and compute, in the unit of the tenants'."""

    usd_per_hour: float
    memory_gb: float
    compute: float


@strict
@dataclass(frozen=True, slots=True)
class Packed:
    """Tenants that cannot be divided, and the kinds of replicas to hold them."""

    tenants: Mapping[str, TenantFacts]
    replicas: Mapping[str, KindFacts]

    def sizes(self) -> "tuple[list[Tenants], list[Kind]]":
        """Return both as the planner takes them; ValueError for sizes that are not above 0."""
        from planners.place.tenants import Kind, Tenants

        for name, one in self.tenants.items():
            if not (one.memory_gb > 0 and one.compute > 0 and one.count >= 1):
                raise ValueError(f"tenants.{name}: memory_gb, compute and count must be above 0")
        for name, kind in self.replicas.items():
            if not (kind.usd_per_hour > 0 and kind.memory_gb > 0 and kind.compute > 0):
                raise ValueError(f"replicas.{name}: usd_per_hour, memory_gb and compute must be above 0")
        tenants = [Tenants(one.memory_gb, one.compute, one.count) for one in self.tenants.values()]
        return tenants, [Kind(kind.usd_per_hour, kind.memory_gb, kind.compute) for kind in self.replicas.values()]
