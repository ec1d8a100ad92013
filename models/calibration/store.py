"""Calibration files: what was fitted for one device and engine family, written and read.

`DEVICE.ENGINE.toml` holds parameters, errors and ranges; `SILICON.ENGINE.npz` holds the residual trees of all fits on
devices of one silicon, for siblings share them.
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
HELD_OUT = "[held_out]"
PROVENANCES = ("measured", "calibrated", "modelled", "assumed")
# What a fit is where its file does not say.
DEFAULTS = {"kv_dtype": "", "kernel": "", "sub_op": "", "dtype": "", "provenance": "calibrated"}
SIBLINGS = Path(__file__).with_name("siblings.toml")
_FLAT = ("feature", "threshold", "leaf", "scale", "low", "high", "sized")
_SCALARS = ("baseline", "fade")


@dataclass(frozen=True, slots=True)
class Error:
    """Held-out relative errors of one split, as fractions; bias is the mean signed error."""

    rows: int
    median: float
    mean: float
    p90: float
    bias: float


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Held-out errors of one operator and dtype under one split, all kernels together, as fractions.

    median and p90 are of the `told` rows that take 10 us or longer; of the `quick` others, the share within 1.5 us.
    coverage is the share of `fresh` rows, of another fold, that the stated interval held.
    """

    op: str
    dtype: str
    split: str
    rows: int
    told: int
    median: float
    p90: float
    quick: int
    quick_within: float
    fresh: int
    coverage: float


