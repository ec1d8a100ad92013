"""From the shape columns of a measurement table to the columns that an operator's kernel reads."""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Shape = Mapping[str, Floats]

MODULES = Path(__file__).with_name("modules.toml")
BITS_PER_BYTE = 8.0
BYTES_PER_ACTIVATION = 2.0
BYTES_PER_STATE = 4.0
BYTES_PER_LOGIT = 4.0
BYTES_PER_QUANTISED = 1.0
FLOPS_PER_MAC = 2.0
FEW_FOR_TREES = 60  # with fewer shapes the physical form stands alone
TOLD_OF_TILES = 4  # rows, columns, depth, and whether copies stray: tiles.py
GATED_MATRICES = 3.0
PLAIN_MATRICES = 2.0

# Tokens sent to the ranks of their experts and back, by the names of measurement tables.
EXCHANGES = (
    *("deepep_normal_dispatch", "deepep_normal_combine", "deepep_ll_dispatch", "deepep_ll_combine"),
    *("alltoall_prepare", "alltoall_dispatch", "alltoall_combine", "alltoall_combine_low_precision"),
)

# Which shape columns of a measurement table describe an operator; all are required.
_ATTENTION = ("batch", "q_len", "past", "heads", "kv_heads", "head_dim", "window")
_MODULE = ("batch", "q_len", "past", "heads")
_STATE = ("batch", "q_len", "k", "heads", "head_dim")
SHAPE_COLUMNS: dict[str, tuple[str, ...]] = {
    "gemm": ("m", "n", "k"),
    "moe": ("m", "k", "inter", "experts", "topk", "tp", "ep", "uneven", "matrices"),
    "attn_prefill": _ATTENTION,
    "attn_encoder": ("batch", "q_len", "past", "heads", "kv_heads", "head_dim"),
    "attn_decode": _ATTENTION,
    "attn_mixed": ("q_len", "past", "n_decode", "kv_decode", "heads", "kv_heads", "head_dim", "window"),
    "mla_prefill": _MODULE,
    "mla_decode": _MODULE,
    "mla_module_prefill": _MODULE,
    "mla_module_decode": _MODULE,
    "dsa_module_prefill": _MODULE,
    "dsa_module_decode": _MODULE,
    "mla_bmm": ("m", "heads"),
    "lut_gemm": ("m", "n", "k"),
    "lowbit_gemm": ("m", "n", "k"),
    "gdn": (*_STATE, "kv_heads"),
    "kda": _STATE,
    "mamba2": _STATE,
    "norm": ("m", "n"),
    "act": ("m", "n"),
    "rope": ("m", "n"),
    "add": ("m", "n"),
    "embed": ("m", "n"),
    "sampler": ("m", "n"),
    "quantize_scale": ("m", "k"),
    "quantize_computescale": ("m", "k"),
    "all_reduce": ("bytes", "n_devices", "n_nodes"),
    "all_gather": ("bytes", "n_devices", "n_nodes"),
    "reduce_scatter": ("bytes", "n_devices", "n_nodes"),
    "alltoall": ("bytes", "n_devices", "n_nodes"),
    "p2p_send_recv": ("bytes", "n_devices", "n_nodes"),
    **dict.fromkeys(EXCHANGES, ("num_tokens", "hidden", "topk", "n_devices", "n_nodes", "sms", "value_bytes")),
}

# The kernel form of each operator: models/operators.py, models/attention.py.
FORM_OF_OP: dict[str, str] = {
    "gemm": "gemm",
    "moe": "moe",
    "attn_prefill": "prefill",
    "attn_encoder": "prefill",
    "mla_prefill": "prefill",
    "attn_decode": "decode",
    "mla_decode": "decode",
    "attn_mixed": "mixed",
    "lut_gemm": "lookup",
    "lowbit_gemm": "lookup",
    "all_reduce": "collective",
    "all_gather": "collective",
    "reduce_scatter": "collective",
    "alltoall": "collective",
    "p2p_send_recv": "collective",
}
FORM_OF_OP |= dict.fromkeys(EXCHANGES, "exchange")
PLAIN_GEMM = "plain_gemm"  # on what has no tiles to fill: a processor multiplies one token as well as many
RINGS = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "alltoall": 1.0, "p2p_send_recv": 1.0}
COLLECTIVES = (*RINGS, *EXCHANGES)


MESSAGE = "bytes"

# Shape columns that the residual correction may see, where not all: it must not learn an architecture by heart.
_FEATURES: dict[str, tuple[str, ...]] = {
    "moe": ("m", "topk", "tp", "ep", "uneven"),
    **dict.fromkeys(RINGS, (MESSAGE, "n_devices", "n_nodes")),
}


