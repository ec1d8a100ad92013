"""Which measured rows are physically impossible: faster than the device can multiply or read memory."""

import numpy as np
import numpy.typing as npt

from models.calibration.measured import Group
from models.operators import Formats, Machine

Booleans = npt.NDArray[np.bool_]

PEAK_TOLERANCE = 1.1  # boost clocks and data-sheet rounding
BANDWIDTH_TOLERANCE = 1.1
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
        found["above 1.1x peak FLOP/s"] = flops > PEAK_TOLERANCE * machine.flops_per_s * group.seconds
    if group.op == "attn_decode":
        kv_bytes = least_kv_bytes(group, formats)
        streams = kv_bytes > CACHES_FOR_STREAMING * machine.cache_bytes
        too_fast = kv_bytes > BANDWIDTH_TOLERANCE * machine.bandwidth_bytes_per_s * group.seconds
        found["KV read faster than memory bandwidth"] = streams & too_fast
    return found


def least_flops(group: Group) -> npt.NDArray[np.float64] | None:
    """Return the fewest FLOP each row needs, where the operator is bound to multiply."""
    shape = group.shape
    if group.op == "gemm":
        return 2.0 * shape["m"] * shape["n"] * shape["k"]
    if group.op == "attn_prefill":
        seen = shape["past"] + 0.5 * (shape["q_len"] + 1.0)
        seen = np.where(shape["window"] > 0.0, np.minimum(seen, shape["window"]), seen)
        seen = np.where((shape["window"] > 0.0) & (shape["past"] + shape["q_len"] > shape["window"]), 0.5 * seen, seen)
        return 4.0 * shape["batch"] * shape["q_len"] * shape["heads"] * shape["head_dim"] * seen
    return None


def least_kv_bytes(group: Group, formats: Formats) -> npt.NDArray[np.float64]:
    """Return the KV bytes that each decode row must read at least once."""
    shape = group.shape
    seen = shape["past"] + 1.0
    seen = np.where(shape["window"] > 0.0, np.minimum(seen, shape["window"]), seen)
    return 2.0 * shape["batch"] * seen * shape["kv_heads"] * shape["head_dim"] * formats.kv_bytes
