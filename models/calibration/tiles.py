"""Which tiles Triton's kernels for experts take: what a framework tuned for a layer on a device, or its default.

tiles.csv holds the tables that vLLM 0.24.0 and SGLang 0.5.14 ship (Apache-2.0), by the experts that a rank holds and
the columns of each: up to so many tokens, rows x columns x depth. Layers that no table names take a default.
"""

import csv
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.calibration.batch import tokens_of_rank_rows
from models.calibration.shapes import TOLD_OF_TILES, modules

Floats = npt.NDArray[np.float64]
Steps = tuple[tuple[float, tuple[float, float, float]], ...]  # up to so many tokens, a tile: rows, columns, depth

FACTS = Path(__file__).with_name("tiles.csv")


class Rule(NamedTuple):
    """Whose tables a kernel goes by, and for each format what it takes without: a function of a rank's experts."""

    engine: str
    defaults: Mapping[str, Callable[[float], Steps]]


def tiles_of(
    kernel: str, dtype: str, version: str, device: str, shape: Mapping[str, Floats], served: bool = False
) -> Floats:
    """Return (rows, 4) for rows of experts: rows, columns and depth of the tile, and whether copies stray.

    A tile is zero where a kernel does not go by tables. Copies for other ranks stray where they were timed on the rank
    as its first expert's: modules.toml names such layers and versions. A server (`served`) leaves them out.
    """
    found = np.zeros((len(shape["m"]), TOLD_OF_TILES))
    rule = RULES.get(kernel)
    if rule is None:
        return found
    strays = np.zeros(len(found), bool) if served else _strays(rule.engine, version, shape)
    found[:, -1] = strays
    if dtype not in rule.defaults:
        return found
    tokens = shape["m"].astype(float)
    if strays.any():
        columns = np.stack([shape[name][strays] for name in ("m", "experts", "topk", "ep", "uneven")], axis=-1)
        tokens_of_rank_rows(columns, seen := np.empty(len(columns)))
        tokens[strays] = seen
    local, width = np.floor(shape["experts"] / shape["ep"]), np.floor(shape["inter"] / shape["tp"])
    layers, which = np.unique(np.stack([local, width], axis=1), axis=0, return_inverse=True)
    for at, (experts, columns_of_expert) in enumerate(layers):
        layer = (rule.engine, device, dtype, int(experts), int(columns_of_expert))
        steps = _tables().get(layer) or rule.defaults[dtype](float(experts))
        rows = np.flatnonzero(which.ravel() == at)
        bounds, tiles = np.array([upto for upto, _ in steps]), np.array([tile for _, tile in steps])
        found[rows, :-1] = tiles[np.searchsorted(bounds, tokens[rows])]
    return found


def _strays(engine: str, version: str, shape: Mapping[str, Floats]) -> npt.NDArray[np.bool_]:
    """Return the rows whose copies for other ranks stay on the rank."""
    facts = modules()["strays"]
    if engine != facts["engine"]:
        return np.zeros(len(shape["m"]), bool)
    strays = np.full(len(shape["m"]), version in facts["versions"])
    for layer in facts["layers"]:
        strays |= (shape["k"] == layer["hidden"]) & (shape["inter"] == layer["inter"])
    return np.asarray(strays & (shape["ep"] > 1.0))


def _by_experts(experts: float) -> Steps:
    """Small tiles for fewer tokens than experts: SGLang, and vLLM of old."""
    return (experts, (16.0, 32.0, 64.0)), (np.inf, (64.0, 64.0, 32.0))


def _scaled(experts: float) -> Steps:
    """SGLang's, of weights with a scale for 128 x 128 values."""
    return ((np.inf, (64.0, 128.0, 128.0)),)


def _by_tokens(depth: float) -> Callable[[float], Steps]:
    """vLLM's, by tokens; of many, tiles of so many values' depth."""

    def steps(experts: float) -> Steps:
        return (
            *((32.0, (16.0, 64.0, 128.0)), (64.0, (32.0, 64.0, 128.0)), (96.0, (32.0, 128.0, depth))),
            *((512.0, (64.0, 128.0, depth)), (np.inf, (128.0, 128.0, depth))),
        )

    return steps


def _scaled_by_tokens(experts: float) -> Steps:
    """vLLM's, of weights with a scale for 128 x 128 values."""
    return (64.0, (16.0, 128.0, 128.0)), (np.inf, (64.0, 128.0, 128.0))


RULES = {
    "sglang_marlin_moe": Rule("sglang", {}),
    "sglang_fused_moe_triton": Rule("sglang", {"bf16": _by_experts, "fp8_block": _scaled}),
    "vllm_fused_moe": Rule("vllm", {"bf16": _by_experts}),
    "vllm_unquantizedfusedmoe_triton_tritonexperts": Rule("vllm", {"bf16": _by_tokens(64.0)}),
    "vllm_modeloptfp8moe_triton_tritonexperts": Rule("vllm", {"fp8": _by_tokens(128.0)}),
    "vllm_fp8moe_triton_tritonexperts": Rule("vllm", {"fp8_block": _scaled_by_tokens}),
}


@cache
def _tables() -> dict[tuple[str, str, str, int, int], Steps]:
    with FACTS.open(newline="") as lines:
        return {
            (row["engine"], row["device"], row["format"], int(row["experts"]), int(row["width"])): _steps(row["tiles"])
            for row in csv.DictReader(lines)
        }


def _steps(text: str) -> Steps:
    return tuple(_step(*step.split(":")) for step in text.split())


def _step(upto: str, tile: str) -> tuple[float, tuple[float, float, float]]:
    rows, columns, depth = map(float, tile.split("x"))
    return float(upto or np.inf), (rows, columns, depth)
