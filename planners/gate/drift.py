"""Drift: how a decision that was locked differs from the one that would be taken today, class by class."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from planners.gate.lock import Scenario, is_within
from planners.plan import Plan, PlannedPool

if TYPE_CHECKING:
    from pathlib import Path

    from planners.offers.tariffs import Tariff

BROKEN, SLO, DECISION, COST = "BROKEN", "SLO", "DECISION", "COST"
INPUT, DRIFT, EQUIVALENT, IMPROVED = "INPUT", "DRIFT", "EQUIVALENT", "IMPROVED"
CLASSES = (INPUT, BROKEN, SLO, DECISION, COST, DRIFT, EQUIVALENT, IMPROVED)  # in the order they are told
FAILING = (BROKEN, SLO, DECISION, COST)

MEANINGS = {
    INPUT: "an input changed: trace, model, devices, prices or step times; it explains what follows",
    BROKEN: "there was a fleet that keeps the promises, now there is none, or an input cannot be read",
    SLO: "the locked fleet breaks a promise that it kept",
    DECISION: "another fleet would be chosen, at another cost or attainment",
    COST: "keeping the promises costs more than locked",
    DRIFT: "a figure of the locked fleet moved out of its tolerance",
    EQUIVALENT: "another fleet would be chosen, at the same cost and attainment",
    IMPROVED: "keeping the promises costs less than locked",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference: its class, the figure or input, what it was and is, and words for people."""

    kind: str
    what: str
    was: Any
    now: Any
    words: str


@dataclass(frozen=True, slots=True)
class Today:
    """What holds now: hashes and prices of the inputs, the locked fleet's figures, and the plan that would be made."""

    hashes: Mapping[str, str] = field(default_factory=dict)
    prices: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)  # of the locked fleet, replayed
    locked_usd_per_hour: float | None = None  # of the locked fleet, at the prices in force
    plan: Plan | None = None
    reasons: tuple[str, ...] = ()  # why there is no plan


def findings(locked: Scenario, today: Today) -> list[Finding]:
    """Return every difference between what was locked and what holds today, the classes in a fixed order."""
    found = [*_inputs(locked, today), *_broken(today), *_figures(locked, today)]
    if today.plan is not None:
        found += [*_decision(locked, today.plan), *_cost(locked, today.plan)]
    return sorted(found, key=lambda each: CLASSES.index(each.kind))


def fails(found: list[Finding], fail_on: tuple[str, ...] = FAILING) -> bool:
    """Say whether any finding is of a class that counts as failure."""
    return any(each.kind in fail_on for each in found)


def check(locked: Scenario, beside: "str | Path", *, fresh_prices: bool = False) -> tuple[Today, list[Finding]]:
    """Return what holds today for a scenario of a lock file in the folder `beside`, and how it differs.

    The locked fleet is replayed, and the plan made anew, at the locked prices or at those of the list.
    """
    today = _today(locked, beside, fresh_prices)
    return today, findings(locked, today)


def _today(locked: Scenario, beside: "str | Path", fresh_prices: bool) -> Today:
    from planners.gate import lock
    from planners.plan_file import study_of
    from planners.search.infeasible import Infeasible
    from planners.whatif import question_of
    from simulator.replay import replay

    try:
        trace, llm = lock.read_trace(locked, beside), lock.read_model(locked, beside)
        was = locked.plan(llm)
        own = locked.inputs["own_prices"]
        tariff = study_of(locked.inputs).tariff
        prices = {name: own.get(name) or lock.price_of(name, tariff) for name in locked.prices}
        hashes = lock.hashes_of(trace, llm, was, tuple(locked.prices))
    except (ValueError, OSError) as error:
        return Today(locked.hashes, locked.prices, reasons=(f"an input cannot be read: {error}",))
    facts = lock.facts_of_run(replay(trace, was.fleet()), locked.slos)
    used = prices if fresh_prices else locked.prices
    usd_per_hour = sum(_pool_usd(pool, used, tariff) for pool in was.pools) + was.change.get("usd_per_hour", 0.0)
    asked = study_of(locked.inputs, devices=list(locked.prices), prices=dict(used))
    question = question_of(asked, trace, llm)
    try:
        plan = question.plan(siblings=locked.inputs["siblings"], split=locked.inputs.get("split", False))
    except Infeasible as error:
        return Today(hashes, prices, facts, usd_per_hour, None, error.reasons)
    return Today(hashes, prices, facts, usd_per_hour, plan)


