"""Read measurement tables, name their groups, and hold shapes back."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models import device as devices
from models import dtype as dtypes
from models.calibration.shapes import COLLECTIVES, EXCHANGES, SHAPE_COLUMNS, kernel_columns, matrices_of
from models.calibration.tiles import tiles_of
from models.operators import Formats, Machine
from models.versions import parsed

Floats = npt.NDArray[np.float64]

KEY = ("device", "engine", "op", "dtype", "kv_dtype", "kernel", "sub_op")
COLLECTIVE_KEY = ("device", "lib", "op", "kernel", "fabric", "lib_version")
WEIGHT_ONLY = ("int8_wo", "int4_wo", "w4a16_mxfp4")
# The format in which a kernel multiplies, by the dtype of the measurement table.
MULTIPLIES_IN = dtypes.MULTIPLIED_IN | {
    "int8_wo": "bf16",
    "int4_wo": "bf16",
    "w4a16_mxfp4": "bf16",
    "w4a8_mxfp4_mxfp8": "fp8",
    "sq": "int8",
    "w2a8": "int8",
}
ACTIVATION_OF = {"w4a8_mxfp4_mxfp8": "fp8", "w2a8": "int8", "ternary": "int8", "q4_0": "int8"}
WEIGHT_OF = {"w2a8": "ternary"}
NO_CACHE_BYTES = 4 * 1024.0**2


@dataclass(frozen=True, slots=True)
class Group:
    """All rows of one (device, engine, operator, dtype, KV dtype, kernel, layer): their kernel columns and seconds."""

    device: str
    engine: str
    op: str
    dtype: str
    kv_dtype: str
    kernel: str
    sub_op: str
    source: str
    version: str
    shape: dict[str, Floats]
    columns: Floats
    seconds: Floats

    @property
    def rows(self) -> int:
        """Return the number of measured rows."""
        return len(self.seconds)

    def take(self, rows: npt.NDArray[Any]) -> "Group":
        """Return the group with these rows only (indices or a mask)."""
        shape = {name: values[rows] for name, values in self.shape.items()}
        return replace(self, shape=shape, columns=self.columns[rows], seconds=self.seconds[rows])

    keep = take


def machine_of(device: devices.Device, dtype: str) -> Machine:
    """Return what kernels need of a device when they multiply in this dtype."""
    return Machine(
        1.0 if not dtype else device.peak_flops_per_s(MULTIPLIES_IN.get(dtype, dtype)),
        device.bandwidth_bytes_per_s,
        float(device.processors or 1),
        float(device.cache_bytes or NO_CACHE_BYTES),
    )


def fastest_machine_of(device: devices.Device, dtype: str, kv_dtype: str) -> Machine:
    """Return what a kernel can reach at most: with a narrow KV cache it may multiply in the cache's format."""
    machines = [machine_of(device, one) for one in (dtype, kv_dtype) if one] or [machine_of(device, dtype)]
    return max(machines, key=lambda machine: machine.flops_per_s)


def formats_of(op: str, dtype: str, kv_dtype: str) -> Formats:
    """Return the bytes of a value by role for a dtype and KV dtype of the measurement table."""
    if not dtype:
        return Formats(2.0, 2.0, 2.0, 2.0)
    stored = dtypes.bytes_per_value(WEIGHT_OF.get(dtype, dtype))
    activation = 2.0 if dtype in WEIGHT_ONLY else dtypes.bytes_per_value(ACTIVATION_OF.get(dtype, dtype))
    kv = dtypes.bytes_per_value(kv_dtype or "bf16")
    # Latent attention keeps one tensor where others keep keys and values.
    return Formats(activation, stored, 2.0, 0.5 * kv if op == "mla_decode" else kv)


def read_operators(path: Path, op: str | None = None, device: str | None = None) -> Any:
    """Return an operators table as a frame, optionally of one operator or one device only."""
    import pandas

    wanted = [(name, "==", value) for name, value in (("op", op), ("device", device)) if value is not None]
    frame = pandas.read_parquet(path, filters=wanted or None)
    for name in (*KEY, "distribution"):
        frame[name] = frame[name].fillna("").astype(str)
    # A matrix is its shape, whatever the layer is called; other operators' layers run kernels of their own.
    frame.loc[frame["op"].isin(("gemm", "moe")), "sub_op"] = ""
    return frame


