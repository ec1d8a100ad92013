"""A Plan: the fleet that was chosen, what the rehearsal showed of it, and what it was chosen over."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from models import device
from models.engine import Engine, Settings
from models.llm import Llm
from models.price import WATTS_PER_KILOWATT
from models.speculation import Speculation
from planners.answer import plain
from planners.offers.engines import variant_words
from planners.offers.tariffs import Carbon
from simulator.fleet import Fleet, Pool, PricedEngine

Latency = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class PlannedPool:
    """Equal replicas of one engine; usd_per_hour is what all of them cost, speed as in simulator.fleet.Pool.

    busy is the fraction of the rehearsal that its lanes spent in steps; engine is None for toy hardware.
    """

    name: str
    device: str
    replicas: int
    usd_per_hour: float
    speed: float = 1.0
    busy: float | None = None
    engine: Engine | None = None
    priced: PricedEngine | None = field(default=None, repr=False, compare=False)
    role: str = "both"  # or "prefill", or "decode": a pool that hands over, or takes over


@dataclass(frozen=True, slots=True)
class Outcome:
    """A fleet that was tried: what it is, what it costs, and how it failed; an empty `fails` means that it survived."""

    pools: tuple[PlannedPool, ...]
    usd_per_hour: float
    fails: str = ""

    def describe(self) -> str:
        """Return the fleet in words: 2 x h100-sxm tp4 fp8 + 1 x l40s tp8 bf16."""
        return " + ".join(f"{pool.replicas} x {cut_name(pool)}" for pool in self.pools)


@dataclass(frozen=True, slots=True)
class PromiseKept:
    """One promise, what the rehearsal made of it, and its limit [s]."""

    promise: str
    value_s: float
    limit_s: float


@dataclass(frozen=True, slots=True)
class OutOfSample:
    """On how many resampled siblings of the trace, which the search never saw, the plan kept every promise."""

    siblings: int
    passed: int


@dataclass(frozen=True, slots=True)
class NaiveRouting:
    """The same fleet under a router that knows no plan: what breaks, and the cost with replicas until nothing does.

    usd_per_hour is None where so many replicas more do not help.
    """

    router: str
    fails: str
    added: int
    usd_per_hour: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The cheapest fleet found, how requests are routed to it, and how sure that is.

    usd_per_hour_bound is rigorous: no fleet of the offered engines that survives costs less, whatever its router. The
    conditional bound holds for fleets routed like this one, and where not all of them were replayed, for what the
    search learned of their pools: it is no proof. latency_s, attainment and requests are those of the rehearsal on the
    whole trace; empty where the plan is analytic, not rehearsed.
    shares[bucket][pool] are the fractions of each bucket of prompt lengths, class by class where there are classes, and
    ttft_limit_s what the router "in-time" holds prompts against, as in simulator.fleet.Fleet. change says what
    of a fleet that was there is kept, added and removed, and what that costs, which is part of usd_per_hour.
    naive_routing is what an ordinary router would make of the fleet.
    """

    pools: tuple[PlannedPool, ...]
    usd_per_hour: float
    usd_per_hour_bound: float
    router: str
    input_edges: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]
    latency_s: Latency = field(default_factory=dict)
    attainment: float | None = None
    requests: Mapping[str, int] = field(default_factory=dict)
    promises: tuple[PromiseKept, ...] = ()
    single_device: Outcome | None = None
    cheaper: Outcome | None = None
    bottleneck: str = ""
    notes: tuple[str, ...] = ()
    effort: Mapping[str, int] = field(default_factory=dict)
    is_rehearsed: bool = True
    conditional_usd_per_hour: float | None = None
    out_of_sample: OutOfSample | None = None
    explain: Mapping[str, Any] = field(default_factory=dict)
    ttft_limit_s: float | None = None
    classes: tuple[str, ...] = ()
    latency_by_class_s: Mapping[str, Latency] = field(default_factory=dict)
    change: Mapping[str, Any] = field(default_factory=dict)
    naive_routing: NaiveRouting | None = None
    carbon_kg_per_hour: float | None = None

    @property
    def power_w(self) -> float | None:
        """Return the TDP of all devices; None where one of them is not known."""
        total_w = 0.0
        for pool in self.pools:
            if pool.engine is None or pool.engine.device.tdp_w is None:
                return None
            total_w += pool.engine.device.tdp_w * pool.engine.devices * pool.replicas
        return total_w

    def emitting(self, carbon: Carbon | None) -> "Plan":
        """Return the plan with what its devices emit, drawing their TDP around the clock; None where nobody says."""
        power_w = self.power_w
        if carbon is None or power_w is None:
            return self
        kilograms = power_w / WATTS_PER_KILOWATT * carbon.pue * carbon.kg_per_kwh
        return replace(self, carbon_kg_per_hour=kilograms)

    @property
    def gap(self) -> float:
        """Return how much dearer the plan may be than the best one, as a fraction of its cost, both as printed."""
        bound: float = plain(self.usd_per_hour_bound)
        cost: float = plain(self.usd_per_hour)
        return max(0.0, 1 - bound / cost)

    def _repr_html_(self) -> str:
        """Return the plan as a notebook shows it."""
        from planners.report.card import html_card

        return html_card(self)

    def fleet(self, price: Callable[[Engine], PricedEngine] | None = None) -> Fleet:
        """Return the Fleet whose replay is the rehearsal; `price` gives engines their step tables, by default ours."""
        pools = [
            Pool(_priced(pool, price), pool.replicas, pool.speed, pool.usd_per_hour / pool.replicas, pool.role)
            for pool in self.pools
        ]
        limit_s = math.inf if self.ttft_limit_s is None else self.ttft_limit_s
        edges, classes = self.input_edges, self.classes
        return Fleet(tuple(pools), self.router, edges, self.shares, ttft_limit_s=limit_s, classes=classes)

    def result(self) -> dict[str, Any]:
        """Return what plan.json says of the plan: plain values, 6 significant digits, the same bytes every time."""
        values: dict[str, Any] = plain(
            {
                "usd_per_hour": self.usd_per_hour,
                "usd_per_hour_bound": self.usd_per_hour_bound,
                "gap": self.gap,
                "pools": [_pool_result(pool) for pool in self.pools],
                "routing": {
                    "router": self.router,
                    "input_edges": self.input_edges,
                    "shares": self.shares,
                    "ttft_limit_s": self.ttft_limit_s,
                    **({"classes": self.classes} if self.classes else {}),
                },
                **({"change": self.change} if self.change else {}),
                "slo": self.latency_s,
                **({"slo_by_class": self.latency_by_class_s} if self.classes else {}),
                "attainment": self.attainment,
                "requests": self.requests,
                "promises": [asdict(kept) for kept in self.promises],
                "single_device": self.single_device and _outcome_result(self.single_device),
                "cheaper": self.cheaper and _outcome_result(self.cheaper),
                "bottleneck": self.bottleneck,
                "notes": self.notes,
                "effort": self.effort,
                "is_rehearsed": self.is_rehearsed,
                "bounds": {"rigorous": self.usd_per_hour_bound, "conditional": self.conditional_usd_per_hour},
                "out_of_sample": self.out_of_sample and asdict(self.out_of_sample),
                "explain": self.explain,
                "naive_routing": self.naive_routing and asdict(self.naive_routing),
                "power_w": self.power_w,
                "carbon_kg_per_hour": self.carbon_kg_per_hour,
            }
        )
        return values