def _pool_usd(pool: PlannedPool, used: Mapping[str, float], tariff: "Tariff") -> float:
    """Return what a pool costs at the prices in force, which are of the first kind to choose from; else as it did."""
    from planners.offers.engines import suffix_of
    from planners.offers.keeping import KEPT

    first, *others = (suffix_of(kind) for kind in tariff.kinds)
    name = pool.name.removesuffix(KEPT)
    if pool.engine is None or not name.endswith(first) or any(one and name.endswith(one) for one in others):
        return pool.usd_per_hour
    per_device = used[pool.device] + tariff.carbon_usd_per_hour(pool.engine.device)
    return pool.replicas * pool.engine.devices * per_device


def _inputs(locked: Scenario, today: Today) -> Iterator[Finding]:
    for name, was in locked.hashes.items():
        now = today.hashes.get(name)
        if now != was:
            yield Finding(INPUT, name, was, now, f"{name} changed ({was} to {now})")
    for device, usd in locked.prices.items():
        current = today.prices.get(device)
        if current is not None and current != usd:
            words = f"{device} is listed at {current:g} USD/h, locked at {usd:g}"
            yield Finding(INPUT, f"price of {device}", usd, current, words)


def _broken(today: Today) -> Iterator[Finding]:
    if today.plan is None:
        words = "; ".join(today.reasons) or "no fleet keeps the promises"
        yield Finding(BROKEN, "fleet", "feasible", "infeasible", words)


def _figures(locked: Scenario, today: Today) -> Iterator[Finding]:
    limits = {str(slo): slo.limit_s for slo in locked.slos}
    for name, was in locked.facts.items():
        now = today.facts.get(name, was)
        if name in limits and was <= limits[name] < now:
            words = f"the locked fleet breaks {name}: {now:.4g} s, locked at {was:.4g} s"
            yield Finding(SLO, name, was, now, words)
        elif not is_within(name, was, now):
            yield Finding(DRIFT, name, was, now, f"{name} of the locked fleet is {now:.4g}, locked at {was:.4g}")
    usd = today.locked_usd_per_hour
    if usd is not None and not is_within("usd_per_hour", locked.facts["usd_per_hour"], usd):
        was = locked.facts["usd_per_hour"]
        yield Finding(DRIFT, "usd_per_hour", was, usd, f"the locked fleet costs {usd:.4g} USD/h, locked at {was:.4g}")


def _decision(locked: Scenario, plan: Plan) -> Iterator[Finding]:
    was, now = _fleet(locked.fleet["pools"]), _fleet(plan.result()["pools"])
    if was == now:
        return
    same_cost = is_within("usd_per_hour", locked.facts["usd_per_hour"], plan.usd_per_hour)
    same_share = is_within("attainment", locked.facts["attainment"], plan.attainment or 0.0)
    kind = EQUIVALENT if same_cost and same_share else DECISION
    words = f"{' + '.join(now)} instead of {' + '.join(was)}"
    yield Finding(kind, "fleet", was, now, words)


def _cost(locked: Scenario, plan: Plan) -> Iterator[Finding]:
    was, now = locked.facts["usd_per_hour"], plan.usd_per_hour
    if is_within("usd_per_hour", was, now):
        return
    words = f"{now:.4g} USD/h, locked at {was:.4g} ({now / was - 1:+.1%})"
    yield Finding(COST if now > was else IMPROVED, "usd_per_hour", was, now, words)


def _fleet(pools: list[Mapping[str, Any]]) -> list[str]:
    """Return pools as text that is equal for equal pools, in a fixed order."""
    return sorted(f"{pool['replicas']} x {pool['name'].partition('/')[2] or pool['name']}" for pool in pools)
