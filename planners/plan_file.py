"""plan.json: a plan with all that is needed to make it again, the same bytes every time."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planners import marked_yaml
from planners.answer import SCHEMA, Answer
from planners.slo import Slo, parse_all

if TYPE_CHECKING:
    from models.llm import Llm
    from planners.plan import Plan
    from planners.study import Study
    from traces import Trace

COMMAND = "fleet"
RARE = (
    "engines",
    "classes",
    "keep",
    "price_list",
    "owned",
    "carbon",
    "racks",
)  # keys of a study that are written down where they are not as by default


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """What plan.json holds: the plan, its model and promises, and the inputs as they were given."""

    plan: "Plan"
    llm: "Llm"
    slos: tuple[Slo, ...]
    inputs: Mapping[str, Any]


def inputs_of(study: "Study", trace: "Trace", analytic: bool = False, siblings: int = 0) -> dict[str, Any]:
    """Return what a plan is made from; a trace path of None means the bundled sample."""
    from planners.study import Study

    written = {
        "trace": {"path": study.trace, **trace_facts(trace)},
        "model": study.model,
        "slo": [str(slo) for slo in parse_all(study.slo)],
        "devices": None if study.devices is None else list(study.devices),
        "prices": study.usd_per_device_hour,
        "kinds": list(study.kinds),
        "limits": dict(study.limits),
        "seed": study.seed,
        "analytic": analytic,
        "siblings": siblings,
    }
    usual = asdict(Study(study.model, study.slo))
    return written | {key: value for key, value in asdict(study).items() if key in RARE and value != usual[key]}


def study_of(inputs: Mapping[str, Any], **changes: Any) -> "Study":
    """Return the study that inputs were written down of, its trace and what is changed as given."""
    from planners.study import Study

    kept = {key: inputs[key] for key in ("model", "slo", "devices", "prices", "kinds", "limits", "seed")}
    kept |= {key: inputs[key] for key in RARE if key in inputs}
    return marked_yaml.parse("inputs", json.dumps(kept | changes), Study)


def trace_facts(trace: "Trace") -> dict[str, Any]:
    """Return what identifies a trace and says how large it is."""
    return {
        "name": trace.name,
        "requests": len(trace),
        "span_s": trace.span_s,
        "sha256": trace.metadata.get("sha256"),
        "identity": trace.identity,
    }


def text_of(plan: "Plan", inputs: Mapping[str, Any]) -> str:
    """Return the text of plan.json; it holds no clock, so the same inputs give the same bytes."""
    return Answer(COMMAND, inputs, plan.result(), plan.notes).to_json() + "\n"


def is_plan(text: str) -> bool:
    """Say whether a text is the JSON object that a command of schema plan/1 wrote."""
    return text.lstrip().startswith("{") and f'"{SCHEMA}"' in text[:200]


def read(path: str | Path) -> SavedPlan:
    """Return the plan in a plan.json; ValueError says what is wrong with the file and where."""
    return parse(path, Path(path).read_text(encoding="utf-8"))


def parse(path: str | Path, text: str) -> SavedPlan:
    """Return the plan in the text of a plan.json."""
    from models import llm
    from planners.plan import from_result

    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or "pools" not in content.get("result", {}):
        raise ValueError(f'{path}:1:1: not a plan.json; expected "schema": "{SCHEMA}" and a "result" with "pools"')
    try:
        inputs = content["inputs"]
        model = llm.load(find_beside(path, inputs["model"]))
        return SavedPlan(from_result(content["result"], model), model, parse_all(inputs["slo"]), inputs)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}:1:1: not a whole plan.json: {error} is missing or of the wrong kind") from None


def without_empty_pools(plan: "Plan") -> tuple["Plan", tuple[str, ...]]:
    """Return a plan whose pools somebody may have changed by hand, fit to run, and warnings about what was done.

    Pools of no replica go, their share spread over the rest; where shares and pools do not fit, shares go by capacity.
    ValueError where no replica is left.
    """
    kept = [index for index, pool in enumerate(plan.pools) if pool.replicas > 0]
    if not kept:
        raise ValueError("no pool of the plan has a replica left")
    pools = tuple(plan.pools[index] for index in kept)
    if any(len(row) != len(plan.pools) for row in plan.shares):
        words = "routing.shares does not fit the pools: requests are spread by capacity"
        return replace(plan, pools=pools, shares=(), input_edges=(0,)), (words,)
    if len(kept) == len(plan.pools):
        return plan, ()
    shares = []
    for row in plan.shares:
        left = [row[index] for index in kept]
        left = left if sum(left) else [float(pool.role != "decode") for pool in pools]
        shares.append(tuple(share / sum(left) for share in left))
    gone = len(plan.pools) - len(kept)
    words = f"{gone} pool{'s' if gone > 1 else ''} of no replica: requests go to the rest"
    return replace(plan, pools=pools, shares=tuple(shares)), (words,)


def read_trace(inputs: Mapping[str, Any], beside: str | Path) -> "Trace":
    """Return the trace that a plan.json was made for, looked for from here and from the file's own folder."""
    return trace_at(inputs["trace"]["path"], beside, inputs)


def trace_at(path: str | None, beside: str | Path, inputs: Mapping[str, Any]) -> "Trace":
    """Return the trace in a file, looked for from here and from another file's folder, made what was planned for."""
    import traces
    from planners.classes import classified

    read = traces.sample() if path is None else traces.read(find_beside(beside, path))
    return scaled(classified(read, inputs.get("classes", {})), inputs.get("scale"), inputs["seed"])


def scaled(requests: "Trace", scale: str | None, seed: int) -> "Trace":
    """Return a trace at so many times its rate, as "5x"; ValueError where the factor cannot be read."""
    if scale is None:
        return requests
    from traces.transform import scale_rate

    try:
        factor = float(scale.removesuffix("x"))
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise ValueError(f"--scale {scale}: expected a factor above 0, as 5x")
    return scale_rate(requests, factor, seed)


def find_beside(file: str | Path, name: str) -> str:
    """Return a path as given where it exists from here, else as seen from another file's folder where that exists."""
    seen = Path(file).parent / name
    return str(seen) if not Path(name).exists() and seen.exists() else name
