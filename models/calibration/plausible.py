"""Which measured rows are physically impossible: faster than the device can multiply or read memory."""

import numpy as np
import numpy.typing as npt

from models.calibration.measured import Group
from models.operators import Formats, Machine

Booleans = npt.NDArray[np.bool_]

PEAK_TOLERANCE = 1.1  # boost clocks and data-sheet rounding
ATTENTION_SHARE = 0.8  # the softmax between its two products leaves attention this share of the peak at best
BANDWIDTH_TOLERANCE = 1.1
WHOLE_TABLE_SHARE = 0.25  # where so many rows of one kernel beat memory, its sequences shared their KV: no row counts
CACHES_FOR_STREAMING = 4.0  # a KV cache this many times the last-level cache must come from memory


def impossible(group: Group, machine: Machine, formats: Formats) -> Booleans:
    """Return which rows no device of this data sheet could have produced."""
    refused = np.zeros(group.rows, bool)
    for rows in reasons(group, machine, formats).values():
        refused |= rows
    return refused


def reasons(group: Group, machine: Machine, formats: Formats) -> dict[str, Booleans]:
    """Return, for each reason to refuse a row, the rows it holds for."""
    found = {"time is not positive": ~(group.seconds > 0.0)}
    flops = least_flops(group)
    if flops is not None:
        share = ATTENTION_SHARE if group.op == "attn_prefill" else PEAK_TOLERANCE
        found[f"above {share:g}x peak FLOP/s"] = flops > share * machine.flops_per_s * group.seconds
    if group.op == "attn_decode":
        kv_bytes = least_kv_bytes(group, formats)
        streams = kv_bytes > CACHES_FOR_STREAMING * machine.cache_bytes
        too_fast = kv_bytes > BANDWIDTH_TOLERANCE * machine.bandwidth_bytes_per_s * group.seconds
        found["KV read faster than memory bandwidth"] = streams & too_fast
        if (streams & too_fast).mean() > WHOLE_TABLE_SHARE:
            found["KV not distinct per sequence: much of this kernel's table beats memory"] = ~(streams & too_fast)
    return found


def least_flops(group: Group) -> npt.NDArray[np.float64] | None:
    """Return the fewest FLOP each row needs, where the operator is bound to multiply."""
    shape = group.shape
    if group.op == "gemm":
        return 2.0 * shape["m"] * shape["n"] * shape["k"]
    if group.op == "attn_prefill":
        seen = _mean_context(shape["q_len"], shape["past"], shape["window"])
        return 4.0 * shape["batch"] * shape["q_len"] * shape["heads"] * shape["head_dim"] * seen
    return None


def _mean_context(
    q_len: npt.NDArray[np.float64], past: npt.NDArray[np.float64], window: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the mean number of tokens that a query of a causal chunk sees, at most the window where there is one."""
    growing = np.clip(np.where(window > 0.0, window - past, q_len), 0.0, q_len)
    total = growing * (past + 0.5 * (growing + 1.0)) + (q_len - growing) * window
    return np.asarray(total / q_len)


def least_kv_bytes(group: Group, formats: Formats) -> npt.NDArray[np.float64]:
    """Return the KV bytes that each decode row must read at least once."""
    shape = group.shape
    seen = shape["past"] + 1.0
    seen = np.where(shape["window"] > 0.0, np.minimum(seen, shape["window"]), seen)
    return 2.0 * shape["batch"] * seen * shape["kv_heads"] * shape["head_dim"] * formats.kv_bytes
