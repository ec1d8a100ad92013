"""The control plane that a fleet.yaml asks for, made of what its lines say; a mistake names the keys to it."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from planners.fleet_yaml.control_lines import (
    AutoscaleLine,
    ControlLines,
    FailuresLine,
    FlipLine,
    HandOverLine,
    MigrationLine,
    RebalanceLine,
    RetriesLine,
    RoutingLine,
    SharesLine,
    StragglerLine,
    TimeOutsLine,
)
from planners.fleet_yaml.fleet_fabric import FabricLine, laid
from planners.fleet_yaml.fleet_parts import Wrong

if TYPE_CHECKING:
    from simulator.control.migration import Mover, Wire
    from simulator.control.plane import Controller, Interlude, Plane, Routing, Sight
    from simulator.control.replicas import Drain
    from simulator.control.scheduled_fleet import Build
    from simulator.fleet import Fleet
    from simulator.run import Run
    from traces import Trace

DRAINS = ("wait", "move")


@dataclass(frozen=True, slots=True)
class Control:
    """A control plane ready to run; None of a routing is the fleet's built-in router."""

    routing: "Routing | None"
    controllers: "tuple[Controller, ...]"
    sight: "Sight"
    closed_loop: bool
    interlude: "Interlude | None" = None
    hands_over: bool = True
    scheduler: "Build | None" = None

    def play(self, trace: "Trace", fleet: "Fleet") -> "Run":
        """Replay a trace on a fleet under this control; ValueError where a closed loop has nothing to follow."""
        from simulator.control.plane import operate
        from simulator.control.scheduled_fleet import serve
        from simulator.control.sessions import families

        if self.scheduler is not None:
            return serve(trace, fleet, self.scheduler)
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

    controllers = [_failures(line, fleet, ("failures", place)) for place, line in enumerate(lines.failures)]
    wire = None
    if lines.fabric is not None:
        wire, of_links = _fabric(lines.fabric, fleet)
        controllers += of_links
    mover = _mover(lines.migration, wire)
    if lines.migration is not None:
        controllers.append(_migration(lines.migration, mover))
    for place, line in enumerate(lines.autoscale):
        controllers.append(_autoscale(line, fleet, mover, ("autoscale", place)))
    if lines.rebalance is not None:
        controllers.append(_rebalance(lines.rebalance))
    if lines.flip_roles is not None:
        controllers.append(_flip(lines.flip_roles, lines))
    if lines.time_outs is not None:
        controllers.append(_time_outs(lines.time_outs))
    if lines.hand_over is not None:
        controllers.append(_hand_over(lines.hand_over, fleet, wire))
    if lines.shares is not None:
        controllers.append(_shares(lines.shares, fleet))
    controllers += [_straggler(line, fleet, ("stragglers", place)) for place, line in enumerate(lines.stragglers)]
    sight = Sight(lines.sight.age_s, lines.sight.noise, lines.sight.decision_s, lines.sight.seed)
    chosen = (_routing(lines.routing), tuple(controllers), sight, lines.closed_loop)
    return Control(*chosen, _tools(lines), lines.hand_over is None, _scheduler(lines))


def _fabric(line: FabricLine, fleet: "Fleet") -> "tuple[Wire, list[Controller]]":
    from simulator.control.migration import over

    try:
        found = laid(line, fleet)
    except Wrong as wrong:
        raise Wrong(("fabric", *wrong.keys), str(wrong)) from None
    return over(found.make, found.places), found.controllers


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
    from simulator.control.retries import retrying
    from simulator.control.routers import ROUTERS

    if line is None:
        return None
    made: Routing = _made(ROUTERS, line.name, line.settings, ("routing",), "name", "router")
    if line.retries is None:
        return made
    return retrying(made, *_retries(line.retries, ("routing", "retries")), seed=line.retries.seed)


def _retries(line: RetriesLine, keys: tuple[str, ...]) -> tuple[int, float, float]:
    for key in ("attempts", "first_s", "factor"):
        if not getattr(line, key) > 0:
            raise Wrong((*keys, key), f"must be positive, got {getattr(line, key):g}")
    return line.attempts, line.first_s, line.factor


