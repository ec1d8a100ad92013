"""A fleet from a file: plan.json as a command wrote it, or fleet.yaml as a person did: model, router and pools."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from planners import marked_yaml, plan_file
from planners.slo import Slo

if TYPE_CHECKING:
    from models.device import Device
    from models.llm import Llm
    from simulator.fleet import Fleet, Pool

T = TypeVar("T")

FORBID = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class PoolLine:
    """One pool: equal replicas of a model cut tp x pp over devices; the price list's price where none is written."""

    __pydantic_config__: ClassVar = FORBID

    device: str
    replicas: int = 1
    tp: int = 1
    pp: int = 1
    ep: int | None = None
    dp: int = 1
    dtype: str = "bf16"
    model: str | None = None
    usd_per_device_hour: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class FleetFile:
    """A fleet as written: one model, one router, pools, and perhaps the promises it is held against."""

    __pydantic_config__: ClassVar = FORBID

    pools: tuple[PoolLine, ...]
    model: str | None = None
    router: str = "join-shortest-queue"
    slo: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadFleet:
    """A fleet ready to run, the promises that its file states, and what to be wary of."""

    fleet: "Fleet"
    slos: tuple[Slo, ...]
    warnings: tuple[str, ...] = ()


def read(path: str | Path) -> ReadFleet:
    """Return the fleet of a plan.json or fleet.yaml; ValueError lists all mistakes as FILE:LINE:COLUMN."""
    text = Path(path).read_text(encoding="utf-8")
    if plan_file.is_plan(text):
        saved = plan_file.parse(path, text)
        plan, warnings = plan_file.without_empty_pools(saved.plan)
        return ReadFleet(plan.fleet(), saved.slos, warnings)
    return _from_lines(path, text)


def _from_lines(path: str | Path, text: str) -> ReadFleet:
    written = marked_yaml.parse(str(path), text, FleetFile)
    mistakes = []
    pools = []
    for index, line in enumerate(written.pools):
        try:
            pools.append(_pool(line, written.model, str(Path(path).parent)))
        except _Wrong as wrong:
            place = marked_yaml.place_of(str(path), text, ("pools", index, wrong.key))
            mistakes.append(f"{place}: pools.{index}.{wrong.key}: {wrong}")
    slos = _checked(lambda: _slos(written), str(path), text, "slo", mistakes)
    _checked(lambda: _known_router(written.router), str(path), text, "router", mistakes)
    if not written.pools:
        mistakes.append(f"{marked_yaml.place_of(str(path), text, ('pools',))}: pools: expected at least one")
    if mistakes:
        raise ValueError("\n".join(mistakes))
    from simulator.fleet import Fleet

    return ReadFleet(Fleet(tuple(pools), written.router), slos or ())


class _Wrong(ValueError):
    """A mistake in one pool, and the key that has it."""

    def __init__(self, key: str, words: str) -> None:
        super().__init__(words)
        self.key = key


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
    from models.engine import Engine, Settings
    from simulator.fleet import Pool, priced

    llm, device = _llm(line.model or model, folder), _device(line.device)
    for key in ("replicas", "tp", "pp", "dp", "ep", "max_num_seqs", "max_num_batched_tokens"):
        count = getattr(line, key)
        if count is not None and count < 1:
            raise _Wrong(key, f"must be at least 1, not {count}")
    dtype = _dtype(line.dtype)
    changes = {key: getattr(line, key) for key in ("max_num_seqs", "max_num_batched_tokens") if getattr(line, key)}
    ep = line.ep or (line.tp if llm.experts else 1)
    engine = Engine(llm, device, line.tp, line.pp, ep, line.dp, dtype, settings=Settings(**changes))
    if llm.heads % line.tp:
        raise _Wrong("tp", f"tp {line.tp} does not divide the {llm.heads} heads of {llm.name}")
    if llm.layers % line.pp:
        raise _Wrong("pp", f"pp {line.pp} does not divide the {llm.layers} layers of {llm.name}")
    if engine.limits.total_blocks < 1:
        gigabytes = engine.weight_bytes_per_device / 1e9
        words = f"{llm.name} in {dtype} does not fit: {gigabytes:.1f} GB of weights a device of"
        raise _Wrong("device", f"{words} {device.memory_bytes / 1e9:.0f} GB; a larger tp would help")
    return Pool(priced(engine), line.replicas, usd_per_hour=_usd_per_device_hour(line, device.name) * engine.devices)


def _usd_per_device_hour(line: PoolLine, device_name: str) -> float:
    from models import price

    if line.usd_per_device_hour is not None:
        if line.usd_per_device_hour < 0:
            raise _Wrong("usd_per_device_hour", f"must not be negative, got {line.usd_per_device_hour:g}")
        return line.usd_per_device_hour
    listed = price.load(device_name)
    if listed is None:
        raise _Wrong("device", f"no price is known for {device_name}; add usd_per_device_hour to the pool")
    return listed.usd_per_hour


def _llm(name: str | None, folder: str) -> "Llm":
    from models import llm

    if name is None:
        raise _Wrong("model", "no model named, neither here nor for the whole fleet")
    beside = Path(folder) / name
    try:
        return llm.load(str(beside) if "/" in name and beside.exists() else name)
    except ValueError as error:
        raise _Wrong("model", str(error)) from None


def _device(name: str) -> "Device":
    from models import device

    try:
        return device.load(name)
    except ValueError as error:
        raise _Wrong("device", str(error)) from None


def _dtype(name: str) -> str:
    from models import dtype

    try:
        return dtype.canonical(name)
    except ValueError as error:
        raise _Wrong("dtype", str(error)) from None