def from_result(result: Mapping[str, Any], llm: Llm) -> Plan:
    """Return the Plan that `result()` described, for a model."""
    return Plan(
        pools=tuple(_planned_pool(pool, llm) for pool in result["pools"]),
        usd_per_hour=result["usd_per_hour"],
        usd_per_hour_bound=result["usd_per_hour_bound"],
        router=result["routing"]["router"],
        input_edges=tuple(result["routing"]["input_edges"]),
        shares=tuple(tuple(row) for row in result["routing"]["shares"]),
        ttft_limit_s=result["routing"].get("ttft_limit_s"),
        classes=tuple(result["routing"].get("classes", ())),
        latency_s=result["slo"],
        latency_by_class_s=result.get("slo_by_class", {}),
        change=result.get("change", {}),
        attainment=result["attainment"],
        requests=result["requests"],
        promises=tuple(PromiseKept(**kept) for kept in result["promises"]),
        single_device=_outcome(result["single_device"], llm),
        cheaper=_outcome(result["cheaper"], llm),
        bottleneck=result["bottleneck"],
        notes=tuple(result["notes"]),
        effort=result["effort"],
        is_rehearsed=result["is_rehearsed"],
        conditional_usd_per_hour=result["bounds"]["conditional"],
        out_of_sample=result["out_of_sample"] and OutOfSample(**result["out_of_sample"]),
        explain=result["explain"],
        naive_routing=NaiveRouting(**naive) if (naive := result.get("naive_routing")) else None,
        carbon_kg_per_hour=result.get("carbon_kg_per_hour"),
    )


