"""Calibration files: what was fitted for one device and engine family, written and read.

`DEVICE.ENGINE.toml` holds parameters, errors and ranges; `DEVICE.ENGINE.npz` holds the residual trees of all its fits.
"""

import io
import tomllib
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FOLDER = Path(__file__).parent.parent / "catalogue" / "calibrations"
INDEX = "index.toml"
PROVENANCES = ("measured", "calibrated", "modelled", "assumed")
# What a fit is where its file does not say.
DEFAULTS = {"kv_dtype": "", "kernel": "", "sub_op": "", "dtype": "", "provenance": "calibrated"}
_FLAT = ("feature", "threshold", "leaf", "scale", "low", "high")


@dataclass(frozen=True, slots=True)
class Error:
    """Held-out relative errors of one split, as fractions; bias is the mean signed error."""

    rows: int
    median: float
    mean: float
    p90: float
    bias: float


@dataclass(frozen=True, slots=True)
class OperatorFit:
    """What was fitted for one operator, dtype and kernel.

    parameters are in the order of the form's kernel; interval is the factors on a prediction that held 90 % of the
    held-out rows; valid is the range of each shape column in the fit; packed holds the residual trees or is empty;
    drift is how much the log of the interval's factors grows per doubling of a shape outside that range.
    """

    op: str
    dtype: str
    kv_dtype: str
    kernel: str
    sub_op: str
    form: str
    parameters: tuple[float, ...] = field(repr=False)
    provenance: str
    rows: int
    errors: Mapping[str, Error] = field(hash=False)
    interval: tuple[float, float]
    valid: Mapping[str, tuple[float, float]] = field(hash=False)
    source: str
    version: str
    packed: Mapping[str, Any] = field(hash=False, repr=False)
    drift: float = 0.0


def file_stem(device: str, engine: str) -> str:
    """Return the file name, without ending, of one device and engine as measurement tables call them."""
    return f"{slug(device)}.{slug(engine)}"


def slug(name: str) -> str:
    """Return a name in lower-case letters, digits and underscores.

    >>> slug("sarathi(torch)")
    'sarathi_torch'
    """
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def write(folder: Path, device: str, engine: str, fits: Sequence[OperatorFit]) -> None:
    """Write one device's and engine's fits to a folder."""
    stem = folder / file_stem(device, engine)
    source = Counter(fit.source for fit in fits).most_common(1)[0][0]
    lines = [f"device = {_text(device)}", f"engine = {_text(engine)}", f"source = {_text(source)}", ""]
    arrays: dict[str, list[Any]] = {name: [] for name in _FLAT}
    for fit in fits:
        lines += _fit_lines(fit, source)
        for name in _FLAT if fit.packed else ():
            arrays[name].append(fit.packed[name])
    stem.with_name(stem.name + ".toml").write_text("\n".join(lines) + "\n")
    if arrays["scale"]:
        flat = {name: np.concatenate(parts) for name, parts in arrays.items()}
        _save(stem.with_name(stem.name + ".npz"), flat)


def _save(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays as numpy reads them, packed tightly, the same bytes for the same arrays."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_LZMA
            archive.writestr(member, content.getvalue())


def _fit_lines(fit: OperatorFit, source: str) -> list[str]:
    lines = ["[[fit]]"]
    for name in ("op", "dtype", "kv_dtype", "kernel", "sub_op", "form", "provenance", "source", "version"):
        if getattr(fit, name) != {**DEFAULTS, "source": source}.get(name):
            lines.append(f"{name} = {_text(getattr(fit, name))}")
    lines.append(f"rows = {fit.rows}")
    lines.append(f"parameters = {_numbers(fit.parameters)}")
    lines.append(f"interval = {_numbers(fit.interval)}")
    if fit.drift:
        lines.append(f"drift = {_number(fit.drift)}")
    ranges = ", ".join(f"{name} = [{low:.5g}, {high:.5g}]" for name, (low, high) in fit.valid.items())
    lines.append(f"valid = {{ {ranges} }}")
    for split, error in fit.errors.items():
        values = (error.median, error.mean, error.p90, error.bias)
        lines.append(f"errors.{split} = [{error.rows}, {', '.join(f'{value:.3g}' for value in values)}]")
    if fit.packed:
        counts = (len(fit.packed["scale"]), len(fit.packed["feature"]), len(fit.packed["low"]))
        lines.append(f"trees = [{', '.join(map(str, counts))}, {fit.packed['shape_features']}]")
        lines.append(f"baseline = {fit.packed['baseline']:.6g}")
    return [*lines, ""]


def _text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(_number(value) for value in values)}]"


