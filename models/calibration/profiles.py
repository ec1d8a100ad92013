"""Fit serving frameworks' scalars to measured serving results, and write them into their catalogue files.

python -m models.calibration.profiles END_TO_END.parquet
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models import framework
from models.calibration import end_to_end

Floats = npt.NDArray[np.float64]

SCALARS = ("host_step_s", "host_sequence_s", "decode_factor", "prefill_factor")
FEWEST_ROWS = 12
SOFT_SCALE = 1.5  # in units of the noise
# Where the fit starts and what it is held near: natural logs by which a scalar may typically stray.
CENTRE = np.log([3e-4, 3e-6, 0.97, 1.0])
STRAY = np.array([0.5, 0.5, 0.05, 0.1])
MODEL_NOISE = 0.1  # log error that all rows of one model share, which scalars cannot explain


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of a table, and the components of its predicted times."""

    device: str
    engine: str
    model: str
    tpot_s: float
    ttft_s: float
    tpot_parts: tuple[float, ...]
    ttft_parts: tuple[float, ...]


def main(arguments: list[str] | None = None) -> None:
    """Fit every (device, engine) of a table with enough rows and tell the errors of models left out."""
    parser = argparse.ArgumentParser(prog="python -m models.calibration.profiles", description=__doc__)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    rows = read(options.file)
    fitted: dict[str, dict[str, dict[str, Any]]] = {}
    for engine in sorted({row.engine for row in rows}):
        for device in sorted({row.device for row in rows if row.engine == engine}):
            chosen = [row for row in rows if (row.device, row.engine) == (device, engine)]
            if len(chosen) >= FEWEST_ROWS:
                fitted.setdefault(engine, {})[device] = describe(chosen)
                print(engine, device, len(chosen), fitted[engine][device], file=sys.stderr)
    for engine, devices in fitted.items():
        write(engine, devices)


def read(path: Path) -> list[Measured]:
    """Return the rows of a table that can be predicted, with the components of their times."""
    import pandas

    frame = pandas.read_parquet(path)
    usable = (frame["source"] == "aic_silicon") & (frame["mode"] == "agg") & frame["tpot_ms"].notna()
    frame = frame[usable & ~frame["quality"].fillna("").str.startswith(end_to_end.MISLABELLED)]
    rows = []
    for row, answered in zip(frame.to_dict("records"), end_to_end.answers(frame), strict=True):
        if isinstance(answered, str):
            continue
        seen = answered[1]
        rows.append(
            Measured(
                *(str(row["device"]), answered[0].framework, answered[0].llm.name),
                *(row["tpot_ms"] * 1e-3, row["ttft_ms"] * 1e-3),
                *(astuple(seen.tpot_parts), astuple(seen.ttft_parts)),
            )
        )
    return rows


def describe(rows: Sequence[Measured]) -> dict[str, Any]:
    """Return the scalars of one framework on one device, with the errors of each model left out of the fit."""
    models = sorted({row.model for row in rows})
    errors = [log_errors(fit(kept(rows, model, False)), kept(rows, model, True)) for model in models if len(models) > 1]
    found = fit(rows)
    tpot, ttft = (np.concatenate([pair[i] for pair in errors or [log_errors(found, rows)]]) for i in (0, 1))
    table: dict[str, Any] = dict(zip((*SCALARS, "first_token_s"), (float(value) for value in found), strict=True))
    low, high = np.quantile(-tpot, (0.05, 0.95))
    table |= {"interval": (float(np.exp(min(low, -0.02))), float(np.exp(max(high, 0.02))))}
    table |= {"provenance": "calibrated", "rows": len(rows), "models": len(models)}
    for name, error in (("tpot", tpot), ("ttft", ttft)):
        size = np.abs(np.expm1(error))
        table[f"{name}_error"] = (float(np.median(size)), float(np.quantile(size, 0.9)))
    return table


def kept(rows: Sequence[Measured], model: str, is_it: bool) -> list[Measured]:
    """Return the rows of a model, or of all others."""
    return [row for row in rows if (row.model == model) == is_it]


def fit(rows: Sequence[Measured]) -> Floats:
    """Return the scalars and the fixed time to a first token that explain rows best, held near where scalars lie."""
    from scipy.optimize import least_squares

    parts = np.array([row.tpot_parts for row in rows])
    truth = np.log([row.tpot_s for row in rows])
    weight = 1.0 / np.sqrt([sum(other.model == row.model for other in rows) for row in rows])
    weight /= MODEL_NOISE

    def errors(logs: Floats) -> Floats:
        return np.append(weight * (np.log(parts @ np.exp(logs)) - truth), (logs - CENTRE) / STRAY)

    scalars = np.exp(least_squares(errors, CENTRE, loss="soft_l1", f_scale=SOFT_SCALE).x)
    left = np.array([row.ttft_s for row in rows]) - np.array([row.ttft_parts for row in rows]) @ scalars
    return np.append(scalars, max(0.0, _fixed_s(left, np.array([row.ttft_s for row in rows]))))


def _fixed_s(left: Floats, ttft_s: Floats) -> float:
    """Return the constant that brings the predicted time to a first token nearest to what was measured."""
    candidates = np.quantile(left, np.linspace(0.05, 0.95, 19))
    losses = [float(np.median(np.abs(np.log(np.maximum(ttft_s - left + c, 1e-6) / ttft_s)))) for c in candidates]
    return float(candidates[int(np.argmin(losses))])


def log_errors(found: Floats, rows: Sequence[Measured]) -> tuple[Floats, Floats]:
    """Return log(predicted / measured) of the time per token and of the time to the first token."""
    tpot = np.array([row.tpot_parts for row in rows]) @ found[:4]
    ttft = np.array([row.ttft_parts for row in rows]) @ found[:4] + found[4]
    return (
        np.log(tpot / np.array([row.tpot_s for row in rows])),
        np.log(ttft / np.array([row.ttft_s for row in rows])),
    )


def write(engine: str, devices: dict[str, dict[str, Any]]) -> None:
    """Put the fitted tables at the end of a framework's catalogue file, in place of earlier ones."""
    path = framework.FOLDER / f"{engine}.toml"
    lines = [path.read_text().split("\n[[fitted]]")[0].rstrip()]
    for device, table in sorted(devices.items()):
        lines.append("\n[[fitted]]  # errors: median and p90 of models left out of the fit")
        lines += [f'device = "{device}"', 'versions = ""']
        lines += [f"{key} = {_value(value)}" for key, value in table.items()]
    path.write_text("\n".join(lines) + "\n")


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    return f'"{value}"' if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    main()
