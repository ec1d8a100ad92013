"""A plan in at most 25 lines: what was chosen, over what, how sure that is, and what to do next."""

from collections.abc import Sequence
from pathlib import Path

from models.llm import Llm
from planners.commands.tables import fit, quantity, seconds, table
from planners.plan import Outcome, Plan, PlannedPool, cut_name
from planners.slo import Slo
from traces import Trace

LABEL_WIDTH = 11


def verdict(plan: Plan, trace: Trace, llm: Llm, slos: Sequence[Slo], written: Path) -> str:
    """Return the plan as words and two tables."""
    lines = [
        _line("Trace", trace_words(trace)),
        _line("Model", f"{llm.name}: {quantity(llm.parameters)} parameters, {_kv_words(llm)} of KV a token"),
        _line("Promises", "   ".join(map(str, slos))),
        "",
        *_fleets(plan).splitlines(),
        "",
        *_latencies(plan, slos),
        _line("Bottleneck", plan.bottleneck or "none: the smallest fleet there is has room to spare"),
        _line("Written", str(written)),
        _line("Next", f"plan export k8s {written} -o deploy   or, to hold it in CI: plan lock {written}"),
    ]
    return "\n".join(line for line in lines if line is not None)


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


def _fleets(plan: Plan) -> str:
    rows = [["", "Fleet", "USD/h", "Verdict"]]
    kept = f"; {plan.attainment:.2%} of requests within all limits" if plan.attainment is not None else ""
    verdict = f"keeps every promise{kept}" if plan.is_rehearsed else "an estimate, not rehearsed"
    rows.append([">", fleet_name(plan.pools), f"{plan.usd_per_hour:.2f}", verdict])
    rows.extend(_other(plan, plan.single_device, "best of a single device: "))
    rows.extend(_other(plan, plan.cheaper, "cheaper, but "))
    if plan.conditional_usd_per_hour is not None:
        conditional = f"{plan.conditional_usd_per_hour:.2f}"
        rows.append(["", "lower bound, routed like this", conditional, "by what the search learned; no proof"])
    rows.append(["", "lower bound, any router", f"{plan.usd_per_hour_bound:.2f}", f"proven; gap {plan.gap:.1%}"])
    return table(rows, right=[2])


def _other(plan: Plan, other: Outcome | None, words: str) -> list[list[str]]:
    if other is None or (not other.fails and fleet_name(other.pools) == fleet_name(plan.pools)):
        return []
    dearer = other.usd_per_hour / plan.usd_per_hour - 1
    said = words + (other.fails or f"{dearer:.0%} dearer")
    return [["", fleet_name(other.pools), f"{other.usd_per_hour:.2f}", said]]


def _latencies(plan: Plan, slos: Sequence[Slo]) -> list[str]:
    if not plan.latency_s:
        return []
    rows = [["", "p50", "p90", "p99", "promised"]]
    for metric, values in plan.latency_s.items():
        promised = ", ".join(f"p{slo.percent:g} {seconds(slo.limit_s)}" for slo in slos if slo.metric == metric)
        rows.append([metric.upper(), *(seconds(values[label]) for label in ("p50", "p90", "p99")), promised])
    return [*table(rows, right=[1, 2, 3]).splitlines(), ""]


def _line(label: str, words: str) -> str:
    return fit(f"{label:<{LABEL_WIDTH}}{words}")


def _kv_words(llm: Llm) -> str:
    return f"{llm.kv_bytes_per_token() / 1e3:,.0f} kB"
