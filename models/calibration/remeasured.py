"""Fit how fast a device launches, multiplies and reads to a few calls of kernels that its user measured."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.calibration import fitting, measured
from models.calibration.calibration import Calibration
from models.calibration.forms import FORMS
from models.calibration.measured import KEY, Group
from models.calibration.plausible import impossible
from models.calibration.predict import columns_of, seconds_of
from models.calibration.shapes import SHAPE_COLUMNS, form_of
from models.calibration.store import OperatorFit
from models.device import OPERATOR_SCALARS, Device

Floats = npt.NDArray[np.float64]

NEEDED = ("op", "dtype", "time_us")
UNSAID = ("engine", "kv_dtype", "kernel", "sub_op", "source", "engine_version", "distribution")
FEWEST_ROWS, FEWEST_TO_JUDGE, JUDGED_SHARE = 6, 15, 0.2
SEED = 5


@dataclass(frozen=True, slots=True)
class Remeasured:
    """The scalars of one operator and number format, how many rows they were fitted to, and the errors on others.

    Errors are median |predicted / measured - 1| over the judged rows, None where there are too few to judge by;
    refused rows are faster than the device can be.
    """

    op: str
    dtype: str
    kv_dtype: str
    scalars: Mapping[str, float]
    fitted: int
    judged: int
    refused: int
    error_before: float | None
    error_after: float | None

    def table(self, source: str) -> dict[str, Any]:
        """Return the [[operator]] table of a device file."""
        format_ = {"op": self.op, "dtype": self.dtype} | ({"kv_dtype": self.kv_dtype} if self.kv_dtype else {})
        return {**format_, **self.scalars, "source": source}


def header_of(path: Path) -> list[str]:
    """Return the column names of a CSV or Parquet file; none of another."""
    if path.suffix == ".csv":
        with path.open() as file:
            return file.readline().strip().split(",")
    if path.suffix != ".parquet":
        return []
    import pyarrow.parquet

    return list(pyarrow.parquet.read_schema(path).names)


def is_table(path: Path) -> bool:
    """Return whether a file holds measured calls of operators, a row a call."""
    return set(NEEDED) <= set(header_of(path))


def read(path: Path) -> Any:
    """Return the rows of a table of measured calls; ValueError names an operator or a column that is not known."""
    import pandas

    frame = pandas.read_csv(path) if path.suffix == ".csv" else pandas.read_parquet(path)
    fitted = [op for op in SHAPE_COLUMNS if "memory_efficiency" in FORMS[form_of(op)].guesses]
    for row, op in enumerate(frame["op"], 2):
        if op not in fitted:
            raise ValueError(f"{path}:{row}: op {op!r} cannot be fitted to a few calls; known: {', '.join(fitted)}")
    for op in frame["op"].unique():
        lacking = [name for name in SHAPE_COLUMNS[op] if name not in (*frame.columns, "uneven", "matrices")]
        if lacking:
            raise ValueError(f"{path}: no column {', '.join(lacking)}; {op} needs {', '.join(SHAPE_COLUMNS[op])}")
    for row, time_us in enumerate(frame["time_us"], 2):
        if not time_us > 0:
            raise ValueError(f"{path}:{row}: time_us must be positive, not {time_us}")
    return frame


def fit(device: Device, engine: str, frame: Any, judged_share: float = JUDGED_SHARE) -> list[Remeasured]:
    """Return what the rows of each operator and format tell, but for a share to judge by; ValueError where too few."""
    told = frame.assign(device=device.name, **{name: "" for name in UNSAID if name not in frame})
    for name in (*UNSAID, *KEY):
        told[name] = told[name].fillna("").astype(str)
    told["kernel"] = told["sub_op"] = told["engine"] = ""
    groups = [measured.group_of(key, part) for key, part in measured.groups_in(told)]
    return [_fit(Calibration(device, engine), group, judged_share) for group in groups]


def _fit(calibration: Calibration, group: Group, judged_share: float) -> Remeasured:
    device = calibration.device
    formats = measured.formats_of(group.op, group.dtype, group.kv_dtype)
    machine = measured.machine_of(device, group.dtype)
    possible = group.take(~impossible(group, measured.fastest_machine_of(device, group.dtype, group.kv_dtype), formats))
    if possible.rows < FEWEST_ROWS:
        raise ValueError(
            f"{group.op} in {group.dtype}: {possible.rows} of {group.rows} rows are possible on {device.name}, and a "
            f"fit takes {FEWEST_ROWS}: measure more calls, or check the device and the unit of time_us"
        )
    known = calibration.find(group.op, group.dtype, group.kv_dtype)
    order = np.random.default_rng(SEED).permutation(possible.rows)
    judges = round(judged_share * possible.rows) if possible.rows >= FEWEST_TO_JUDGE else 0
    few, judged = possible.take(order[judges:]), possible.take(order[:judges])
    form, kin = FORMS[known.form], np.array(known.parameters)
    columns = columns_of(known, device, few.shape, formats)  # of the fit that is lent, which may be of another kernel
    bare = form.evaluate(columns, formats, machine, kin)[:, 0]
    corrected = seconds_of(known, device, few.shape, group.dtype, group.kv_dtype) / bare
    found = fitting.fit_few(form, columns, few.seconds, formats, machine, kin, corrected)
    scalars = {
        name: float(value) for name, value in zip(form.parameters, found, strict=True) if name in OPERATOR_SCALARS
    }
    errors = [_error(one, device, judged) for one in (known, _with(known, found))]
    return Remeasured(
        *(group.op, group.dtype, group.kv_dtype, scalars, few.rows, judged.rows, group.rows - possible.rows), *errors
    )


def _with(known: OperatorFit, parameters: Floats) -> OperatorFit:
    return replace(known, parameters=tuple(parameters.tolist()))


def _error(known: OperatorFit, device: Device, judged: Group) -> float | None:
    if not judged.rows:
        return None
    seconds = seconds_of(known, device, judged.shape, judged.dtype, judged.kv_dtype)
    return float(np.median(np.abs(seconds / judged.seconds - 1.0)))
