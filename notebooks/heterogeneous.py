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
# # Why mix devices?
#
# A fleet of one kind of device comes in steps of that device. A mix can take smaller steps, and can send each size of
# request where it is served cheapest. How requests are spread is part of the plan: the same fleet under another router
# may break its promises.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

import traces
from models import llm
from planners.plan import cut_name
from planners.report import colours, plots
from planners.slo import broken, parse_all
from planners.whatif import Question
from simulator.replay import replay
from traces.transform import slice_time

trace = slice_time(traces.sample(), 2400.0, 3300.0)
slos = parse_all(["ttft:p99<=2s", "tpot:p99<=80ms"])
question = Question(trace, llm.load("llama-3.1-70b"), slos, ("b200-sxm", "gaudi3", "h100-sxm"))
plan = question.plan()


def described(pools):
    return " + ".join(f"{pool.replicas} x {cut_name(pool)}" for pool in pools)


print(f"{described(plan.pools)}: {plan.usd_per_hour:.2f} USD/h")
if plan.single_device:
    print(f"best of one device: {described(plan.single_device.pools)}: {plan.single_device.usd_per_hour:.2f} USD/h")
if plan.cheaper:
    print(f"cheaper: {described(plan.cheaper.pools)}: {plan.cheaper.usd_per_hour:.2f} USD/h, but {plan.cheaper.fails}")

# %% [markdown]
# ## Who serves whom
#
# Fractions of requests by prompt length, as planned.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.6))
shares = np.array(plan.shares)
edges = [*plan.input_edges, int(trace.input_tokens.max()) + 1]
bottom = np.zeros(len(shares))
for index, pool in enumerate(plan.pools):
    left.bar(
        range(len(shares)), shares[:, index], bottom=bottom, color=colours.of_device(pool.device), label=pool.device
    )
    bottom += shares[:, index]
left.set_xticks(range(len(shares)), [f"{edge:,}" for edge in edges[:-1]], rotation=60, fontsize=7)
left.set_title("Share of requests, by prompt tokens from", loc="left", fontsize=10)
left.legend(fontsize=8)
plots.cost_bars(right, {"planned": plan})
plt.show()

# %% [markdown]
# ## The same fleet under other routers

# %%
for router in ("planned", "join-shortest-queue", "round-robin", "least-kv"):
    run = replay(trace, replace(plan.fleet(), router=router))
    verdict = f"breaks {', '.join(map(str, broken(run, slos)))}" if broken(run, slos) else "keeps every promise"
    late = [run.percentile_s(metric, 99) for metric in ("ttft", "tpot")]
    print(f"{router:20} TTFT p99 {late[0]:7.2f} s   TPOT p99 {late[1] * 1e3:6.0f} ms   {verdict}")

# %% [markdown]
# ## Long prompts apart from short ones
#
# A router of one's own: prompts above a threshold go to the first pool, all others to the shortest queue elsewhere.

# %%
fleet = plan.fleet()


def long_prompts_first(threshold):
    def route(request, view):
        chosen = (view.pool == 0) == (request.input_tokens > threshold)
        lanes = np.flatnonzero(chosen) if chosen.any() else np.arange(view.pool.size)
        return int(lanes[view.outstanding[lanes].argmin()])

    return route


thresholds = (500, 1000, 1500, 3000)
late_s = [replay(trace, fleet, router=long_prompts_first(each)).percentile_s("ttft", 99) for each in thresholds]
for threshold, seconds in zip(thresholds, late_s, strict=True):
    print(f"prompts above {threshold:5} to {plan.pools[0].device}: TTFT p99 {seconds:.2f} s")

# %% [markdown]
# The plan's own routing keeps the promises; that it does is checked here, not assumed.

# %%
assert not broken(replay(trace, fleet), slos)
