"""Predict operator times in bulk: arrays of shapes in (they broadcast), arrays of seconds out.

Every function takes a Calibration first (`models.calibration.load(device, engine)`), then the dtype of the measurement
tables (bf16, fp8, fp8_block, nvfp4, int8_wo, int4_wo, ...). Shapes are per rank unless said otherwise.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from models import framework
from models.calibration import residual
from models.calibration.calibration import Calibration, OperatorFit, Place
from models.calibration.forms import FORMS
from models.calibration.measured import fastest_machine_of, formats_of, machine_of
from models.calibration.plausible import PEAK_SHARES, least_s
from models.calibration.shapes import RINGS, SHAPE_COLUMNS, feature_columns, kernel_columns
from models.calibration.tiles import tiles_of
from models.device import Device
from models.engine import Engine
from models.forward import WIDE, Call
from models.operators import Formats

Floats = npt.NDArray[np.float64]
Values = npt.ArrayLike

CHOOSING = {
    "moe": ("k", "inter", "experts", "topk", "tp", "ep", "matrices"),
    "attn_decode": ("heads", "kv_heads", "head_dim", "window"),
    "attn_prefill": ("heads", "kv_heads", "head_dim", "window"),
}
STATEFUL = ("gdn", "kda", "mamba2")
CONVOLUTIONS, SCANS = ("causal_conv1d",), ("chunk", "fused", "flashkda", "kda_fused")
LIBRARIES = ("nccl", "oneccl", "nccl-tests")
GRAPH = {"vllm": ("custom:vLLM_custom_graph",), "sglang": ("custom:SGLang_CustomAllReduce_graph",)}
# Frameworks that look products of narrow weights up, and the formats of those weights.
LOOKS_UP, LOOKED_UP = ("t-mac",), ("int4_wo", "q4_0", "ternary")
# What measurement tables call a serving framework, and a weight-only dtype.
TABLE_ENGINES = {"tensorrt-llm": "trtllm", "llama.cpp": "vllm", "t-mac": "vllm"}
TABLE_DTYPES = {"int8": "int8_wo", "int4": "int4_wo", "mxfp4": "w4a16_mxfp4", "fp4": "nvfp4"}


def seconds_of(
    fit: OperatorFit,
    device: Device,
    shape: Mapping[str, Floats],
    dtype: str | None = None,
    kv_dtype: str | None = None,
    served: bool = False,
) -> Floats:
    """Return the seconds of each row of `shape` (columns as in shapes.SHAPE_COLUMNS, equal lengths) under one fit.

    A row is priced as tables timed it or, `served`, as a server runs it, where the two are known to differ.
    Never fewer than the device needs to multiply: some tables hold rows that are faster, and forms extrapolate.
    """
    dtype, kv_dtype = dtype or fit.dtype, fit.kv_dtype if kv_dtype is None else kv_dtype
    formats = formats_of(fit.op, dtype, kv_dtype)
    columns = columns_of(fit, device, shape, formats, served)
    outputs = FORMS[fit.form].evaluate(columns, formats, machine_of(device, dtype), np.array(fit.parameters))
    seconds = outputs[:, 0]
    if fit.packed:
        features = residual.features_of(outputs, shape, feature_columns(fit.op), fit.member)
        seconds = residual.corrected(seconds, features, _trees(_ByIdentity(fit.packed)))
    if fit.op in PEAK_SHARES:
        seconds = np.maximum(seconds, least_s(fit.op, shape, fastest_machine_of(device, dtype, kv_dtype)))
    return seconds


def columns_of(
    fit: OperatorFit, device: Device, shape: Mapping[str, Floats], formats: Formats, served: bool = False
) -> Floats:
    """Return the columns that a fit's form reads of each row of `shape`, experts with the tiles of its kernel."""
    tiles = tiles_of(fit.kernel, fit.dtype, fit.version, device.name, shape, served) if fit.op == "moe" else None
    return kernel_columns(fit.op, shape, formats.weight_bytes, formats.kv_bytes, tiles)


