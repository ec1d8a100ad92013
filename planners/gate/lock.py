"""plan.lock.json: the decisions that were taken, what they rest on, and how far each figure may move."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planners.answer import plain
from planners.plan import Plan, from_result
from planners.plan_file import RARE, SavedPlan, find_beside, study_of, trace_at
from planners.slo import Slo, parse_all

if TYPE_CHECKING:
    from models.llm import Llm
    from planners.offers.tariffs import Tariff
    from simulator.run import Run
    from traces import Trace

FORMAT_VERSION = 1
LOCK_FILE = "plan.lock.json"
HASH_LETTERS = 16

# How far a figure may move before it counts as drift: (kind, amount).
TOLERANCES = {
    "usd_per_hour": ("rel", 1e-3),
    "usd_per_hour_bound": ("rel", 1e-2),
    "attainment": ("abs", 1e-3),
    "rejected": ("abs", 0.0),
}
LATENCY_TOLERANCE = ("rel", 2e-2)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One decision: the inputs it was taken from, their hashes, the fleet, its figures, and why it is that fleet."""

    inputs: Mapping[str, Any]
    hashes: Mapping[str, str]
    fleet: Mapping[str, Any]
    facts: Mapping[str, float]
    why: str = ""
    reason: str = ""

    @property
    def slos(self) -> tuple[Slo, ...]:
        """Return the promises."""
        return parse_all(self.inputs["slo"])

    @property
    def prices(self) -> dict[str, float]:
        """Return the price of every device that was to choose from [USD/device-hour]."""
        return dict(self.inputs["prices"])

    def plan(self, llm: "Llm") -> Plan:
        """Return the locked fleet as a plan that knows nothing of its rehearsal."""
        return from_result({**_NOTHING_KNOWN, **self.fleet, "usd_per_hour": self.facts["usd_per_hour"]}, llm)

    def as_dict(self) -> dict[str, Any]:
        """Return what the file holds of the scenario, each figure with its tolerance."""
        facts = {}
        for name, value in self.facts.items():
            kind, amount = tolerance(name)
            facts[name] = {"value": value, kind: amount}
        parts = {"inputs": self.inputs, "hashes": self.hashes, "fleet": self.fleet, "facts": facts, "why": self.why}
        return parts | ({"reason": self.reason} if self.reason else {})


def tolerance(fact: str) -> tuple[str, float]:
    """Return ("rel" or "abs", how much) a figure may move."""
    return TOLERANCES.get(fact, LATENCY_TOLERANCE)


def is_within(fact: str, was: float, now: float) -> bool:
    """Say whether a figure moved by no more than it may."""
    kind, amount = tolerance(fact)
    return abs(now - was) <= amount * (abs(was) if kind == "rel" else 1.0)


def scenario_of(saved: SavedPlan, trace: "Trace", reason: str = "") -> Scenario:
    """Return the decision of a plan.json, ready to be locked."""
    from planners.offers.engines import devices_named

    tariff = study_of(saved.inputs).tariff
    devices, _ = devices_named(saved.inputs["devices"], tariff)
    own = dict(saved.inputs["prices"])
    prices = {device.name: price_of(device.name, tariff) for device in devices} | own
    inputs = {key: saved.inputs[key] for key in ("model", "slo", "devices", "kinds", "limits", "siblings", "seed")}
    inputs |= {key: saved.inputs[key] for key in ("split", "scale", *RARE) if key in saved.inputs}
    inputs = {"trace": saved.inputs["trace"]["path"], **inputs, "prices": prices, "own_prices": own}
    result = saved.plan.result()
    fleet: dict[str, Any] = {key: result[key] for key in ("pools", "routing", "change") if key in result}
    fleet["pools"] = [{**pool, "busy": None} for pool in fleet["pools"]]
    facts = facts_of(saved.plan)
    return Scenario(
        inputs, hashes_of(trace, saved.llm, saved.plan, tuple(prices)), fleet, facts, result["bottleneck"], reason
    )


def scenario_of_study(path: str | Path) -> Scenario:
    """Return the decision that is taken today for a plan.yaml; raises Infeasible."""
    from planners import plan_file, study
    from planners.whatif import question_of

    asked = study.read(path)
    question = question_of(asked)
    inputs = plan_file.inputs_of(asked, question.trace)
    return scenario_of(SavedPlan(question.plan(), question.llm, question.slos, inputs), question.trace)