def _time_outs(line: TimeOutsLine) -> "Controller":
    from simulator.control.retries import timing_out

    if not line.wait_s > 0:
        raise Wrong(("time_outs", "wait_s"), f"must be positive, got {line.wait_s:g}")
    return timing_out(line.wait_s, *_retries(line, ("time_outs",)), seed=line.seed)


def _rebalance(line: RebalanceLine) -> "Controller":
    from simulator.control.migration import rebalancing_queues

    if not (line.every_s > 0 and line.least_gap >= 2):
        raise Wrong(("rebalance",), f"expected every_s > 0 and least_gap >= 2, got {line.every_s:g}, {line.least_gap}")
    return rebalancing_queues(line.every_s, line.least_gap)


def _flip(line: FlipLine, lines: ControlLines) -> "Controller":
    from simulator.control.roles import flipping

    if lines.hand_over is None or lines.routing is None:
        raise Wrong(
            ("flip_roles",), "needs hand_over and routing of the control plane, which look at roles as they are"
        )
    if not 0 <= line.low_tokens < line.high_tokens:
        words = f"expected 0 <= low_tokens < high_tokens, got {line.low_tokens:g} and {line.high_tokens:g}"
        raise Wrong(("flip_roles", "low_tokens"), words)
    return flipping(line.high_tokens, line.low_tokens, line.every_s)


def _scheduler(lines: ControlLines) -> "Build | None":
    from simulator.control.scheduled_fleet import built

    if lines.scheduler is None:
        return None
    others = [name for name in ControlLines.__slots__ if name not in ("scheduler", "sight") and getattr(lines, name)]
    if others:
        raise Wrong(("scheduler",), f"lanes scheduled in Python take nothing else of control; leave out {others[0]}")
    try:
        settings: dict[str, Any] = dict(lines.scheduler.settings)
        return built(lines.scheduler.name, **settings)
    except ValueError as error:
        raise Wrong(("scheduler", "settings" if lines.scheduler.settings else "name"), str(error)) from None


def _autoscale(
    line: AutoscaleLine, fleet: "Fleet", mover: "Callable[[Plane], Mover] | None", keys: tuple[str | int, ...]
) -> "Controller":
    from simulator.control.autoscalers import AUTOSCALERS
    from simulator.control.migration import draining_by_moving
    from simulator.control.replicas import AT_ONCE, Part, Spot, Startup, drain_by_waiting, startup
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
    if line.drain not in DRAINS:
        raise Wrong((*keys, "drain"), f"unknown way to drain {line.drain!r}; known: {', '.join(DRAINS)}")
    drain: Drain = drain_by_waiting
    if line.drain == "move":
        if mover is None:
            raise Wrong((*keys, "drain"), "what moves goes over migration's link or the fabric; there is neither")
        drain = draining_by_moving(mover)
    spot = None
    if line.spot is not None:
        if min(line.spot.evictions_per_hour, line.spot.notice_s) < 0:
            raise Wrong((*keys, "spot"), "evictions_per_hour and notice_s must not be negative")
        spot = Spot(line.spot.evictions_per_hour, line.spot.notice_s, line.spot.seed)
    bounds: dict[str, Any] = {"initial": line.initial, "least": line.least, "most": most, "drain": drain, "spot": spot}
    return autoscale(line.pool, policy, METRICS[line.metric], every_s=line.every_s, start=start, **bounds)


def _mover(line: MigrationLine | None, wire: "Wire | None") -> "Callable[[Plane], Mover] | None":
    from simulator.control.migration import link, one_mover

    if line is None:
        return None if wire is None else one_mover(wire)
    patience_s = inf if line.patience_s is None else line.patience_s
    return one_mover(wire or link(line.bytes_per_s), line.handshake_s, patience_s)


def _migration(line: MigrationLine, mover: "Callable[[Plane], Mover] | None") -> "Controller":
    from simulator.control.migration import pairing

    assert mover is not None
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