def devices_in(path: Path) -> list[str]:
    """Return the devices that a measurement table names."""
    import pyarrow.parquet

    return sorted(set(pyarrow.parquet.read_table(path, columns=["device"])["device"].unique().to_pylist()))


def operator_groups(path: Path, device: str) -> Iterator[Group]:
    """Yield every group of one device of an operators table whose operator we have a form for."""
    for key, part in groups_in(read_operators(path, device=device)):
        if key[KEY.index("op")] in SHAPE_COLUMNS:
            yield group_of(key, part)


def read_collectives(path: Path) -> Any:
    """Return a collectives table as a frame, empty texts where a cell of the key is empty."""
    import pandas

    frame = pandas.read_parquet(path)
    for name in (*COLLECTIVE_KEY, "dtype"):
        frame[name] = frame[name].fillna("").astype(str)
    return frame


def collective_times_us(frame: Any) -> Floats:
    """Return the time of each row: the fastest where several were kept, since medians hold first-call outliers."""
    times: Floats = frame["time_min_us"].fillna(frame["time_us"]).to_numpy(np.float64)
    return times


def collective_groups(path: Path, only_device: str) -> Iterator[Group]:
    """Yield every group of one device of a collectives table: a (library, operation, kernel, fabric) each, and versions
    of the library that take the same time.

    Rows without a size, with more devices than could be, and the fabric that the table's README distrusts are left out.
    """
    frame = read_collectives(path)
    sized = np.where(frame["op"].isin(EXCHANGES), frame["num_tokens"] > 0, frame["bytes"] > 0)
    believable = sized & (frame["fabric"] != DISTRUSTED_FABRIC) & (frame["n_devices"] <= MOST_DEVICES)
    frame = frame[believable & frame["op"].isin(COLLECTIVES) & (frame["device"] == only_device)]
    for (device, lib, op, kernel, fabric), every in frame.groupby(list(COLLECTIVE_KEY[:-1]), sort=True, observed=True):
        for versions in alike(every):
            part = every[every["lib_version"].isin(versions)]
            shape = collective_shape(op, part)
            source = ", ".join(sorted(part["source"].unique()))
            columns = kernel_columns(op, shape, 2.0, 2.0)
            seconds = collective_times_us(part) * 1e-6
            yield Group(device, lib, op, "", "", kernel, fabric, source, ", ".join(versions), shape, columns, seconds)


def collective_shape(op: str, part: Any) -> dict[str, Floats]:
    """Return the shape columns of a collective as floats; where a table names no nodes there is one."""
    shape = {name: part[name].astype("float64").to_numpy() for name in SHAPE_COLUMNS[op] if name != "value_bytes"}
    if op in EXCHANGES:
        stored = {name: dtypes.bytes_per_value(name) if name else BYTES_UNNAMED for name in part["dtype"].unique()}
        shape["value_bytes"] = part["dtype"].map(stored).to_numpy(np.float64)
        shape["n_nodes"] = np.nan_to_num(shape["n_nodes"], nan=1.0)
        shape["sms"] = np.nan_to_num(shape["sms"], nan=0.0)
    return shape


def alike(frame: Any) -> list[list[str]]:
    """Return a collective's versions in order, those together whose times at common shapes hardly differ."""
    names = [name for name in SIZED_BY if name in frame]
    frame = frame.fillna(dict.fromkeys(names, 0))
    timed = frame.assign(_log=np.log(collective_times_us(frame)), n_nodes=frame["n_nodes"].fillna(1))
    times = timed.pivot_table(index=names, columns="lib_version", values="_log", aggfunc="median")
    found: list[list[str]] = []
    for version in sorted(times.columns, key=parsed):
        for others in found:
            apart = (times[version] - times[others[0]]).abs().dropna()
            if len(apart) >= FEWEST_ALIKE and apart.median() < ALIKE and apart.quantile(0.9) < NEVER_ALIKE:
                others.append(str(version))
                break
        else:
            found.append([str(version)])
    return found


FEWEST_ALIKE, ALIKE, NEVER_ALIKE = 10, 0.03, 0.15  # shapes, and differences of log time, median and p90
SIZED_BY = ("bytes", "num_tokens", "hidden", "topk", "experts", "sms", "n_devices", "n_nodes", "dtype")
BYTES_UNNAMED = 2.0  # of a value whose format a table does not name
MOST_DEVICES = 128
DISTRUSTED_FABRIC = "a30_single_gpu (check)"