@dataclass(frozen=True, slots=True)
class OperatorFit:
    """What was fitted for one operator, dtype and kernel.

    parameters are in the order of the form's kernel; interval is the factors on a prediction that held 90 % of the
    held-out rows; valid is the range of each shape column in the fit; packed holds the residual trees or is empty;
    member is what tells this fit from others that share its trees, two features (see `residual.features_of`); drift is
    how much the log of the interval's factors grows per doubling of a shape outside that range.
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
    member: tuple[float, float] = (0.0, 0.0)


def file_stem(device: str, engine: str) -> str:
    """Return the file name, without ending, of one device and engine as measurement tables call them."""
    return f"{slug(device)}.{slug(engine)}"


def slug(name: str) -> str:
    """Return a name in lower-case letters, digits and underscores.

    >>> slug("sarathi(torch)")
    'sarathi_torch'
    """
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


@cache
def _siblings() -> Mapping[str, tuple[str, ...]]:
    return {name: tuple(labels) for name, labels in tomllib.loads(SIBLINGS.read_text())["silicon"].items()}


def silicon_of(device: str) -> str:
    """Return the silicon of a device as measurement tables call it: its own name where it has no siblings.

    >>> silicon_of("h200_sxm"), silicon_of("l40s")
    ('hopper', 'l40s')
    """
    return next((name for name, labels in _siblings().items() if device in labels), device)


def siblings_of(device: str) -> tuple[str, ...]:
    """Return the devices of one silicon, the one given among them."""
    return _siblings().get(silicon_of(device), (device,))


def write(
    folder: Path,
    engine: str,
    fits: Mapping[str, Sequence[OperatorFit]],
    told: Mapping[str, Sequence[HeldOut]] | None = None,
) -> None:
    """Write the fits of one engine on all measured devices of one silicon, by device, to a folder."""
    silicon = silicon_of(next(iter(fits)))
    forests: dict[int, tuple[int, Mapping[str, Any]]] = {}
    for one in (one for every in fits.values() for one in every if one.packed):
        forests.setdefault(id(one.packed["feature"]), (len(forests), one.packed))
    for device, every in fits.items():
        source = Counter(one.source for one in every).most_common(1)[0][0]
        lines = [f"device = {_text(device)}", f"engine = {_text(engine)}", f"source = {_text(source)}", ""]
        for one in every:
            lines += _fit_lines(one, source, forests)
        lines += _held_out_lines((told or {}).get(device, ()))
        stem = file_stem(device, engine)
        folder.joinpath(f"{stem}.toml").write_text("\n".join(lines) + "\n")
    if forests:
        every_forest = [packed for _, packed in forests.values()]
        flat = {name: np.concatenate([packed[name] for packed in every_forest]) for name in _FLAT}
        flat["sizes"] = np.array([_sizes(packed) for packed in every_forest], np.int32)
        flat |= {name: np.array([packed[name] for packed in every_forest], np.float32) for name in _SCALARS}
        _save(folder / f"{file_stem(silicon, engine)}.npz", flat)


def _sizes(packed: Mapping[str, Any]) -> tuple[int, ...]:
    return len(packed["scale"]), len(packed["feature"]), len(packed["low"])


def _save(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays as numpy reads them, packed tightly, the same bytes for the same arrays."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type = zipfile.ZIP_LZMA
            archive.writestr(member, content.getvalue())


def _fit_lines(fit: OperatorFit, source: str, forests: Mapping[int, tuple[int, Mapping[str, Any]]]) -> list[str]:
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
        lines.append(f"trees = {forests[id(fit.packed['feature'])][0]}")
        lines.append(f"member = {_numbers(fit.member)}")
    return [*lines, ""]


def _held_out_lines(told: Sequence[HeldOut]) -> list[str]:
    lines = []
    for one in told:
        names = ", ".join(map(_text, (one.op, one.dtype, one.split)))
        counts = f"{one.rows}, {one.told}, {one.median:.3g}, {one.p90:.3g}, {one.quick}, {one.quick_within:.3g}"
        lines.append(f"[{names}, {counts}, {one.fresh}, {one.coverage:.3g}],")
    return [HELD_OUT, "groups = [", *lines, "]"] if lines else []


def _text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(_number(value) for value in values)}]"


def _number(value: float) -> str:
    text = f"{value:.4g}"
    return text if any(mark in text for mark in ".e") else text + ".0"


def held_out(device: str, engine: str, folder: Path = FOLDER) -> tuple[HeldOut, ...]:
    """Return the held-out errors of one device and engine by operator and dtype, none where there is no file."""
    path = folder / f"{file_stem(device, engine)}.toml"
    table = tomllib.loads(path.read_text()) if path.is_file() else {}
    return tuple(HeldOut(*row) for row in table.get("held_out", {}).get("groups", ()))


def places(folder: Path = FOLDER) -> tuple[tuple[str, str], ...]:
    """Return all (device, engine) pairs that a folder has fits of."""
    tables = [tomllib.loads(path.read_text()) for path in sorted(folder.glob("*.toml")) if path.name != INDEX]
    return tuple((table["device"], table["engine"]) for table in tables)


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
    path = folder / f"{file_stem(device, engine)}.toml"
    if not path.is_file():
        return ()
    forests = _forests(silicon_of(device), engine, folder)
    table = tomllib.loads(path.read_text().partition(HELD_OUT)[0])  # what prices nothing need not be read
    return tuple(
        _fit_of(row, forests[row["trees"]] if "trees" in row else {}, table.get("source", "")) for row in table["fit"]
    )


@cache
def _forests(silicon: str, engine: str, folder: Path) -> tuple[Mapping[str, Any], ...]:
    """Return the packed trees of one engine on one silicon, in the order that fits number them."""
    path = folder / f"{file_stem(silicon, engine)}.npz"
    if not path.is_file():
        return ()
    arrays = dict(np.load(path))
    found, at = [], dict.fromkeys(_FLAT, 0)
    for number, (trees, nodes, features) in enumerate(arrays["sizes"]):
        leaves = (nodes + trees) // 2
        sizes = {"feature": nodes, "threshold": nodes - leaves, "leaf": leaves, "scale": trees}
        sizes |= dict.fromkeys(("low", "high", "sized"), features)
        packed: dict[str, Any] = {name: float(arrays[name][number]) for name in _SCALARS}
        for name, size in sizes.items():
            packed[name] = arrays[name][at[name] : at[name] + size]
            at[name] += size
        found.append(packed)
    return tuple(found)


def _fit_of(row: dict[str, Any], packed: Mapping[str, Any], source: str) -> OperatorFit:
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
        member=tuple(row.get("member", (0.0, 0.0))),
    )
