"""Which engines there are to choose from: every legal cut of a model over every device, in every variant asked for."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from models import device, price
from models.device import Device
from models.dtype import OFFERED, multiplied_in
from models.engine import Engine, Settings
from models.llm import Llm
from models.price import Price
from models.speculation import Speculation
from models.step import PICOSECONDS_PER_SECOND, StepTable, first_tokens
from planners.offers.dominance import undominated
from planners.offers.tariffs import LISTED, ON_DEMAND, Tariff
from simulator.fleet import PricedEngine

DEFAULT_DEVICES = (
    *("h100-sxm", "h200-sxm", "b200-sxm", "a100-sxm-80gb", "l40s"),
    *("a10g", "l4", "mi300x", "rtx-4090", "gaudi3"),
)
PLAIN_KV = "bf16"
FEWEST_TOKENS = 256  # a step budget below this wastes most of a device


@dataclass(frozen=True, slots=True)
class Variants:
    """What of an engine may vary beside its cut: dtypes of weights and of KV, data-parallel ranks, drafts.

    dp counts ranks that share one set of experts, so that it says nothing to a dense model; None drafts nothing.
    """

    dtypes: tuple[str, ...] = OFFERED
    kv_dtypes: tuple[str, ...] = (PLAIN_KV,)
    dp: tuple[int, ...] = (1,)
    drafts: tuple[Speculation | None, ...] = (None,)


AS_USUAL = Variants()


@dataclass(frozen=True, slots=True)
class Offer:
    """One engine at a price: usd_per_hour is that of one replica, all its devices together."""

    priced: PricedEngine
    usd_per_hour: float
    price: Price | None = None
    is_cautious: bool = False  # its steps are kept short enough for TPOT
    is_spot: bool = False  # cheaper, and may be taken away
    role: str = "both"  # or "prefill", or "decode": of pools that work hand in hand
    least: int = 0  # replicas that there are in any case
    most: int | None = None  # replicas that can be had at this price
    change_usd_per_hour: float = 0.0  # of usd_per_hour, what is for adding the replica, or saved by keeping it

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


def devices_named(names: Sequence[str] | None, tariff: Tariff = LISTED) -> tuple[tuple[Device, ...], tuple[str, ...]]:
    """Return the devices to plan with, the default ten where none are named, and warnings about those left out.

    ValueError for unknown names, and for a named device that has no price.
    """
    warnings = []
    chosen = []
    for name in dict.fromkeys(names if names is not None else DEFAULT_DEVICES):
        found = device.load(name)
        if tariff.prices(found):
            chosen.append(found)
        elif names is not None:
            kinds = " or ".join(tariff.kinds)
            raise ValueError(f"device {name!r} has no {kinds} price; plan with priced devices or add a price")
        else:
            warnings.append(f"{name} is left out: no {' or '.join(tariff.kinds)} price is known")
    return tuple(chosen), tuple(warnings)


def legal_engines(
    llm: Llm,
    devices: Sequence[Device],
    *,
    context_tokens: int,
    variants: Variants = AS_USUAL,
    settings: Settings | None = None,
) -> Iterator[Engine]:
    """Yield the engines that hold at least a context of so many tokens, device by device.

    tp and pp are powers of two whose product fits a node; tp divides the heads, pp the layers. A pipeline is offered
    only where the same devices cannot hold the model with fewer stages, or where only the host link joins them.
    Experts spread over all tp ranks, and over the ranks of dp where those share them: within one node, and evenly. A
    format of weights or KV is offered where the device multiplies it natively, or widens it as weights are read; drafts
    where a full batch fits into a step.
    """
    usual = settings or Settings()
    dtypes = dict.fromkeys(map(llm.format_of, variants.dtypes))
    for one in devices:
        known = ("bf16", *one.flops_per_s)
        kinds = itertools.product(
            [dtype for dtype in dtypes if multiplied_in(dtype) in known],
            [dtype for dtype in variants.kv_dtypes if dtype in known],
            [drafts for drafts in variants.drafts if drafts is None or _fit_in_a_step(usual, drafts)],
        )
        for dtype, kv_dtype, drafts in kinds:
            for tp, pp, dp in _cuts(llm, one, variants.dp):
                ep = tp * dp if llm.experts else 1
                cut = {"tp": tp, "pp": pp, "ep": ep, "dp": dp, "dtype": dtype, "kv_dtype": kv_dtype}
                engine = Engine(llm, one, **cut, settings=replace(usual, speculation=drafts))  # type: ignore[arg-type]
                if engine.kv_tokens and engine.limits.max_context_tokens >= context_tokens:
                    yield engine


def offers_for(
    llm: Llm,
    devices: Sequence[Device],
    *,
    context_tokens: int = 1,
    tpot_limit_s: float = math.inf,
    tariff: Tariff = LISTED,
    variants: Variants = AS_USUAL,
    is_rough: bool = False,
) -> tuple[Offer, ...]:
    """Return every legal engine at its prices, and a cautious twin where its largest steps are over the limit.

    A cautious engine takes the largest power of two of tokens a step that alone stays within the limit. Of several
    variants of a cut, those that another is no slower than in any step, and holds no less than, are left out. Rough
    ones have step times priced at few points, soon; a cautious twin then shares them.
    """
    made: list[Offer] = []
    for engine in legal_engines(llm, devices, context_tokens=context_tokens, variants=variants):
        table = _rough_table(engine) if is_rough else None
        bold = _unpriced(engine, table)
        made.append(bold)
        cautious = _cautious_tokens(bold, tpot_limit_s)
        if cautious is not None and _fit_in_a_step(replace(engine.settings, max_num_batched_tokens=cautious)):
            settings = replace(engine.settings, max_num_batched_tokens=cautious)
            own = table and first_tokens(table, cautious)
            made.append(replace(_unpriced(replace(engine, settings=settings), own), is_cautious=True))
    kept = made if variants == AS_USUAL else undominated(made)
    prices = {one: tariff.prices(one) for one in devices}
    return tuple(priced for one in kept for priced in _at_prices(one, prices, tariff))


def offer(engine: Engine) -> Offer:
    """Return an engine with its step table and its on-demand price; ValueError where the device has none."""
    listed = price.load(engine.device.name)
    if listed is None:
        raise ValueError(f"device {engine.device.name!r} has no on-demand price")
    return replace(_unpriced(engine), usd_per_hour=listed.usd_per_hour * engine.devices, price=listed)


def _rough_table(engine: Engine) -> StepTable:
    from models.tables import COARSE, step_table

    return step_table(engine, grid=COARSE)


def _unpriced(engine: Engine, table: StepTable | None = None) -> Offer:
    """Return an engine with its step table, by default its own, for nothing as yet."""
    from simulator.fleet import priced

    default = Settings().max_num_batched_tokens
    tokens = engine.settings.max_num_batched_tokens
    name = name_of(engine) if tokens == default else f"{name_of(engine)}/{tokens}"
    return Offer(replace(priced(engine, table), name=name), 0.0)


def name_of(engine: Engine) -> str:
    """Return an engine's name with what sets it apart from others of its cut and dtype.

    >>> from models import device, llm
    >>> name_of(Engine(llm.load("llama-3.1-8b"), device.load("l4"), kv_dtype="fp8"))
    'llama-3.1-8b/l4/tp1pp1ep1dp1/bf16/kv-fp8'
    """
    return "/".join([engine.name, *variant_words(engine)])


def variant_words(engine: Engine) -> tuple[str, ...]:
    """Return what is not as usual of an engine's KV and decoding: kv-fp8, drafts3."""
    drafts = engine.settings.speculation
    kv = () if engine.kv_dtype == PLAIN_KV else (f"kv-{engine.kv_dtype}",)
    return kv if drafts is None else (*kv, f"drafts{drafts.draft_tokens}")


