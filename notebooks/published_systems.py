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
# # Published systems compared
#
# Papers say by how much their scheduler, router or cache is better. A study puts such a claim to the test in the
# simulator: the claim and the band in which it counts as held are written down before the first run, a control says
# where the mechanism must not help, and what the paper leaves open is swept. A claim that does not hold is a finding,
# not a failure. `plan study list` names all studies, `plan study run all` runs them at full length.

# %%
import matplotlib.pyplot as plt
import numpy as np

from planners.report.colours import BAD, GOOD, NEUTRAL
from simulator.studies.registry import find, names, run_study

CHOSEN = ("flow_prefill", "s_lora")  # run here, shortened: each takes some ten seconds
SEEDS = range(2)

print("| Study | Paper | Claims |\n|---|---|---|")
for name in names():
    card = find(name).CARD
    print(f"| {name} | {card.paper} | {card.sentence} |")

# %% [markdown]
# ## What was claimed, and what is found
#
# The class says how much of the paper's input is published: Q all of it, R enough for a ratio, D for a direction only.

# %%
outcomes = [run_study(name, SEEDS, quick=True) for name in CHOSEN]
print("| Study | Class | Figure | Claimed | Found | Interval | Band | Verdict |\n|---|---|---|--:|--:|--:|--:|---|")
for outcome in outcomes:
    for judged in outcome.judgements:
        claim, found = judged.claim, judged.measured
        value = "-" if found is None else f"{found.value:.3g}"
        interval = "-" if found is None else f"{found.low:.3g} to {found.high:.3g}"
        cells = (outcome.card.name, claim.grade, claim.figure, f"{claim.claimed:g} {claim.unit}", value, interval)
        print(f"| {' | '.join(cells)} | {claim.band} | {judged.verdict} |")
for outcome in outcomes:
    print(f"\n{outcome.card.name}: {outcome.verdict}; control {outcome.control}. {outcome.finding.note}")

# %% [markdown]
# Found over claimed, with intervals over seeds; the grey bar is the band of the claim. Two seeds make wide intervals.

# %%
rows = [(outcome, judged) for outcome in outcomes for judged in outcome.judgements if judged.measured]
figure, ax = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.2))
for place, (_, judged) in enumerate(rows):
    claim, found = judged.claim, judged.measured
    ends = sorted(np.clip(np.array([claim.low, claim.high]) / claim.claimed, -1, 3))
    ax.barh(place, ends[1] - ends[0], left=ends[0], color=NEUTRAL, alpha=0.2)
    low, high = sorted(np.clip(np.array([found.low, found.high]) / claim.claimed, -1, 3))
    colour = GOOD if judged.in_band else BAD
    ax.plot([low, high], [place, place], color=colour)
    ax.plot(np.clip(found.value / claim.claimed, -1, 3), place, "o", color=colour)
ax.axvline(1, color=NEUTRAL, linewidth=0.8)
ax.set_yticks(range(len(rows)), [f"{outcome.card.name}: {judged.claim.figure}" for outcome, judged in rows], fontsize=8)
ax.invert_yaxis()
ax.set_xlim(-1.05, 3.05)
ax.set_xlabel("found / claimed, cut at -1 and 3")
held = sum(judged.in_band for _, judged in rows)
ax.set_title(f"{held} of {len(rows)} claims lie in the band that was set for them", loc="left", fontsize=10)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## What does it, and what does it hang on
#
# The ablation takes the mechanism's parts away one by one; the sweep moves what the paper does not say.


# %%
def table(rows):
    heads = list(rows[0])
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        cells = [f"{row.get(head):.4g}" if isinstance(row.get(head), float) else str(row.get(head)) for head in heads]
        print(f"| {' | '.join(cells)} |")


for outcome in outcomes:
    print(f"\n**{outcome.card.name}**, ablation\n")
    table(outcome.finding.ablation)
    print(f"\nsweep of {outcome.card.hidden_knob}\n")
    table(outcome.finding.sweep)

# %% [markdown]
# Whatever the claims, the controls must be neutral: where a mechanism should not help, it does not.

# %%
assert all(outcome.control == "neutral" for outcome in outcomes)
