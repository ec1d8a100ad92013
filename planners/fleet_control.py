"""The control plane of a fleet.yaml: routing, autoscaling, migration, failures, sight, closed loop."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from simulator.control.plane import Controller, Routing, Sight
    from simulator.fleet import Fleet
    from simulator.run import Run
    from traces import Trace

FORBID = {"extra": "forbid"}
Setting = bool | int | float | str | list[float]


@dataclass(frozen=True, slots=True)
class RoutingLine:
    """A router of the control plane by name, and its settings."""

    __pydantic_config__: ClassVar = FORBID

    name: str
    settings: dict[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AutoscaleLine:
    """A pool that is scaled; its replicas are the most there can be.

    Without startup_s a replica takes what pulling, loading, capturing and warming up take. least 0 scales to nothing.
    """

    __pydantic_config__: ClassVar = FORBID

    policy: str
    pool: int = 0
    settings: dict[str, Setting] = field(default_factory=dict)
    metric: str = "concurrency"
    every_s: float = 10.0
    initial: int = 1
    least: int = 1
    most: int | None = None
    startup_s: float | None = None


@dataclass(frozen=True, slots=True)
class MigrationLine:
    """Requests move from replicas below a freeness to replicas above another, over a link of their own."""

    __pydantic_config__: ClassVar = FORBID

    low: float = 10.0
    high: float = 60.0
    every_s: float = 0.1
    bytes_per_s: float = 8e9
    handshake_s: float = 0.02


@dataclass(frozen=True, slots=True)
class FailuresLine:
    """Replicas of a pool, or of all, that fail and come back at random."""

    __pydantic_config__: ClassVar = FORBID

    up_s: float
    down_s: float
    pool: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SightLine:
    """How old and how wrong what policies see is, and how long a decision takes."""

    __pydantic_config__: ClassVar = FORBID

    age_s: float = 0.0
    noise: float = 0.0
    decision_s: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ControlLines:
    """What decides in a fleet; closed_loop lets turns and steps come after those they follow from."""

    __pydantic_config__: ClassVar = FORBID

    routing: RoutingLine | None = None
    autoscale: tuple[AutoscaleLine, ...] = ()
    migration: MigrationLine | None = None
    failures: tuple[FailuresLine, ...] = ()
    sight: SightLine = field(default_factory=SightLine)
    closed_loop: bool = False


class Wrong(ValueError):
    """A mistake, and the keys that lead to it."""

    def __init__(self, keys: tuple[str | int, ...], words: str) -> None:
        super().__init__(words)
        self.keys = keys


@dataclass(frozen=True, slots=True)
class Control:
    """A control plane ready to run; None of a routing is the fleet's built-in router."""

    routing: "Routing | None"
    controllers: "tuple[Controller, ...]"
    sight: "Sight"
    closed_loop: bool

    def play(self, trace: "Trace", fleet: "Fleet") -> "Run":
        """Replay a trace on a fleet under this control; ValueError where a closed loop has nothing to follow."""
        from simulator.control.plane import operate
        from simulator.control.sessions import families

        found = families(trace) if self.closed_loop else None
        if self.closed_loop and found is None:
            raise ValueError(
                f"trace {trace.name} says of no request what it follows from; a closed loop needs parent_ids"
            )
        return operate(
            trace, fleet, routing=self.routing, controllers=self.controllers, sight=self.sight, closed_loop=found
        ).run


def control_of(lines: ControlLines, fleet: "Fleet") -> Control:
    """Return what the lines say; Wrong names the keys of a mistake."""
    from simulator.control.plane import Sight

    controllers = [
        *(_autoscale(line, fleet, ("autoscale", place)) for place, line in enumerate(lines.autoscale)),
        *(_failures(line, fleet, ("failures", place)) for place, line in enumerate(lines.failures)),
    ]
    if lines.migration is not None:
        controllers.append(_migration(lines.migration))
    sight = Sight(lines.sight.age_s, lines.sight.noise, lines.sight.decision_s, lines.sight.seed)
    return Control(_routing(lines.routing), tuple(controllers), sight, lines.closed_loop)


