"""What if: the plan again with a rate, price, promise, speed or choice of devices changed, one by one or together."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from models.engine import Engine
from models.llm import Llm
from models.toml_file import unknown_name
from planners.classes import classified
from planners.facts import Facts, of_earlier_runs
from planners.offers.engines import AS_USUAL, Offer, Variants, devices_named, offers_for
from planners.offers.keeping import keep_of
from planners.offers.limits import Limits
from planners.offers.tariffs import LISTED, ON_DEMAND, Tariff
from planners.plan import Plan
from planners.search.infeasible import Infeasible, nothing_fits
from planners.search.search import Found, Sought, find, find_plan
from planners.slo import Slo, holds, parse, parse_all, tightest_s
from simulator.fleet import PricedEngine
from traces import Trace

if TYPE_CHECKING:
    from planners.study import Study

EXAMPLE = "rate=0.5x,1x,2x"
UNCHANGED = ("1x", "fitted")
FITTED = "fitted"
ENDS = ("low", "high")


@dataclass(frozen=True, slots=True)
class Question:
    """What a plan is sought for; offers are made once per limit on TPOT and kept in `known`."""

    trace: Trace
    llm: Llm
    slos: tuple[Slo, ...]
    devices: tuple[str, ...] | None = None
    seed: int = 0
    limits: Limits | None = None
    tariff: Tariff = LISTED
    price_factors: Mapping[str, float] = field(default_factory=dict)
    variants: Variants = AS_USUAL
    there: Plan | None = None
    usd_per_hour_per_change: float = 0.0
    usd_per_device_hour: Mapping[str, float] = field(default_factory=dict)
    speed_factors: Mapping[str, float] = field(default_factory=dict)
    calibration_ends: Mapping[str, str] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts, compare=False, repr=False)
    known: dict[tuple[float, bool], tuple[Offer, ...]] = field(default_factory=dict, compare=False, repr=False)

    def offers(self, is_rough: bool = False) -> tuple[Offer, ...]:
        """Return the engines on offer at the changed prices and speeds; rough ones as offers_for has them."""
        wanted = tightest_s(self.slos, "tpot"), is_rough
        if wanted not in self.known:
            named, _ = devices_named(self.devices, self.tariff)
            self.known[wanted] = offers_for(
                self.llm,
                named,
                tpot_limit_s=wanted[0],
                tariff=self.tariff,
                variants=self.variants,
                is_rough=is_rough,
            )
        return tuple(self._changed(offer) for offer in self.known[wanted])

    def plan(self, **options: Any) -> Plan:
        """Return the plan; options are further keywords of find_plan. Raises Infeasible."""
        offers = self.offers(is_rough=options.get("analytic", False))
        named, notes = devices_named(self.devices, self.tariff)
        if not offers:
            raise nothing_fits(self.llm, named)
        options |= {
            "offers": offers,
            "seed": self.seed,
            "limits": self.limits,
            "notes": notes,
            "variants": self.variants,
            "facts": self.facts,
        }
        if self.there is not None:
            options["keep"] = keep_of(self.there, offers, self.usd_per_hour_per_change)
        return find_plan(self.trace, None, self.slos, **options).emitting(self.tariff.carbon)

    def found(self) -> Found:
        """Return the whole outcome of the search for a plan. Raises Infeasible."""
        offers, (named, notes) = self.offers(), devices_named(self.devices, self.tariff)
        if not offers:
            raise nothing_fits(self.llm, named)
        sought = Sought(
            self.trace, self.slos, offers, self.limits, self.variants, self.seed, notes=notes, facts=self.facts
        )
        market, windows, _ = sought.sketched()
        return find(sought, market, windows)

    def _changed(self, offer: Offer) -> Offer:
        device = offer.device_name
        usd_per_hour = offer.usd_per_hour
        kind = offer.price.kind if offer.price else ON_DEMAND
        if device in self.usd_per_device_hour and offer.priced.engine and kind == self.tariff.kinds[0]:
            carbon_usd = self.tariff.carbon_usd_per_hour(offer.priced.engine.device)
            usd_per_hour = (self.usd_per_device_hour[device] + carbon_usd) * offer.priced.engine.devices
        usd_per_hour *= self.price_factors.get("", 1.0) * self.price_factors.get(device, 1.0)
        speed = self.speed_factors.get("", 1.0) * self.speed_factors.get(device, 1.0)
        end = self.calibration_ends.get(device, self.calibration_ends.get("", FITTED))
        if end != FITTED and offer.priced.engine is not None:
            speed /= step_time_factors(offer.priced.engine)[ENDS.index(end)]
        return replace(offer, usd_per_hour=usd_per_hour, priced=faster(offer.priced, speed))


def question_of(study: "Study", trace: Trace | None = None, model: Llm | None = None) -> Question:
    """Return the question that a study asks; its trace and model are read where they are not given."""
    import traces
    from models import llm
    from planners import plan_file

    if trace is None:
        trace = traces.sample() if study.trace is None else traces.read(study.trace)
    return Question(
        classified(trace, study.classes),
        model or llm.load(study.model),
        parse_all(study.slo),
        study.devices,
        study.seed,
        study.limits_on_fleet if study.limits or study.racks else None,
        study.tariff,
        variants=study.engines.variants,
        there=None if study.keep.plan is None else plan_file.read(study.keep.plan).plan,
        usd_per_hour_per_change=study.keep.usd_per_change / study.keep.hours,
        usd_per_device_hour=study.usd_per_device_hour,
        facts=of_earlier_runs(),
    )


@dataclass(frozen=True, slots=True)
class Axis:
    """One thing that varies, as `rate`, `price.h100-sxm` or `slo.ttft:p99`, and its values as written."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """One answer: what was changed, and the plan, or why there is none."""

    changes: Mapping[str, str]
    plan: Plan | None
    reasons: tuple[str, ...] = ()

    @property
    def usd_per_hour(self) -> float:
        """Return what the plan costs; infinite where there is none."""
        return self.plan.usd_per_hour if self.plan else math.inf


@dataclass(frozen=True, slots=True)
class Loss:
    """One replica of a pool lost: whether the promises still hold, and the latencies then [s]."""

    pool: str
    holds: bool
    latency_s: Mapping[str, Mapping[str, float]]


def parse_axis(text: str) -> Axis:
    """Return the axis that a text like "rate=0.5x,1x,2x" describes; ValueError says what would do.

    >>> parse_axis("price.h100-sxm=0.5x,2.5").values
    ('0.5x', '2.5')
    """
    name, is_given, values = text.partition("=")
    words = tuple(value.strip() for value in values.split(",") if value.strip())
    if not is_given or not words:
        raise ValueError(f"cannot read {text!r}; expected NAME=VALUE,VALUE,... as in {EXAMPLE!r}")
    if name.partition(".")[0] not in CHANGES:
        raise unknown_name("axis", name, CHANGES)
    return Axis(name.strip(), words)


def grid(question: Question, axes: Sequence[Axis]) -> Iterator[Case]:
    """Yield the answer to every combination of values, the last axis fastest."""
    for values in product(*(axis.values for axis in axes)):
        yield answer(question, dict(zip((axis.name for axis in axes), values, strict=True)))


def tornado(question: Question, axes: Sequence[Axis]) -> Iterator[Case]:
    """Yield the answer as things are, then with one value changed at a time."""
    yield answer(question, {})
    for axis in axes:
        for value in axis.values:
            if value not in UNCHANGED:
                yield answer(question, {axis.name: value})


def answer(question: Question, changes: Mapping[str, str]) -> Case:
    """Return the plan once the changes are made."""
    changed = question
    for name, value in changes.items():
        kind, _, what = name.partition(".")
        changed = CHANGES[kind](changed, what, value)
    try:
        plan = changed.plan()
    except Infeasible as error:
        return Case(changes, None, error.reasons)
    return Case(changes, plan)


def losses(plan: Plan, trace: Trace, slos: Sequence[Slo]) -> Iterator[Loss]:
    """Yield what a replay shows with one replica of each pool gone and its share of requests spread over the rest."""
    from simulator.replay import replay

    fleet = plan.fleet()
    for index, pool in enumerate(fleet.pools):
        left = tuple(replace(each, replicas=each.replicas - (place == index)) for place, each in enumerate(fleet.pools))
        kept = [place for place, each in enumerate(left) if each.replicas]
        if {fleet.pools[place].role for place in kept} != {each.role for each in fleet.pools}:
            yield Loss(plan.pools[index].name, False, {})  # nobody is left to prefill, or to decode
            continue
        shares = tuple(_spread([row[place] for place in kept]) for row in fleet.shares)
        run = replay(trace, replace(fleet, pools=tuple(left[place] for place in kept), shares=shares))
        yield Loss(pool.engine.name, holds(run, slos), run.latency_s())


def faster(priced: PricedEngine, factor: float) -> PricedEngine:
    """Return an engine whose every step takes 1 / factor of the time."""
    if factor == 1.0:
        return priced
    table = priced.table
    columns = {
        name: (getattr(table, name) / factor).round().astype(getattr(table, name).dtype)
        for name in table._fields
        if name.endswith("_ps")
    }
    return replace(priced, table=table._replace(**columns))


def step_time_factors(engine: Engine) -> tuple[float, float]:
    """Return the factors on an engine's step times between which 90 % of measurements are expected."""
    from models import forward
    from models.estimate import StepCosts, trust

    batch = np.array([float(engine.settings.max_num_seqs)])
    context = np.array([engine.kv_tokens / engine.settings.max_num_seqs])
    calls = [
        *forward.token_calls(engine, batch),
        *forward.sequence_calls(engine, batch),
        *forward.decode_calls(engine, batch, context),
    ]
    return trust(engine, StepCosts(engine), calls)[1]