def _number(value: float) -> str:
    text = f"{value:.4g}"
    return text if any(mark in text for mark in ".e") else text + ".0"


def write_index(folder: Path) -> None:
    """Write which (device, engine) files hold each operator, so that kin are found without reading every file."""
    where: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(folder.glob("*.toml")):
        if path.name == INDEX:
            continue
        table = tomllib.loads(path.read_text())
        for op in sorted({row["op"] for row in table["fit"]}):
            where.setdefault(op, []).append((table["device"], table["engine"]))
    lines = ["# Which devices and engines each operator was fitted on; written with the fits."]
    for op, places in sorted(where.items()):
        pairs = ", ".join(f"[{_text(device)}, {_text(engine)}]" for device, engine in places)
        lines.append(f"{op} = [{pairs}]")
    (folder / INDEX).write_text("\n".join(lines) + "\n")


@cache
def places_of(op: str, folder: Path = FOLDER) -> tuple[tuple[str, str], ...]:
    """Return the (device, engine) pairs that an operator was fitted on."""
    path = folder / INDEX
    if not path.is_file():
        return ()
    return tuple((device, engine) for device, engine in tomllib.loads(path.read_text()).get(op, ()))


@cache
def read(device: str, engine: str, folder: Path = FOLDER) -> tuple[OperatorFit, ...]:
    """Return the fits of one device and engine, none where there is no file."""
    stem = folder / file_stem(device, engine)
    path = stem.with_name(stem.name + ".toml")
    if not path.is_file():
        return ()
    arrays_path = stem.with_name(stem.name + ".npz")
    arrays = dict(np.load(arrays_path)) if arrays_path.is_file() else {}
    fits, at = [], dict.fromkeys(_FLAT, 0)
    table = tomllib.loads(path.read_text())
    for row in table["fit"]:
        packed: dict[str, Any] = {}
        if "trees" in row:
            trees, nodes, features, shape_features = row["trees"]
            leaves = (nodes + trees) // 2
            sizes = {"feature": nodes, "threshold": nodes - leaves, "leaf": leaves, "scale": trees}
            sizes |= {"low": features, "high": features}
            for name, size in sizes.items():
                packed[name] = arrays[name][at[name] : at[name] + size]
                at[name] += size
            packed |= {"shape_features": shape_features, "baseline": row["baseline"]}
        fits.append(_fit_of(row, packed, table.get("source", "")))
    return tuple(fits)


def _fit_of(row: dict[str, Any], packed: dict[str, Any], source: str) -> OperatorFit:
    names = ("op", "dtype", "kv_dtype", "kernel", "sub_op", "form")
    return OperatorFit(
        **{name: row.get(name, DEFAULTS.get(name, "")) for name in names},
        parameters=tuple(row["parameters"]),
        provenance=row.get("provenance", DEFAULTS["provenance"]),
        rows=row["rows"],
        errors={split: Error(int(values[0]), *values[1:]) for split, values in row.get("errors", {}).items()},
        interval=(row["interval"][0], row["interval"][1]),
        valid={name: (float(bounds[0]), float(bounds[1])) for name, bounds in row["valid"].items()},
        source=row.get("source", source),
        version=row["version"],
        packed=packed,
        drift=row.get("drift", 0.0),
    )
