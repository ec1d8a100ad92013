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
# # Is it right? Calibrate on my benchmark file
#
# Step times are predicted by rooflines fitted to published measurements, not to your machine. Give the results of your
# own `vllm bench serve --save-result --save-detailed` (or of SGLang, GuideLLM, AIPerf, llm-d), and see how far off the
# prediction is, before and after it is fitted to some of the runs, on the runs that it was not fitted to.
#
# Put your files in place of `FILES`. Without any, stand-ins are written first: a replay under a serving framework that
# is slower than ours in ways the fit does not know. They show what the fit can find; they prove nothing about hardware.

# %%
import json
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import traces
from models import device, framework, llm
from models.calibration import benchmarks, observed
from models.engine import Engine
from models.tables import step_table
from planners.exports.deployment import of_plan
from planners.exports.results import vllm_bench
from planners.plan import Plan, PlannedPool
from planners.report import plots
from simulator.fleet import Fleet, Pool, priced
from simulator.replay import replay
from traces.transform import restamp_poisson, slice_time, time_scale

FILES = []  # the runs to fit to first, then those to be judged on: ["low.json", "high.json", "middle.json"]
FITTED_TO = 6  # of them

engine = Engine(llm.load("llama-3.1-8b"), device.load("l40s"))
ours = framework.of_engine(engine)
chat = restamp_poisson(slice_time(traces.sample(), 0, 300), seed=1)


def fleet_under(host):
    """Return one replica of the engine, its steps priced under a serving framework's host times."""
    return Fleet((Pool(replace(priced(engine), table=step_table(engine, framework=host)), 1),))


def at_rate(requests_per_s):
    return time_scale(chat, requests_per_s / chat.rate_per_s)


# %%
if not FILES:
    slower = replace(
        ours,
        host_step_s=ours.host_step_s + 4e-3,
        decode_factor=1.2 * ours.decode_factor,
        prefill_factor=1.3 * ours.prefill_factor,
    )
    pool = PlannedPool(engine.name, engine.device.name, 1, 1.0, engine=engine)
    deployment = of_plan(Plan((pool,), 1.0, 1.0, "planned", (0,), ((1.0,),)), "llama-3.1-8b")
    for requests_per_s in (0.25, 0.5, 1.5, 2.5, 3.5, 4.0, 1.0, 2.0, 3.0):
        run = replay(at_rate(requests_per_s), fleet_under(slower))
        (text,) = vllm_bench(deployment, run).values()
        FILES.append(Path(f"bench-{requests_per_s:g}-per-s.json"))
        FILES[-1].write_text(text)
print(*FILES, sep="\n")

# %% [markdown]
# ## How far off is it as it comes, and after the fit?
#
# `observed.fit` moves a handful of scalars: host time a step and a sequence, factors on the device's time. It is held
# near what such scalars typically are, so the more runs it is given, the further it moves. The runs below the line were
# not shown to it. `plan calibrate FILES --model ... --device ...` does the same.

# %%
runs = [benchmarks.read(Path(file))[0] for file in FILES]
fitted = observed.fit(engine, runs[:FITTED_TO])
calibrated = replace(ours, **fitted["scalars"])


def seen(file, host):
    """Return mean TTFT and mean time per token of a replay of the file's own requests, as far as it tells them."""
    content = json.loads(Path(file).read_text())
    replayed = replay(at_rate(content["request_rate"]), fleet_under(host))
    return replayed, np.mean(replayed.ttft_s), np.nanmean(replayed.tpot_s)


print("| Run | TTFT, measured | as it comes | fitted | time per token, measured | as it comes | fitted |")
print("|---|--:|--:|--:|--:|--:|--:|")
errors = {"as it comes": [], "fitted": []}
for number, (file, run) in enumerate(zip(FILES, runs, strict=True)):
    cells = [[f"{run.ttft_s * 1e3:.0f} ms"], [f"{run.tpot_s * 1e3:.1f} ms"]]
    for name, host in (("as it comes", ours), ("fitted", calibrated)):
        _, ttft_s, tpot_s = seen(file, host)
        found = ttft_s / run.ttft_s - 1, tpot_s / run.tpot_s - 1
        for cell, error in zip(cells, found, strict=True):
            cell.append(f"{error:+.0%}")
        if number >= FITTED_TO:
            errors[name].append(found)
    if number == FITTED_TO:
        print("| *not fitted to:* | | | | | | |")
    print(f"| {Path(file).stem} | " + " | ".join(cells[0] + cells[1]) + " |")

held_out = {name: np.abs(np.array(found)).mean(axis=0) for name, found in errors.items()}
for name, (ttft, tpot) in held_out.items():
    print(f"{name}: mean absolute error on runs not fitted to, TTFT {ttft:.0%}, time per token {tpot:.0%}")

# %% [markdown]
# ## Not only the means
#
# Every request's time to first token, measured and predicted, on the last run, which the fit has not seen.

# %%
content = json.loads(Path(FILES[-1]).read_text())
measured = np.sort([seconds for seconds in content["ttfts"] if seconds > 0])
predicted = {name: seen(FILES[-1], host)[0] for name, host in (("as it comes", ours), ("fitted", calibrated))}
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 3.6), layout="constrained")
plots.latency_cdf(left, predicted, "ttft", measured_s=measured)
quantiles = np.linspace(0.02, 0.98, 49)
for name, run in predicted.items():
    right.plot(quantiles * 100, np.quantile(run.ttft_s, quantiles) / np.quantile(measured, quantiles) - 1, label=name)
right.axhline(0, color="black", linewidth=0.8)
right.set_xlabel("percentile")
right.set_title("Residual: predicted / measured - 1", loc="left", fontsize=10)
right.legend(fontsize=8)
plt.show()

# %% [markdown]
# On runs that it has not seen the fit must be nearer than the prediction as it comes; if it is not, your runs differ in
# something that these scalars cannot say, and the interval of `plan whatif --vary calibration=low,high` is the honest
# width.

# %%
assert held_out["fitted"][1] < held_out["as it comes"][1]
assert held_out["fitted"][0] < held_out["as it comes"][0]
