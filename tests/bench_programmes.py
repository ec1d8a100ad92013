"""Benchmarks of the planner's programmes: published cases of Mélange, generated mixes, tenants, layers, brute force.

python tests/bench_programmes.py [--only melange,mix,tenants,layers,helix,regions,portfolio]

Each prints what was found, its bound or the published answer, and CPU seconds; the bars of cost and gap are asserted.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import test_planner_portfolio
import test_planner_regions
from conftest import SHARED
from planner_instances import instance
from test_planner_fluid import GPUS, implied_load, published_rows
from test_planner_tenants import REPLICAS, forty_types

from planners.place.group_speeds import cluster_of
from planners.place.pipelines import Cluster, best_placement, even_stages, most_per_s, separate_pipelines, served_per_s
from planners.place.place_file import GroupFacts, Layers
from planners.place.tenants import cheapest_packing
from planners.search.fluid import FluidMix, cheapest_fluid
from planners.solver import mathopt

CENT = 0.01
TRIALS = (0, 500, 2000, 8000)
SMALL = 200  # instances to hold against brute force


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what was found and the CPU seconds that took."""
    started_s = time.process_time()
    return work(), time.process_time() - started_s


def published_cases() -> Iterator[tuple[str, np.ndarray, np.ndarray, float]]:
    """Yield name, prices, load and the published cost of every case whose workload is told or implied.

    The 36 cases named syn_* tell rates and answers, but not the distribution of sizes that they are for.
    """
    content = json.loads((SHARED / "data" / "melange.json").read_text())
    toy = content["toy_example"]
    share = np.array(toy["workload_distribution"]).ravel() / np.sum(toy["workload_distribution"])
    rates = np.array([np.ravel(gpu["tputs"]) for gpu in toy["gpu_info"].values()])
    usd = np.array([gpu["cost"] for gpu in toy["gpu_info"].values()])
    for slices in (1, 4):
        cost = content["solver_cases"][f"toy_sf{slices}"]["melange"]["cost"]
        yield f"toy, {slices} slices", usd, toy["total_request_rate"] * share / rates, cost
    profiles = [content["aibrix_profiles"][name] for name in ("a100_v1", "a40")]
    rates = np.array([np.ravel(profile["tputs"]) for profile in profiles])
    usd = np.array([profile["cost"] for profile in profiles])
    for rate in (10, 50):
        for slices in (1, 4):
            cost = content["solver_cases"][f"aibrix_uniform_r{rate}_sf{slices}"]["melange"]["cost"]
            yield f"AIBrix {rate}/s, {slices} slices", usd, rate / rates.shape[1] / rates, cost
    prices = {name: content["prices_usd_per_hour"][published] for name, published in GPUS.items()}
    for row in published_rows(SHARED):
        load = implied_load({**row, "usd": prices})
        name = f"{row['dataset']} {row['slo_ms']} ms {row['rate']}/s"
        yield name, np.array(list(prices.values())), load, float(row["cost"])


def melange() -> None:
    """Print every published case: never dearer, the optimum proven."""
    cases = list(published_cases())
    slowest = 0.0
    for name, usd, load, cost in cases:
        found, cpu_s = timed(lambda usd=usd, load=load: cheapest_fluid(usd, load))
        slowest = max(slowest, cpu_s)
        print(
            f"{name:28} ours {found.usd_per_hour:8.2f}  published {cost:8.2f}  gap {found.gap:.3%}  {cpu_s:5.2f} CPU s"
        )
        assert found.usd_per_hour <= cost + CENT
        assert found.gap < 1e-4
    print(f"{len(cases)} cases, none dearer than published; the slowest took {slowest:.2f} CPU s")


def mix() -> None:
    """Print the generated instances of ten devices, about twenty engines each, and 200 buckets."""
    for model, rates, bar in (("70b", (10, 30, 100, 300, 1000), 0.01), ("8b", (10, 100, 1000), 0.015)):
        for rate in rates:
            usd, load = instance(model, rate)
            found: FluidMix
            found, cpu_s = timed(lambda usd=usd, load=load: cheapest_fluid(usd, load))
            print(f"{model:4} {rate:5}/s  {len(usd)} engines  gap {found.gap:.3%}  {cpu_s:6.1f} CPU s", flush=True)
            assert found.gap <= bar


def tenants() -> None:
    """Print the packing of 139 tenants of 40 types."""
    found, cpu_s = timed(lambda: cheapest_packing(forty_types(0), REPLICAS))
    print(
        f"{found.usd_per_hour:.2f} USD/h, bound {found.usd_per_hour_bound:.2f}, gap {found.gap:.2%}, {cpu_s:.1f} CPU s"
    )
    assert found.gap <= 0.035


def unlike_nodes() -> tuple[Cluster, int]:
    """Return 24 nodes at 10 Gb/s, four A100, eight L4, twelve T4 (Helix's cluster), and Llama-2-70B's layers."""
    nodes = {"a100": ("a100-sxm-40gb", 4), "l4": ("l4", 8), "t4": ("t4", 12)}
    groups = {name: GroupFacts(device, count=count) for name, (device, count) in nodes.items()}
    return cluster_of(Layers("llama-2-70b", groups, sequences=16))


