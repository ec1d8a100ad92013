"""A fleet: pools of equal replicas behind one router."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from models.engine import Engine, Limits
from models.step import StepTable


@dataclass(frozen=True, slots=True)
class PricedEngine:
    """What the data plane knows of an Engine: its limits, its pipeline depth and the table of its step times."""

    name: str
    limits: Limits
    table: StepTable = field(repr=False)
    stages: int = 1
    lanes: int = 1
    engine: Engine | None = None


def priced(engine: Engine) -> PricedEngine:
    """Return an Engine with the table of its step times, as the data plane wants it."""
    from models.tables import step_table

    return PricedEngine(engine.name, engine.limits, step_table(engine), engine.pp, engine.lanes, engine)


@dataclass(frozen=True, slots=True)
class Pool:
    """Equal replicas of one Engine; `speed` is the traffic one replica takes relative to other pools' [ratio]."""

    engine: PricedEngine
    replicas: int
    speed: float = 1.0
    usd_per_hour: float = 0.0  # of one replica


@dataclass(frozen=True, slots=True)
class Fleet:
    """Pools behind a router; `shares[bucket][pool]` are the planned fractions that the router "planned" follows.

    `input_edges` are the lower edges, in prompt tokens, of the size buckets: a router sees no output length.
    """

    pools: tuple[Pool, ...]
    router: str = "join-shortest-queue"
    input_edges: tuple[int, ...] = (0,)
    shares: tuple[tuple[float, ...], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

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
        weights = np.array([pool.replicas * pool.speed for pool in self.pools])
        return np.tile(weights / weights.sum(), (len(self.input_edges), 1))
