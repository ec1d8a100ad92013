"""Held-out errors by (device, engine, operator, dtype) against what is asked of them.

python -m models.calibration.held_out [FOLDER]
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.calibration import store
from models.calibration.pool import Fitted
from models.calibration.store import HeldOut

QUICK_S = 1e-5  # below, a relative error tells little
QUICK_ERROR_S = 1.5e-6
QUICK_SHARE = 0.9  # of quick rows must be within that
FEWEST_ROWS = 200


class Bar(NamedTuple):
    """What the groups of some operators must reach under one split: median and p90 of the relative error."""

    name: str
    ops: tuple[str, ...]
    split: str
    median: float
    p90: float


DECODES = ("attn_decode", "mla_decode")
PREFILLS = ("attn_prefill", "mla_prefill")
CALLS = ("gemm", *DECODES, *PREFILLS, "attn_mixed", "moe")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "alltoall")
BARS = (
    Bar("gemm", ("gemm",), "shape", 0.03, 0.11),
    Bar("attention decode", DECODES, "shape", 0.02, 0.07),
    Bar("attention decode, head configurations", DECODES, "family", 0.02, 0.07),
    Bar("attention prefill", PREFILLS, "shape", 0.035, 0.13),
    Bar("attention prefill, head configurations", PREFILLS, "family", 0.035, 0.13),
    Bar("mixed", ("attn_mixed",), "shape", 0.032, 0.15),
    Bar("experts", ("moe",), "shape", 0.05, 0.15),
    Bar("experts, architectures", ("moe",), "family", 0.05, 0.15),
    Bar("elementwise", ("norm", "act", "rope", "add", "embed"), "shape", 0.05, 0.15),
    Bar("extrapolation", CALLS, "beyond", 0.04, 0.15),
    Bar("collectives, device counts", COLLECTIVES, "family", 0.06, 0.16),
)


def judged(fitted: Iterable[Fitted]) -> list[HeldOut]:
    """Return the held-out errors of one device's and engine's fits by operator and dtype, all kernels together."""
    together: dict[tuple[str, str, str], list[Fitted]] = {}
    for one in fitted:
        for split in one.held:
            together.setdefault((one.fit.op, one.fit.dtype, split), []).append(one)
    return [_judged(*name, every) for name, every in together.items()]


def _judged(op: str, dtype: str, split: str, fitted: Sequence[Fitted]) -> HeldOut:
    errors = np.abs(np.expm1(np.concatenate([one.held[split].log_error for one in fitted])))
    seconds = np.concatenate([one.held[split].seconds for one in fitted])
    quick = seconds < QUICK_S
    slow_errors = errors[~quick] if not quick.all() else np.zeros(1)
    within = (errors * seconds)[quick] <= QUICK_ERROR_S
    covered = [one.covered[split] for one in fitted if split in one.covered]
    together = np.concatenate(covered) if covered else np.zeros(0, bool)
    return HeldOut(
        *(op, dtype, split, sum(one.fit.rows for one in fitted), len(errors)),
        *(float(np.median(slow_errors)), float(np.quantile(slow_errors, 0.9))),
        *(int(quick.sum()), float(within.mean()) if quick.any() else 1.0),
        *(len(together), float(together.mean()) if len(together) else 1.0),
    )


def of_others(told: Iterable[HeldOut], ops: Sequence[str] | None) -> list[HeldOut]:
    """Return the held-out errors of operators that are not fitted now; ops is None where all are."""
    return [one for one in told if ops and one.op not in ops]


def is_within(told: HeldOut, bar: Bar) -> bool:
    """Return whether a group reaches its bar: rows of 10 us and more by relative error, shorter ones by time."""
    return told.median <= bar.median and told.p90 <= bar.p90 and told.quick_within >= QUICK_SHARE


def lines(folder: Path = store.FOLDER) -> list[str]:
    """Return a table: for each bar the groups, how many reach it, and medians over groups; coverage of intervals."""
    every = [one for place in store.places(folder) for one in store.held_out(*place, folder)]
    found = [f"{'':38} {'groups':>6} {'within':>6} {'median':>7} {'p90':>7} {'worst':>7}  90 % intervals hold"]
    for bar in BARS:
        mine = [one for one in every if one.op in bar.ops and one.split == bar.split and one.rows >= FEWEST_ROWS]
        if not mine:
            continue
        medians, tails = [one.median for one in mine], [one.p90 for one in mine]
        within = sum(is_within(one, bar) for one in mine)
        counted = sum(one.fresh for one in mine)
        covered = f"{sum(one.fresh * one.coverage for one in mine) / counted:.1%} of {counted}" if counted else ""
        typical = f"{np.median(medians):7.1%} {np.median(tails):7.1%} {max(medians):7.1%}"
        found.append(f"{bar.name:38} {len(mine):6} {within:6} {typical}  {covered}")
    return found


if __name__ == "__main__":
    print("\n".join(lines(*map(Path, sys.argv[1:2]))))