def _rate(question: Question, what: str, value: str) -> Question:
    from traces.transform import scale_rate

    return replace(question, trace=scale_rate(question.trace, _factor("rate", value), question.seed))


def _prompts(question: Question, what: str, value: str) -> Question:
    from traces.transform import scale_lengths

    return replace(question, trace=scale_lengths(question.trace, input_factor=_factor("prompts", value)))


def _answers(question: Question, what: str, value: str) -> Question:
    from traces.transform import scale_lengths

    return replace(question, trace=scale_lengths(question.trace, output_factor=_factor("answers", value)))


def _price(question: Question, what: str, value: str) -> Question:
    if what and not value.endswith("x"):
        prices = {**question.usd_per_device_hour, _known_device(what): _number("price", value)}
        return replace(question, usd_per_device_hour=prices)
    key = _known_device(what) if what else ""
    return replace(question, price_factors={**question.price_factors, key: _factor("price", value)})


def _speed(question: Question, what: str, value: str) -> Question:
    key = _known_device(what) if what else ""
    return replace(question, speed_factors={**question.speed_factors, key: _factor("speed", value)})


def _calibration(question: Question, what: str, value: str) -> Question:
    if value not in (FITTED, *ENDS):
        raise ValueError(f"calibration={value}: expected low, fitted or high, ends of the 90 % interval of step times")
    key = _known_device(what) if what else ""
    return replace(question, calibration_ends={**question.calibration_ends, key: value})


