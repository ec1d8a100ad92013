"""FlowPrefill: prefills preempted between operators, by slack, against whole prompts and chunks in order of arrival."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.studies.card import Card, Claim, Finding, Row, over_seeds

if TYPE_CHECKING:
    from simulator.control.lane_view import Scheduler
    from simulator.control.step_prices import StepPrices
    from simulator.systems.flow_prefill import Prompt

CARD = Card(
    name="flow_prefill",
    paper="FlowPrefill (arXiv 2602.16603)",
    sentence="Operator-level preemption and slack-aware EDF carry up to 5.6 times the requests within mixed promises.",
    claims=(
        Claim("goodput, every class at 90 %, over whole prompts FCFS", 5.6, "x", "R", low=2.5),
        Claim("mean blocking", 4.5, "ms", "R", high=5.0, neutral=None),
        Claim("mean blocking of chunks of 512 over it", 3.85, "x", "R", low=3.0),
    ),
    study_pass="goodput (90 % per class) ratio >= 2.5 (paper <= 5.6); mean blocking <= one op (< 5 ms) vs chunk-512 "
    ">= 3x; sweep granularity; report per-class attainment",
    control="at 0.2 requests a second the attainment of all classes together, over whole prompts FCFS",
    control_margin=0.02,
    hidden_knob="granularity of preemption; goodput by every class or by all requests together",
)

FACTS = Path(__file__).with_suffix(".toml")
ATTAINED = 0.90
RATES_PER_S = (0.01, 64.0)  # between which goodput is sought
LOW_RATE_PER_S = 0.2
QUANTA_S = (0.002, 0.01, 0.05, 0.1, 0.2)
SPREADS = (0.2, 0.5)
DEVICE = "a100-sxm-80gb"  # an A800 but for its links
ELSEWHERE: dict[str, dict[str, Any]] = {
    "arrivals of variation 2": {"variation": 2.0},
    "arrivals of variation 4": {"variation": 4.0},
    "on an H100": {"device_name": "h100-sxm"},
    "on an L40S": {"device_name": "l40s"},
}
SIZES = {True: (600, 7), False: (2000, 9)}  # prompts, and halvings of the span of rates: quick or not
ALL = "all"

Build = Callable[["StepPrices"], "Scheduler"]


def run(seeds: Sequence[int], quick: bool = False) -> Finding:
    """Find each system's goodput over the trace's mix of classes, and how long arrivals go unheard."""
    from simulator.systems import flow_prefill as system

    facts = _facts()
    count, halvings = SIZES[quick]
    log_rate_per_s = 2 * facts["trace_requests"] / facts["trace_s"]
    main: dict[str, Build] = {
        "flow": system.flow_prefill,
        "fcfs": system.whole_prompts,
        "chunks of 512": system.chunks,
    }
    without: dict[str, Build] = {
        "without preemption": partial(system.flow_prefill, preempt="step"),
        "without slack (EDF)": system.by_deadline,
        "without batching": partial(system.flow_prefill, batch_tokens=0),
    }
    knobs = _knobs(quick)
    trials = {seed: Trials(facts, seed, count) for seed in seeds}
    goodputs = {
        name: [trials[seed].goodput(build, halvings) for seed in seeds]
        for name, build in {**main, **without, **knobs}.items()
    }
    overall = {name: [trials[seed].goodput(main[name], halvings, together=True) for seed in seeds] for name in main}
    at_log_rate = {
        name: [trials[seed].at(name, main[name], log_rate_per_s) for seed in seeds]
        for name in ("flow", "chunks of 512")
    }
    blocking_s = {name: [each["blocking_s"] for each in found] for name, found in at_log_rate.items()}
    low = {
        name: [trials[seed].at(name, main[name], LOW_RATE_PER_S)[ALL] for seed in seeds] for name in ("flow", "fcfs")
    }
    figures = (
        over_seeds(_ratios(goodputs["flow"], goodputs["fcfs"])),
        over_seeds([1e3 * each for each in blocking_s["flow"]]),
        over_seeds(_ratios(blocking_s["chunks of 512"], blocking_s["flow"])),
    )
    return Finding(
        figures={claim.figure: figure for claim, figure in zip(CARD.claims, figures, strict=True)},
        control={"attainment at low load": over_seeds(_ratios(low["flow"], low["fcfs"]))},
        curve=_curve(trials, main, (1.0, 3.0, 6.0) if quick else (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)),
        ablation=[_row(name, goodputs[name], goodputs["fcfs"]) for name in (*main, *without)],
        sweep=[
            *(_row(name, goodputs[name], goodputs["fcfs"]) for name in knobs),
            *(_row(f"{name}, all requests together", overall[name], overall["fcfs"]) for name in main),
            *([] if quick else _elsewhere(facts, seeds, count, halvings, main)),
        ],
        note=f"goodput by all requests together: {_ratios_mean(overall):.2f} times that of whole prompts FCFS; at the "
        f"rate of the published log {_mean_of(at_log_rate['flow'], ALL):.1%} in time, {facts['log_attainment']:.1%} "
        "there; the trace's arrivals are made Poisson, its lengths by the quantiles of that log",
    )


class Trials:
    """The same prompts offered to one system after another, at one rate after another."""

    def __init__(
        self, facts: Mapping[str, Any], seed: int, count: int, variation: float = 1.0, device_name: str = DEVICE
    ) -> None:
        self.facts, self.prices = facts, _prices(device_name)
        self.prompts = _prompts(facts, seed, count, variation)
        self._known: dict[tuple[str, float], dict[str, float]] = {}

    def at(self, name: str, build: Build, rate_per_s: float) -> dict[str, float]:
        """Return the attainment of each class, of the worst, and of all requests; and the mean blocking [s]."""
        if (name, rate_per_s) not in self._known:
            from simulator.systems.flow_prefill import serve

            offered = self._offered(rate_per_s)
            outcome = serve(build, self.prices, self.facts["kv_tokens"], offered)
            assert outcome is not None
            self._known[name, rate_per_s] = _attainment(offered, outcome.ttft_s) | {
                "blocking_s": sum(outcome.blocking_s) / max(1, len(outcome.blocking_s))
            }
        return self._known[name, rate_per_s]

    def goodput(self, build: Build, halvings: int, together: bool = False) -> float:
        """Return the greatest rate, to within the halvings, at which the share in time is kept by every class."""
        low, high = RATES_PER_S
        for _ in range(halvings):
            middle = (low * high) ** 0.5
            if self._holds(build, middle, together):
                low = middle
            else:
                high = middle
        return low

    def _holds(self, build: Build, rate_per_s: float, together: bool) -> bool:
        """Say whether few enough miss their promise; a run is given up as soon as too many have."""
        from simulator.systems.flow_prefill import serve

        counts = Counter("" if together else each.label for each in self.prompts)
        may_miss = {label: count - ceil(ATTAINED * count) for label, count in counts.items()}
        outcome = serve(build, self.prices, self.facts["kv_tokens"], self._offered(rate_per_s), may_miss)
        if outcome is None:
            return False
        found = _attainment(self.prompts, outcome.ttft_s)
        return found[ALL if together else "worst"] >= ATTAINED

    def _offered(self, rate_per_s: float) -> "list[Prompt]":
        return [each._replace(arrival_s=each.arrival_s / rate_per_s) for each in self.prompts]


def _facts() -> dict[str, Any]:
    import tomllib

    return tomllib.loads(FACTS.read_text(encoding="utf-8"))


@lru_cache(maxsize=3)
def _prices(device_name: str) -> "StepPrices":
    """Return the prices of Llama-3.1-8B on one device."""
    from models import device, llm
    from models.engine import Engine, Settings
    from simulator.control.step_prices import prices_of
    from simulator.fleet import priced

    settings = Settings(max_num_batched_tokens=_facts()["longest_tokens"], max_num_seqs=128)
    return prices_of(priced(Engine(llm.load("llama-3.1-8b"), device.load(device_name), settings=settings)))


def _knobs(quick: bool) -> dict[str, Build]:
    from simulator.systems import flow_prefill as system

    quanta_s = QUANTA_S[::4] if quick else QUANTA_S
    knobs: dict[str, Build] = {
        f"quantum {1e3 * quantum_s:g} ms": partial(system.flow_prefill, quantum_s=quantum_s) for quantum_s in quanta_s
    }
    if not quick:
        for spread in SPREADS:
            knobs[f"step times off by {spread:.0%}"] = partial(system.flow_prefill, spread=spread)
    return knobs


def _elsewhere(
    facts: Mapping[str, Any], seeds: Sequence[int], count: int, halvings: int, main: Mapping[str, Build]
) -> list[Row]:
    """Return whether the claim survives burstier arrivals and other devices."""
    rows: list[Row] = []
    for where, changes in ELSEWHERE.items():
        trials = [Trials(facts, seed, count, **changes) for seed in seeds]
        found = {name: [each.goodput(main[name], halvings) for each in trials] for name in ("flow", "fcfs")}
        rows.append(_row(where, found["flow"], found["fcfs"]))
    return rows


def _prompts(facts: Mapping[str, Any], seed: int, count: int, variation: float) -> "list[Prompt]":
    """Return prompts of the trace's mix, one a second on average."""
    import numpy as np

    from simulator.studies.workloads import gaps, lengths
    from simulator.systems.flow_prefill import Prompt

    rng = np.random.default_rng([seed, 1])
    classes = facts["classes"]
    arrivals_s = np.cumsum(gaps(rng, variation, count))
    kinds = rng.choice(len(classes), count, p=[each["share"] for each in classes])
    drawn = [lengths(rng, each["fractions"], each["tokens"], count) for each in classes]
    return [
        Prompt(float(arrival_s), int(drawn[kind][place]), classes[kind]["ttft_s"], classes[kind]["name"])
        for place, (arrival_s, kind) in enumerate(zip(arrivals_s, kinds, strict=True))
    ]


