"""Which tiles Triton's kernels for experts take: what a framework tuned for a layer on a device, or its default.

tiles.csv holds the tables that vLLM 0.24 and SGLang 0.5.14 ship (Apache-2.0): for `experts` of a rank, `width` columns
of each, up to so many tokens rows x columns x depth x warps x stages. A device or layer that none names takes the
default.
"""

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from models.experts import tokens_of_rank

Floats = npt.NDArray[np.float64]
Tile = tuple[float, ...]

FACTS = Path(__file__).with_name("tiles.csv")
SIZES = 3  # of a tile: rows, columns, depth
# Kernels that go by such tables, and whose.
KERNELS = {
    "sglang_fused_moe_triton": "sglang",
    "vllm_fused_moe": "vllm",
    "vllm_unquantizedfusedmoe_triton_tritonexperts": "vllm",
    "vllm_modeloptfp8moe_triton_tritonexperts": "vllm",
    "vllm_fp8moe_triton_tritonexperts": "vllm",
}


def tiles_of(kernel: str, dtype: str, device: str, shape: Mapping[str, Floats]) -> Floats:
    """Return the (rows, 3) tile of each row of experts: rows, columns and depth, zeros where a kernel has no table."""
    found = np.zeros((len(shape["m"]), SIZES + 1))
    engine = KERNELS.get(kernel)
    if engine is None or (engine, dtype) not in DEFAULTS:
        return found
    tokens = shape["m"]
    if engine == "sglang":
        plain = np.zeros(len(tokens), bool)
        for k, inter, experts in ((4096, 14336, 8), (6144, 16384, 8), (2816, 704, 128)):
            plain |= (shape["k"] == k) & (shape["inter"] == inter) & (shape["experts"] == experts)
        if device.startswith("a100"):
            plain[:] = True
        found[:, SIZES] = plain
        tokens = np.where((shape["ep"] > 1.0) & plain, tokens_of_rank_rows(shape), tokens)
    local, width = np.floor(shape["experts"] / shape["ep"]), np.floor(shape["inter"] / shape["tp"])
    layers, which = np.unique(np.stack([local, width], axis=1), axis=0, return_inverse=True)
    for at, (experts, columns) in enumerate(layers):
        rows = np.flatnonzero(which.ravel() == at)
        form = dtype
        if (engine, dtype) == ("sglang", "fp8_block") and (columns % 128 or shape["k"][rows[0]] % 128):
            form = "fp8"
        steps = _tables().get((engine, device, form, int(experts), int(columns))) or DEFAULTS[engine, form](experts)
        bounds = np.array([upto for upto, _ in steps[:-1]])
        sizes = np.array([tile[:SIZES] for _, tile in steps])
        found[rows, :SIZES] = sizes[np.searchsorted(bounds, tokens[rows], side="left")]
    return found


def tokens_of_rank_rows(shape):
    c = [shape[n] for n in ("m", "experts", "topk", "ep", "uneven")]
    return np.array([tokens_of_rank(*one) for one in zip(*c)])


Steps = tuple[tuple[float, Tile], ...]


def _sglang_wide(experts: float) -> Steps:
    return (experts, (16.0, 32.0, 64.0)), (np.inf, (64.0, 64.0, 32.0))


def _sglang_scaled(experts: float) -> Steps:
    return ((np.inf, (64.0, 128.0, 128.0)),)


def _sglang_narrow(experts: float) -> Steps:
    return (experts, (64.0, 128.0, 128.0)), (np.inf, (128.0, 256.0, 128.0))


def _vllm_wide(experts: float) -> Steps:
    return (
        *((32.0, (16.0, 64.0, 128.0)), (64.0, (32.0, 64.0, 128.0)), (96.0, (32.0, 128.0, 64.0))),
        *((512.0, (64.0, 128.0, 64.0)), (np.inf, (128.0, 128.0, 64.0))),
    )


def _vllm_narrow(experts: float) -> Steps:
    return tuple((upto, (*tile[:2], 128.0)) for upto, tile in _vllm_wide(experts))


def _vllm_scaled(experts: float) -> Steps:
    return (64.0, (16.0, 128.0, 128.0)), (np.inf, (64.0, 128.0, 128.0))


# What frameworks take where nothing is tuned.
DEFAULTS = {
    ("sglang", "bf16"): _sglang_wide,
    ("sglang", "fp8"): _sglang_narrow,
    ("sglang", "fp8_block"): _sglang_scaled,
    ("vllm", "bf16"): _vllm_wide,
    ("vllm", "fp8"): _vllm_narrow,
    ("vllm", "fp8_block"): _vllm_scaled,
}


@cache
def _tables() -> dict[tuple[str, str, str, int, int], Steps]:
    with FACTS.open(newline="") as lines:
        return {
            (row["engine"], row["device"], row["format"], int(row["experts"]), int(row["width"])): _steps(row["tiles"])
            for row in csv.DictReader(lines)
        }


def _steps(text: str) -> Steps:
    pairs = (step.split(":") for step in text.split())
    return tuple((float(upto or np.inf), tuple(map(float, tile.split("x")))) for upto, tile in pairs)