def groups_in(frame: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each group's key and its part of the frame, in a stable order."""
    for key, part in frame.groupby(list(KEY), sort=True, observed=True):
        yield tuple(key), part


def group_of(key: tuple[str, ...], part: Any) -> Group:
    """Return one group of a frame with its kernel columns worked out."""
    device, engine, op, dtype, kv_dtype, kernel, sub_op = key
    shape = shape_of(op, part)
    formats = formats_of(op, dtype, kv_dtype)
    version = ", ".join(sorted(part["engine_version"].fillna("").astype(str).unique()))
    tiles = tiles_of(kernel, dtype, version, devices.find(device).name, shape) if op == "moe" else None
    return Group(
        *(device, engine, op, dtype, kv_dtype, kernel, sub_op),
        ", ".join(sorted(part["source"].unique())),
        version,
        shape,
        kernel_columns(op, shape, formats.weight_bytes, formats.kv_bytes, tiles),
        part["time_us"].to_numpy(np.float64) * 1e-6,
    )


def shape_of(op: str, part: Any) -> dict[str, Floats]:
    """Return the shape columns of an operator as floats; empty cells become not-a-number."""
    shape = {}
    for name in SHAPE_COLUMNS[op]:
        if name == "uneven":
            shape[name] = (
                part["distribution"].str.extract(r"power_law_([\d.]+)")[0].astype(float).fillna(0.0).to_numpy()
            )
        elif name != "matrices":
            shape[name] = part[name].astype("float64").to_numpy()
    if "batch" in shape:
        shape["batch"] = np.nan_to_num(shape["batch"], nan=1.0)
    if op == "moe":
        shape["ep"] = np.nan_to_num(shape["ep"], nan=1.0)
        shape["matrices"] = matrices_of(
            shape["k"], shape["inter"], shape["experts"], part["engine_version"].fillna("").to_numpy(object)
        )
    return shape


# What makes a shape new, for each kind of split: rows that share these columns are held back together.
FAMILY = {
    "gemm": ("n", "k"),
    "moe": ("k", "inter", "experts", "topk"),
    "attn_prefill": ("heads", "kv_heads", "head_dim", "window"),
    "attn_encoder": ("heads", "head_dim"),
    "attn_decode": ("heads", "kv_heads", "head_dim", "window"),
    "attn_mixed": ("heads", "kv_heads", "head_dim"),
    "all_reduce": ("n_devices", "n_nodes"),
    "all_gather": ("n_devices", "n_nodes"),
    "reduce_scatter": ("n_devices", "n_nodes"),
    "alltoall": ("n_devices", "n_nodes"),
    **dict.fromkeys(EXCHANGES, ("hidden", "topk", "n_devices")),
    "mla_prefill": ("heads",),
    "mla_decode": ("heads",),
    "mla_module_prefill": ("heads",),
    "mla_module_decode": ("heads",),
    "dsa_module_prefill": ("heads",),
    "dsa_module_decode": ("heads",),
    "gdn": ("k", "heads"),
    "norm": ("n",),
    "act": ("n",),
    "rope": ("n",),
    "add": ("n",),
    "embed": ("n",),
}


def held_back(op: str, shape: dict[str, Floats], kind: str, fold: int, folds: int = 5) -> npt.NDArray[np.bool_]:
    """Return which rows a split keeps from the fit: whole `shape`s, whole `family`s, or the largest (`beyond`)."""
    if kind == "beyond":
        size = np.sum([np.log(shape[name] + 1.0) for name in _SIZES.get(op, SHAPE_COLUMNS[op])], axis=0)
        return np.asarray(size > np.quantile(size, 1.0 - 1.0 / folds))
    names = SHAPE_COLUMNS[op] if kind == "shape" else FAMILY.get(op, SHAPE_COLUMNS[op])
    return np.asarray(_hashed(np.stack([shape[name] for name in names], axis=-1)) % folds == fold)


_SIZES = {"gemm": ("n", "k"), "attn_decode": ("past",), "attn_prefill": ("q_len",), "moe": ("m",)}


def _hashed(rows: Floats) -> npt.NDArray[np.uint64]:
    """Return a stable hash of each row of numbers, the same in every run and on every machine."""
    mixed = np.full(len(rows), 0x9E3779B97F4A7C15, np.uint64)
    for column in np.nan_to_num(rows, nan=-1.0).T:
        mixed ^= np.ascontiguousarray(column).view(np.uint64)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(32)
    return mixed