class _ByIdentity:
    """A cache key for packed trees: they are read once a process, so the object itself names them."""

    def __init__(self, packed: Mapping[str, Any]) -> None:
        self.packed = packed

    def __hash__(self) -> int:
        return id(self.packed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and other.packed is self.packed


@cache
def _trees(key: _ByIdentity) -> residual.Trees:
    return residual.unpack(key.packed)


def operator_s(
    calibration: Calibration,
    op: str,
    dtype: str,
    shape: Mapping[str, Values],
    kv_dtype: str = "",
    kernel: tuple[str, ...] = (),
    sub_op: str | None = None,
    in_graph: bool = False,
) -> Floats:
    """Return the seconds of any operator by its name and shape columns, which broadcast against each other."""
    fit = calibration.find(op, dtype, kv_dtype, kernel, sub_op, in_graph, place_of(op, shape))
    arrays = np.broadcast_arrays(*(np.asarray(shape[name], np.float64) for name in SHAPE_COLUMNS[op]))
    flat = {name: np.ravel(array) for name, array in zip(SHAPE_COLUMNS[op], arrays, strict=True)}
    seconds = seconds_of(fit, calibration.device, flat, dtype, kv_dtype or fit.kv_dtype, served=in_graph)
    return seconds.reshape(arrays[0].shape)


def place_of(op: str, shape: Mapping[str, Values]) -> Place:
    """Return the columns of a shape by which engines choose their kernel, as in its first row."""
    return tuple((name, float(np.ravel(np.asarray(shape[name]))[0])) for name in CHOOSING.get(op, ()))


def collective_s(calibration: Calibration, op: str, shape: Mapping[str, Values]) -> Floats:
    """Return the seconds of one collective, its message counted as nccl-tests does, whole buffers for a gather.

    An engine's own all-reduce hands large messages to the library by itself, as it was measured.
    """
    chosen = collective_calibration(calibration, op)
    seconds = operator_s(chosen, op, "", shape, kernel=GRAPH.get(chosen.engine, ()))
    lone = np.broadcast_to(np.asarray(shape["n_devices"]) <= 1, seconds.shape)
    return np.where(lone, 0.0, seconds)


def collective_calibration(calibration: Calibration, op: str) -> Calibration:
    """Return whose collective an engine runs: its own where it was measured, else the first measured library's."""
    libraries = [Calibration(calibration.device, library) for library in LIBRARIES]
    found = [calibration, *libraries] if op == "all_reduce" else libraries
    return next((one for one in found if any(fit.op == op for fit in one.fits())), libraries[0])


def call_s(engine: Engine, call: Call) -> Floats:
    """Return the seconds of one operator of a step of an Engine, one entry per row of its shape."""
    calibration = _calibration(engine)
    if call.op in RINGS:
        return _exchange_s(engine, calibration, call)
    if call.op in STATEFUL:
        return _stateful_s(calibration, call)
    dtype, kv_dtype = table_dtype(engine, call), _kv_dtype(engine, call)
    if call.op == "gemm" and engine.framework in LOOKS_UP and dtype in LOOKED_UP:
        return operator_s(Calibration(engine.device, engine.framework), "lut_gemm", dtype, call.shape)
    kernel = MOE_BACKENDS.get(engine.settings.moe_backend, ()) if call.op == "moe" else ()
    seconds = operator_s(calibration, call.op, dtype, call.shape, kv_dtype, kernel, in_graph=True)
    spared = _spared_of(engine, call.op, dtype)
    seconds = _without(spared, engine, calibration, call, seconds) if spared else seconds
    return _at_most_as_others(engine, call, dtype, seconds)


def _at_most_as_others(engine: Engine, call: Call, dtype: str, seconds: Floats) -> Floats:
    """Return the time of a matrix product, at most what the same libraries' kernels took under other engines."""
    others = SAME_LIBRARIES.get((TABLE_ENGINES.get(engine.framework, engine.framework), dtype), ())
    if call.op != "gemm" or not engine.device.calibration:
        return seconds
    for other in others:
        calibration = Calibration(engine.device, other)
        if any((fit.op, fit.dtype) == ("gemm", dtype) for fit in calibration.fits()):
            seconds = np.minimum(seconds, operator_s(calibration, "gemm", dtype, call.shape, in_graph=True))
    return seconds


def _exchange_s(engine: Engine, calibration: Calibration, call: Call) -> Floats:
    own = collective_s(calibration, call.op, call.shape)
    if call.op in ("all_gather", "reduce_scatter"):
        # An all-reduce of the whole buffer is both in one, and engines have kernels of their own for it.
        return np.minimum(own, collective_s(calibration, "all_reduce", call.shape))
    if call.op == "all_reduce" and engine.settings.fuse_allreduce_rms:
        # Large messages go the engine's own way: it leaves those to fuse alone that would take longer fused.
        return np.minimum(own, collective_s(Calibration(engine.device, "trtllm"), call.op, call.shape))
    return own


def _spared_of(engine: Engine, op: str, dtype: str) -> tuple[str, ...]:
    """Return what a matrix product was measured with and a step does not run.

    Tables time it with the quantisation of its input by a scale found on the spot. Checkpoints with one scale a tensor
    bring the scale along; where the framework fuses, the kernel before writes its result quantised by it.
    """
    if op != "gemm" or dtype not in SCALED_BEFORE or engine.framework not in SCALED_APART:
        return ()
    seeking, writing = QUANTISATIONS
    found = (seeking,) if dtype == "fp8" else ()
    return (*found, writing) if framework.of_engine(engine).fuses_quantise else found


def _without(spared: tuple[str, ...], engine: Engine, calibration: Calibration, call: Call, seconds: Floats) -> Floats:
    """Return the time of a matrix product alone, at least that of streaming its weights."""
    shape = {"m": call.shape["m"], "k": call.shape["k"]}
    left = seconds - sum(operator_s(calibration, op, "fp8", shape) for op in spared)
    weight_bytes = call.shape["n"] * call.shape["k"] * formats_of("gemm", table_dtype(engine, call), "").weight_bytes
    return np.asarray(np.maximum(left, weight_bytes / engine.device.bandwidth_bytes_per_s))


def fit_of_call(engine: Engine, call: Call) -> OperatorFit:
    """Return the fit that prices an operator of a step, or the largest part of it."""
    calibration = _calibration(engine)
    if call.op in RINGS:
        chosen = collective_calibration(calibration, call.op)
        return chosen.find(call.op, "", kernel=GRAPH.get(chosen.engine, ()))
    if call.op in STATEFUL:
        return calibration.find("gdn" if call.op == "mamba2" else call.op, call.dtype, kernel=SCANS)
    dtype, kv_dtype = table_dtype(engine, call), _kv_dtype(engine, call)
    kernel = MOE_BACKENDS.get(engine.settings.moe_backend, ()) if call.op == "moe" else ()
    return calibration.find(call.op, dtype, kv_dtype, kernel, in_graph=True, near=place_of(call.op, call.shape))


def work_of_call(engine: Engine, call: Call) -> tuple[float, float]:
    """Return the FLOP and the bytes that an operator's first row needs at least; no FLOP for what does not multiply."""
    shape = {name: float(values[0]) for name, values in call.shape.items()}
    formats = formats_of(call.op, table_dtype(engine, call), _kv_dtype(engine, call))
    if call.op == "gemm":
        m, n, k = shape["m"], shape["n"], shape["k"]
        moved = m * k * formats.activation_bytes + n * k * formats.weight_bytes + m * n * formats.output_bytes
        return 2.0 * m * n * k, moved
    if call.op == "moe":
        width = shape["matrices"] * shape["inter"] / shape["tp"] * shape["k"]
        local = shape["experts"] / shape["ep"]
        copies = shape["m"] * shape["topk"] / shape["ep"]
        return 2.0 * copies * width, min(local, copies) * width * formats.weight_bytes
    if call.op.startswith("attn"):
        context = shape["past"] + 0.5 * (shape["q_len"] + 1.0)
        context = min(context, shape["window"]) if shape["window"] else context
        tokens = shape["batch"] * shape["q_len"]
        kv_bytes = 2.0 * shape["batch"] * shape["kv_heads"] * shape["head_dim"] * formats.kv_bytes
        held = min(shape["past"] + shape["q_len"], shape["window"] or float("inf"))
        return 4.0 * tokens * shape["heads"] * shape["head_dim"] * context, kv_bytes * held
    return 0.0, 1.0


FOUR_BIT = ("nvfp4", "fp4")
# What measurement tables call the kernels of TensorRT-LLM's back ends for experts.
MOE_BACKENDS = {"TRTLLM": ("moe_torch_flow_min_latency",), "CUTLASS": ("moe_torch_flow_cutlass",)}
QUANTISATIONS = ("quantize_computescale", "quantize_scale")  # finding a scale, and writing by it
SCALED_APART = ("vllm", "tensorrt-llm")  # whose quantisation was measured by itself, too
SCALED_BEFORE = ("fp8", "nvfp4")  # dtypes whose checkpoints hold a scale of each matrix's input
# By engine and format, under which others the kernels it runs were measured, too. Tables of vLLM and SGLang time
# DeepGEMM with the weights' scales laid out anew in every call, which servers do once; those of TensorRT-LLM time its
# first kernel for four-bit numbers, where a server tunes among several libraries' when it starts.
SAME_LIBRARIES = {
    ("vllm", "fp8_block"): ("trtllm",),
    ("sglang", "fp8_block"): ("trtllm",),
    ("trtllm", "nvfp4"): ("vllm",),
}
ATTENTION_MATRICES = ("qkv", "qkv down", "q up", "kv up", "indexer", "attention out")


def table_dtype(engine: Engine, call: Call) -> str:
    """Return what measurement tables call the number format that a call multiplies in.

    "native", or the narrow format of published experts, narrows the experts alone; four-bit checkpoints of mixtures of
    experts keep attention wide.
    """
    llm, dtype = engine.llm, call.dtype
    if call.op == "attn_prefill" and engine.kv_dtype == "fp8" and _multiplies_narrow(engine):
        return "fp8"
    if dtype in FOUR_BIT and llm.experts and call.label in ATTENTION_MATRICES:
        return WIDE
    if dtype in ("native", llm.native_expert_dtype) and dtype != WIDE:
        dtype = llm.native_format if call.op == "moe" else llm.native_dtype
    if dtype == "mxfp4" and "fp4" in engine.device.flops_per_s:
        return "w4a8_mxfp4_mxfp8"
    return TABLE_DTYPES.get(dtype, dtype)


def _multiplies_narrow(engine: Engine) -> bool:
    """Say whether an engine narrows a prompt's queries to the format of its cache, as its tables then have it."""
    return any((fit.op, fit.dtype) == ("attn_prefill", "fp8") for fit in _calibration(engine).fits())


def _calibration(engine: Engine) -> Calibration:
    framework = TABLE_ENGINES.get(engine.framework, engine.framework)
    return Calibration(engine.device, framework, engine.framework_version or "")


def _kv_dtype(engine: Engine, call: Call) -> str:
    return engine.kv_dtype if "attn" in call.op or "mla" in call.op else ""


def _stateful_s(calibration: Calibration, call: Call) -> Floats:
    """Return a short convolution and a scan over the state; the scan of Mamba-2 is priced as gated DeltaNet's."""
    sub_op = "generation" if np.max(call.shape["q_len"]) <= 1 else "context"
    scan = "gdn" if call.op == "mamba2" else call.op
    parts = ((call.op, CONVOLUTIONS), (scan, SCANS))
    times = [
        operator_s(calibration, op, call.dtype, call.shape, kernel=kernel, sub_op=f"{op}/{sub_op}")
        for op, kernel in parts
    ]
    return np.asarray(np.sum(times, axis=0))
