"""Fit serving frameworks' scalars to measured serving results, and write them into their catalogue files.

python -m models.calibration.profiles END_TO_END.parquet [--held-out | --folds]
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models import framework
from models.calibration import end_to_end
from models.closed_loop import Answered, Parts
from models.engine import Engine
from models.framework import SCALARS, Framework
from models.versions import LATEST, parsed

Floats = npt.NDArray[np.float64]
Pair = tuple[str, str]  # a model and a device

FEWEST_ROWS = 12
FOLDS, DRAWS, SEED = 5, 8, 20
SOFT_ERROR = 0.15  # log error from which on rows count for less: some ran under settings that a table does not tell
# Where the fit of a framework starts, and how far its scalars may typically stray, as natural logs; then how far those
# of one device may stray from the framework's.
CENTRE = np.log([6e-6, 0.95, 1.0])
WIDE_STRAY = np.array([0.4, 0.04, 0.04])
STRAY = np.array([0.5, 0.05, 0.05])
OWN_STRAY = np.array([1.0, 0.3, 0.3])  # of scalars that a user's own runs tell
FIRST_TOKEN_S = 0.02
FIRST_TOKEN_STRAY = 4.0  # how far the time to a first token may stray from the framework's, as a factor either way
OF_VERSION = 0.5  # how far a version's scalars may stray from those of all versions, as a share of STRAY
MODEL_NOISE = 0.1  # log error that all rows of one model share, which scalars cannot explain


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of a table, and the components of its predicted times; fixed_s is what no scalar changes."""

    device: str
    engine: str
    version: str
    model: str
    tpot_s: float
    ttft_s: float
    tpot_parts: tuple[float, ...]
    ttft_parts: tuple[float, ...]
    tpot_fixed_s: float
    ttft_fixed_s: float