def cut_name(pool: PlannedPool) -> str:
    """Return device, cut, dtype and step budget in words: h100-sxm tp4 fp8."""
    engine = pool.engine
    if engine is None:
        return pool.name
    cuts = [f"{cut}{getattr(engine, cut)}" for cut in ("tp", "pp", "ep", "dp") if getattr(engine, cut) > 1]
    budget = engine.settings.max_num_batched_tokens
    special = [f"{budget} tokens a step"] if budget != Settings().max_num_batched_tokens else []
    if pool.role != "both":
        special = [pool.role]
    return " ".join([pool.device, *(cuts or ["tp1"]), engine.dtype, *variant_words(engine), *special])


def _pool_result(pool: PlannedPool) -> dict[str, Any]:
    engine = pool.engine
    cut = {key: getattr(engine, key) if engine else 1 for key in ("tp", "pp", "dp", "ep")}
    kinds = {key: getattr(engine, key) if engine else "" for key in ("dtype", "kv_dtype", "framework")}
    return {
        "name": pool.name,
        "device": pool.device,
        **({"device_file": engine.device.file} if engine and engine.device.file else {}),
        "replicas": pool.replicas,
        **cut,
        **kinds,
        "settings": asdict(engine.settings if engine else Settings()),
        "role": pool.role,
        "usd_per_hour": pool.usd_per_hour,
        "speed": pool.speed,
        "busy": pool.busy,
    }


def _outcome_result(outcome: Outcome) -> dict[str, Any]:
    return {
        "fleet": outcome.describe(),
        "usd_per_hour": outcome.usd_per_hour,
        "pools": [_pool_result(pool) for pool in outcome.pools],
        "fails": outcome.fails,
    }


def _planned_pool(pool: Mapping[str, Any], llm: Llm) -> PlannedPool:
    cut = {key: pool[key] for key in ("tp", "pp", "dp", "ep", "dtype", "kv_dtype", "framework")}
    found = device.load(pool.get("device_file", pool["device"]))
    engine = Engine(llm, found, settings=_settings(pool["settings"]), **cut)
    kept = {key: pool[key] for key in ("name", "device", "replicas", "usd_per_hour", "speed", "busy", "role")}
    return PlannedPool(**kept, engine=engine)


def _settings(written: Mapping[str, Any]) -> Settings:
    drafts = written["speculation"]
    return Settings(**{**written, "speculation": drafts and Speculation(**drafts)})


def _outcome(outcome: Mapping[str, Any] | None, llm: Llm) -> Outcome | None:
    if outcome is None:
        return None
    pools = tuple(_planned_pool(pool, llm) for pool in outcome["pools"])
    return Outcome(pools, outcome["usd_per_hour"], outcome["fails"])


def _priced(pool: PlannedPool, price: Callable[[Engine], PricedEngine] | None) -> PricedEngine:
    if pool.priced is not None:
        return pool.priced
    if pool.engine is None:
        raise ValueError(f"pool {pool.name!r} is toy hardware; its step table cannot be made again")
    if price is None:
        from simulator import fleet

        price = fleet.priced
    return replace(price(pool.engine), name=pool.name)
