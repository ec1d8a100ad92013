"""Fit all operators of measurement tables and write calibration files.

python -m models.calibration.fit OPERATORS.parquet COLLECTIVES.parquet -o FOLDER [--device D ...] [--op O ...]
"""

import argparse
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models import device as devices
from models.calibration import fitting, measured, residual, store
from models.calibration.forms import FORMS, Form
from models.calibration.measured import Group
from models.calibration.plausible import impossible
from models.calibration.shapes import FEW_FOR_TREES, feature_columns, form_of
from models.calibration.store import Error, OperatorFit
from models.operators import Formats, Machine

Floats = npt.NDArray[np.float64]

SEED = 20_260
MAX_BOOST_ROWS = 20_000
# Splits of which held-out errors are told, and the rows that their corrections learn from.
SPLITS = {"shape": MAX_BOOST_ROWS, "family": 5_000, "beyond": 5_000}
JUDGED = ("gemm", "moe", "attn_decode", "attn_prefill", "attn_mixed", "all_reduce", "all_gather", "alltoall")
FIRST_SPLIT = [("shape", MAX_BOOST_ROWS)]
FEWEST_HELD_BACK = 15
FEWEST_ROWS = 12
DEFAULT_INTERVAL = (0.7, 1.45)


def main(arguments: list[str] | None = None) -> None:
    """Fit what the command line names and write one file per device and engine family."""
    parser = argparse.ArgumentParser(prog="python -m models.calibration.fit", description=__doc__)
    parser.add_argument("operators", type=Path)
    parser.add_argument("collectives", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", action="append", help="only these devices (as the tables call them)")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    fit_tables(options.operators, options.collectives, options.output, options.device)


def fit_tables(operators: Path, collectives: Path, output: Path, only_devices: list[str] | None = None) -> None:
    """Fit two measurement tables, device by device; write a file per (device, engine family), and the index."""
    every = sorted({*measured.devices_in(operators), *measured.devices_in(collectives)})
    for device in only_devices or every:
        found: dict[str, list[OperatorFit]] = {}
        groups = chain(measured.operator_groups(operators, device), measured.collective_groups(collectives, device))
        for group in groups:
            started = time.perf_counter()
            fit = fit_group(group)
            if fit is None:
                continue
            found.setdefault(group.engine, []).append(fit)
            errors = {name: f"{error.median:.3f}/{error.p90:.3f}" for name, error in fit.errors.items()}
            took_s = time.perf_counter() - started
            print(*_name(group), group.rows, f"{took_s:.1f} s", errors, file=sys.stderr, flush=True)
        for engine, fits in found.items():
            store.write(output, device, engine, fits)
        store.write_index(output)


def fit_group(group: Group) -> OperatorFit | None:
    """Return the fit of one group with its held-out errors, or None (and a word why) where it cannot be made.

    The errors are those of fits that never saw the rows held back; what is returned is then fitted on all rows.
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
    rng = np.random.default_rng(SEED)
    parameters = fitting.fit_physics(form, group.columns, group.seconds, formats, machine, rng)
    errors, log_errors = {}, []
    for split, rows in SPLITS.items() if group.op in JUDGED else FIRST_SPLIT:
        held = measured.held_back(group.op, group.shape, split, 0)
        if FEWEST_HELD_BACK <= held.sum() <= 0.6 * group.rows:
            log_error = _held_out(form, group, held, formats, machine, parameters, rows)
            errors[split] = error_of(log_error)
            log_errors += [log_error] if split != "beyond" else []
    packed = _boosted(form, group, parameters, formats, machine)
    return OperatorFit(
        *(group.op, group.dtype, group.kv_dtype, group.kernel, group.sub_op, form.name),
        parameters=tuple(float(value) for value in parameters),
        provenance="calibrated",
        rows=group.rows,
        errors=errors,
        interval=_interval(log_errors),
        valid={name: (float(v.min()), float(v.max())) for name, v in group.shape.items()},
        source=group.source,
        version=group.version,
        packed=packed,
    )


def error_of(log_error: Floats) -> Error:
    """Return the summary of log(predicted / measured) as relative errors."""
    relative = np.expm1(log_error)
    size = np.abs(relative)
    quantile = float(np.quantile(size, 0.9))
    return Error(len(size), float(np.median(size)), float(size.mean()), quantile, float(relative.mean()))


def _interval(log_errors: list[Floats]) -> tuple[float, float]:
    """Return the factors on a prediction between which 90 % of the held-out measurements lay."""
    if not log_errors:
        return DEFAULT_INTERVAL
    low, high = np.quantile(-np.concatenate(log_errors), (0.05, 0.95))
    return float(np.exp(low)), float(np.exp(high))


def _held_out(
    form: Form,
    group: Group,
    held: npt.NDArray[np.bool_],
    formats: Formats,
    machine: Machine,
    start: Floats,
    most_rows: int,
) -> Floats:
    """Return log(predicted / measured) of the rows held back, under a fit of the others."""
    rest, kept = group.keep(~held), group.keep(held)
    rng = np.random.default_rng(SEED + 1)
    parameters = fitting.refit_physics(form, rest.columns, rest.seconds, formats, machine, start, rng)
    packed = _boosted(form, rest, parameters, formats, machine, most_rows)
    outputs = form.evaluate(kept.columns, formats, machine, parameters)
    trees = residual.unpack(packed) if packed else None
    features = residual.features_of(outputs, kept.shape, feature_columns(group.op))
    return np.log(residual.corrected(outputs[:, 0], features, trees) / kept.seconds)


def _boosted(
    form: Form, group: Group, parameters: Floats, formats: Formats, machine: Machine, most_rows: int = MAX_BOOST_ROWS
) -> dict[str, object]:
    """Return the packed residual trees of a group, or none where the rows are too few to learn from."""
    if group.rows < FEW_FOR_TREES:
        return {}
    chosen = np.random.default_rng(SEED + 2).permutation(group.rows)[:most_rows]
    part = group.take(chosen)
    outputs = form.evaluate(part.columns, formats, machine, parameters)
    names = feature_columns(group.op)
    features = residual.features_of(outputs, part.shape, names)
    trees, leaves = residual.budget(group.op, group.rows)
    return residual.boost(features, np.log(part.seconds / outputs[:, 0]), len(names), trees, leaves)


def _name(group: Group) -> tuple[str, ...]:
    return group.device, group.engine, group.op, group.dtype, group.kv_dtype, group.kernel, group.sub_op


if __name__ == "__main__":
    main()