def helix() -> None:
    """Print what Helix's own mixed-integer programme finds on the same nodes, by HiGHS instead of Gurobi."""
    cluster, count = unlike_nodes()
    for limit_s in (30, 120):
        per_s, cpu_s = timed(lambda limit_s=limit_s: by_helix(cluster, count, limit_s))
        print(f"  Helix's programme        {per_s:8.0f} tokens/s after {limit_s} s, {cpu_s:6.1f} CPU s", flush=True)


def by_helix(cluster: Cluster, layers: int, limit_s: float) -> float:
    """Return the tokens/s of the programme of arXiv 2406.01566 after so many seconds; 0 where it found nothing.

    Whole first layers, a choice of how many, and for each pair whether the second goes on where the first ends.
    """
    library = mathopt()
    model, everyone = library.Model(), range(len(cluster.groups))
    starts = [model.add_integer_variable(lb=0, ub=layers) for _ in everyone]
    held = [[model.add_binary_variable() for _ in group.tokens_per_s[:layers]] for group in cluster.groups]
    ends = [starts[i] + sum(n * each for n, each in enumerate(held[i], 1)) for i in everyone]
    into: list[list[Any]] = [[] for _ in everyone]
    out: list[list[Any]] = [[] for _ in everyone]
    served: list[Any] = []
    for i, group in enumerate(cluster.groups):
        model.add_linear_constraint(sum(held[i]) <= 1)
        model.add_linear_constraint(ends[i] <= layers)
        first, last = model.add_binary_variable(), model.add_binary_variable()
        model.add_linear_constraint(starts[i] <= layers * (1 - first))
        model.add_linear_constraint(layers - ends[i] <= layers * (1 - last))
        most = group.speed(1)
        arrives, leaves = model.add_variable(lb=0, ub=most), model.add_variable(lb=0, ub=most)
        model.add_linear_constraint(arrives <= most * first)
        model.add_linear_constraint(leaves <= most * last)
        into[i].append(arrives)
        out[i].append(leaves)
        served.append(arrives)
    for i, j in itertools.permutations(everyone, 2):
        follows, flow = model.add_binary_variable(), model.add_variable(lb=0)
        model.add_linear_constraint(starts[j] <= ends[i] + layers * (1 - follows))
        model.add_linear_constraint(ends[i] + 1 <= ends[j] + (layers + 1) * (1 - follows))
        model.add_linear_constraint(flow <= min(cluster.groups[i].speed(1), cluster.link_tokens_per_s[i, j]) * follows)
        out[i].append(flow)
        into[j].append(flow)
    for i, group in enumerate(cluster.groups):
        model.add_linear_constraint(sum(into[i]) == sum(out[i]))
        model.add_linear_constraint(sum(into[i]) <= sum(group.speed(n) * each for n, each in enumerate(held[i], 1)))
    model.maximize(sum(served))
    parameters = library.SolveParameters(time_limit=timedelta(seconds=limit_s))
    found = library.solve(model, library.SolverType.HIGHS, params=parameters)
    return float(found.objective_value()) if found.has_primal_feasible_solution() else 0.0


def layers() -> None:
    """Print our placement on those nodes, simpler ones, and what none serves more than."""
    cluster, count = unlike_nodes()
    most = most_per_s(cluster, count)
    print(f"no placement serves more than {most:.0f} tokens/s")
    for name, placement in (
        *((f"{n} even stages", even_stages(cluster, count, n)) for n in (8, 10, 16, 20)),
        ("a pipeline of each kind", separate_pipelines(cluster, count)),
    ):
        print(f"  {name:24} {served_per_s(cluster, count, placement):8.0f} tokens/s")
    for trials in TRIALS:
        (_, per_s), cpu_s = timed(lambda trials=trials: best_placement(cluster, count, trials))
        print(f"  ours, {trials:5} trials       {per_s:8.0f} tokens/s, {per_s / most:.0%} of that  {cpu_s:6.1f} CPU s")


def regions() -> None:
    """Hold 200 small worlds of two origins and two regions against every assignment."""
    _, cpu_s = timed(lambda: [test_planner_regions.brute_force_agrees(seed) for seed in range(SMALL)])
    print(f"brute force agrees on {SMALL} small worlds, {cpu_s:.0f} CPU s")


def portfolio() -> None:
    """Hold 200 pairs of small models under a shared limit against all their fleets."""
    pairs = itertools.islice(itertools.combinations(range(40), 2), 2 * SMALL)
    agrees = test_planner_portfolio.brute_force_agrees
    binding, cpu_s = timed(lambda: list(itertools.islice((pair for pair in pairs if agrees(pair, 1)), SMALL)))
    print(f"brute force agrees on {len(binding)} pairs under a limit that binds, {cpu_s:.0f} CPU s")


PARTS = {part.__name__: part for part in (melange, mix, tenants, layers, helix, regions, portfolio)}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS))
    for name in parser.parse_args().only.split(","):
        print(f"== {name}", flush=True)
        PARTS[name]()


if __name__ == "__main__":
    main()
