"""Compare predictions with the rows of a measurement table, per group and over all; times are not read to predict."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models import device as devices
from models.calibration import measured
from models.calibration.calibration import Calibration
from models.calibration.plausible import reasons
from models.calibration.predict import seconds_of
from models.calibration.shapes import COLLECTIVES, SHAPE_COLUMNS, octaves_outside
from models.device import Device

Floats = npt.NDArray[np.float64]

GROUP_KEYS = ("device", "engine", "op", "dtype")
MICROSECONDS_PER_SECOND = 1e6

OWN_TOKENS = re.compile(r" of [0-9]+ tokens")


@dataclass(frozen=True, slots=True)
class Predictions:
    """One entry a row of a table: seconds by metric, the 90 % interval, where it comes from, or why there is none."""

    value: Mapping[str, Floats] = field(hash=False)
    low: Mapping[str, Floats] = field(hash=False)
    high: Mapping[str, Floats] = field(hash=False)
    provenance: npt.NDArray[np.object_]
    reason: npt.NDArray[np.object_]


def none_yet(rows: int, metrics: tuple[str, ...]) -> Predictions:
    """Return predictions still to be filled in."""
    value, low, high = ({metric: np.full(rows, np.nan) for metric in metrics} for _ in range(3))
    return Predictions(value, low, high, np.full(rows, "", object), np.full(rows, "", object))


def predict_operators(frame: Any) -> Predictions:
    """Return the predictions of every row of an operators table (columns as in its README, no time needed)."""
    return _predict_groups(frame, measured.KEY, _operator_group)


def predict_collectives(frame: Any) -> Predictions:
    """Return the predictions of every row of a collectives table."""
    return _predict_groups(frame, measured.COLLECTIVE_KEY, _collective_group)


def _predict_groups(frame: Any, keys: tuple[str, ...], predict: Callable[..., None]) -> Predictions:
    found = none_yet(len(frame), ("time",))
    positions = np.arange(len(frame))
    for key, part in frame.assign(_row=positions).groupby(list(keys), sort=False, observed=True, dropna=False):
        rows = part["_row"].to_numpy()
        try:
            predict(found, rows, dict(zip(keys, key, strict=True)), part)
        except ValueError as error:
            found.reason[rows] = str(error)
    return found


def _operator_group(found: Predictions, rows: npt.NDArray[np.int64], key: Mapping[str, str], part: Any) -> None:
    op = key["op"]
    if op not in SHAPE_COLUMNS:
        raise ValueError(f"no kernel form for operator {op!r}")
    calibration = Calibration(devices.find(key["device"]), key["engine"])
    fit = calibration.find(op, key["dtype"], key["kv_dtype"], (key["kernel"],), key["sub_op"])
    shape = measured.shape_of(op, part)
    _fill(found, rows, fit, calibration.device, shape, key["dtype"], key["kv_dtype"])


def _collective_group(found: Predictions, rows: npt.NDArray[np.int64], key: Mapping[str, str], part: Any) -> None:
    op = key["op"]
    if op not in COLLECTIVES:
        raise ValueError(f"no kernel form for collective {op!r}")
    calibration = Calibration(devices.find(key["device"]), key["lib"], key["lib_version"])
    fit = calibration.find(op, "", "", (key["kernel"],), key["fabric"])
    shape = measured.collective_shape(op, part)
    _fill(found, rows, fit, calibration.device, shape, "", "")


def _fill(
    found: Predictions,
    rows: npt.NDArray[np.int64],
    fit: Any,
    device: Device,
    shape: Mapping[str, Floats],
    dtype: str,
    kv_dtype: str,
) -> None:
    empty = np.zeros(len(rows), bool)
    for name, values in shape.items():
        missing = ~np.isfinite(values)
        found.reason[rows[missing & ~empty]] = f"shape column {name!r} is empty"
        empty |= missing
    kept = rows[~empty]
    if not len(kept):
        return
    whole = {name: values[~empty] for name, values in shape.items()}
    seconds = seconds_of(fit, device, whole, dtype, kv_dtype)
    wider = np.exp(fit.drift * octaves_outside(whole, fit.valid))
    found.value["time"][kept] = seconds
    found.low["time"][kept] = seconds * fit.interval[0] / wider
    found.high["time"][kept] = seconds * fit.interval[1] * wider
    found.provenance[kept] = fit.provenance


def refused_operators(frame: Any) -> npt.NDArray[np.object_]:
    """Return why each measured row of an operators table cannot be believed, or an empty text."""
    refused = np.full(len(frame), "", object)
    rows_of = frame.assign(_row=np.arange(len(frame))).groupby(list(measured.KEY), sort=False, observed=True)
    for key, part in rows_of:
        if key[measured.KEY.index("op")] not in SHAPE_COLUMNS:
            continue
        try:
            group = measured.group_of(key, part)
            machine = measured.fastest_machine_of(devices.find(group.device), group.dtype, group.kv_dtype)
        except ValueError:
            continue
        for reason, mask in reasons(group, machine, measured.formats_of(group.op, group.dtype, group.kv_dtype)).items():
            refused[part["_row"].to_numpy()[mask]] = f"measurement refused: {reason}"
    return refused


def summary(keys: Any, measured_values: Mapping[str, Floats], predictions: Predictions) -> dict[str, Any]:
    """Return errors per group and overall, as fractions, and the count of rows not predicted by reason.

    keys is a frame of the group columns; a row with a reason counts as not predicted.
    """
    predicted = predictions.reason == ""
    reasons = Counter(_lacking(str(reason)) for reason in predictions.reason[~predicted])
    overall = {
        metric: _errors(known.nonzero()[0], truth, predictions, metric)
        for metric, truth in measured_values.items()
        if (known := _comparable(truth, predictions, metric)).any()
    }
    return {
        "n": len(keys),
        "predicted": int(predicted.sum()),
        "overall": overall,
        "groups": by_group(keys, measured_values, predictions),
        "unpredicted": dict(sorted(reasons.items())),
    }


def by_group(keys: Any, measured_values: Mapping[str, Floats], predictions: Predictions) -> list[dict[str, Any]]:
    """Return the errors of each metric in every group of equal keys, as fractions."""
    groups = []
    for metric, truth in measured_values.items():
        known = _comparable(truth, predictions, metric)
        for key, part in keys[known].assign(_row=known.nonzero()[0]).groupby(list(keys.columns), sort=True):
            named = dict(zip(keys.columns, key, strict=True))
            rows = part["_row"].to_numpy()
            groups.append({**named, "metric": metric, "n": len(rows), **_errors(rows, truth, predictions, metric)})
    return groups


def _comparable(truth: Floats, predictions: Predictions, metric: str) -> npt.NDArray[np.bool_]:
    is_predicted = (predictions.reason == "") & np.isfinite(predictions.value[metric])
    return np.asarray(is_predicted & np.isfinite(truth) & (truth > 0.0))


def _lacking(reason: str) -> str:
    """Return what a row lacks, without its own token counts and what would do, so that like reasons are counted."""
    return OWN_TOKENS.sub("", reason.partition("; ")[0])


def _errors(rows: npt.NDArray[np.int64], truth: Floats, predictions: Predictions, metric: str) -> dict[str, float]:
    """Return median, mean and p90 of |predicted / measured - 1|, the mean signed error, and the interval's coverage."""
    relative = predictions.value[metric][rows] / truth[rows] - 1.0
    size = np.abs(relative)
    inside = (truth[rows] >= predictions.low[metric][rows]) & (truth[rows] <= predictions.high[metric][rows])
    return {
        "median": float(np.median(size)),
        "mean": float(size.mean()),
        "p90": float(np.quantile(size, 0.9)),
        "bias": float(relative.mean()),
        "coverage": float(inside.mean()),
    }


def validate_operators(path: Path) -> tuple[Any, Predictions, dict[str, Any]]:
    """Return an operators table's rows, their predictions, and the summary."""
    frame = measured.read_operators(path)
    found = predict_operators(frame)
    refused = refused_operators(frame)
    found.reason[:] = np.where(found.reason == "", refused, found.reason)
    truth = frame["time_us"].to_numpy(np.float64) / MICROSECONDS_PER_SECOND
    return frame, found, summary(frame[list(GROUP_KEYS)], {"time": truth}, found)


def validate_collectives(path: Path) -> tuple[Any, Predictions, dict[str, Any]]:
    """Return a collectives table's rows, their predictions, and the summary; the fastest time of a row is its time."""
    frame = measured.read_collectives(path)
    found = predict_collectives(frame)
    truth = measured.collective_times_us(frame) / MICROSECONDS_PER_SECOND
    keys = frame.rename(columns={"lib": "engine"})[list(GROUP_KEYS)]
    return frame, found, summary(keys, {"time": truth}, found)
