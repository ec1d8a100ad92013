"""Price many shapes of one operator at once: a row of columns in, seconds and traits out."""

import numpy as np
import numpy.typing as npt

from models.attention import attention_decode_traits, attention_mixed_traits, attention_prefill_traits
from models.compiled import kernel
from models.experts import moe_traits, tokens_of_rank
from models.operators import (
    LOOKUP_GROUP,
    collective,
    exchange_traits,
    gemm_traits,
    lookup_gemm,
    roofline_traits,
)

Floats = npt.NDArray[np.float64]


@kernel
def gemm_rows(columns, formats, machine, fit, out):
    """Fill out[i] for columns (m, n, k)."""
    for i in range(columns.shape[0]):
        row = gemm_traits(columns[i, 0], columns[i, 1], columns[i, 2], formats, machine, fit)
        for j in range(len(row)):
            out[i, j] = row[j]


@kernel
def moe_rows(columns, formats, machine, fit, out):
    """Fill out[i] for columns (m, hidden, inter, experts, topk, tp, ep, uneven, matrices, tall, wide, deep, strays)."""
    for i in range(columns.shape[0]):
        c = columns[i]
        shape = (c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8])
        row = moe_traits(*shape, c[9], c[10], c[11], c[12], formats, machine, fit)
        for j in range(len(row)):
            out[i, j] = row[j]


@kernel
def tokens_of_rank_rows(columns, out):
    """Fill out[i] for columns (m, experts, topk, ep, uneven)."""
    for i in range(columns.shape[0]):
        out[i] = tokens_of_rank(columns[i, 0], columns[i, 1], columns[i, 2], columns[i, 3], columns[i, 4])


@kernel
def decode_rows(columns, formats, machine, fit, out):
    """Fill out[i] for columns (batch, kv_tokens, heads, kv_heads, head_dim, window)."""
    for i in range(columns.shape[0]):
        c = columns[i]
        row = attention_decode_traits(c[0], c[1], c[2], c[3], c[4], c[5], formats, machine, fit)
        for j in range(len(row)):
            out[i, j] = row[j]


@kernel
def prefill_rows(columns, formats, machine, fit, out):
    """Fill out[i] for columns (batch, q_len, past, heads, kv_heads, head_dim, window, causal)."""
    for i in range(columns.shape[0]):
        c = columns[i]
        row = attention_prefill_traits(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], formats, machine, fit)
        for j in range(len(row)):
            out[i, j] = row[j]


@kernel
def mixed_rows(columns, formats, machine, fit, out):
    """Fill out[i] for columns (q_len, past, decodes, decode_tokens, heads, kv_heads, head_dim, window)."""
    for i in range(columns.shape[0]):
        c = columns[i]
        row = attention_mixed_traits(c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], formats, machine, fit)
        for j in range(len(row)):
            out[i, j] = row[j]


@kernel
def roofline_rows(columns, formats, machine, fit, out):
    """Fill out[i] for columns (flops, moved_bytes, rows)."""
    for i in range(columns.shape[0]):
        row = roofline_traits(columns[i, 0], columns[i, 1], columns[i, 2], machine, fit)
        for j in range(len(row)):
            out[i, j] = row[j]


@kernel
def lookup_rows(columns, formats, machine, fit, out):
    """Fill out[i] for columns (m, n, k, bits of a weight)."""
    for i in range(columns.shape[0]):
        c = columns[i]
        bandwidth_bytes_per_s = machine.bandwidth_bytes_per_s * fit[2]
        out[i, 0] = lookup_gemm(c[0], c[1], c[2], c[3], LOOKUP_GROUP, fit[1], bandwidth_bytes_per_s, fit[0])


@kernel
def collective_rows(columns, formats, machine, fit, out):
    """Fill out[i] for columns (moved_bytes, devices, nodes, all_pairs, rings)."""
    for i in range(columns.shape[0]):
        c = columns[i]
        out[i, 0] = collective(c[0], c[1], c[2], c[3], c[4], fit)


@kernel
def exchange_rows(columns, formats, machine, fit, out):
    """Fill out[i] for columns (tokens, hidden, topk, devices, nodes, processors, value_bytes)."""
    for i in range(columns.shape[0]):
        c = columns[i]
        row = exchange_traits(c[0], c[1], c[2], c[3], c[4], c[5], c[6], fit)
        for j in range(len(row)):
            out[i, j] = row[j]