def facts_of(plan: Plan) -> dict[str, float]:
    """Return the figures of a plan that a lock holds on to."""
    facts = {"usd_per_hour": plan.usd_per_hour, "usd_per_hour_bound": plan.usd_per_hour_bound}
    facts |= {kept.promise: kept.value_s for kept in plan.promises}
    facts["attainment"] = plan.attainment or 0.0
    facts["rejected"] = float(plan.requests.get("rejected", 0))
    return {name: plain(value) for name, value in facts.items()}


def facts_of_run(run: "Run", slos: tuple[Slo, ...]) -> dict[str, float]:
    """Return the same figures from a replay, cost and bound aside."""
    from planners.slo import kept, value_s

    facts = {str(slo): value_s(run, slo) for slo in slos}
    facts["attainment"] = float(kept(run, slos).mean())
    facts["rejected"] = float(run.counts()["rejected"])
    return {name: plain(value) if plain(value) is not None else float("inf") for name, value in facts.items()}


def hashes_of(trace: "Trace", llm: "Llm", plan: Plan, devices: tuple[str, ...]) -> dict[str, str]:
    """Return a hash of each input: trace, model, devices, and the step times of the fleet's engines."""
    from models import device
    from traces.trace import content_sha256

    shapes = {key: value for key, value in asdict(llm).items() if key not in ("source", "note")}
    sheets = {name: {key: value for key, value in asdict(device.load(name)).items()} for name in devices}
    return {
        "trace": content_sha256(trace)[:HASH_LETTERS],
        "model": _hash(shapes),
        "devices": _hash(sheets),
        "step times": _hash_of_tables(plan),
    }


def price_of(device_name: str, tariff: "Tariff") -> float:
    """Return the price of a device at the first kind to choose from [USD/h], or at the next that it has.

    ValueError where there is none.
    """
    from models import device

    found = list(tariff.prices(device.load(device_name)).values())
    if not found:
        raise ValueError(f"device {device_name!r} has no {' or '.join(tariff.kinds)} price")
    return found[0].usd_per_hour


def read(path: str | Path) -> dict[str, Scenario]:
    """Return the scenarios of a lock file by name; ValueError says what is wrong with it."""
    return parse(path, Path(path).read_text(encoding="utf-8"))


def parse(path: str | Path, text: str) -> dict[str, Scenario]:
    """Return the scenarios in the text of a lock file."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"{path}:1:1: format_version {version!r}; this version reads {FORMAT_VERSION}")
    try:
        return {name: _scenario(each) for name, each in content["scenarios"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}:1:1: not a whole lock file: {error} is missing or of the wrong kind") from None


def text_of(scenarios: Mapping[str, Scenario]) -> str:
    """Return the text of a lock file: keys in order, one value a line, so that its changes read well."""
    content = {
        "format_version": FORMAT_VERSION,
        "scenarios": {name: plain(scenarios[name].as_dict()) for name in sorted(scenarios)},
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_trace(scenario: Scenario, beside: str | Path) -> "Trace":
    """Return the trace of a scenario, looked for from here and from the lock file's folder."""
    return trace_at(scenario.inputs["trace"], beside, scenario.inputs)


def read_model(scenario: Scenario, beside: str | Path) -> "Llm":
    """Return the model of a scenario."""
    from models import llm

    return llm.load(find_beside(beside, scenario.inputs["model"]))


_NOTHING_KNOWN: dict[str, Any] = {
    "usd_per_hour_bound": 0.0,
    "slo": {},
    "attainment": None,
    "requests": {},
    "promises": [],
    "single_device": None,
    "cheaper": None,
    "bottleneck": "",
    "notes": [],
    "effort": {},
    "is_rehearsed": False,
    "bounds": {"rigorous": 0.0, "conditional": None},
    "out_of_sample": None,
    "explain": {},
}


def _scenario(content: Mapping[str, Any]) -> Scenario:
    facts = {name: float("inf") if fact["value"] is None else fact["value"] for name, fact in content["facts"].items()}
    parts = {key: content[key] for key in ("inputs", "hashes", "fleet")}
    return Scenario(**parts, facts=facts, why=content["why"], reason=content.get("reason", ""))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:HASH_LETTERS]


def _hash_of_tables(plan: Plan) -> str:
    digest = hashlib.sha256()
    for pool in plan.fleet().pools:
        for column in pool.engine.table:
            digest.update(column.tobytes())
    return digest.hexdigest()[:HASH_LETTERS]