def _attainment(prompts: "Iterable[Prompt]", ttft_s: Iterable[float]) -> dict[str, float]:
    kept: dict[str, list[bool]] = {}
    for prompt, seconds in zip(prompts, ttft_s, strict=True):
        kept.setdefault(prompt.label, []).append(seconds <= prompt.promise_s)
    found = {label: sum(each) / len(each) for label, each in sorted(kept.items())}
    together = sum(map(sum, kept.values())) / sum(map(len, kept.values()))
    return found | {"worst": min(found.values()), ALL: together}


def _curve(trials: Mapping[int, Trials], builds: Mapping[str, Build], rates_per_s: Iterable[float]) -> list[Row]:
    """Return the attainment of each class against the rate, system by system, means over seeds."""
    rows: list[Row] = []
    for rate_per_s in rates_per_s:
        for name, build in builds.items():
            found = [each.at(name, build, rate_per_s) for each in trials.values()]
            means = {key: sum(each[key] for each in found) / len(found) for key in found[0]}
            rows.append({"requests_per_s": rate_per_s, "system": name, **means})
    return rows


def _row(name: str, goodputs: Sequence[float], baseline: Sequence[float]) -> Row:
    """Return a goodput beside the baseline's; no ratio where the baseline keeps its promises at no rate sought."""
    row = {"system": name, "goodput_per_s": sum(goodputs) / len(goodputs)}
    if min(baseline) <= RATES_PER_S[0]:
        return row | {"over_fcfs": None, "low": None, "high": None}
    ratio = over_seeds(_ratios(goodputs, baseline))
    return row | {"over_fcfs": ratio.value, "low": ratio.low, "high": ratio.high}


def _ratios(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    return [value / base for value, base in zip(values, baseline, strict=True)]


def _mean_of(found: Sequence[Mapping[str, float]], key: str) -> float:
    return sum(each[key] for each in found) / len(found)


def _ratios_mean(overall: Mapping[str, Sequence[float]]) -> float:
    return over_seeds(_ratios(overall["flow"], overall["fcfs"])).value
