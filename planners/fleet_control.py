"""The control plane of a fleet.yaml: routing, scaling, migration, hand-over, failures, sight, sessions and tools."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar

from planners.fleet_parts import Wrong

if TYPE_CHECKING:
    from simulator.control.migration import Wire
    from simulator.control.plane import Controller, Interlude, Routing, Sight
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
    """Requests move from replicas below a freeness to replicas above another, over a link of their own or the fabric.

    KV that has not come in patience_s is computed again.
    """

    __pydantic_config__: ClassVar = FORBID

    low: float = 10.0
    high: float = 60.0
    every_s: float = 0.1
    bytes_per_s: float = 8e9
    handshake_s: float = 0.02
    patience_s: float | None = None


@dataclass(frozen=True, slots=True)
class FabricLine:
    """One adapter a replica on a switch, shared by what moves; with up_s and down_s adapters fail and are mended."""

    __pydantic_config__: ClassVar = FORBID

    nic_bytes_per_s: float
    latency_s: float = 0.0
    operation_s: float = 0.0
    up_s: float | None = None
    down_s: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class HandOverLine:
    """KV goes from prefill replicas to the freest decode replica over the fabric, in grains of this kind."""

    __pydantic_config__: ClassVar = FORBID

    grain: str = "whole"
    hides_bytes_per_s: float = 0.0
    patience_s: float | None = None


@dataclass(frozen=True, slots=True)
class SharesLine:
    """The shares of prefill and decode on devices that they have in common follow the promises that are missed."""

    __pydantic_config__: ClassVar = FORBID

    ttft_s: float
    tpot_s: float
    every_s: float = 5.0


@dataclass(frozen=True, slots=True)
class StragglerLine:
    """A lane whose steps are priced from one of its pool's variants for a while."""

    __pydantic_config__: ClassVar = FORBID

    lane: int
    from_s: float
    until_s: float
    variant: int = 1


@dataclass(frozen=True, slots=True)
class ToolsLine:
    """Calls between the steps of a closed loop take one of so many workers; rule says what becomes of KV meanwhile."""

    __pydantic_config__: ClassVar = FORBID

    workers: int | None = None
    rule: str = "leave"


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
    fabric: FabricLine | None = None
    hand_over: HandOverLine | None = None
    shares: SharesLine | None = None
    stragglers: tuple[StragglerLine, ...] = ()
    tools: ToolsLine | None = None


@dataclass(frozen=True, slots=True)
class Control:
    """A control plane ready to run; None of a routing is the fleet's built-in router."""

    routing: "Routing | None"
    controllers: "tuple[Controller, ...]"
    sight: "Sight"
    closed_loop: bool
    interlude: "Interlude | None" = None
    hands_over: bool = True

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
            *(trace, fleet),
            routing=self.routing,
            controllers=self.controllers,
            sight=self.sight,
            closed_loop=found,
            interlude=self.interlude,
            hands_over=self.hands_over,
        ).run


def control_of(lines: ControlLines, fleet: "Fleet") -> Control:
    """Return what the lines say; Wrong names the keys of a mistake."""
    from simulator.control.plane import Sight

    controllers = [
        *(_autoscale(line, fleet, ("autoscale", place)) for place, line in enumerate(lines.autoscale)),
        *(_failures(line, fleet, ("failures", place)) for place, line in enumerate(lines.failures)),
    ]
    wire = None
    if lines.fabric is not None:
        wire, failing = _fabric(lines.fabric, fleet)
        controllers += failing
    if lines.migration is not None:
        controllers.append(_migration(lines.migration, wire))
    if lines.hand_over is not None:
        controllers.append(_hand_over(lines.hand_over, fleet, wire))
    if lines.shares is not None:
        controllers.append(_shares(lines.shares, fleet))
    controllers += [_straggler(line, fleet, ("stragglers", place)) for place, line in enumerate(lines.stragglers)]
    sight = Sight(lines.sight.age_s, lines.sight.noise, lines.sight.decision_s, lines.sight.seed)
    chosen = (_routing(lines.routing), tuple(controllers), sight, lines.closed_loop)
    return Control(*chosen, _tools(lines), hands_over=lines.hand_over is None)


