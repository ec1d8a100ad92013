"""Benchmarks of the planner on Azure's traces of 2023: cost, both bounds, siblings, CPU seconds.

python tests/bench_planner.py [--cases conv-1x,code-5x] [--siblings 10] [--analytic] [--split]
    [--rules | --counterexamples N]
"""

import argparse
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from conftest import SHARED

import traces
from models import llm
from planners.bounds.bound import rigorous_usd_per_hour, windows_of
from planners.demand import survey
from planners.offers.engines import devices_named, offers_for
from planners.search.disaggregated import role_offers
from planners.search.rehearsal import Tally, fleet_of, split_candidate
from planners.search.rules import by_rules
from planners.search.search import find_plan
from planners.slo import Slo, holds, limit_s, parse_all
from simulator.fleet import ROLES, Fleet
from simulator.replay import replay
from traces.trace import Trace
from traces.transform import scale_rate

MODEL = "llama-3.1-70b"
PROMISES = ("ttft:p99<=2s", "tpot:p99<=80ms")
CASES = "conv-1x,conv-10x,code-1x,code-5x"


def workload(case: str, folder: Path = SHARED) -> Trace:
    """Return the trace of a case like "conv-10x": the rate scaled, the structure of its bursts kept."""
    name, _, factor = case.partition("-")
    trace = traces.read(folder / "traces" / "azure2023" / f"AzureLLMInferenceTrace_{name}.csv.gz")
    times = float(factor.removesuffix("x"))
    return trace if times == 1 else scale_rate(trace, times, 0)


def measure(case: str, siblings: int, analytic: bool, split: bool) -> str:
    """Plan for a case, and return its row of the table."""
    trace = workload(case)
    started_s = time.process_time()
    plan = find_plan(trace, llm.load(MODEL), parse_all(PROMISES), siblings=siblings, analytic=analytic, split=split)
    cpu_s = time.process_time() - started_s
    conditional = plan.conditional_usd_per_hour
    passed = f"{plan.out_of_sample.passed}/{plan.out_of_sample.siblings}" if plan.out_of_sample else "-"
    fleet = " + ".join(f"{pool.replicas} x {pool.name.partition('/')[2]}" for pool in plan.pools)
    return (
        f"{case:9} {plan.usd_per_hour:8.2f} USD/h  rigorous {plan.usd_per_hour_bound:8.2f} (gap {plan.gap:6.2%})  "
        f"conditional {conditional if conditional is not None else float('nan'):8.2f}  siblings {passed}  "
        f"{cpu_s:6.1f} CPU s  {plan.router}: {fleet}"
    )


def rules(case: str) -> str:
    """Return what rules of thumb buy for a case, and whether that survives its replay."""

    slos = parse_all(PROMISES)
    offers = offers_for(llm.load(MODEL), devices_named(None)[0], tpot_limit_s=limit_s(slos, "tpot"))
    found = by_rules(survey(workload(case), slos, offers))
    rows = [f"{one.utilisation:g}: {one.usd_per_hour:.2f} USD/h {one.fails or 'survives'}" for one in found]
    return "\n".join([f"{case} at a fixed utilisation of", *(f"  {row}" for row in rows)])


def survives(trace: Trace, fleet: Fleet, slos: tuple[Slo, ...]) -> bool:
    """Say whether a fleet keeps every promise; its replay ends once it does not."""
    tally = Tally(trace, slos)
    run = replay(trace, fleet, is_lost=tally.is_lost)
    return not tally.words and holds(run, slos)


def counterexamples(case: str, count: int) -> str:
    """Return how many of so many random fleets that cost up to a third less than the rigorous bound survive."""
    trace, slos, rng = workload(case), parse_all(PROMISES), np.random.default_rng(0)
    offers = offers_for(llm.load(MODEL), devices_named(None)[0], tpot_limit_s=limit_s(slos, "tpot"))
    market = survey(trace, slos, (*offers, *role_offers(trace, offers, limit_s(slos, "tpot"), limit_s(slos, "ttft"))))
    bound_usd = rigorous_usd_per_hour(market, windows_of(market))
    by_role = {role: [e for e, one in enumerate(market.offers) if one.role == role] for role in ROLES}
    survivors = 0
    for number in range(count):
        roles = ("prefill", "decode") if number % 2 else ("both",) * int(rng.integers(1, 4))
        counts = Counter({int(rng.choice(by_role[role])): 1 for role in roles})
        while True:
            added = int(rng.choice(list(counts)))
            if market.usd_per_hour @ [counts[e] + (e == added) for e in range(len(market.offers))] >= bound_usd:
                break
            counts[added] += 1
        usd = sum(market.usd_per_hour[e] * n for e, n in counts.items())
        chosen = split_candidate(market, list(counts.items()))
        routers = ("in-time",) if number % 2 else ("in-time", "join-shortest-queue", "least-kv")
        fleets = [replace(fleet_of(market, chosen), router=router) for router in routers]
        survivors += usd < bound_usd and any(survives(trace, fleet, slos) for fleet in fleets)
    return f"{case}: {survivors} of {count} random fleets below {bound_usd:.2f} USD/h survive"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--siblings", type=int, default=0)
    parser.add_argument("--analytic", action="store_true")
    parser.add_argument("--split", action="store_true")
    parser.add_argument("--counterexamples", type=int, default=0, help="only random fleets below the bound")
    parser.add_argument("--rules", action="store_true", help="only what rules of thumb buy")
    chosen = parser.parse_args()
    for case in chosen.cases.split(","):
        if chosen.counterexamples:
            print(counterexamples(case, chosen.counterexamples), flush=True)
            continue
        if chosen.rules:
            print(rules(case), flush=True)
            continue
        print(measure(case, chosen.siblings, chosen.analytic, chosen.split), flush=True)


if __name__ == "__main__":
    main()