# Products of shape columns that split work over processors, which trees would need many splits to find by themselves.
_PRODUCTS: dict[str, tuple[str, ...]] = {
    "gemm": ("m*n", "n*k", "m*k"),
    "attn_decode": (
        *("batch*kv_heads", "batch*heads", "batch*past", "batch*heads*head_dim"),
        *("batch*kv_heads*head_dim", "batch*kv_heads*head_dim*past"),
    ),
}


def feature_columns(op: str) -> tuple[str, ...]:
    """Return the shape columns that the residual correction of an operator may see, then products of them."""
    return (*_FEATURES.get(op, SHAPE_COLUMNS[op]), *_PRODUCTS.get(op, ()))


def octaves_outside(shape: Shape, valid: Mapping[str, tuple[float, float]]) -> Floats:
    """Return by how many doublings each row's shape lies outside the range of each column, at its worst column."""
    worst = np.zeros(len(next(iter(shape.values()))))
    for name, (low, high) in valid.items():
        size = np.log2(np.maximum(shape[name], 0.0) + 1.0)
        worst = np.maximum(worst, np.maximum(size - np.log2(high + 1.0), np.log2(low + 1.0) - size))
    return worst


def form_of(op: str) -> str:
    """Return the kernel form of an operator: its own, or the plain roofline."""
    return FORM_OF_OP.get(op, "roofline")


@cache
def modules() -> dict[str, Any]:
    """Return the shapes of whole attention modules and of expert layers with two matrices."""
    return tomllib.loads(MODULES.read_text())


def matrices_of(hidden: Floats, inter: Floats, experts: Floats, versions: npt.NDArray[np.object_]) -> Floats:
    """Return how many weight matrices an expert of each row has: three, or two where the facts file says so."""
    plain = np.zeros(len(hidden), bool)
    for row in modules()["two_matrices"]:
        plain |= (hidden == row["hidden"]) & (inter == row["inter"]) & (experts == row["experts"])
    plain &= ~np.isin(versions.astype(str), modules()["gated_versions"])
    return np.where(plain, PLAIN_MATRICES, GATED_MATRICES)


def kernel_columns(op: str, shape: Shape, weight_bytes: float, kv_bytes: float, tiles: Floats | None = None) -> Floats:
    """Return the (rows, columns) that the operator's form reads; shapes as in SHAPE_COLUMNS, tiles of experts."""
    form = form_of(op)
    if form == "moe":
        told = np.zeros((len(shape["m"]), TOLD_OF_TILES)) if tiles is None else tiles
        return _stack(*(shape[name] for name in SHAPE_COLUMNS[op]), *told.T)
    if form == "decode":
        return _stack(*_decode_columns(op, shape))
    if form == "prefill":
        return _stack(*_prefill_columns(op, shape))
    if form == "collective":
        all_pairs = np.full(len(shape["bytes"]), float(op == "alltoall"))
        return _stack(shape["bytes"], shape["n_devices"], shape["n_nodes"], all_pairs, all_pairs * 0 + RINGS[op])
    if form == "lookup":
        return _stack(shape["m"], shape["n"], shape["k"], np.full(len(shape["m"]), BITS_PER_BYTE * weight_bytes))
    if form == "roofline":
        return _stack(*_work(op, shape, weight_bytes, kv_bytes))
    return _stack(*(shape[name] for name in SHAPE_COLUMNS[op]))


def _decode_columns(op: str, shape: Shape) -> tuple[Floats, ...]:
    kv_tokens = shape["past"] + 1.0
    if op == "attn_decode":
        return (shape["batch"], kv_tokens, *(shape[c] for c in ("heads", "kv_heads", "head_dim", "window")))
    facts = modules()["mla"]
    one = np.ones(len(kv_tokens))
    return shape["batch"], kv_tokens, shape["heads"], one, one * (facts["latent"] + facts["rope"]), one * 0.0


def _prefill_columns(op: str, shape: Shape) -> tuple[Floats, ...]:
    one = np.ones(len(shape["q_len"]))
    rows = (shape["batch"], shape["q_len"], shape["past"], shape["heads"])
    if op == "attn_encoder":
        return (*rows, shape["kv_heads"], shape["head_dim"], one * 0.0, one * 0.0)
    if op == "mla_prefill":
        facts = modules()["mla"]
        mean_dim = 0.5 * (facts["key"] + facts["rope"] + facts["value"])
        return (*rows, shape["heads"], one * mean_dim, one * 0.0, one)
    return (*rows, shape["kv_heads"], shape["head_dim"], shape["window"], one)


