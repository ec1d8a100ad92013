"""Measure a CUDA device's matrix products through torch, as rows that a fit takes (remeasured.py)."""

from itertools import product
from statistics import median
from typing import Any

TOKENS = (1, 8, 64, 512, 2048, 8192)
MATRICES = ((4096, 4096), (12288, 4096), (4096, 14336), (28672, 8192), (1024, 8192))  # (n, k)
COLD_BYTES = 512e6  # of copies of a matrix that take turns, more than any cache holds
WARM_UPS, CALLS = 3, 20
BYTES_PER_VALUE = 2
US_PER_MS = 1e3


def loaded() -> Any:
    """Return torch; ValueError where it, or a CUDA device for it, is not there."""
    try:
        import torch
    except ImportError:
        raise ValueError("measuring a CUDA device needs torch, which is not installed; leave out --device") from None
    if not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device on this machine; leave out --device to measure its CPU")
    return torch


def measure(torch: Any) -> list[dict[str, Any]]:
    """Return the median microseconds of each bf16 product C[m, n] = A[m, k] B[n, k]^T, weights not in the cache."""
    rows = []
    for (n, k), m in product(MATRICES, TOKENS):
        kind = {"dtype": torch.bfloat16, "device": "cuda"}
        copies = max(2, int(COLD_BYTES / (n * k * BYTES_PER_VALUE)))
        weights = [torch.randn(n, k, **kind) for _ in range(min(copies, CALLS))]
        tokens = torch.randn(m, k, **kind)
        times_ms = [_call_ms(torch, tokens, weights[i % len(weights)]) for i in range(WARM_UPS + CALLS)]
        time_us = median(times_ms[WARM_UPS:]) * US_PER_MS
        rows.append({"op": "gemm", "dtype": "bf16", "m": m, "n": n, "k": k, "time_us": time_us})
    return rows


def _call_ms(torch: Any, tokens: Any, weight: Any) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch.nn.functional.linear(tokens, weight)
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))
