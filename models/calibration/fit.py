"""Fit all operators of measurement tables and write calibration files.

python -m models.calibration.fit OPERATORS.parquet COLLECTIVES.parquet -o FOLDER [--device D ...] [--op O ...] [--again]
"""

import argparse
import sys
import time
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models import device as devices
from models.calibration import fitting, measured, residual, store
from models.calibration.boosting import Budget
from models.calibration.forms import FORMS, Form
from models.calibration.measured import Group
from models.calibration.plausible import impossible
from models.calibration.shapes import FEW_FOR_TREES, RINGS, feature_columns, form_of, octaves_outside
from models.calibration.store import Error, OperatorFit
from models.operators import Formats, Machine

Floats = npt.NDArray[np.float64]

SEED = 20_260
MAX_BOOST_ROWS = 30_000
MAX_TRIAL_ROWS = 10_000
# Splits of which held-out errors are told.
SPLITS = ("shape", "family", "beyond")
JUDGED_BY_FAMILY = ("moe", "attn_decode", "attn_prefill", "attn_mixed")
ERROR_FOLD, TRIAL_FOLD = 0, 1  # the rows whose errors are told never choose how much a correction may learn
BUDGETS = (Budget(30, 31, 10.0), Budget(75, 63, 4.0), Budget(60, 127, 4.0))
# Few architectures teach little: more would be learnt by heart.
BUDGETS_OF = {"moe": (Budget(75, 31, 20.0),)}
WORTHWHILE = 0.97  # a larger budget must bring the error down to this share
P90_WEIGHT = 0.3  # what is minimised is the median plus this share of the 90th percentile
FEWEST_HELD_BACK = 7
FEW_FOR_TAILS = 40  # fewer errors tell no tail: the interval spans them all
FEWEST_ROWS = 12
DEFAULT_INTERVAL = (0.7, 1.45)
# Of few families the ones held back differ less than those to come: what their interval lacked on another fold.
WIDER = {"moe": 1.2, "mla_decode": 1.5}
NARROWEST = 0.001  # an interval holds its prediction, by this at least


