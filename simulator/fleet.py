"""A fleet: pools of equal replicas behind one router."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from models.drafting import with_speculation
from models.engine import Engine, Limits
from models.framework import of_engine
from models.speculation import Speculation
from models.step import StepTable
from simulator.stores import check_tiers
from simulator.tier import Tier


@dataclass(frozen=True, slots=True)
class PricedEngine:
    """What the data plane knows of an Engine: its limits, its pipeline depth and the table of its step times."""

    name: str
    limits: Limits
    table: StepTable = field(repr=False)
    stages: int = 1
    lanes: int = 1
    ranks: int = 1  # of them, those that step together
    engine: Engine | None = None
    kv_bytes_per_token: float = 0.0  # over all devices of a replica
    layers: int = 1


def priced(engine: Engine, table: StepTable | None = None) -> PricedEngine:
    """Return an Engine with the table of its step times, built where it is not given, as the data plane wants it."""
    from models.tables import step_table

    kv_bytes_per_token = engine.kv_bytes_per_token_per_device * engine.tp * engine.pp
    table = step_table(engine) if table is None else table
    if engine.settings.speculation is not None:
        host_sequence_s = of_engine(engine).host_sequence_s
        table = with_speculation(table, engine.settings.speculation, engine.llm.layers, host_sequence_s)
    return PricedEngine(
        *(engine.name, engine.limits, table, engine.pp, engine.lanes),
        engine=engine,
        kv_bytes_per_token=kv_bytes_per_token,
        layers=engine.llm.layers,
        ranks=engine.dp if engine.steps_together else 1,
    )


def drafting(fleet: "Fleet", drafts: Speculation) -> "Fleet":
    """Return a fleet all of whose engines draft and verify, priced anew."""

    def changed(pool: "Pool") -> "Pool":
        engine = pool.engine.engine
        if engine is None:
            raise ValueError(f"pool {pool.engine.name} has no engine that could draft, only a table of step times")
        return replace(pool, engine=priced(replace(engine, settings=replace(engine.settings, speculation=drafts))))

    return replace(fleet, pools=tuple(map(changed, fleet.pools)))


ROLES = ("both", "prefill", "decode")


@dataclass(frozen=True, slots=True)
class Link:
    """The way of KV from a prefill lane to a decode lane; layer by layer, it overlaps with the last prefill step."""

    bytes_per_s: float = 50e9  # assumed: one 400 Gb/s adapter a replica
    latency_s: float = 1e-3
    is_layerwise: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """Equal replicas of one Engine; `speed` is the traffic one replica takes relative to other pools' [ratio].

    A replica does both prefill and decode, or hands each request over to a decode replica when its prefill is done.
    `variants` are other tables that the control plane may price its steps from: a slow device, a share of one.
    `twin_of` names a prefill pool: this decode pool's replicas are lanes of the same devices, and hold KV in the same
    memory. Twins' tables come in pairs, for steps alone and beside a busy twin: the engine's own is the first.
    `tiers` keep prefix blocks below its memory, the nearest first; what is found there is read "before" the step that
    needs it, "layer-wise" beside it, or while its request waits "outside" the batch.
    Free blocks with content are evicted by `eviction`, "lru" or "s3-fifo", from the tenant, or class, that holds most
    beyond its share of the memory, of `quotas`. `serves` are the names that a trace calls the pool's model by; none:
    all.
    """

    engine: PricedEngine
    replicas: int
    speed: float = 1.0
    usd_per_hour: float = 0.0  # of one replica
    role: str = "both"
    variants: tuple[StepTable, ...] = field(default=(), repr=False)
    twin_of: int | None = None
    tiers: tuple[Tier, ...] = ()
    fetches: str = "before"
    serves: tuple[str, ...] = ()
    eviction: str = "lru"
    quotas: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Pools behind a router; `shares[bucket][pool]` are the planned fractions that the router "planned" follows.

    `input_edges` are the lower edges, in prompt tokens, of the size buckets: a router sees no output length. Pools that
    only decode come last. A client gives up a request that is not finished after `patience_s`. The router "in-time"
    holds what it foresees of each prompt against ttft_limit_s. Where there are classes, of the trace's column
    slo_class, each has such buckets, one class after the other, and the requests of no such class come last.
    """

    pools: tuple[Pool, ...]
    router: str = "join-shortest-queue"
    input_edges: tuple[int, ...] = (0,)
    shares: tuple[tuple[float, ...], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    link: Link = field(default_factory=Link)
    patience_s: float = math.inf
    ttft_limit_s: float = math.inf
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        roles = [pool.role for pool in self.pools]
        unknown = [role for role in roles if role not in ROLES]
        if unknown:
            raise ValueError(f"unknown role {unknown[0]!r}; known: {', '.join(ROLES)}")
        if ("prefill" in roles) != ("decode" in roles):
            raise ValueError("pools that only prefill need pools that only decode, and these those")
        if roles != sorted(roles, key="decode".__eq__):
            raise ValueError("pools that only decode come after all others")
        for pool in self.pools:
            check_tiers(pool)
            if pool.twin_of is not None:
                _check_twins(pool, self.pools[pool.twin_of])
        decoding = [place for place, role in enumerate(roles) if role == "decode"]
        if self.router == "planned" and any(row[place] > 0 for row in self.shares for place in decoding):
            raise ValueError("pools that only decode take no share of the requests")
        empty = [pool.engine.name for pool in self.pools if pool.replicas < 1]
        if empty:
            raise ValueError(f"pool {empty[0]} has no replica; expected at least one")

    @property
    def replicas(self) -> int:
        """Return the replicas of all pools."""
        return sum(pool.replicas for pool in self.pools)

    @property
    def usd_per_hour(self) -> float:
        """Return what the fleet costs per hour."""
        return sum(pool.replicas * pool.usd_per_hour for pool in self.pools)

    def share_matrix(self) -> npt.NDArray[np.float64]:
        """Return the planned fractions [bucket, pool]; by capacity where none are planned."""
        if self.shares:
            return np.asarray(self.shares, np.float64)
        weights = np.array([pool.replicas * pool.speed for pool in self.pools if pool.role != "decode"])
        return np.tile(weights / weights.sum(), (len(self.input_edges) * (len(self.classes) + 1), 1))


def _check_twins(pool: Pool, other: Pool) -> None:
    """Raise ValueError where two pools cannot be lanes of the same devices."""
    roles = (other.role, pool.role)
    if roles != ("prefill", "decode"):
        raise ValueError(f"twins are a prefill pool and a decode pool after it, not {' and '.join(roles)}")
    if pool.replicas != other.replicas:
        raise ValueError(f"twins have as many replicas as each other, not {other.replicas} and {pool.replicas}")
    for twin in (pool, other):
        if len(twin.variants) % 2 == 0:
            raise ValueError(f"pool {twin.engine.name} needs tables in pairs: alone and beside a busy twin")
        if twin.engine.lanes > 1 or twin.engine.limits.caching:
            raise ValueError(f"pool {twin.engine.name} cannot be a twin: it has pipeline stages or a prefix cache")
