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
# # Why mix devices, and why part prefill from decode?
#
# A fleet of one kind of device comes in steps of that device. A mix can take smaller steps, and can send each size of
# request where it is served cheapest. How requests are spread is part of the plan: the same fleet under another router
# may break its promises.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

import traces
from models import device, llm
from models.engine import Engine
from planners.plan import cut_name
from planners.report import colours, plots
from planners.slo import broken, parse_all
from planners.whatif import Question
from simulator.fleet import Fleet, Link, Pool, priced
from simulator.replay import replay
from traces.transform import scale_rate, slice_time

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

# %% [markdown]
# ## Prefill apart from decode
#
# A step that holds a prompt makes every answer in it wait. Replicas that only prefill hand requests over to replicas
# that only decode: answers flow evenly, prompts queue for fewer replicas, and the KV cache has to travel. Four equal
# replicas, together or parted in three ways, as the rate grows:

# %%
replica = priced(Engine(llm.load("llama-3.1-70b"), device.load("h100-sxm"), tp=4))


def parted(prefilling, link=None):
    """Return four replicas, so many of them for prefill; none for all of them doing both."""
    if not prefilling:
        return Fleet((Pool(replica, 4),))
    pools = Pool(replica, prefilling, role="prefill"), Pool(replica, 4 - prefilling, role="decode")
    return Fleet(pools, link=link or Link())


arrangements = {"together": parted(0), "1 + 3": parted(1), "2 + 2": parted(2), "3 + 1": parted(3)}
factors = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
scaled = {factor: scale_rate(trace, factor, seed=0) for factor in factors}
runs = {name: {f: replay(scaled[f], fleet) for f in factors} for name, fleet in arrangements.items()}
quiet_s = runs["together"][factors[0]].percentile_s("tpot", 99)
tight = parse_all(["ttft:p99<=1s", f"tpot:p99<={1.2 * quiet_s * 1e3:.0f}ms"])  # a fifth above what a quiet fleet does

print("| Prefill + decode | " + " | ".join(f"{scaled[f].rate_per_s:.1f}/s" for f in factors) + " |")
print("|---|" + "--:|" * len(factors))
for name, found in runs.items():
    late = [(run.percentile_s("ttft", 99), run.percentile_s("tpot", 99)) for run in found.values()]
    print(f"| {name} | " + " | ".join(f"{ttft:.2f} s, {tpot * 1e3:.0f} ms" for ttft, tpot in late) + " |")

limits = {slo.metric: slo.limit_s for slo in tight}
figure, ax = plt.subplots(figsize=(7, 3.4))
for name, found in runs.items():
    rates = [scaled[f].rate_per_s for f in factors]
    ax.plot(rates, [run.keeps(limits).mean() for run in found.values()], "o-", label=name)
ax.axhline(0.99, color="grey", linewidth=0.7, linestyle=":")
ax.set_xlabel("requests per second")
ax.set_title(f"Requests within {' and '.join(map(str, tight))}, each by itself", loc="left", fontsize=10)
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# What does the way between them have to carry? The same fleet, 2 + 2, over links of other speed.

# %%
figure, ax = plt.subplots(figsize=(7, 3.4))
speeds = (1e9, 2e9, 5e9, 10e9, 50e9)
for layerwise, style in ((False, "o-"), (True, "s--")):
    late_s = [
        replay(scaled[2.0], parted(2, Link(bytes_per_s, 1e-3, layerwise))).percentile_s("tpot", 99)
        for bytes_per_s in speeds
    ]
    ax.plot(np.array(speeds) / 1e9, late_s, style, label="layer by layer" if layerwise else "after the prefill")
ax.set_xscale("log")
ax.set_yscale("log")
ax.set_xlabel("link [GB/s]")
ax.set_title("TPOT p99 [s] by the speed of the link", loc="left", fontsize=10)
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# Parting pays where answers must flow and the split fits the work; a wrong split is worse than none, and so is a link
# that is too slow. Checked here: at some rate a split keeps what the four together break, and at some rate the wrong
# split breaks what the four together keep.

# %%
kept = {name: [not broken(found[f], tight) for f in factors] for name, found in runs.items()}
for name, held in kept.items():
    rates = [scaled[f].rate_per_s for f, is_kept in zip(factors, held, strict=True) if is_kept]
    print(f"{name}: keeps both promises up to {max(rates, default=0.0):.1f}/s")
splits = [name for name in kept if name != "together"]
assert any(not kept["together"][place] and any(kept[name][place] for name in splits) for place in range(len(factors)))
assert any(kept["together"][place] and not kept["1 + 3"][place] for place in range(len(factors)))
