"""Calibration: which fitted parameters price an operator on a device under an engine, and how far to trust them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import log, log2

from models import device as devices
from models.calibration import store
from models.calibration.forms import FORMS
from models.calibration.shapes import COLLECTIVES, PLAIN_GEMM
from models.calibration.store import Error, OperatorFit
from models.device import Device
from models.versions import distance

__all__ = ["Calibration", "Error", "OperatorFit", "load"]

Place = tuple[tuple[str, float], ...]  # some columns of a shape and their values
SAME_WIDTH = {"fp16": "bf16"}
# 90 % factors on top of a fit's own interval where it is borrowed; held-out transfers between devices err by this.
BORROWED_ENGINE = 1.15
BORROWED_DTYPE = 1.25
BORROWED_DEVICE = 1.3
LAUNCH_BOUND_S = 3e-5  # a kernel of these kinds that takes this long whatever its size was waiting for its host
KERNEL_LIBRARIES = ("flashinfer_trtllm", "marlin", "deepgemm")  # by what engines' names of their kernels hold
FAR_OCTAVES = 1.0
FEWEST_TO_TELL = 200  # products, how fast a device reads
# A matrix product on a CPU that was not measured, whose libraries keep most of its peak and bandwidth: what the
# roofline takes, in its order.
CPU_GEMM = (1e-6, 0.7, 0.8, 0.0, 0.0, 0.0, 1.0, 2.0)
CPU_INTERVAL = (0.5, 2.0)
QUICK_OPS = ("gemm", "attn_decode", "mla_decode")
ENGINES = (
    *("vllm", "trtllm", "sglang", "nccl", "oneccl", "nccl-tests"),
    *("sarathi(torch)", "vllm flash-attn", "hf_torch_profiler", "torchxla", "torch"),
)


@dataclass(frozen=True, slots=True)
class Calibration:
    """The fits that price operators on one device under one engine family.

    version is the engine's or library's; collectives were measured under several. Empty means the newest known.
    """

    device: Device
    engine: str
    version: str = ""

    def find(
        self,
        op: str,
        dtype: str,
        kv_dtype: str = "",
        kernel: tuple[str, ...] = (),
        sub_op: str | None = None,
        in_graph: bool = False,
        near: Place = (),
    ) -> OperatorFit:
        """Return the fit that prices an operator; its provenance says how it was come by.

        In order: this device and engine (`calibrated`); this device under another engine, then in another dtype; the
        nearest measured kin (`modelled`). `kernel` names are prefixes, any of which will do. ValueError where no
        device at all was measured for the operator. in_graph passes over kernels that were timed with the host
        launching them one by one, which a step replayed as a graph does not wait for. near is what shape the operator
        has, for engines choose kernels by it: the one that was measured there is taken.
        """
        found = _find(self.device, self.engine, op, dtype, kv_dtype, kernel, sub_op, in_graph, near, self.version)
        return _remeasured(found, self.device, op, dtype, kv_dtype)

    def fits(self) -> tuple[OperatorFit, ...]:
        """Return all fits made on this device under this engine itself."""
        return tuple(fit for label in _labels(self.device) for fit in store.read(label, self.engine))


def load(device: Device | str, engine: str = "vllm", version: str = "") -> Calibration:
    """Return the calibration of a device (or its catalogue name, or its name in measurement tables) under an engine.

    >>> load("h100-sxm").find("gemm", "bf16").provenance
    'calibrated'
    """
    return Calibration(devices.find(device) if isinstance(device, str) else device, engine, version)


@cache
def _find(
    device: Device,
    engine: str,
    op: str,
    dtype: str,
    kv_dtype: str,
    kernel: tuple[str, ...],
    sub_op: str | None,
    in_graph: bool,
    near: Place,
    version: str,
) -> OperatorFit:
    if op == "gemm" and device.kind == "cpu" and device.calibration not in {label for label, _ in store.places_of(op)}:
        return _cpu_gemm(device, dtype)
    for label, other, widened in _candidates(device, engine, op):
        fits = [fit for fit in store.read(label, other) if fit.op == op]
        if in_graph and op in QUICK_OPS:
            fits = [fit for fit in fits if _waited_s(fit) < LAUNCH_BOUND_S]
        if widened == 1.0:
            fits = [fit for fit in fits if _width(fit.dtype) == _width(dtype)]
        if not fits:
            continue
        best = max(fits, key=lambda fit: _likeness(fit, dtype, kv_dtype, kernel, sub_op, near, version))
        if op in COLLECTIVES:
            best = _of_version(fits, best, version)
        best = _of_its_library(best, label, near)
        if label in _labels(device):
            factor = widened * (1.0 if other == engine else BORROWED_ENGINE)
            return best if factor == 1.0 else borrowed(best, factor, physical_only=widened > 1.0)
        lender = measured_devices()[label]
        physical_only = widened > 1.0 or not _runs_the_same(lender, device) or _memory(lender) != _memory(device)
        return borrowed(scaled(best, lender, device), BORROWED_DEVICE * widened, physical_only)
    raise ValueError(f"{device.name}: no device was measured for operator {op!r} in dtype {dtype!r}")


def _remeasured(fit: OperatorFit, device: Device, op: str, dtype: str, kv_dtype: str) -> OperatorFit:
    """Return a fit with the scalars that a device file gives for the operator, the last that it gives."""
    for row in reversed(device.operators):
        if (row["op"], _width(row["dtype"])) == (op, _width(dtype)) and row.get("kv_dtype", kv_dtype) == kv_dtype:
            named = zip(FORMS[fit.form].parameters, fit.parameters, strict=True)
            parameters = tuple(row.get(name, value) for name, value in named)
            return replace(fit, parameters=parameters, provenance="calibrated", source=row.get("source", ""))
    return fit


def _cpu_gemm(device: Device, dtype: str) -> OperatorFit:
    """Return the plain roofline of a matrix product, assumed, since GPUs' tiles are nothing to a CPU."""
    return scaled(
        OperatorFit(
            *(PLAIN_GEMM, dtype, "", "", "", "roofline", CPU_GEMM, "assumed", 0, {}, CPU_INTERVAL, {}),
            source="assumed shares of peak and bandwidth",
            version="",
            packed={},
        ),
        device,
        device,
    )