def _fabric(line: FabricLine, fleet: "Fleet") -> "tuple[Wire, list[Controller]]":
    from simulator.control.fabric import both_ways
    from simulator.control.failures import failing_links
    from simulator.control.migration import one_fabric, over

    if (line.up_s is None) != (line.down_s is None):
        raise Wrong(("fabric", "up_s"), "up_s and down_s belong together")
    for key in ("nic_bytes_per_s", "up_s", "down_s"):
        value = getattr(line, key)
        if value is not None and not value > 0:
            raise Wrong(("fabric", key), f"must be positive, got {value:g}")
    replicas = [pool.engine.lanes for pool in fleet.pools for _ in range(pool.replicas)]
    places = [f"r{replica}" for replica, lanes in enumerate(replicas) for _ in range(lanes)]
    times = {"latency_s": line.latency_s, "operation_s": line.operation_s}
    links = [
        each for name in dict.fromkeys(places) for each in both_ways(name, "switch", line.nic_bytes_per_s, **times)
    ]
    fabric = one_fabric(links)
    failing = []
    if line.up_s is not None and line.down_s is not None:
        failing.append(failing_links(fabric, [each.name for each in links], line.up_s, line.down_s, line.seed))
    return over(fabric, places), failing


def _hand_over(line: HandOverLine, fleet: "Fleet", wire: "Wire | None") -> "Controller":
    from simulator.control.migration import GRAINS, handing_over

    if wire is None:
        raise Wrong(("hand_over",), "needs a fabric to go over")
    if line.grain not in GRAINS:
        raise Wrong(("hand_over", "grain"), f"unknown grain {line.grain!r}; known: {', '.join(GRAINS)}")
    if all(pool.role != "decode" for pool in fleet.pools):
        raise Wrong(("hand_over",), "no pool only decodes, so there is nothing to hand over to")
    patience_s = inf if line.patience_s is None else line.patience_s
    return handing_over(wire, line.grain, hides_bytes_per_s=line.hides_bytes_per_s, patience_s=patience_s)


def _shares(line: SharesLine, fleet: "Fleet") -> "Controller":
    from simulator.systems.semi_pd import SPLITS, follow

    shared = [pool for pool in fleet.pools if pool.twin_of is not None]
    if not shared or any(len(pool.variants) + 1 != 2 * len(SPLITS) for pool in shared):
        raise Wrong(("shares",), "needs pools that share their devices, by twin_of, with the splits it starts from")
    return follow(line.ttft_s, line.tpot_s, line.every_s)


def _straggler(line: StragglerLine, fleet: "Fleet", keys: tuple[str | int, ...]) -> "Controller":
    from simulator.control.failures import straggling

    pools = [pool for pool in fleet.pools for _ in range(pool.replicas * pool.engine.lanes)]
    if not 0 <= line.lane < len(pools):
        raise Wrong((*keys, "lane"), f"no lane {line.lane}; the fleet has 0 to {len(pools) - 1}")
    known = len(pools[line.lane].variants)
    if not 1 <= line.variant <= known:
        raise Wrong((*keys, "variant"), f"the lane's pool has {known} variants, not a variant {line.variant}")
    if not 0 <= line.from_s < line.until_s:
        raise Wrong((*keys, "until_s"), f"expected 0 <= from_s < until_s, got {line.from_s:g} and {line.until_s:g}")
    return straggling(line.lane, line.from_s, line.until_s, line.variant)


def _tools(lines: ControlLines) -> "Interlude | None":
    from simulator.control.interludes import RULES, tools

    line = lines.tools
    if line is None:
        return None
    if not lines.closed_loop:
        raise Wrong(("tools",), "calls come between the steps of a closed loop; closed_loop is off")
    if line.rule not in RULES:
        raise Wrong(("tools", "rule"), f"unknown rule {line.rule!r}; known: {', '.join(RULES)}")
    if line.workers is not None and line.workers < 1:
        raise Wrong(("tools", "workers"), f"must be at least 1, got {line.workers}")
    return tools(line.workers, RULES[line.rule])


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


def _migration(line: MigrationLine, wire: "Wire | None") -> "Controller":
    from simulator.control.migration import link, one_mover, pairing

    patience_s = inf if line.patience_s is None else line.patience_s
    mover = one_mover(wire or link(line.bytes_per_s), line.handshake_s, patience_s)
    return pairing(mover, line.low, line.high, line.every_s)


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