def _fit_in_a_step(settings: Settings, drafts: Speculation | None = None) -> bool:
    """Say whether a full batch with its drafts fits into one step."""
    chosen = drafts or settings.speculation
    verified = 1 if chosen is None else chosen.verified_tokens
    return chosen is None or settings.max_num_seqs * verified <= settings.max_num_batched_tokens


def _at_prices(one: Offer, prices: Mapping[Device, Mapping[str, Price]], tariff: Tariff) -> Iterator[Offer]:
    """Yield an offer at each kind of price that its device has, named by it where that is not on demand."""
    engine = one.priced.engine
    assert engine is not None, "only catalogue devices have listed prices"
    for kind, listed in prices[engine.device].items():
        cost = (listed.usd_per_hour + tariff.carbon_usd_per_hour(engine.device)) * engine.devices
        found = replace(one.priced, name=f"{one.name}{suffix_of(kind)}")
        yield replace(one, priced=found, usd_per_hour=cost, price=listed, is_spot=kind == "spot")


def suffix_of(kind: str) -> str:
    """Return what the name of an engine at a kind of price ends with."""
    return "" if kind == ON_DEMAND else f"/{kind}"


def _cautious_tokens(bold: Offer, tpot_limit_s: float) -> int | None:
    """Return the tokens a step that stay within the TPOT limit, or None where all do or even FEWEST_TOKENS do not."""
    tpot_limit_s *= bold.priced.limits.growth_parts / (1 << bold.priced.limits.part_shift)
    step_s = bold.priced.table.token_ps[0] / PICOSECONDS_PER_SECOND
    tokens = bold.priced.limits.max_batched_tokens
    if step_s[tokens] <= tpot_limit_s:
        return None
    while tokens > FEWEST_TOKENS and step_s[tokens] > tpot_limit_s:
        tokens = 1 << (tokens - 1).bit_length() - 1
    return tokens if step_s[tokens] <= tpot_limit_s else None


def _cuts(llm: Llm, one: Device, ranks: Sequence[int] = (1,)) -> Iterator[tuple[int, int, int]]:
    """Yield (tp, pp, dp) that a node of the device can hold."""
    for tp in _powers_of_two(one.node_size):
        if llm.heads % tp or (llm.kv_heads % tp and tp % llm.kv_heads):
            continue
        for pp in _powers_of_two(one.node_size // tp):
            slow_link = one.link_bytes_per_s is None
            if llm.layers % pp == 0 and (pp == 1 or slow_link):
                yield from ((tp, pp, dp) for dp in ranks if dp == 1 or _share_experts(llm, one, tp, pp, dp))


def _share_experts(llm: Llm, one: Device, tp: int, pp: int, dp: int) -> bool:
    """Say whether so many data-parallel ranks of one stage spread the experts evenly over a node's devices."""
    return llm.experts > 0 and pp == 1 and tp * dp <= one.node_size and llm.experts % (tp * dp) == 0


def _powers_of_two(most: int) -> list[int]:
    return [1 << power for power in range(max(most, 1).bit_length())]
