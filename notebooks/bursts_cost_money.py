# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bursts cost money
#
# The same requests, the same lengths, the same mean rate; only the arrival times differ: as they were logged, and as
# a Poisson stream would have brought them. What does a fleet that keeps the same promises cost?
#
# With the folder of real traces beside this project the conversation trace of Azure (2023) is used, else our sample,
# which was generated to be as bursty.

# %%
import os
import sys
from pathlib import Path

import matplotlib.pyplot as plt

import traces
from models import llm
from planners.report import plots
from planners.report.verdict import fleet_name
from planners.search.search import find_plan
from planners.slo import parse_all
from simulator.replay import replay
from traces.transform import restamp_poisson

SHARED = Path(os.environ.get("FLEETPLAN_SHARED", Path.cwd().parent / "shared"))
AZURE = SHARED / "traces" / "azure2023" / "AzureLLMInferenceTrace_conv.csv.gz"
DEVICES = None if AZURE.exists() else ("h100-sxm", "l40s")

logged = traces.read(AZURE) if AZURE.exists() else traces.sample()
smooth = restamp_poisson(logged, seed=0)
model = llm.load("llama-3.1-70b" if AZURE.exists() else "llama-3.1-8b")
slos = parse_all(["ttft:p99<=2s", "tpot:p99<=80ms"])

# %% [markdown]
# ## Two fleets for the same requests

# %%
plan_logged = find_plan(logged, model, slos, DEVICES)
plan_smooth = find_plan(smooth, model, slos, DEVICES)
logged_on_smooth = replay(logged, plan_smooth.fleet())


def row(name, fleet, usd_per_hour, late_s):
    late = f"{late_s['ttft']['p99']:.2f} s | {late_s['tpot']['p99'] * 1e3:.0f} ms"
    return f"| {name} | {fleet} | {usd_per_hour:.2f} | {late} |"


print("| Arrivals | Fleet | USD/h | TTFT p99 | TPOT p99 |\n|---|---|--:|--:|--:|")
print(row("as logged", fleet_name(plan_logged.pools), plan_logged.usd_per_hour, plan_logged.latency_s))
print(row("as Poisson", fleet_name(plan_smooth.pools), plan_smooth.usd_per_hour, plan_smooth.latency_s))
print(
    row(
        "as logged, on Poisson's fleet",
        fleet_name(plan_smooth.pools),
        plan_smooth.usd_per_hour,
        logged_on_smooth.latency_s(),
    )
)

# %% [markdown]
# ## Where the difference comes from

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4))
plots.trace_overview(left, logged)
runs = {"planned for": replay(logged, plan_logged.fleet()), "on Poisson's fleet": logged_on_smooth}
plots.latency_cdf(right, runs, "ttft", slos)
figure.tight_layout()
plt.show()

# %%
# `python notebooks/bursts_cost_money.py FILE.svg` writes the figure of the README.
if sys.argv[-1].endswith(".svg"):
    plt.rcParams["svg.hashsalt"] = "fleetplan"
    figure.savefig(sys.argv[-1], metadata={"Date": None})

assert plan_logged.usd_per_hour >= plan_smooth.usd_per_hour