def main(arguments: list[str] | None = None) -> None:
    """Fit what the command line names and write one file per device and engine family."""
    parser = argparse.ArgumentParser(prog="python -m models.calibration.fit", description=__doc__)
    parser.add_argument("operators", type=Path)
    parser.add_argument("collectives", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", action="append", help="only these devices (as the tables call them)")
    parser.add_argument("--op", action="append", help="only these operators; the fits of others stay as they are")
    parser.add_argument("--again", action="store_true", help="keep parameters of the output folder, correct them anew")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    tables = (options.operators, options.collectives)
    fit_tables(*tables, options.output, options.device, options.op, options.again)


def fit_tables(
    operators: Path,
    collectives: Path,
    output: Path,
    only_devices: list[str] | None = None,
    only_ops: list[str] | None = None,
    again: bool = False,
) -> None:
    """Fit two measurement tables, device by device; write a file per (device, engine family), and the index."""
    every = sorted({*measured.devices_in(operators), *measured.devices_in(collectives)})
    for device in only_devices or every:
        found: dict[str, list[OperatorFit]] = {}
        groups = chain(measured.operator_groups(operators, device), measured.collective_groups(collectives, device))
        for group in groups:
            known = {_key(fit): fit for fit in store.read(group.device, group.engine, output)}
            old = known.get(_key(group))
            fits = found.setdefault(group.engine, [])
            if only_ops and group.op not in only_ops:
                fits += [old] if old else []
                continue
            started = time.perf_counter()
            fit = fit_group(group, np.array(old.parameters) if again and old else None)
            if fit is None:
                continue
            fits.append(fit)
            errors = {name: f"{error.median:.3f}/{error.p90:.3f}" for name, error in fit.errors.items()}
            took_s = time.perf_counter() - started
            print(*_name(group), group.rows, f"{took_s:.1f} s", errors, file=sys.stderr, flush=True)
        for engine, fits in found.items():
            if fits:
                store.write(output, device, engine, fits)
        store.write_index(output)


def _key(one: OperatorFit | Group) -> tuple[str, ...]:
    return one.op, one.dtype, one.kv_dtype, one.kernel, one.sub_op, one.version


def fit_group(group: Group, start: Floats | None = None) -> OperatorFit | None:
    """Return the fit of one group with its held-out errors, or None (and a word why) where it cannot be made.

    The errors are those of fits that never saw the rows held back; what is returned is then fitted on all rows. start
    holds parameters to keep, where they are known; else all discrete choices are tried.
    """
    try:
        machine = measured.machine_of(devices.find(group.device), group.dtype)
    except ValueError as error:
        print(*_name(group), f"not fitted: {error}", file=sys.stderr)
        return None
    formats = measured.formats_of(group.op, group.dtype, group.kv_dtype)
    fastest = measured.fastest_machine_of(devices.find(group.device), group.dtype, group.kv_dtype)
    group = group.keep(~impossible(group, fastest, formats))
    if group.rows < FEWEST_ROWS:
        print(*_name(group), f"not fitted: only {group.rows} possible rows", file=sys.stderr)
        return None
    form = FORMS[form_of(group.op)]
    if start is None or len(start) != len(form.parameters):
        rng = np.random.default_rng(SEED)
        start = fitting.fit_physics(form, group.columns, group.seconds, formats, machine, rng)
    case = _Case(form, formats, machine, start)
    budget = _budget(case, group)
    errors: dict[str, Error] = {}
    inside: list[tuple[Floats, Floats]] = []
    outside: list[tuple[Floats, Floats]] = []
    for split in SPLITS:
        held = measured.held_back(group.op, group.shape, split, ERROR_FOLD)
        if FEWEST_HELD_BACK <= held.sum() <= 0.6 * group.rows:
            log_error = _held_out(case, group, held, budget)
            errors[split] = error_of(log_error)
            octaves = octaves_outside(group.keep(held).shape, _ranges(group.keep(~held)))
            if split == "family" and group.op in RINGS:
                continue  # of two device counts, either is far outside what the other tells
            (outside if split == "beyond" else inside).append((log_error, octaves))
    interval = _interval([log_error for log_error, _ in inside], WIDER.get(group.op, 1.0))
    return OperatorFit(
        *(group.op, group.dtype, group.kv_dtype, group.kernel, group.sub_op, form.name),
        parameters=tuple(float(value) for value in start),
        provenance="calibrated",
        rows=group.rows,
        errors=errors,
        interval=interval,
        valid=_ranges(group),
        source=group.source,
        version=group.version,
        packed=_boosted(case, group, start, budget),
        drift=_drift(interval, outside),
    )


class _Case(NamedTuple):
    """What a fit of a group needs besides its rows: the form, number formats, device, and parameters to start from."""

    form: Form
    formats: Formats
    machine: Machine
    start: Floats


def _ranges(group: Group) -> dict[str, tuple[float, float]]:
    return {name: (float(values.min()), float(values.max())) for name, values in group.shape.items()}


def error_of(log_error: Floats) -> Error:
    """Return the summary of log(predicted / measured) as relative errors."""
    relative = np.expm1(log_error)
    size = np.abs(relative)
    quantile = float(np.quantile(size, 0.9))
    return Error(len(size), float(np.median(size)), float(size.mean()), quantile, float(relative.mean()))


def _interval(log_errors: list[Floats], wider: float) -> tuple[float, float]:
    """Return the factors on a prediction between which 90 % of the held-out measurements lay, made wider on the log."""
    if not log_errors:
        return DEFAULT_INTERVAL
    pooled = -np.concatenate(log_errors)
    tail = 0.05 if len(pooled) >= FEW_FOR_TAILS else 0.0
    low, high = np.exp(wider * np.quantile(pooled, (tail, 1.0 - tail)))
    return min(float(low), 1.0 - NARROWEST), max(float(high), 1.0 + NARROWEST)


def _drift(interval: tuple[float, float], outside: list[tuple[Floats, Floats]]) -> float:
    """Return by how much the interval's log must grow per octave outside the range of a fit to hold 90 % there."""
    missed = []
    for log_error, octaves in outside:
        lacks = np.maximum(np.log(interval[0]) + log_error, -log_error - np.log(interval[1]))
        missed.append(np.maximum(lacks, 0.0)[octaves > 0.0] / octaves[octaves > 0.0])
    found = np.concatenate(missed) if missed else np.zeros(0)
    return float(np.quantile(found, 0.9)) if len(found) else 0.0


def _held_out(case: _Case, group: Group, held: npt.NDArray[np.bool_], budget: Budget) -> Floats:
    """Return log(predicted / measured) of the rows held back, under a fit of the others."""
    rest, kept = group.keep(~held), group.keep(held)
    rng = np.random.default_rng(SEED + 1)
    parameters = fitting.refit_physics(
        case.form, rest.columns, rest.seconds, case.formats, case.machine, case.start, rng
    )
    packed = _boosted(case, rest, parameters, budget)
    outputs, features = _seen(case, kept, parameters)
    trees = residual.unpack(packed) if packed else None
    return np.log(residual.corrected(outputs[:, 0], features, trees) / kept.seconds)


def _seen(case: _Case, group: Group, parameters: Floats) -> tuple[Floats, Floats]:
    """Return the seconds and traits of a group's rows, and the features that a correction sees."""
    outputs = case.form.evaluate(group.columns, case.formats, case.machine, parameters)
    return outputs, residual.features_of(outputs, group.shape, feature_columns(group.op))


def _boosted(
    case: _Case, group: Group, parameters: Floats, budget: Budget, most_rows: int = MAX_BOOST_ROWS
) -> dict[str, object]:
    """Return the packed residual trees of a group, or none where the rows are too few to learn from."""
    if len(np.unique(np.stack(list(group.shape.values())), axis=1).T) < FEW_FOR_TREES:
        return {}
    part = group.take(np.random.default_rng(SEED + 2).permutation(group.rows)[:most_rows])
    outputs, features = _seen(case, part, parameters)
    residuals = np.log(part.seconds / outputs[:, 0])
    return residual.boost(features, residuals, residual.plain_columns(feature_columns(group.op)), budget)


def _budget(case: _Case, group: Group) -> Budget:
    """Return how much the correction of a group may learn: more only where that predicts rows held back better."""
    offers = tuple(dict.fromkeys(_affordable(budget, group.rows) for budget in BUDGETS_OF.get(group.op, BUDGETS)))
    held = measured.held_back(group.op, group.shape, "family" if group.op in JUDGED_BY_FAMILY else "shape", TRIAL_FOLD)
    enough = FEWEST_HELD_BACK <= held.sum() <= 0.6 * group.rows
    if len(offers) == 1 or not enough:
        return offers[0]
    rest, kept = group.keep(~held), group.keep(held)
    outputs, features = _seen(case, kept, case.start)
    best, least = offers[0], np.inf
    for offer in offers:
        packed = _boosted(case, rest, case.start, offer, MAX_TRIAL_ROWS)
        if not packed:
            return offer
        trees = residual.unpack(packed)
        errors = np.abs(np.log(residual.corrected(outputs[:, 0], features, trees) / kept.seconds))
        score = float(np.median(errors) + P90_WEIGHT * np.quantile(errors, 0.9))
        if score < WORTHWHILE * least:
            best, least = offer, score
    return best


def _affordable(budget: Budget, rows: int) -> Budget:
    """Return a budget cut to what so many rows can teach."""
    leaves = int(np.clip(rows / 30, 6, budget.leaves))
    return Budget(int(np.clip(rows / 40, 12, budget.trees)), leaves, budget.leaf_rows)


def _name(group: Group) -> tuple[str, ...]:
    return group.device, group.engine, group.op, group.dtype, group.kv_dtype, group.kernel, group.sub_op


if __name__ == "__main__":
    main()