def _hit(question: Question, what: str, value: str) -> Question:
    from traces.transform import common_prefix

    fraction = _number("hit", value, least=0.0)
    if not fraction < 1:
        raise ValueError(f"hit={value}: expected the fraction of prompt tokens that a prefix cache finds, below 1")
    return replace(question, trace=common_prefix(question.trace, fraction))


def _failures(question: Question, what: str, value: str) -> Question:
    if not value.isdecimal():
        raise ValueError(f"failures={value}: expected how many replicas may fail together, as 1")
    return replace(question, limits=replace(question.limits or Limits(), spare=int(value)))


def _slo(question: Question, what: str, value: str) -> Question:
    if not what:
        factor = _factor("slo", value)
        return replace(question, slos=tuple(replace(slo, limit_s=slo.limit_s * factor) for slo in question.slos))
    names = [slo.name for slo in question.slos]
    if what not in names:
        raise ValueError(f"no promise on {what!r} to vary; promised: {', '.join(names)}")
    changed = list(question.slos)
    place = names.index(what)
    if value.endswith("x"):
        changed[place] = replace(changed[place], limit_s=changed[place].limit_s * _factor("slo", value))
    else:
        changed[place] = parse(f"{what}<={value}")
    return replace(question, slos=tuple(changed))


def _devices(question: Question, what: str, value: str) -> Question:
    names = tuple(value.split("+"))
    devices_named(names, question.tariff)
    return replace(question, devices=names, known={})


# What can vary, and how the question changes with it.
CHANGES: dict[str, Callable[[Question, str, str], Question]] = {
    "rate": _rate,
    "prompts": _prompts,
    "answers": _answers,
    "price": _price,
    "speed": _speed,
    "calibration": _calibration,
    "hit": _hit,
    "failures": _failures,
    "slo": _slo,
    "devices": _devices,
}


def _known_device(name: str) -> str:
    from models import device

    return device.load(name).name


def _factor(axis: str, value: str) -> float:
    if not value.endswith("x"):
        raise ValueError(f"{axis}={value}: expected a factor, as 0.5x")
    return _number(axis, value.removesuffix("x"))


def _number(axis: str, value: str, least: float | None = None) -> float:
    found = float(value) if re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", value) else -1.0
    if found < 0 or (found == 0 and least is None):
        raise ValueError(f"{axis}={value}: expected a number {'from 0 on' if least == 0 else 'above 0'}")
    return found


def _spread(shares: Sequence[float]) -> tuple[float, ...]:
    """Return fractions that add up to one again; equal ones where none is left."""
    total = sum(shares)
    return tuple(share / total for share in shares) if total > 0 else (1 / len(shares),) * len(shares)
