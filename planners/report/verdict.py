"""A plan in at most 25 lines: what was chosen, over what, how sure that is, and what to do next."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from models.llm import Llm
from planners.commands.tables import fit, quantity, screen_width, seconds, table
from planners.plan import Outcome, Plan, PlannedPool, cut_name
from planners.slo import Slo
from traces import Trace

LABEL_WIDTH = 11


def verdict(plan: Plan, trace: Trace, llm: Llm, slos: Sequence[Slo], written: Path) -> str:
    """Return the plan as words and two tables, as wide as the screen."""
    trace_is, requests_are = trace_words(trace).split("; ")
    lines = [
        _line("Trace", trace_is),
        _line("", requests_are),
        _line("Model", f"{llm.name}: {quantity(llm.parameters)} parameters, {_kv_words(llm)} of KV a token"),
        _line("Promises", "   ".join(map(str, slos))),
        "",
        *_fleets(plan),
        "",
        *_latencies(plan, slos),
        *_changes(plan),
        *_wrapped("Bottleneck", plan.bottleneck or "none: the smallest fleet there is has room to spare"),
        _line("Written", str(written)),
        _line("Next", f"plan export k8s {written}, plan lock {written}"),
    ]
    return "\n".join(lines)


def fleet_name(pools: Sequence[PlannedPool]) -> str:
    """Return pools in words: 2 x h100-sxm tp4 fp8 + 1 x l40s tp1 bf16."""
    return " + ".join(f"{pool.replicas} x {cut_name(pool)}" for pool in pools)


def trace_words(trace: Trace) -> str:
    """Return what a trace is like in one line: size, rate, bursts, lengths."""
    from traces.statistics import describe_lengths, peak_to_mean

    prompts, answers = describe_lengths(trace.input_tokens), describe_lengths(trace.output_tokens)
    peak = peak_to_mean(trace, 10.0)
    burst = f", busiest 10 s {peak:.1f} x that" if peak else ""
    return (
        f"{trace.name}: {len(trace):,} requests in {trace.span_s:,.0f} s, {trace.rate_per_s:.3g}/s{burst}; "
        f"prompts p50 {prompts.p50:,.0f} p99 {prompts.p99:,.0f}, answers p50 {answers.p50:,.0f} p99 {answers.p99:,.0f}"
    )


def _fleets(plan: Plan) -> list[str]:
    """Return a line a fleet with its cost and verdict, which goes to a line of its own where it does not fit."""
    kept = f", {plan.attainment:.2%} of requests in time" if plan.attainment is not None else ""
    found = [
        (">", fleet_name(plan.pools), f"{plan.usd_per_hour:.2f}", _proof(plan) + kept),
        *_other(plan, plan.single_device, "best of one device"),
        *_other(plan, plan.cheaper, "cheaper"),
    ]
    if plan.conditional_usd_per_hour is not None:
        conditional = f"{plan.conditional_usd_per_hour:.2f}"
        found.append(("", "lower bound, routed like this", conditional, "as far as the search learned"))
    found.append(("", "lower bound, any router", f"{plan.usd_per_hour_bound:.2f}", f"proven, gap {plan.gap:.1%}"))
    costs = table(
        [["", "Fleet", "USD/h"], *([mark, name, usd] for mark, name, usd, _ in found)], right=[2]
    ).splitlines()
    lines = [f"{costs[0]}  Verdict"]
    for line, (*_, said) in zip(costs[1:], found, strict=True):
        width = screen_width()
        fits = width is None or len(line) + 2 + len(said) <= width
        lines += [f"{line}  {said}"] if fits else [line, fit(" " * LABEL_WIDTH + said)]
    return lines


def _proof(plan: Plan) -> str:
    return "keeps every promise" if plan.is_rehearsed else "an estimate, not rehearsed"


def _other(plan: Plan, other: Outcome | None, words: str) -> list[tuple[str, str, str, str]]:
    if other is None or (not other.fails and fleet_name(other.pools) == fleet_name(plan.pools)):
        return []
    broken = ", ".join(part.partition(", promised")[0] for part in other.fails.split("; "))
    said = (
        f"{words}, but {broken}" if other.fails else f"{words}, {other.usd_per_hour / plan.usd_per_hour - 1:.0%} dearer"
    )
    return [("", fleet_name(other.pools), f"{other.usd_per_hour:.2f}", said)]


def _latencies(plan: Plan, slos: Sequence[Slo]) -> list[str]:
    if not plan.latency_s:
        return []
    rows = [["", "p50", "p90", "p99", "promised"]]
    for metric, values in plan.latency_s.items():
        rows.append([metric.upper(), *_percentiles(values), _promised(slos, metric)])
    for name, latency in plan.latency_by_class_s.items():
        for metric in latency:
            promised = _promised(slos, metric, name)
            rows += [[f"{name} {metric.upper()}", *_percentiles(latency[metric]), promised]] if promised else []
    return [*table(rows, right=[1, 2, 3]).splitlines(), ""]


def _percentiles(values: Mapping[str, float]) -> list[str]:
    return ["-" if values[label] is None else seconds(values[label]) for label in ("p50", "p90", "p99")]


def _promised(slos: Sequence[Slo], metric: str, name: str = "") -> str:
    own = [slo for slo in slos if (slo.metric, slo.slo_class) == (metric, name)]
    return ", ".join(f"p{slo.percent:g} {seconds(slo.limit_s)}" for slo in own)


def _changes(plan: Plan) -> list[str]:
    """Return what of a fleet that was there is kept, added and removed, in a line or two."""
    if not plan.change:
        return []
    said = [
        f"{word} "
        + ", ".join(f"{count} x {name.partition('/')[2] or name}" for name, count in plan.change[word].items())
        for word in ("kept", "added", "removed")
        if plan.change[word]
    ]
    return _wrapped("Changes", f"{'; '.join(said)}; {plan.change['usd_per_hour']:.2f} USD/h of the cost")


def _wrapped(label: str, words: str) -> list[str]:
    lines = textwrap.wrap(words, (screen_width() or 1000) - LABEL_WIDTH) or [""]
    return [_line(label if index == 0 else "", line) for index, line in enumerate(lines)]


def _line(label: str, words: str) -> str:
    return fit(f"{label:<{LABEL_WIDTH}}{words}")


def _kv_words(llm: Llm) -> str:
    return f"{llm.kv_bytes_per_token() / 1e3:,.0f} kB"