def _labels(device: Device) -> tuple[str, ...]:
    """Return what measurement tables call a device: of some only what joins them was measured, which lend nothing."""
    return tuple(dict.fromkeys((device.calibration or device.name, *device.labels)))


def _waited_s(fit: OperatorFit) -> float:
    """Return what every call of a fit took at least: its fixed time, or that of the host that launched it."""
    named = zip(FORMS[fit.form].parameters, fit.parameters, strict=True)
    return max(value for name, value in named if name in ("fixed_s", "host_s"))


def _candidates(device: Device, engine: str, op: str) -> Iterator[tuple[str, str, float]]:
    """Yield where to look, best first: (device label, engine, 90 % factor for taking a fit in another dtype)."""
    engines = (engine, *(other for other in ENGINES if other != engine))
    places = store.places_of(op)
    labels = tuple(dict.fromkeys(label for label, _ in places if label in measured_devices()))
    own = [label for label in dict.fromkeys(label for label, _ in places) if label in _labels(device)]
    for kin in ([label] for label in (*own, *_by_kinship(device, labels, op))):
        for widened in (1.0, BORROWED_DTYPE):
            for label in kin:
                yield from ((label, other, widened) for other in engines if (label, other) in places)


def _by_kinship(device: Device, labels: tuple[str, ...], op: str) -> list[str]:
    """Return measured devices in the order to borrow from: the named kin first, then the nearest data sheet."""
    kin = devices.load(device.kin).calibration if device.kin else None
    others = [label for label in labels if label != device.calibration]
    if op in COLLECTIVES:
        return sorted(others, key=lambda label: (_link_distance(device, measured_devices()[label]), label))
    return sorted(others, key=lambda label: (label != kin, _distance(device, measured_devices()[label]), label))


def _distance(first: Device, second: Device) -> float:
    compute = abs(log(_peak(first) / _peak(second)))
    return compute + abs(log(first.bandwidth_bytes_per_s / second.bandwidth_bytes_per_s))


def _peak(device: Device) -> float:
    return max(device.flops_per_s.get("bf16", 0.0), device.flops_per_s.get("fp16", 0.0), 1e9)


def _link_distance(first: Device, second: Device) -> float:
    return abs(log(link_bytes_per_s(first) / link_bytes_per_s(second)))


def link_bytes_per_s(device: Device) -> float:
    """Return one direction of the fabric that joins devices of a node: the scale-up link, or the host's."""
    return device.link_bytes_per_s or device.host_link_bytes_per_s


@cache
def measured_devices() -> Mapping[str, Device]:
    """Return the catalogue's devices by their name in measurement tables."""
    every = [devices.load(name) for name in devices.names()]
    return {device.calibration: device for device in every if device.calibration}


def _width(dtype: str) -> str:
    return SAME_WIDTH.get(dtype, dtype)


def _likeness(
    fit: OperatorFit, dtype: str, kv_dtype: str, kernel: tuple[str, ...], sub_op: str | None, near: Place, version: str
) -> tuple[bool, bool, bool, bool, float, bool, int]:
    return (
        sub_op is None or fit.sub_op == sub_op,
        not kernel or fit.kernel.startswith(kernel),
        fit.dtype == dtype,
        not kv_dtype or fit.kv_dtype == kv_dtype,
        -octaves_outside(fit, near),
        bool(version) and version in fit.version.split(", "),
        fit.rows,
    )


