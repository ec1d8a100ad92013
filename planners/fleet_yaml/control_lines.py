"""What a fleet.yaml may say under control: routing, scaling, migration, hand-over, failures, sight, sessions, tools."""

from dataclasses import dataclass, field

from planners.fleet_yaml.fleet_fabric import FabricLine
from planners.strict import strict

Setting = bool | int | float | str | list[float]


@strict
@dataclass(frozen=True, slots=True)
class RetriesLine:
    """Clients come again so many times, after first_s, then factor times longer each time."""

    attempts: int = 3
    first_s: float = 0.5
    factor: float = 2.0
    seed: int = 0


@strict
@dataclass(frozen=True, slots=True)
class TimeOutsLine(RetriesLine):
    """Clients that have waited wait_s in a queue hang up, and come again."""

    wait_s: float = 10.0


@strict
@dataclass(frozen=True, slots=True)
class RoutingLine:
    """A router of the control plane by name, and its settings; retries are of those that it turns away."""

    name: str
    settings: dict[str, Setting] = field(default_factory=dict)
    retries: RetriesLine | None = None


@strict
@dataclass(frozen=True, slots=True)
class SchedulerLine:
    """A scheduler of every lane by name, and its settings, times as NAME_s; such lanes take nothing else of control.

    What its settings leave open is as the engine's limits say; ttft promises of the file are its deadlines.
    """

    name: str
    settings: dict[str, bool | int | float | str] = field(default_factory=dict)


@strict
@dataclass(frozen=True, slots=True)
class SpotLine:
    """Replicas are taken away at random, so often per replica and hour, after a notice."""

    evictions_per_hour: float
    notice_s: float = 30.0
    seed: int = 0


@strict
@dataclass(frozen=True, slots=True)
class AutoscaleLine:
    """A pool that is scaled; its replicas are the most there can be.

    Without startup_s a replica takes what pulling, loading, capturing and warming up take. least 0 scales to nothing.
    A replica that leaves lets what it runs end (drain: wait) or moves it, over migration's link or the fabric (move).
    """

    policy: str
    pool: int = 0
    settings: dict[str, Setting] = field(default_factory=dict)
    metric: str = "concurrency"
    every_s: float = 10.0
    initial: int = 1
    least: int = 1
    most: int | None = None
    startup_s: float | None = None
    drain: str = "wait"
    spot: SpotLine | None = None


@strict
@dataclass(frozen=True, slots=True)
class RebalanceLine:
    """The last of the longest queue goes to a shorter one of its model while they differ by least_gap."""

    every_s: float = 1.0
    least_gap: int = 2


@strict
@dataclass(frozen=True, slots=True)
class FlipLine:
    """Decode lanes prefill while more than high_tokens of prompts wait per lane that does; below low_tokens, not."""

    high_tokens: float
    low_tokens: float
    every_s: float = 1.0


@strict
@dataclass(frozen=True, slots=True)
class MigrationLine:
    """Requests move from replicas below a freeness to replicas above another, over a link of their own or the fabric.

    KV that has not come in patience_s is computed again.
    """

    low: float = 10.0
    high: float = 60.0
    every_s: float = 0.1
    bytes_per_s: float = 8e9
    handshake_s: float = 0.02
    patience_s: float | None = None


@strict
@dataclass(frozen=True, slots=True)
class HandOverLine:
    """KV goes from prefill replicas to the freest decode replica over the fabric, in grains of this kind."""

    grain: str = "whole"
    hides_bytes_per_s: float = 0.0
    patience_s: float | None = None


@strict
@dataclass(frozen=True, slots=True)
class SharesLine:
    """The shares of prefill and decode on devices that they have in common follow the promises that are missed."""

    ttft_s: float
    tpot_s: float
    every_s: float = 5.0


@strict
@dataclass(frozen=True, slots=True)
class StragglerLine:
    """A lane whose steps are priced from one of its pool's variants for a while."""

    lane: int
    from_s: float
    until_s: float
    variant: int = 1


@strict
@dataclass(frozen=True, slots=True)
class ToolsLine:
    """Calls between the steps of a closed loop take one of so many workers; rule says what becomes of KV meanwhile."""

    workers: int | None = None
    rule: str = "leave"


@strict
@dataclass(frozen=True, slots=True)
class FailuresLine:
    """Replicas of a pool, or of all, that fail and come back at random."""

    up_s: float
    down_s: float
    pool: int | None = None
    seed: int = 0


@strict
@dataclass(frozen=True, slots=True)
class SightLine:
    """How old and how wrong what policies see is, and how long a decision takes."""

    age_s: float = 0.0
    noise: float = 0.0
    decision_s: float = 0.0
    seed: int = 0


@strict
@dataclass(frozen=True, slots=True)
class ControlLines:
    """What decides in a fleet; closed_loop lets turns and steps come after those they follow from."""

    routing: RoutingLine | None = None
    autoscale: tuple[AutoscaleLine, ...] = ()
    migration: MigrationLine | None = None
    failures: tuple[FailuresLine, ...] = ()
    sight: SightLine = field(default_factory=SightLine)
    closed_loop: bool = False
    fabric: FabricLine | None = None
    hand_over: HandOverLine | None = None
    shares: SharesLine | None = None
    stragglers: tuple[StragglerLine, ...] = ()
    tools: ToolsLine | None = None
    scheduler: SchedulerLine | None = None
    rebalance: RebalanceLine | None = None
    flip_roles: FlipLine | None = None
    time_outs: TimeOutsLine | None = None
