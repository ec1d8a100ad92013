"""Which measured rows are physically impossible: faster than the device can multiply or read memory."""

import numpy as np
import numpy.typing as npt

from models.calibration.measured import Group
from models.calibration.shapes import Shape
from models.operators import Formats, Machine

Booleans = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

# Of the peak that operators bound to multiply can reach: boost clocks and data-sheet rounding; attention's softmax
# between its two products.
PEAK_SHARES = {"gemm": 1.1, "attn_prefill": 0.8}
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
    if group.op in PEAK_SHARES:
        too_fast = group.seconds < least_s(group.op, group.shape, machine)
        found[f"above {PEAK_SHARES[group.op]:g}x peak FLOP/s"] = too_fast
    if group.op == "attn_decode":
        kv_bytes = least_kv_bytes(group, formats)
        streams = kv_bytes > CACHES_FOR_STREAMING * machine.cache_bytes
        too_fast = kv_bytes > BANDWIDTH_TOLERANCE * machine.bandwidth_bytes_per_s * group.seconds
        found["KV read faster than memory bandwidth"] = streams & too_fast
        if (streams & too_fast).mean() > WHOLE_TABLE_SHARE:
            found["KV not distinct per sequence: much of this kernel's table beats memory"] = ~(streams & too_fast)
    return found


def least_s(op: str, shape: Shape, machine: Machine) -> Floats:
    """Return the least seconds in which a machine can multiply each row of an operator of PEAK_SHARES."""
    if op == "gemm":
        flops = 2.0 * shape["m"] * shape["n"] * shape["k"]
    else:
        seen = _mean_context(shape["q_len"], shape["past"], shape["window"])
        flops = 4.0 * shape["batch"] * shape["q_len"] * shape["heads"] * shape["head_dim"] * seen
    return np.asarray(flops / (PEAK_SHARES[op] * machine.flops_per_s))


def _mean_context(q_len: Floats, past: Floats, window: Floats) -> Floats:
    """Return the mean number of tokens that a query of a causal chunk sees, at most the window where there is one."""
    growing = np.clip(np.where(window > 0.0, window - past, q_len), 0.0, q_len)
    total = growing * (past + 0.5 * (growing + 1.0)) + (q_len - growing) * window
    return np.asarray(total / q_len)


def least_kv_bytes(group: Group, formats: Formats) -> Floats:
    """Return the KV bytes that each decode row must read at least once."""
    shape = group.shape
    seen = shape["past"] + 1.0
    seen = np.where(shape["window"] > 0.0, np.minimum(seen, shape["window"]), seen)
    return 2.0 * shape["batch"] * seen * shape["kv_heads"] * shape["head_dim"] * formats.kv_bytes