def octaves_outside(fit: OperatorFit, near: Place) -> float:
    """Return by how many doublings, over all columns, a shape lies outside the range that a fit was made on."""
    total = 0.0
    for name, value in near:
        low, high = fit.valid.get(name, (value, value))
        total += max(0.0, log2((low + 1.0) / (value + 1.0)), log2((value + 1.0) / (high + 1.0)))
    return total


def _of_its_library(best: OperatorFit, label: str, near: Place) -> OperatorFit:
    """Return a fit, or that of the same library's kernel under another engine where only it was measured near a shape.

    Engines call the same kernels of the same libraries, and tables hold other models' shapes for each.
    """
    library = next((name for name in KERNEL_LIBRARIES if name in best.kernel), None)
    if library is None or octaves_outside(best, near) <= FAR_OCTAVES:
        return best
    places = store.places_of(best.op)
    shared = [fit for other in ENGINES if (label, other) in places for fit in store.read(label, other)]
    alike = [fit for fit in shared if (fit.op, fit.dtype) == (best.op, best.dtype) and library in fit.kernel]
    return min([best, *alike], key=lambda fit: octaves_outside(fit, near))


def _of_version(fits: list[OperatorFit], best: OperatorFit, version: str) -> OperatorFit:
    """Return the fit of the same kernel whose versions stand for the one wanted."""
    alike = [fit for fit in fits if (fit.kernel, fit.sub_op) == (best.kernel, best.sub_op)]
    return min(alike, key=lambda fit: distance(version, fit.version))


def borrowed(fit: OperatorFit, factor: float, physical_only: bool) -> OperatorFit:
    """Return a fit as it stands for something else than it was made on: modelled, and less sure."""
    low, high = fit.interval
    return replace(
        fit,
        provenance="modelled",
        interval=(low / factor, high * factor),
        packed={} if physical_only else fit.packed,
    )


def scaled(fit: OperatorFit, lender: Device, device: Device) -> OperatorFit:
    """Return a fit with the parameters that differ between two devices as their data sheets tell.

    What is sent scales with their links, what is looked up with their processors. Devices of one silicon take the same
    energy for an operation, so that the share of the peak that power allows scales with the watts for each.
    """
    values = dict(zip(FORMS[fit.form].parameters, fit.parameters, strict=True))
    for name in values:
        if fit.form == "collective" and name.endswith("bytes_per_s"):
            values[name] *= link_bytes_per_s(device) / link_bytes_per_s(lender)
    if "lookups_per_s" in values:
        values["lookups_per_s"] *= (device.processors or 1) / (lender.processors or 1)
    if "power_efficiency" in values and _runs_the_same(lender, device):
        allowed = values["power_efficiency"] * _watts_per_flop(device) / _watts_per_flop(lender)
        values["power_efficiency"] = min(1.0, allowed)
    if "memory_efficiency" in values:
        values["memory_efficiency"] = _bandwidth_share(values["memory_efficiency"], lender, device)
    return replace(fit, parameters=tuple(values.values()))


def _bandwidth_share(lent: float, lender: Device, device: Device) -> float:
    """Return the share of its bandwidth that a device reaches: as measured by itself, or as its own products tell.

    A matrix product of few tokens reads at full speed; error correction and clocks make devices differ in how fast.
    """
    if device.bandwidth_alone_bytes_per_s:
        return device.bandwidth_alone_bytes_per_s / device.bandwidth_bytes_per_s
    own, its = _read_share(device), _read_share(lender)
    return min(1.0, lent * own / its) if own and its else lent


@cache
def _read_share(device: Device) -> float | None:
    """Return the memory efficiency of a device's own 16-bit products, of the first engine with enough; None without."""
    places = store.places_of("gemm")
    place = FORMS["gemm"].parameters.index("memory_efficiency")
    for engine in (engine for engine in ENGINES if (device.calibration, engine) in places):
        told = [fit for fit in store.read(device.calibration or "", engine) if fit.op == "gemm"]
        told = [fit for fit in told if _width(fit.dtype) == "bf16" and fit.rows >= FEWEST_TO_TELL]
        if told:
            return max(told, key=lambda fit: fit.rows).parameters[place]
    return None


def _runs_the_same(lender: Device, device: Device) -> bool:
    """Say whether two devices are of one silicon, so that kernels are cut and chosen alike."""
    return lender.silicon is not None and lender.silicon == device.silicon


def _memory(device: Device) -> str:
    """Return the kind of a device's memory, all stacks alike: a correction has also learnt how memory answers."""
    return "HBM" if device.memory_kind.startswith("HBM") else device.memory_kind


def _watts_per_flop(device: Device) -> float:
    return (device.tdp_w or 1.0) / _peak(device)