def _routing(line: RoutingLine | None) -> "Routing | None":
    from simulator.control.routers import ROUTERS

    return None if line is None else _made(ROUTERS, line.name, line.settings, ("routing",), "name", "router")


def _autoscale(line: AutoscaleLine, fleet: "Fleet", keys: tuple[str | int, ...]) -> "Controller":
    from simulator.control.autoscalers import AUTOSCALERS
    from simulator.control.replicas import AT_ONCE, Part, Startup, startup
    from simulator.control.scaling import METRICS, autoscale

    _check_pool(line.pool, fleet, (*keys, "pool"))
    if line.metric not in METRICS:
        raise Wrong((*keys, "metric"), f"unknown metric {line.metric!r}; known: {', '.join(METRICS)}")
    pool = fleet.pools[line.pool]
    most = pool.replicas if line.most is None else line.most
    if not 0 <= line.least <= line.initial <= most <= pool.replicas:
        words = f"expected 0 <= least <= initial <= most <= {pool.replicas} replicas"
        raise Wrong((*keys, "initial"), f"{words}, got {line.least}, {line.initial}, {most}")
    start = AT_ONCE if line.startup_s == 0 else Startup((Part("start", line.startup_s or 0.0, "told"),))
    if line.startup_s is None and pool.engine.engine is not None:
        start = startup(pool.engine.engine)
    policy = _made(AUTOSCALERS, line.policy, line.settings, keys, "policy", "autoscaler")
    bounds: dict[str, Any] = {"initial": line.initial, "least": line.least, "most": most}
    return autoscale(line.pool, policy, METRICS[line.metric], every_s=line.every_s, start=start, **bounds)


def _migration(line: MigrationLine) -> "Controller":
    from simulator.control.migration import link, one_mover, pairing

    return pairing(one_mover(link(line.bytes_per_s), line.handshake_s), line.low, line.high, line.every_s)


def _failures(line: FailuresLine, fleet: "Fleet", keys: tuple[str | int, ...]) -> "Controller":
    from simulator.control.failures import failing

    if not (line.up_s > 0 and line.down_s > 0):
        raise Wrong((*keys, "up_s"), f"up_s and down_s must be positive, got {line.up_s:g} and {line.down_s:g}")
    if line.pool is not None:
        _check_pool(line.pool, fleet, (*keys, "pool"))
    groups, first = [], 0
    for index, pool in enumerate(fleet.pools):
        for _ in range(pool.replicas):
            if line.pool in (None, index):
                groups.append(list(range(first, first + pool.engine.lanes)))
            first += pool.engine.lanes
    return failing(groups, line.up_s, line.down_s, line.seed)


def _check_pool(pool: int, fleet: "Fleet", keys: tuple[str | int, ...]) -> None:
    if not 0 <= pool < len(fleet.pools):
        raise Wrong(keys, f"no pool {pool}; the fleet has 0 to {len(fleet.pools) - 1}")


def _made(known: Any, name: str, settings: dict[str, Any], keys: tuple[str | int, ...], key: str, what: str) -> Any:
    """Return a policy by name, made with its settings."""
    import inspect

    if name not in known:
        raise Wrong((*keys, key), f"unknown {what} {name!r}; known: {', '.join(known)}")
    make: Callable[..., Any] = known[name]
    taken = inspect.signature(make).parameters
    for setting in settings:
        if setting not in taken:
            raise Wrong(
                (*keys, "settings", setting), f"{what} {name} has no setting {setting!r}; known: {', '.join(taken)}"
            )
    needed = [each.name for each in taken.values() if each.default is each.empty and each.name not in settings]
    if needed:
        raise Wrong((*keys, key), f"{what} {name} needs settings: {', '.join(needed)}")
    return make(**settings)
