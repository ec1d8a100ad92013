"""Benchmarks of the planner on Azure's traces of 2023: cost, both bounds, siblings, CPU seconds.

python tests/bench_planner.py [--cases conv-1x,code-5x] [--siblings 10] [--analytic] [--split] [--rules]
"""

import argparse
import time
from pathlib import Path

from conftest import SHARED

import traces
from models import llm
from planners.search import find_plan
from planners.slo import limit_s, parse_all
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
    from planners.demand import survey
    from planners.engines import devices_named, offers_for
    from planners.rules import by_rules

    slos = parse_all(PROMISES)
    offers = offers_for(llm.load(MODEL), devices_named(None)[0], tpot_limit_s=limit_s(slos, "tpot"))
    found = by_rules(survey(workload(case), slos, offers))
    rows = [f"{one.utilisation:g}: {one.usd_per_hour:.2f} USD/h {one.fails or 'survives'}" for one in found]
    return "\n".join([f"{case} at a fixed utilisation of", *(f"  {row}" for row in rows)])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default=CASES)
    parser.add_argument("--siblings", type=int, default=0)
    parser.add_argument("--analytic", action="store_true")
    parser.add_argument("--split", action="store_true")
    parser.add_argument("--rules", action="store_true", help="only what rules of thumb buy")
    chosen = parser.parse_args()
    for case in chosen.cases.split(","):
        if chosen.rules:
            print(rules(case), flush=True)
            continue
        print(measure(case, chosen.siblings, chosen.analytic, chosen.split), flush=True)


if __name__ == "__main__":
    main()
