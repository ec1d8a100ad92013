"""A study of a toy claim: a second server at least halves the mean wait of an M/M/1 queue at a load of 0.8."""

import numpy as np

from simulator.studies.card import Card, Claim, Finding, over_seeds

CARD = Card(
    name="toy",
    paper="nobody, nowhere",
    sentence="A second server waits ten times less.",
    claims=(Claim("wait ratio", 10.0, "x", "R", low=2.0), Claim("untried", 1.0, "s", "D")),
    study_pass="wait ratio >= 2",
    control="no load",
    control_margin=0.05,
    hidden_knob="servers",
    group="toys",
)


def run(seeds, quick):
    ratios = [float(np.random.default_rng(seed).normal(5.0, 0.1)) for seed in seeds]
    return Finding(
        {"wait ratio": over_seeds(ratios)},
        {"no load": over_seeds([1.01])},
        curve=[{"load": 0.8, "ratio": ratio} for ratio in ratios],
        note="quick" if quick else "",
    )