def _work(op: str, shape: Shape, weight_bytes: float, kv_bytes: float) -> tuple[Floats, Floats, Floats]:
    """Return FLOP, bytes moved and independent rows of an operator that is known by these alone."""
    if op in _ELEMENTWISE_PASSES:
        width = shape["n"] if "n" in shape else shape["k"]
        values = shape["m"] * width
        return values * 0.0, values * _ELEMENTWISE_PASSES[op], shape["m"]
    if op == PLAIN_GEMM:
        m, n, k = (shape[name] for name in SHAPE_COLUMNS["gemm"])
        return FLOPS_PER_MAC * m * n * k, n * k * weight_bytes + m * (k + n) * BYTES_PER_ACTIVATION, m
    if op == "mla_bmm":
        facts = modules()["mla"]
        weights = shape["heads"] * facts["latent"] * facts["key"]
        values = shape["m"] * shape["heads"] * (facts["latent"] + facts["key"])
        return (
            FLOPS_PER_MAC * shape["m"] * weights,
            weights * weight_bytes + values * BYTES_PER_ACTIVATION,
            shape["heads"] * np.ceil(shape["m"] / 128.0),
        )
    if op in ("gdn", "kda", "mamba2"):
        return _state_work(shape)
    return _module_work(op, shape, weight_bytes, kv_bytes)


# Bytes moved per value: what is read and written, in the widths of each operator.
_ELEMENTWISE_PASSES = {
    "norm": 2.0 * BYTES_PER_ACTIVATION,
    "act": 3.0 * BYTES_PER_ACTIVATION,
    "rope": 2.0 * BYTES_PER_ACTIVATION,
    "add": 3.0 * BYTES_PER_ACTIVATION,
    "embed": 2.0 * BYTES_PER_ACTIVATION,
    "sampler": BYTES_PER_LOGIT,
    "quantize_scale": BYTES_PER_ACTIVATION + BYTES_PER_QUANTISED,
    "quantize_computescale": BYTES_PER_ACTIVATION,
}


def _state_work(shape: Shape) -> tuple[Floats, Floats, Floats]:
    """Return the work of linear attention and state-space blocks: a head_dim x head_dim state per head."""
    tokens = shape["batch"] * shape["q_len"]
    width = shape["heads"] * shape["head_dim"]
    state = shape["batch"] * width * shape["head_dim"]
    flops = 3.0 * FLOPS_PER_MAC * tokens * width * shape["head_dim"]
    moved = 4.0 * tokens * width * BYTES_PER_ACTIVATION + 2.0 * state * BYTES_PER_STATE
    return flops, moved, shape["batch"] * shape["heads"]


def _module_work(op: str, shape: Shape, weight_bytes: float, kv_bytes: float) -> tuple[Floats, Floats, Floats]:
    """Return the work of a whole latent-attention module: projections, attention, and the sparse indexer of DSA."""
    sparse = op.startswith("dsa")
    facts = modules()["dsa" if sparse else "mla"]
    heads, tokens = shape["heads"], shape["batch"] * shape["q_len"]
    context = shape["past"] + 0.5 * (shape["q_len"] + 1.0)
    latent = facts["latent"] + facts["rope"]
    per_head = (
        facts["query_rank"] * (facts["key"] + facts["rope"])
        + facts["latent"] * (facts["key"] + facts["value"])
        + facts["hidden"] * facts["value"]
    )
    weights = facts["hidden"] * (facts["query_rank"] + latent) + heads * per_head
    seen = np.minimum(context, facts["index_topk"]) if sparse else context
    absorbed = sparse or op.endswith("decode")
    score_dims = latent + facts["latent"] if absorbed else facts["key"] + facts["rope"] + facts["value"]
    flops = FLOPS_PER_MAC * tokens * (weights + heads * score_dims * seen)
    held = shape["batch"] * (shape["past"] + shape["q_len"])
    moved = weights * weight_bytes + tokens * (4.0 * facts["hidden"] + heads * latent) * BYTES_PER_ACTIVATION
    moved = moved + np.minimum(held, tokens * seen) * latent * kv_bytes
    if sparse:
        flops = flops + FLOPS_PER_MAC * tokens * facts["index_heads"] * facts["index_dim"] * context
        moved = moved + held * facts["index_dim"] * BYTES_PER_QUANTISED
    return flops, moved, heads * shape["batch"] * np.ceil(shape["q_len"] / 64.0)


def _stack(*columns: Floats) -> Floats:
    return np.ascontiguousarray(np.stack(np.broadcast_arrays(*columns), axis=-1), np.float64)