def main(arguments: list[str] | None = None) -> None:
    """Fit every (device, engine), and every version, of a table with enough rows; tell the errors of models left out.

    Scalars under no version are those of all versions together.
    """
    parser = argparse.ArgumentParser(prog="python -m models.calibration.profiles", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--held-out", action="store_true", help="only tell the errors of pairs left out of the fit")
    parser.add_argument("--folds", action="store_true", help="only tell those of fifths of the pairs, drawn repeatedly")
    options = parser.parse_args(arguments)
    rows = read(options.file)
    if options.held_out or options.folds:
        for name, errors in (held_out(rows) if options.held_out else in_folds(rows)).items():
            print(name, ", ".join(f"{figure} {value:.3f}" for figure, value in errors.items()))
        return
    for engine in sorted({row.engine for row in rows}):
        of_engine = [row for row in rows if row.engine == engine]
        usual = fit_usual(of_engine)
        devices = sorted({row.device for row in of_engine})
        tables = [table for device in devices for table in _tables(of_engine, device, usual)]
        for table in tables:
            print(engine, table, file=sys.stderr)
        write(engine, usual, tables)


def held_out(rows: Sequence[Measured], pairs: Collection[Pair] | None = None) -> dict[str, dict[str, float]]:
    """Return errors of (model, device) pairs, each left out in turn or all of these at once, by metric.

    With four scalars they are those under scalars of the pair's device, fitted to its other models; with none, under
    those of its framework on all devices together.
    """
    parts = [(pair,) for pair in sorted(set(map(_pair, rows)))] if pairs is None else [tuple(pairs)]
    return _figures([errors for part in parts for errors in _left_out(rows, part)])


def in_folds(rows: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Return held-out errors where a fifth of the pairs at a time is left out, of drawn fifths: means over the draws.

    spread is the standard deviation of the median over the draws.
    """
    pairs, rng = sorted(set(map(_pair, rows))), np.random.default_rng(SEED)
    draws = []
    for _ in range(DRAWS):
        order = rng.permutation(len(pairs))
        fifths = [tuple(pairs[i] for i in order[start::FOLDS]) for start in range(FOLDS)]
        draws.append(_figures([errors for fifth in fifths for errors in _left_out(rows, fifth)]))
    return {
        name: {figure: float(np.mean([draw[name][figure] for draw in draws])) for figure in draws[0][name]}
        | {"spread": float(np.std([draw[name]["median"] for draw in draws]))}
        for name in draws[0]
    }


def _left_out(rows: Sequence[Measured], pairs: Collection[Pair]) -> Iterator[dict[str, Floats]]:
    """Yield the log errors of every pair under scalars fitted without any of them, by metric and scalars."""
    for engine in sorted({row.engine for row in rows if _pair(row) in pairs}):
        of_engine = [row for row in rows if row.engine == engine]
        others = [row for row in of_engine if _pair(row) not in pairs]
        usual = fit_usual(others)
        for pair in sorted({_pair(row) for row in of_engine} & set(pairs)):
            own = fit([row for row in others if row.device == pair[1]], (), usual)
            found: dict[str, Floats] = {}
            for name, scalars in (("four scalars", own), ("none", usual)):
                errors = log_errors(scalars, [row for row in of_engine if _pair(row) == pair])
                found |= {f"{metric} with {name}": part for metric, part in zip(("tpot", "ttft"), errors, strict=True)}
            yield found


def _figures(errors: Sequence[dict[str, Floats]]) -> dict[str, dict[str, float]]:
    told = {}
    for name in errors[0]:
        relative = np.expm1(np.concatenate([one[name] for one in errors]))
        size = np.abs(relative)
        told[name] = {
            "rows": float(len(size)),
            "median": float(np.median(size)),
            "mean": float(size.mean()),
            "p90": float(np.quantile(size, 0.9)),
            "bias": float(np.median(relative)),
        }
    return told


def _pair(row: Measured) -> Pair:
    return row.model, row.device


def _tables(rows: Sequence[Measured], device: str, usual: Floats) -> Iterator[dict[str, Any]]:
    """Yield the fitted scalars on one device: of all versions, then of each with rows enough."""
    every = [row for row in rows if row.device == device]
    if len(every) < FEWEST_ROWS:
        return
    yield {"device": device, "versions": "", **describe(every, (), usual)}
    for version in sorted({row.version for row in every}, key=parsed):
        own = [row for row in every if row.version == version]
        if len(own) >= FEWEST_ROWS and parsed(version) != LATEST:
            yield {"device": device, "versions": version, **describe(own, every, usual)}


def read(path: Path) -> list[Measured]:
    """Return the rows of a table that can be predicted, with the components of their times."""
    import pandas

    frame = pandas.read_parquet(path)
    usable = (frame["source"] == "aic_silicon") & (frame["mode"] == "agg") & frame["tpot_ms"].notna()
    frame = frame[usable & ~frame["quality"].fillna("").str.startswith(end_to_end.MISLABELLED)]
    rows = []
    for row, answered in zip(frame.to_dict("records"), end_to_end.answers(frame), strict=True):
        if not isinstance(answered, str):
            rows.append(measured(str(row["device"]), *answered, row["tpot_ms"] * 1e-3, row["ttft_ms"] * 1e-3))
    return rows


def measured(device: str, engine: Engine, seen: Answered, tpot_s: float, ttft_s: float) -> Measured:
    """Return a row to fit: what was measured, beside the components of what is predicted."""
    layers, host = engine.llm.layers, framework.of_engine(engine)
    (tpot, tpot_fixed_s), (ttft, ttft_fixed_s) = (
        _components(parts, layers, host) for parts in (seen.tpot_parts, seen.ttft_parts)
    )
    version = engine.framework_version or ""
    return Measured(
        *(device, engine.framework, version, engine.llm.name, tpot_s, ttft_s, tpot, ttft, tpot_fixed_s, ttft_fixed_s)
    )


def _components(parts: Parts, layers: int, host: Framework) -> tuple[tuple[float, ...], float]:
    """Return what each scalar multiplies, and the seconds that none does."""
    scaled = (parts.steps * layers, parts.decode_s, parts.prefill_s)
    return scaled, parts.steps * host.host_step_s + parts.sequences * host.host_sequence_s + parts.fixed_s


def describe(rows: Sequence[Measured], others: Sequence[Measured], usual: Floats) -> dict[str, Any]:
    """Return the scalars of one framework on one device, with the errors of each model left out of the fit.

    Where `others` of all versions are given, the scalars stay near theirs.
    """
    models = sorted({row.model for row in rows})
    errors = []
    for model in models:
        found = fit(kept(rows, model, False), kept(others, model, False), usual)
        errors.append(log_errors(found, kept(rows, model, True)))
    tpot, ttft = (np.concatenate([pair[i] for pair in errors]) for i in (0, 1))
    table: dict[str, Any] = dict(zip(SCALARS, map(float, fit(rows, others, usual)), strict=True))
    low, high = np.quantile(-tpot, (0.05, 0.95))
    table |= {"interval": (float(np.exp(min(low, -0.02))), float(np.exp(max(high, 0.02))))}
    table |= {"provenance": "calibrated", "rows": len(rows), "models": len(models)}
    low, high = np.quantile(-ttft, (0.05, 0.95))
    table |= {"ttft_interval": (float(np.exp(low)), float(np.exp(high)))}
    for name, error in (("tpot", tpot), ("ttft", ttft)):
        size = np.abs(np.expm1(error))
        table[f"{name}_error"] = (float(np.median(size)), float(np.quantile(size, 0.9)))
    return table


def kept(rows: Sequence[Measured], model: str, is_it: bool) -> list[Measured]:
    """Return the rows of a model, or of all others."""
    return [row for row in rows if (row.model == model) == is_it]


def fit_usual(rows: Sequence[Measured]) -> Floats:
    """Return the scalars of a framework on all devices, by which those of one are held."""
    scalars = np.exp(_least_squares(rows, CENTRE, WIDE_STRAY))
    return np.append(scalars, _first_token_s(scalars, rows, FIRST_TOKEN_S))


def fit(rows: Sequence[Measured], others: Sequence[Measured], usual: Floats) -> Floats:
    """Return the scalars that explain rows best, held near those that explain others, or near the usual ones."""
    wide = np.log(usual[:-1])
    centre, stray = (_least_squares(others, wide, STRAY), OF_VERSION * STRAY) if others else (wide, STRAY)
    scalars = np.exp(_least_squares(rows, centre, stray))
    return np.append(scalars, _first_token_s(scalars, rows or others, float(usual[-1])))


def fit_own(rows: Sequence[Measured], usual: Floats) -> Floats:
    """Return the scalars that explain a user's own rows, not far from the usual ones."""
    scalars = np.exp(_least_squares(rows, np.log(usual[:-1]), OWN_STRAY))
    return np.append(scalars, _first_token_s(scalars, rows, float(usual[-1])))


def _least_squares(rows: Sequence[Measured], centre: Floats, stray: Floats) -> Floats:
    """Return the logs of the scalars; the centre where there are no rows."""
    if not rows:
        return centre
    from scipy.optimize import least_squares

    parts = np.array([row.tpot_parts for row in rows])
    fixed_s = np.array([row.tpot_fixed_s for row in rows])
    truth = np.log([row.tpot_s for row in rows])
    of_model = Counter(row.model for row in rows)
    weight = np.array([1.0 / (MODEL_NOISE * of_model[row.model] ** 0.5) for row in rows])

    def errors(logs: Floats) -> Floats:
        return np.append(weight * _softened(np.log(parts @ np.exp(logs) + fixed_s) - truth), (logs - centre) / stray)

    found: Floats = least_squares(errors, centre).x
    return found


def _softened(errors: Floats) -> Floats:
    """Return errors whose squares grow as errors do beyond SOFT_ERROR, so that the many outweigh the odd."""
    size = SOFT_ERROR * np.sqrt(2.0 * (np.sqrt(1.0 + (errors / SOFT_ERROR) ** 2) - 1.0))
    return np.asarray(np.sign(errors) * size)


def _first_token_s(scalars: Floats, rows: Sequence[Measured], usual_s: float) -> float:
    """Return the fixed time that brings predicted times to a first token nearest to what was measured."""
    if not rows:
        return usual_s
    truth = np.array([row.ttft_s for row in rows])
    left = np.array([row.ttft_parts for row in rows]) @ scalars + np.array([row.ttft_fixed_s for row in rows])
    candidates = usual_s * np.geomspace(1 / FIRST_TOKEN_STRAY, FIRST_TOKEN_STRAY, 41)
    losses = [float(np.median(np.abs(np.log((left + candidate) / truth)))) for candidate in candidates]
    return float(candidates[int(np.argmin(losses))])


def log_errors(found: Floats, rows: Sequence[Measured]) -> tuple[Floats, Floats]:
    """Return log(predicted / measured) of the time per token and of the time to the first token."""
    tpot = np.array([row.tpot_parts for row in rows]) @ found[:-1] + np.array([row.tpot_fixed_s for row in rows])
    ttft = np.array([row.ttft_parts for row in rows]) @ found[:-1] + found[-1]
    ttft += np.array([row.ttft_fixed_s for row in rows])
    return (
        np.log(tpot / np.array([row.tpot_s for row in rows])),
        np.log(ttft / np.array([row.ttft_s for row in rows])),
    )


def write(engine: str, usual: Floats, tables: Sequence[dict[str, Any]]) -> None:
    """Put a framework's own scalars and the fitted tables into its catalogue file, in place of earlier ones."""
    path = framework.FOLDER / f"{engine}.toml"
    head = path.read_text().split("\n[[fitted]]")[0].rstrip()
    for name, value in zip(SCALARS, map(float, usual), strict=True):
        head = re.sub(rf"(?m)^{name} = .*$", f"{name} = {_value(value)}", head)
    lines = [head]
    for table in tables:
        lines.append("\n[[fitted]]  # errors: median and p90 of models left out of the fit")
        lines += [f"{key} = {_value(value)}" for key, value in table.items()]
    path.write_text("\n".join(lines) + "\n")


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    return f'"{value}"' if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    main()
