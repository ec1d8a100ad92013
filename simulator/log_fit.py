"""Fit the scalars of a serving engine to the first part of its request log, and judge them on the rest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models import device as devices
from models.calibration.profiles import OWN_STRAY
from models.calibration.remeasured import header_of
from models.device import Device
from models.framework import SCALARS, of_engine
from simulator.request_log import METRICS, NEEDED, Replayed, replay_run, runs_of

Floats = npt.NDArray[np.float64]
FITTED_SHARE = 1 / 3
FITTED_METRICS = ("ttft", "tpot")
NOISE = 0.005  # mean error of a log's times, as a share of them, that weighs as much as a scalar a stray off
SOFT_ERROR = 0.1  # from which on a request counts for less
FREE = len(OWN_STRAY)  # the first token's way to its client lies outside an engine's log and stays as it is
MOVES = (-0.6, 0.0, 0.6)  # of every scalar, in strays, from the best of which descents start
DESCENTS = 3
FIRST_MOVE, CLOSE, MOST_REPLAYS = 0.3, 0.01, 150


@dataclass(frozen=True, slots=True)
class LogFit:
    """Scalars fitted to the first requests of a device's runs, and median errors of all four kinds.

    errors are by requests ("fitted", the first ones, or "held_out") and when ("before", "after"), then by metric, as
    fractions of what was measured.
    """

    device: Device
    framework: str
    version: str
    models: tuple[str, ...]
    requests: Mapping[str, int]
    scalars: Mapping[str, float]
    errors: Mapping[str, Mapping[str, Mapping[str, float]]]


def is_log(path: Path) -> bool:
    """Return whether a file is a request log: a Parquet file, or a CSV file with a log's columns."""
    return path.suffix == ".parquet" or set(NEEDED) <= set(header_of(path))


def read(path: Path) -> Any:
    """Return a log's rows; ValueError names the columns that are missing."""
    import pandas

    frame = pandas.read_csv(path) if path.suffix == ".csv" else pandas.read_parquet(path)
    missing = [name for name in (*NEEDED, *(f"{metric}_ms" for metric in FITTED_METRICS)) if name not in frame]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; a request log needs them, one row a request")
    return frame


def fit(frame: Any, device: Device | None = None, share: float = FITTED_SHARE) -> LogFit:
    """Return the scalars that explain the first `share` of every run's requests best, judged on the others.

    The runs are those of a device, or of the only one. ValueError names the devices where it is not among them.
    """
    on = _device_of(frame, device)
    runs = [(name, rows) for name, rows in runs_of(frame) if devices.find(rows["device"].iloc[0]).name == on.name]
    before = _replayed(runs, on)
    engine = before[0].engine
    version = engine.framework_version or ""
    host = of_engine(engine)
    usual = np.array([getattr(host, name) for name in SCALARS])

    def with_scalars(found: Floats) -> Device:
        row = {"framework": engine.framework, "versions": version, **dict(zip(SCALARS, map(float, found), strict=True))}
        return replace(on, serving=(row,))

    found = _nearest(frame, runs, usual, with_scalars, share)
    after = _replayed(runs, with_scalars(found))
    first = sum(_first(len(rows), share) for _, rows in runs)
    return LogFit(
        on,
        engine.framework,
        version,
        tuple(dict.fromkeys(one.engine.llm.name for one in before)),
        {"fitted": first, "held_out": sum(len(rows) for _, rows in runs) - first},
        dict(zip(SCALARS, map(float, found), strict=True)),
        {
            part: {
                "before": _medians(frame, before, share, is_fitted),
                "after": _medians(frame, after, share, is_fitted),
            }
            for part, is_fitted in (("fitted", True), ("held_out", False))
        },
    )


def _device_of(frame: Any, device: Device | None) -> Device:
    known = {devices.find(label).name: devices.find(label) for label in dict.fromkeys(frame["device"])}
    if device is None and len(known) == 1:
        return next(iter(known.values()))
    if device is None or device.name not in known:
        given = "no device is given" if device is None else f"no run on {device.name!r}"
        raise ValueError(f"{given}: the log has runs on {', '.join(known)}; choose one with --device")
    return device


def _replayed(runs: Sequence[tuple[str, Any]], on: Device) -> list[Replayed]:
    return [replay_run(name, rows, on) for name, rows in runs]


def _nearest(
    frame: Any,
    runs: Sequence[tuple[str, Any]],
    usual: Floats,
    with_scalars: Callable[[Floats], Device],
    share: float,
) -> Floats:
    """Return the scalars that bring the first requests' times nearest, not far from the usual ones.

    Queues make times jump with scalars: a few are tried, and descents from the best, of which one may end in a
    hollow, need no slopes.
    """
    from scipy.optimize import minimize

    def scalars(moved: Floats) -> Floats:
        return np.append(usual[:FREE] * np.exp(moved * OWN_STRAY), usual[FREE:])

    def loss(moved: Floats) -> float:
        replayed = _replayed(runs, with_scalars(scalars(moved)))
        errors = [_log_errors(frame, one, metric, share, True) for one in replayed for metric in FITTED_METRICS]
        size = np.nan_to_num(np.concatenate(errors)) / SOFT_ERROR
        softened = 2.0 * SOFT_ERROR**2 * (np.sqrt(1.0 + size**2) - 1.0)
        return float(softened.mean() / NOISE**2 + moved @ moved)

    def descend(start: Floats) -> Any:
        simplex = np.vstack([start, start + FIRST_MOVE * np.eye(FREE)])
        options = {"initial_simplex": simplex, "xatol": CLOSE, "fatol": CLOSE, "maxfev": MOST_REPLAYS}
        return minimize(loss, start, method="Nelder-Mead", options=options)

    starts = sorted((np.array(moves) for moves in product(MOVES, repeat=FREE)), key=loss)[:DESCENTS]
    return scalars(min((descend(start) for start in starts), key=lambda found: float(found.fun)).x)


def _first(count: int, share: float) -> int:
    return max(1, round(count * share))


def _log_errors(frame: Any, one: Replayed, metric: str, share: float, is_fitted: bool) -> Floats:
    """Return log(replayed / measured) of the first requests of a run, or of the others."""
    first = _first(len(one.rows), share)
    part = slice(0, first) if is_fitted else slice(first, None)
    truth_s = frame[f"{metric}_ms"].to_numpy(np.float64)[one.rows[part]] * 1e-3
    return np.asarray(np.log(one.seconds()[metric][part] / truth_s))


def _medians(frame: Any, replayed: Sequence[Replayed], share: float, is_fitted: bool) -> dict[str, float]:
    return {
        metric: float(np.nanmedian(np.abs(np.expm1(np.concatenate(errors)))))
        for metric in METRICS
        if f"{metric}_ms" in frame
        for errors in [[_log_errors(frame, one, metric, share, is_fitted) for one in replayed]]
    }
