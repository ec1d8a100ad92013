"""Fit one Engine's scalars to runs that its user measured."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from models import framework
from models.calibration import profiles
from models.calibration.benchmarks import Run
from models.closed_loop import Answered, Load
from models.engine import Engine
from models.estimate import StepCosts, answer, check_fits
from models.framework import SCALARS


def fit(engine: Engine, runs: Sequence[Run]) -> dict[str, Any]:
    """Return the scalars that explain the runs best, held near the framework's own, and every run before and after.

    ValueError where no run has a time per token.
    """
    costs = StepCosts(engine)
    loads = [
        Load(round(run.input_tokens), max(2, round(run.output_tokens)), max(1, round(run.concurrency))) for run in runs
    ]
    for load in loads:
        check_fits(engine, load)
    before = [answer(costs, load) for load in loads]
    rows = [_row(engine, run, seen) for run, seen in zip(runs, before, strict=True) if run.tpot_s]
    if not rows:
        raise ValueError("no run with a time per token: a fit needs at least one")
    usual = np.array([getattr(framework.load(engine.framework), name) for name in SCALARS])
    found: dict[str, Any] = dict(zip(SCALARS, map(float, profiles.fit_own(rows, usual)), strict=True))
    costs.host = replace(costs.host, **found, provenance="calibrated")
    after = [answer(costs, load) for load in loads]
    return {
        "scalars": found,
        "median_error_before": _median_error(runs, before),
        "median_error_after": _median_error(runs, after),
        "runs": [_told(run, b, a) for run, b, a in zip(runs, before, after, strict=True)],
    }


def _row(engine: Engine, run: Run, seen: Answered) -> profiles.Measured:
    row = profiles.measured(engine.device.name, engine, seen, run.tpot_s or 0.0, run.ttft_s or seen.ttft_s)
    return replace(row, model=run.place)


def _median_error(runs: Sequence[Run], seen: Sequence[Answered]) -> float:
    errors = [abs(one.tpot_s / run.tpot_s - 1.0) for run, one in zip(runs, seen, strict=True) if run.tpot_s]
    return float(np.median(errors))


def _told(run: Run, before: Answered, after: Answered) -> dict[str, Any]:
    return {
        "place": run.place,
        "ttft_s": run.ttft_s,
        "ttft_before_s": before.ttft_s,
        "ttft_after_s": after.ttft_s,
        "tpot_s": run.tpot_s,
        "tpot_before_s": before.tpot_s,
        "tpot_after_s": after.tpot_s,
    }
