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
# # Three mechanisms, and where they do not help
#
# Disaggregation, prefix-aware routing and live migration, each on and off on the same requests; and each again where
# it must not matter, for a mechanism that "helps" there would only show a flaw of the comparison.
#
# With the folder of real traces beside this project these are conversations of Azure (2023) and of Mooncake, else
# traces made to be like them.

# %%
import os
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import traces
from models import device, llm
from models.engine import Engine, Settings
from simulator.control.migration import link, one_mover, pairing
from simulator.control.plane import operate
from simulator.control.routers import ROUTERS
from simulator.fleet import Fleet, Link, Pool, priced
from simulator.replay import replay
from traces import transform
from traces.sessions import Conversations, generate_conversations

SHARED = Path(os.environ.get("FLEETPLAN_SHARED", Path.cwd().parent / "shared"))
AZURE = SHARED / "traces" / "azure2023" / "AzureLLMInferenceTrace_conv.csv.gz"
MOONCAKE = SHARED / "traces" / "mooncake" / "conversation_trace.jsonl.gz"
CHAT_S, LONG_S = 900.0, 1200.0  # of the traces

chat = transform.slice_time(traces.read(AZURE) if AZURE.exists() else traces.sample(), 0.0, CHAT_S)
if MOONCAKE.exists():
    shared_prompts = transform.dequantise(traces.read(MOONCAKE), seed=0)  # its times are whole multiples of 3 s
else:
    law = Conversations(turns_mean=6.0)
    shared_prompts = generate_conversations(law, LONG_S, seed=0, parameters={"rate_per_s": 0.5})
shared_prompts = transform.slice_time(shared_prompts, 0.0, LONG_S)


def at(trace, rate_per_s):
    """The same requests at another mean rate, bursts and all."""
    return transform.time_scale(trace, rate_per_s / trace.rate_per_s)


def engine(model, on, tp=1, **settings):
    return priced(Engine(llm.load(model), device.load(on), tp=tp, settings=Settings(**settings)))


def attained(run, **limits_s):
    return float(run.keeps(limits_s).mean())


# %% [markdown]
# ## Disaggregation: four replicas that do both, against two that prefill and two that decode
#
# A promise on each token is what disaggregation is for: prompts no longer stretch the steps of answers. Where the
# promise is loose, the two should serve alike.

# %%
served = engine("llama-3.1-70b", "h100-sxm", tp=4)
together = Fleet((Pool(served, 4),))
apart = Fleet((Pool(served, 2, role="prefill"), Pool(served, 2, role="decode")), link=Link(50e9, is_layerwise=True))
RATES = (2.0, 6.0, 10.0, 14.0, 18.0, 22.0)


def kept(fleet, tpot_s):
    return [attained(replay(at(chat, rate), fleet), ttft=2.0, tpot=tpot_s) for rate in RATES]


tight = {"disaggregated": kept(apart, 0.03), "together": kept(together, 0.03)}
loose = {"disaggregated": kept(apart, 0.2)[:2], "together": kept(together, 0.2)[:2]}

# %% [markdown]
# ## Prefix-aware routing: eight replicas, prompts that share their beginnings
#
# The control are the same prompts with nothing in common.

# %%
caching = engine("llama-3.1-8b", "h100-sxm", prefix_caching=True)
PROMPT_RATES = (2.0, 4.0, 6.0, 8.0, 9.0, 10.0)
columns = {name: column for name, column in shared_prompts.columns.items() if name != "prefix_blocks"}
apart_prompts = replace(shared_prompts, columns=columns)


def p90_ttft_s(trace, router):
    return [
        replay(at(trace, rate), Fleet((Pool(caching, 8),), router)).percentile_s("ttft", 90) for rate in PROMPT_RATES
    ]


sharing = {name: p90_ttft_s(shared_prompts, name) for name in ("prefix-aware", "join-shortest-queue")}
strangers = {name: p90_ttft_s(apart_prompts, name) for name in ("prefix-aware", "join-shortest-queue")}

# %% [markdown]
# ## Migration: requests move from lanes that run out of memory to lanes that have some
#
# Both route to the freest lane; one also moves requests with their KV, 16 blocks at the end with the request stopped.
# At a low rate no lane runs out of memory, and there is nothing to move for.

# %%
small = engine("llama-3.1-8b", "a10", prefix_caching=False)
MEMORY_RATES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


def p99_e2e_s(*controllers):
    fleet, routing = Fleet((Pool(small, 4),)), ROUTERS["freeness"]()
    runs = [operate(at(chat, rate), fleet, routing=routing, controllers=controllers).run for rate in MEMORY_RATES]
    return [run.percentile_s("ttft", 99) for run in runs]


moving = {"migration": p99_e2e_s(pairing(one_mover(link(8e9)), low=10.0, high=60.0)), "none": p99_e2e_s()}

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6))
for name, line in tight.items():
    left.plot(RATES, line, marker="o", label=f"{name}, 30 ms a token")
for name, line in loose.items():
    left.plot(RATES[:2], line, linestyle=":", label=f"{name}, 200 ms (control)")
left.set(title="Disaggregation keeps a tight promise on tokens", xlabel="requests per second", ylabel="share in time")
for name, line in sharing.items():
    middle.plot(PROMPT_RATES, line, marker="o", label=name)
for name, line in strangers.items():
    middle.plot(PROMPT_RATES, line, linestyle=":", label=f"{name}, nothing shared (control)")
middle.set(
    title="Prefix-aware routing shortens waits near capacity", xlabel="requests per second", ylabel="TTFT p90 [s]"
)
for name, line in moving.items():
    right.plot(MEMORY_RATES, line, marker="o", label=name)
right.set(title="Migration matters only where memory is short", xlabel="requests per second", ylabel="TTFT p99 [s]")
for axes in (left, middle, right):
    axes.legend(fontsize=7)
    axes.title.set_fontsize(10)
for axes in (middle, right):
    axes.set_yscale("log")
figure.tight_layout()
plt.show()

# %%
for name, lines in {
    "disaggregation": tight,
    "prefix": sharing,
    "control of prefix": strangers,
    "migration": moving,
}.items():
    for label, line in lines.items():
        print(f"{name:18s} {label:22s}", *(f"{value:8.3f}" for value in line))

# %%
# `python notebooks/three_mechanisms.py FILE.svg` writes the figure of the README.
if sys.argv[-1].endswith(".svg"):
    plt.rcParams["svg.hashsalt"] = "fleetplan"
    figure.savefig(sys.argv[-1], metadata={"Date": None})

assert max(np.abs(np.subtract(*loose.values()))) < 0.02
assert strangers["prefix-aware"][0] <= 1.1 * strangers["join-shortest-queue"][0]
assert moving["migration"][0] <= 1.1 * moving["none"][0]
