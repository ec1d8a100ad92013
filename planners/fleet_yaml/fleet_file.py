"""A fleet from a file: plan.json as a command wrote it, or fleet.yaml as a person did: model, router and pools."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from planners import marked_yaml, plan_file
from planners.fleet_yaml import fleet_control, fleet_parts
from planners.fleet_yaml.control_lines import ControlLines
from planners.fleet_yaml.fleet_parts import Wrong
from planners.slo import Slo
from planners.strict import strict
from simulator.tier import Tier

if TYPE_CHECKING:
    from models.device import Device
    from models.engine import Settings
    from models.llm import Llm
    from simulator.fleet import Fleet, Link, Pool
    from simulator.run import Run
    from traces import Trace

T = TypeVar("T")


@strict
@dataclass(frozen=True, slots=True)
class PoolLine:
    """One pool: equal replicas of a model cut tp x pp over devices; the price list's price where none is written.

    role is both, prefill or decode; pools that only decode come last. What is not written of how the engine is run is
    vLLM's default, and of its kernels the framework's choice; speculative is DRAFT_TOKENS:ACCEPTANCE, as 3:0.7. tiers
    keep prefixes below the replicas' memory, fetched before the step that needs them, layer-wise beside it, or outside
    the batch; eviction, lru or s3-fifo, and quotas, shares by tenant, say what the memory itself evicts. variants are
    how many times longer steps may take that control sets; twin_of names the prefill pool that this decode pool shares
    its devices with, and splits the shares (prefill, decode) of them that control may set. serves are the names that
    traces call the pool's model by; where pools have several models, its own if nothing is written.
    """

    device: str
    replicas: int = 1
    tp: int = 1
    pp: int = 1
    ep: int | None = None
    dp: int = 1
    dtype: str = "native"
    model: str | None = None
    usd_per_device_hour: float | None = None
    role: str = "both"
    kv_dtype: str = "bf16"
    framework: str = "vllm"
    framework_version: str | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_tokens: int | None = None
    block_tokens: int | None = None
    long_prefill_tokens: int | None = None
    watermark_fraction: float | None = None
    chunked_prefill: bool | None = None
    prefix_caching: bool | None = None
    async_scheduling: bool | None = None
    scheduling_policy: str | None = None
    prefill_first: bool | None = None
    no_evict: bool | None = None
    reserve_ratio: float | None = None
    swap_preempted: bool | None = None
    memory_fraction: float | None = None
    max_cudagraph_capture_size: int | None = None
    fuse_allreduce_rms: bool | None = None
    moe_backend: str | None = None
    swap_operation_s: float | None = None
    swap_operation_blocks: int | None = None
    swap_keeps_copies: bool | None = None
    speculative: str | None = None
    tiers: tuple[Tier, ...] = ()
    fetches: str = "before"
    eviction: str = "lru"
    quotas: dict[str, float] = field(default_factory=dict)
    variants: tuple[float, ...] = ()
    twin_of: int | None = None
    splits: tuple[tuple[float, float], ...] = ()
    serves: tuple[str, ...] = ()


@strict
@dataclass(frozen=True, slots=True)
class LinkLine:
    """The way of KV from prefill to decode replicas, of one replica each way; layerwise, it overlaps with prefill."""

    bytes_per_s: float = 50e9
    latency_s: float = 1e-3
    layerwise: bool = False


@strict
@dataclass(frozen=True, slots=True)
class FleetFile:
    """A fleet as written: one model, one router, pools, and perhaps the promises it is held against.

    A client gives up a request that is not finished after patience_s. With control, routing, scaling, migration and
    failures are played as well.
    """

    pools: tuple[PoolLine, ...]
    model: str | None = None
    router: str = "join-shortest-queue"
    slo: tuple[str, ...] = ()
    link: LinkLine = field(default_factory=LinkLine)
    patience_s: float | None = None
    control: ControlLines | None = None


@dataclass(frozen=True, slots=True)
class ReadFleet:
    """A fleet ready to run, the promises that its file states, what to be wary of, and what decides in it."""

    fleet: "Fleet"
    slos: tuple[Slo, ...]
    warnings: tuple[str, ...] = ()
    control: fleet_control.Control | None = None
    classes: Mapping[str, str] = field(default_factory=dict)

    def play(self, trace: "Trace", fleet: "Fleet | None" = None) -> "Run":
        """Replay a trace on the fleet, or one made of it, under its control if it has any."""
        from simulator.replay import replay

        chosen = fleet or self.fleet
        return replay(trace, chosen) if self.control is None else self.control.play(trace, chosen)


def read(path: str | Path) -> ReadFleet:
    """Return the fleet of a plan.json or fleet.yaml; ValueError lists all mistakes as FILE:LINE:COLUMN."""
    text = Path(path).read_text(encoding="utf-8")
    if plan_file.is_plan(text):
        saved = plan_file.parse(path, text)
        plan, warnings = plan_file.without_empty_pools(saved.plan)
        return ReadFleet(plan.fleet(), saved.slos, warnings, classes=saved.inputs.get("classes", {}))
    return _from_lines(path, text)


def _from_lines(path: str | Path, text: str) -> ReadFleet:
    written = marked_yaml.parse(str(path), text, FleetFile)
    mistakes = []
    pools = []
    for index, line in enumerate(written.pools):
        try:
            pools.append(_pool(line, written.model, str(Path(path).parent)))
        except Wrong as wrong:
            keys = ("pools", index, *wrong.keys)
            mistakes.append(f"{marked_yaml.place_of(str(path), text, keys)}: {'.'.join(map(str, keys))}: {wrong}")
    slos = _checked(lambda: _slos(written), str(path), text, "slo", mistakes)
    _checked(lambda: _known_router(written.router), str(path), text, "router", mistakes)
    _checked(lambda: _positive("patience_s", written.patience_s), str(path), text, "patience_s", mistakes)
    link = _checked(lambda: _link(written.link), str(path), text, "link", mistakes)
    if not written.pools:
        mistakes.append(f"{marked_yaml.place_of(str(path), text, ('pools',))}: pools: expected at least one")
    if mistakes or link is None:
        raise ValueError("\n".join(mistakes))
    try:
        fleet = _fleet(written, fleet_parts.each_its_model(_paired(written, pools)), link, slos or ())
        if any(pool.serves for pool in fleet.pools) and (written.control is None or written.control.routing is None):
            raise ValueError(
                "pools that serve some models only need control.routing, which sends each request to its own"
            )
    except Wrong as wrong:
        keys = ("pools", *wrong.keys)
        place = marked_yaml.place_of(str(path), text, keys)
        raise ValueError(f"{place}: {'.'.join(map(str, keys))}: {wrong}") from None
    except ValueError as error:
        raise ValueError(f"{marked_yaml.place_of(str(path), text, ('pools',))}: pools: {error}") from None
    return ReadFleet(fleet, slos or (), control=_control(written, fleet, str(path), text))


def _control(written: FleetFile, fleet: "Fleet", file: str, text: str) -> fleet_control.Control | None:
    if written.control is None:
        return None
    try:
        return fleet_control.control_of(written.control, fleet)
    except Wrong as wrong:
        keys = ("control", *wrong.keys)
        place = marked_yaml.place_of(file, text, keys)
        raise ValueError(f"{place}: {'.'.join(map(str, keys))}: {wrong}") from None


def _fleet(written: FleetFile, pools: "tuple[Pool, ...]", link: "Link", slos: tuple[Slo, ...]) -> "Fleet":
    from planners.slo import limit_s
    from simulator.fleet import Fleet

    patience_s = math.inf if written.patience_s is None else written.patience_s
    return Fleet(pools, written.router, link=link, patience_s=patience_s, ttft_limit_s=limit_s(slos, "ttft"))


def _paired(written: FleetFile, pools: "Sequence[Pool]") -> "tuple[Pool, ...]":
    """Return the pools with the tables of those that share devices."""
    paired = list(pools)
    for index, line in enumerate(written.pools):
        if line.twin_of is None:
            continue
        if not 0 <= line.twin_of < index:
            raise Wrong((index, "twin_of"), f"no pool {line.twin_of} before this one")
        first, second = fleet_parts.twins(paired[line.twin_of], paired[index], line.twin_of, line.splits, index)
        paired[line.twin_of], paired[index] = first, second
    return tuple(paired)


def _link(line: LinkLine) -> "Link":
    from simulator.fleet import Link

    _positive("bytes_per_s", line.bytes_per_s)
    if line.latency_s < 0:
        raise ValueError(f"latency_s must not be negative, got {line.latency_s:g}")
    return Link(line.bytes_per_s, line.latency_s, line.layerwise)


def _positive(key: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"{key} must be positive, got {value:g}")


def _checked(check: Callable[[], T], file: str, text: str, key: str, mistakes: list[str]) -> T | None:
    try:
        return check()
    except ValueError as error:
        mistakes.append(f"{marked_yaml.place_of(file, text, (key,))}: {key}: {error}")
        return None


def _slos(written: FleetFile) -> tuple[Slo, ...]:
    from planners.slo import parse_all

    return parse_all(written.slo) if written.slo else ()


def _known_router(name: str) -> None:
    from simulator.routing import ROUTERS

    known = [each for each in ROUTERS if each != "planned"]
    if name not in known:
        raise ValueError(f"unknown router {name!r}; known: {', '.join(known)}")


def _pool(line: PoolLine, model: str | None, folder: str) -> "Pool":
    from models.engine import Engine
    from simulator.fleet import Pool, priced

    llm, device = _llm(line.model or model, folder), _device(line.device)
    for key in COUNTS:
        count = getattr(line, key)
        if count is not None and count < 1:
            raise Wrong((key,), f"must be at least 1, not {count}")
    dtype, kv_dtype = _dtype("dtype", line.dtype, llm), _dtype("kv_dtype", line.kv_dtype)
    ep = line.ep or (line.tp if llm.experts else 1)
    engine = Engine(
        *(llm, device, line.tp, line.pp, ep, line.dp, dtype, kv_dtype),
        framework=_framework(line.framework),
        framework_version=line.framework_version,
        settings=_settings(line),
    )
    if llm.heads % line.tp:
        raise Wrong(("tp",), f"tp {line.tp} does not divide the {llm.heads} heads of {llm.name}")
    if llm.layers % line.pp:
        raise Wrong(("pp",), f"pp {line.pp} does not divide the {llm.layers} layers of {llm.name}")
    if engine.limits.total_blocks < 1:
        gigabytes = engine.weight_bytes_per_device / 1e9
        words = f"{llm.name} in {dtype} does not fit: {gigabytes:.1f} GB of weights a device of"
        raise Wrong(("device",), f"{words} {device.memory_bytes / 1e9:.0f} GB; a larger tp would help")
    usd_per_hour = _usd_per_device_hour(line, device.name) * engine.devices
    chosen = priced(engine)
    return Pool(
        *(chosen, line.replicas),
        usd_per_hour=usd_per_hour,
        role=_role(line.role),
        variants=fleet_parts.variants(line.variants, chosen),
        tiers=line.tiers,
        **fleet_parts.memory(line.fetches, line.eviction, line.quotas),
        serves=line.serves,
    )


COUNTS = (
    *("replicas", "tp", "pp", "dp", "ep", "max_num_seqs", "max_num_batched_tokens"),
    *("max_model_tokens", "block_tokens", "long_prefill_tokens", "swap_operation_blocks"),
)
SETTINGS = (
    *("max_num_seqs", "max_num_batched_tokens", "max_model_tokens", "block_tokens", "long_prefill_tokens"),
    *("watermark_fraction", "chunked_prefill", "prefix_caching", "async_scheduling", "scheduling_policy"),
    *("prefill_first", "no_evict", "reserve_ratio", "swap_preempted", "memory_fraction"),
    *("max_cudagraph_capture_size", "fuse_allreduce_rms", "moe_backend"),
    *("swap_operation_s", "swap_operation_blocks", "swap_keeps_copies"),
)


def _settings(line: PoolLine) -> "Settings":
    """Return how the pool's engines are run; what is not written is as by default."""
    from models import speculation
    from models.calibration.predict import MOE_BACKENDS
    from models.engine import POLICIES, Settings

    written = {key: getattr(line, key) for key in SETTINGS if getattr(line, key) is not None}
    settings = Settings(**written)
    if settings.scheduling_policy not in POLICIES:
        known = ", ".join(POLICIES)
        raise Wrong(("scheduling_policy",), f"unknown policy {settings.scheduling_policy!r}; known: {known}")
    if not 0.0 <= settings.watermark_fraction < 1.0:
        raise Wrong(("watermark_fraction",), f"must be from 0 to below 1, got {settings.watermark_fraction:g}")
    if not 0.0 <= settings.reserve_ratio <= 1.0:
        raise Wrong(("reserve_ratio",), f"must be from 0 to 1, got {settings.reserve_ratio:g}")
    if not 0.0 < settings.memory_fraction <= 1.0:
        raise Wrong(("memory_fraction",), f"must be above 0 and at most 1, got {settings.memory_fraction:g}")
    if (settings.max_cudagraph_capture_size or 0) < 0:
        words = f"must be at least 0, of no graphs, not {settings.max_cudagraph_capture_size}"
        raise Wrong(("max_cudagraph_capture_size",), words)
    if settings.moe_backend and settings.moe_backend not in MOE_BACKENDS:
        known = ", ".join(MOE_BACKENDS)
        raise Wrong(("moe_backend",), f"unknown back end {settings.moe_backend!r}; known: {known}")
    if settings.swap_operation_s < 0:
        raise Wrong(("swap_operation_s",), f"must not be negative, got {settings.swap_operation_s:g}")
    if settings.block_tokens & (settings.block_tokens - 1):
        raise Wrong(("block_tokens",), f"must be a power of two, got {settings.block_tokens}")
    if line.speculative is None:
        return settings
    try:
        drafts = speculation.parse(line.speculative)
        speculation.check(settings.max_num_seqs, settings.max_num_batched_tokens, drafts)
    except ValueError as error:
        raise Wrong(("speculative",), str(error)) from None
    return replace(settings, speculation=drafts)


