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
# # How many accelerators for my trace, and what if?
#
# Read a trace, look at it, plan for it; then change the rate, a price and a promise, and see what the plan does.
# Put the name of your own file in place of the sample.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt

import traces
from models import llm
from planners import whatif
from planners.plan import cut_name
from planners.report import plots
from planners.slo import parse_all
from planners.whatif import Question, parse_axis
from simulator.replay import replay
from traces.transform import slice_time

MINUTES = 6  # of the sample: a notebook should not keep you waiting

trace = slice_time(traces.sample(), 2400.0, 2400.0 + 60 * MINUTES)  # its busiest stretch
print(trace)

# %% [markdown]
# ## The trace
#
# The grey band is where nearly all minutes of a Poisson stream of the same rate would lie. Traffic from people does
# not stay inside it.

# %%
figure, ax = plt.subplots(figsize=(7, 3))
plots.trace_overview(ax, traces.sample())
plt.show()

# %% [markdown]
# ## The plan

# %%
question = Question(
    trace=trace,
    llm=llm.load("llama-3.1-8b"),
    slos=parse_all(["ttft:p99<=2s", "tpot:p99<=80ms"]),
    devices=("h100-sxm", "l40s"),
)
base = whatif.answer(question, {}).plan


def described(plan):
    return " + ".join(f"{pool.replicas} x {cut_name(pool)}" for pool in plan.pools)


print(f"{described(base)}: {base.usd_per_hour:.2f} USD/h, no fleet below {base.usd_per_hour_bound:.2f} USD/h")
for name, values in base.latency_s.items():
    print(f"{name}: " + ", ".join(f"{label} {seconds * 1e3:.0f} ms" for label, seconds in values.items()))

# %%
run = replay(trace, base.fleet())
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.5), layout="constrained")
plots.latency_cdf(left, {"plan": run}, "ttft", question.slos)
plots.fleet_timeline(right, run, ttft_limit_s=2.0)
plt.show()

# %% [markdown]
# ## What if there are more requests?

# %%
rates = list(whatif.grid(question, [parse_axis("rate=0.5x,1x,2x")]))
for case in rates:
    print(f"{case.changes['rate']:>4}  {case.usd_per_hour:6.2f} USD/h  {described(case.plan)}")

figure, ax = plt.subplots(figsize=(7, 3))
plots.cost_bars(ax, {case.changes["rate"]: case.plan for case in rates})
plt.show()

# %% [markdown]
# Cost rises more slowly than the rate: larger fleets share their idle time.

# %%
costs = [case.usd_per_hour for case in rates]
assert costs == sorted(costs)
assert costs[-1] <= 4 * costs[0]

# %% [markdown]
# ## What if the promise is tighter?

# %%
limits = {"0.1s": 0.1, "0.3s": 0.3, "2s": 2.0}
tighter = list(whatif.grid(question, [parse_axis("slo.ttft:p99=" + ",".join(limits))]))
for case in tighter:
    told = described(case.plan) if case.plan else case.reasons[0]
    print(f"TTFT p99 {case.changes['slo.ttft:p99']:>5}  {case.usd_per_hour:6.2f} USD/h  {told}")

figure, ax = plt.subplots(figsize=(7, 3))
plots.cost_and_promise(ax, [(limits[case.changes["slo.ttft:p99"]], case.plan) for case in tighter], "TTFT p99")
plt.show()

# %% [markdown]
# ## What matters most?
#
# One change at a time. A star marks a change that buys other hardware, not only more or less of it.

# %%
axes = [parse_axis(text) for text in ("rate=1.5x", "price.l40s=2x", "slo=0.5x", "speed=0.8x")]
cases = list(whatif.tornado(question, axes))
names = {f"{name} {value}": case for case in cases[1:] for name, value in case.changes.items()}
flips = [name for name, case in names.items() if case.plan and described(case.plan) != described(base)]

figure, ax = plt.subplots(figsize=(7, 3))
plots.cost_tornado(ax, base.usd_per_hour, {name: case.usd_per_hour for name, case in names.items()}, flips)
plt.show()

# %% [markdown]
# ## What if a replica is lost?

# %%
for loss in whatif.losses(base, trace, question.slos):
    late = f"TTFT p99 {loss.latency_s['ttft']['p99']:.2f} s" if loss.latency_s else "nobody is served"
    print(f"one replica of {loss.pool} gone: promises {'hold' if loss.holds else 'break'}, {late}")

# %% [markdown]
# ## A router of your own
#
# A router is a function that is shown the arriving request and the fleet, and names a lane. It does not know how long
# the answer will be.


# %%
def emptiest_memory(request, fleet):
    """Send each request where the largest share of KV memory is free."""
    return int((fleet.kv_tokens / fleet.kv_capacity_tokens).argmin())


two = replace(base.fleet(), pools=tuple(replace(pool, replicas=2) for pool in base.fleet().pools))
mine, built_in = replay(trace, two, router=emptiest_memory), replay(trace, replace(two, router="join-shortest-queue"))
print(f"TTFT p99: mine {mine.percentile_s('ttft', 99):.3f} s, built in {built_in.percentile_s('ttft', 99):.3f} s")
