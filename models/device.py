"""Device: what one accelerator, CPU or processor of an SoC can do, from its data sheet."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import toml_file

FOLDER = Path(__file__).parent / "catalogue" / "devices"
KINDS = ("gpu", "npu", "cpu", "soc")
DTYPES = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4", "int4")
BYTES_PER_GB = 1e9
BYTES_PER_MIB = 1024**2
FLOPS_PER_TFLOP = 1e12

# The next wider format in which a processor computes what it cannot multiply natively.
_WIDER = {"fp4": "fp8", "int4": "int8", "fp8": "bf16", "int8": "bf16", "bf16": "fp16", "fp16": "tf32", "tf32": "fp32"}


@dataclass(frozen=True, slots=True)
class Device:
    """One device; peaks are dense (without sparsity), with fp32 accumulation where the sheet gives both.

    memory_bytes is what the driver reports where that is known, else the data sheet's decimal gigabytes.
    bandwidth_alone_bytes_per_s is what this processor of a shared memory was measured to reach by itself,
    bandwidth_shared_bytes_per_s what all processors of that memory reach together; None where not measured.
    link_bytes_per_s is one direction of one device's scale-up fabric; None means that only the host link joins them.
    processors counts SMs, compute units or cores; cache_bytes is the last-level cache. Devices of one silicon (the
    target that its maker's compiler names) run the same kernels.
    calibration names the device in measurement tables; kin names the catalogue device, itself measured, whose
    efficiencies stand in where this one was not. labels are other names in measurement tables.
    assumed lists the TOML keys whose value is an assumption, explained in note. serving holds a user's own scalars of
    serving frameworks on it, which stand before those of models/catalogue/frameworks, operators those of kernels, which
    stand before calibrated ones; file is where a device that is not the catalogue's was read from.
    """

    name: str
    title: str
    vendor: str
    kind: str
    memory_bytes: float
    memory_kind: str
    bandwidth_bytes_per_s: float
    bandwidth_alone_bytes_per_s: float | None
    bandwidth_shared_bytes_per_s: float | None
    flops_per_s: Mapping[str, float] = field(hash=False)
    link_bytes_per_s: float | None
    link_kind: str
    host_link_bytes_per_s: float
    node_size: int
    tdp_w: float | None
    idle_w: float | None
    processors: int | None
    cache_bytes: float | None
    shape_quantum_tokens: int | None
    soc: str | None
    capex_usd: float | None
    silicon: str | None
    calibration: str | None
    kin: str | None
    labels: tuple[str, ...]
    assumed: tuple[str, ...]
    source: str
    note: str
    serving: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    operators: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    file: str = ""

    def peak_flops_per_s(self, dtype: str) -> float:
        """Return the dense peak for a dtype, or that of the next wider one the device computes in.

        ValueError names the device and its dtypes where neither the dtype nor a wider one is known.
        """
        wider: str | None = dtype
        while wider is not None:
            if wider in self.flops_per_s:
                return self.flops_per_s[wider]
            wider = _WIDER.get(wider)
        known = ", ".join(self.flops_per_s) or "none"
        raise ValueError(f"{self.name}: no peak FLOP/s known for dtype {dtype!r} or a wider one; known: {known}")


def names() -> tuple[str, ...]:
    """Return the names of all devices in the catalogue."""
    return toml_file.names_in(FOLDER)


def load(name: str) -> Device:
    """Return a device by its catalogue name, or from the path of a TOML file of the same form.

    A file may give the name of the device that it stands for, by which prices know it, and [[serving]] tables.
    ValueError names the nearest and all known devices, or the file and key that are wrong.

    >>> load("h100-sxm").flops_per_s["bf16"]
    989400000000000.0
    """
    if name.endswith(".toml"):
        return _read(Path(name))
    path = FOLDER / f"{name}.toml"
    if "/" in name or not path.is_file():
        raise toml_file.unknown_name("device", name, names())
    return _read(path)


def find(label: str) -> Device:
    """Return the device that measurement tables call by this label (`h100_sxm`, `A100 SXM 80GB`, `RTX4090`)."""
    wanted = toml_file.squeezed(label)
    for name in names():
        if toml_file.squeezed(name) == wanted:
            return load(name)
    for name in names():
        device = load(name)
        if wanted in map(toml_file.squeezed, filter(None, (device.calibration, *device.labels))):
            return device
    raise toml_file.unknown_name("device label", label, names())


_REQUIRED = (
    *("title", "vendor", "kind", "memory_gb", "bandwidth_gb_per_s", "dense_tflops"),
    *("host_link_gb_per_s", "node_size", "source"),
)
_OPTIONAL = (
    *(
        "memory_mib",
        "memory_kind",
        "bandwidth_alone_gb_per_s",
        "bandwidth_shared_gb_per_s",
        "link_gb_per_s_per_direction",
    ),
    *("link_kind", "tdp_w", "idle_w", "processors", "cache_mib", "shape_quantum_tokens", "soc", "capex_usd"),
    *("silicon", "calibration", "kin", "labels", "assumed", "note", "name", "serving", "operator"),
)
# What a few measured calls tell of a kernel: how fast a device launches, multiplies and reads.
OPERATOR_SCALARS = ("fixed_s", "host_s", "compute_efficiency", "power_efficiency", "memory_efficiency")
SERVING_SCALARS = ("layer_s", "decode_factor", "prefill_factor", "first_token_s")


def _read(path: Path) -> Device:
    table = toml_file.read(path, _REQUIRED, _OPTIONAL)
    _check(path, table)
    return Device(
        name=table.get("name", path.stem),
        title=table["title"],
        vendor=table["vendor"],
        kind=table["kind"],
        memory_bytes=_scaled(table, "memory_mib", BYTES_PER_MIB) or table["memory_gb"] * BYTES_PER_GB,
        memory_kind=table.get("memory_kind", ""),
        bandwidth_bytes_per_s=table["bandwidth_gb_per_s"] * BYTES_PER_GB,
        bandwidth_alone_bytes_per_s=_scaled(table, "bandwidth_alone_gb_per_s", BYTES_PER_GB),
        bandwidth_shared_bytes_per_s=_scaled(table, "bandwidth_shared_gb_per_s", BYTES_PER_GB),
        flops_per_s={dtype: tflops * FLOPS_PER_TFLOP for dtype, tflops in table["dense_tflops"].items()},
        link_bytes_per_s=_scaled(table, "link_gb_per_s_per_direction", BYTES_PER_GB),
        link_kind=table.get("link_kind", "host"),
        host_link_bytes_per_s=table["host_link_gb_per_s"] * BYTES_PER_GB,
        node_size=table["node_size"],
        tdp_w=_scaled(table, "tdp_w"),
        idle_w=_scaled(table, "idle_w"),
        processors=table.get("processors"),
        cache_bytes=_scaled(table, "cache_mib", BYTES_PER_MIB),
        shape_quantum_tokens=table.get("shape_quantum_tokens"),
        soc=table.get("soc"),
        capex_usd=_scaled(table, "capex_usd"),
        silicon=table.get("silicon"),
        calibration=table.get("calibration"),
        kin=table.get("kin"),
        labels=tuple(table.get("labels", ())),
        assumed=tuple(table.get("assumed", ())),
        source=table["source"],
        note=table.get("note", ""),
        serving=tuple(table.get("serving", ())),
        operators=tuple(table.get("operator", ())),
        file="" if path.parent == FOLDER else str(path),
    )


def _scaled(table: dict[str, Any], key: str, unit: float = 1.0) -> float | None:
    return float(table[key] * unit) if key in table else None


def _check(path: Path, table: dict[str, Any]) -> None:
    if table["kind"] not in KINDS:
        raise ValueError(f"{path}: kind {table['kind']!r} is none of {', '.join(KINDS)}")
    toml_file.check_keys(f"{path}: [dense_tflops]", table["dense_tflops"], (), DTYPES)
    quantities = {**table, **table["dense_tflops"]}
    for row in table.get("serving", ()):
        toml_file.check_keys(f"{path}: [[serving]]", row, ("framework", *SERVING_SCALARS), ("versions", "source"))
        _check_positive(f"{path}: [[serving]]", row, SERVING_SCALARS)
    for row in table.get("operator", ()):
        toml_file.check_keys(f"{path}: [[operator]]", row, ("op", "dtype"), (*OPERATOR_SCALARS, "kv_dtype", "source"))
        _check_positive(f"{path}: [[operator]]", row, [name for name in OPERATOR_SCALARS if name in row])
    for key, value in quantities.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        expects_number = key in DTYPES or key.endswith(_NUMBER_ENDINGS)
        if expects_number and not is_number:
            raise ValueError(f"{path}: {key} must be a number, not {value!r}")
        if is_number and value <= 0:
            raise ValueError(f"{path}: {key} must be positive, not {value}")


def _check_positive(place: str, row: Mapping[str, Any], keys: Iterable[str]) -> None:
    wrong = [key for key in keys if not (isinstance(row[key], float | int) and row[key] > 0)]
    if wrong:
        raise ValueError(f"{place}: {wrong[0]} must be a positive number, not {row[wrong[0]]!r}")


_NUMBER_ENDINGS = ("_gb", "_mib", "_per_s", "_per_direction", "_w", "_size", "_usd", "_tokens", "processors")
