"""Which engines there are to choose from: every legal cut of a model over every device, in every dtype it computes."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from models import device, price
from models.device import Device
from models.engine import Engine, Settings
from models.llm import Llm
from models.price import Price
from models.step import PICOSECONDS_PER_SECOND
from simulator.fleet import PricedEngine

DEFAULT_DEVICES = (
    *("h100-sxm", "h200-sxm", "b200-sxm", "a100-sxm-80gb", "l40s"),
    *("a10g", "l4", "mi300x", "rtx-4090", "gaudi3"),
)
DTYPES = ("bf16", "fp8")
FEWEST_TOKENS = 256  # a step budget below this wastes most of a device


@dataclass(frozen=True, slots=True)
class Offer:
    """One engine at a price: usd_per_hour is that of one replica, all its devices together."""

    priced: PricedEngine
    usd_per_hour: float
    price: Price | None = None
    is_cautious: bool = False  # its steps are kept short enough for TPOT
    is_spot: bool = False  # cheaper, and may be taken away
    role: str = "both"  # or "prefill", or "decode": of pools that work hand in hand

    @property
    def name(self) -> str:
        """Return the engine's name."""
        return self.priced.name

    @property
    def short_name(self) -> str:
        """Return the engine's name without the model's."""
        return self.name.partition("/")[2] or self.name

    @property
    def device_name(self) -> str:
        """Return the device's name; the engine's where it is made of no catalogue device."""
        return self.priced.engine.device.name if self.priced.engine else self.priced.name


def devices_named(names: Sequence[str] | None) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    """Return the devices to plan with, the default ten where none are named, and warnings about those left out.

    ValueError for unknown names, and for a named device that has no price.
    """
    warnings = []
    chosen = []
    for name in dict.fromkeys(names if names is not None else DEFAULT_DEVICES):
        found = device.load(name)
        if price.load(found.name) is not None:
            chosen.append(found)
        elif names is not None:
            raise ValueError(f"device {name!r} has no on-demand price; plan with priced devices or add a price")
        else:
            warnings.append(f"{name} is left out: no on-demand price is known")
    return tuple(chosen), tuple(warnings)


def legal_engines(
    llm: Llm,
    devices: Sequence[Device],
    *,
    context_tokens: int,
    dtypes: Sequence[str] = DTYPES,
    settings: Settings | None = None,
) -> Iterator[Engine]:
    """Yield the engines that hold at least a context of so many tokens, device by device.

    tp and pp are powers of two whose product fits a node; tp divides the heads, pp the layers. A pipeline is offered
    only where the same devices cannot hold the model with fewer stages, or where only the host link joins them.
    Experts spread over all tp ranks. fp8 is offered where the device multiplies it natively.
    """
    settings = settings or Settings()
    for one in devices:
        for dtype in dtypes:
            if dtype != "bf16" and dtype not in one.flops_per_s:
                continue
            for tp, pp in _cuts(llm, one):
                ep = tp if llm.experts else 1
                engine = Engine(llm, one, tp=tp, pp=pp, ep=ep, dtype=dtype, settings=settings)
                if engine.kv_tokens and engine.limits.max_context_tokens >= context_tokens:
                    yield engine


def offers_for(
    llm: Llm,
    devices: Sequence[Device],
    *,
    context_tokens: int = 1,
    tpot_limit_s: float = math.inf,
    kinds: Sequence[str] = ("on-demand",),
) -> tuple[Offer, ...]:
    """Return every legal engine at its prices, and a cautious twin where its largest steps are over the limit.

    A cautious engine takes the largest power of two of tokens a step that alone stays within the limit.
    """
    offers: list[Offer] = []
    for engine in legal_engines(llm, devices, context_tokens=context_tokens):
        bold = offer(engine)
        offers += _at_prices(bold, kinds)
        cautious = _cautious_tokens(bold, tpot_limit_s)
        if cautious is not None:
            settings = replace(engine.settings, max_num_batched_tokens=cautious)
            offers += _at_prices(replace(offer(replace(engine, settings=settings)), is_cautious=True), kinds)
    return tuple(offers)


def offer(engine: Engine) -> Offer:
    """Return an engine with its step table and its price; ValueError where the device has none."""
    from simulator.fleet import priced

    listed = price.load(engine.device.name)
    if listed is None:
        raise ValueError(f"device {engine.device.name!r} has no on-demand price")
    default = Settings().max_num_batched_tokens
    tokens = engine.settings.max_num_batched_tokens
    name = engine.name if tokens == default else f"{engine.name}/{tokens}"
    return Offer(replace(priced(engine), name=name), listed.usd_per_hour * engine.devices, listed)


def _at_prices(one: Offer, kinds: Sequence[str]) -> list[Offer]:
    """Return an on-demand offer at each kind of price that its device has; a spot pool is named so."""
    engine, offers = one.priced.engine, []
    for kind in kinds:
        listed = price.load(engine.device.name, kind) if engine else None
        if engine is not None and listed is not None:
            cost, is_spot = listed.usd_per_hour * engine.devices, kind == "spot"
            name = f"{one.name}/spot" if is_spot else one.name
            found = replace(one.priced, name=name)
            offers.append(replace(one, priced=found, usd_per_hour=cost, price=listed, is_spot=is_spot))
    return offers


def _cautious_tokens(bold: Offer, tpot_limit_s: float) -> int | None:
    """Return the tokens a step that stay within the TPOT limit, or None where all do or even FEWEST_TOKENS do not."""
    step_s = bold.priced.table.token_ps[0] / PICOSECONDS_PER_SECOND
    tokens = bold.priced.limits.max_batched_tokens
    if step_s[tokens] <= tpot_limit_s:
        return None
    while tokens > FEWEST_TOKENS and step_s[tokens] > tpot_limit_s:
        tokens = 1 << (tokens - 1).bit_length() - 1
    return tokens if step_s[tokens] <= tpot_limit_s else None


def _cuts(llm: Llm, one: Device) -> Iterator[tuple[int, int]]:
    """Yield (tp, pp) that a node of the device can hold."""
    for tp in _powers_of_two(one.node_size):
        if llm.heads % tp or (llm.kv_heads % tp and tp % llm.kv_heads):
            continue
        for pp in _powers_of_two(one.node_size // tp):
            slow_link = one.link_bytes_per_s is None
            if llm.layers % pp == 0 and (pp == 1 or slow_link):
                yield tp, pp


def _powers_of_two(most: int) -> list[int]:
    return [1 << power for power in range(max(most, 1).bit_length())]