def _role(name: str) -> str:
    from simulator.fleet import ROLES

    if name not in ROLES:
        raise Wrong(("role",), f"unknown role {name!r}; known: {', '.join(ROLES)}")
    return name


def _framework(name: str) -> str:
    from models import framework

    try:
        framework.load(name)
    except ValueError as error:
        raise Wrong(("framework",), str(error)) from None
    return name


def _usd_per_device_hour(line: PoolLine, device_name: str) -> float:
    from models import price

    if line.usd_per_device_hour is not None:
        if line.usd_per_device_hour < 0:
            raise Wrong(("usd_per_device_hour",), f"must not be negative, got {line.usd_per_device_hour:g}")
        return line.usd_per_device_hour
    listed = price.load(device_name)
    if listed is None:
        raise Wrong(("device",), f"no price is known for {device_name}; add usd_per_device_hour to the pool")
    return listed.usd_per_hour


def _llm(name: str | None, folder: str) -> "Llm":
    from models import llm

    if name is None:
        raise Wrong(("model",), "no model named, neither here nor for the whole fleet")
    beside = Path(folder) / name
    try:
        return llm.load(str(beside) if "/" in name and beside.exists() else name)
    except ValueError as error:
        raise Wrong(("model",), str(error)) from None


def _device(name: str) -> "Device":
    from models import device

    try:
        return device.load(name)
    except ValueError as error:
        raise Wrong(("device",), str(error)) from None


def _dtype(key: str, name: str, llm: "Llm | None" = None) -> str:
    from models import dtype

    try:
        return llm.format_of(name) if llm else dtype.canonical(name)
    except ValueError as error:
        raise Wrong((key,), str(error)) from None
