"""Which cut of one model over one device serves one load best under two limits, and what other cuts do under the same.

The load is a closed loop of equal requests, as published configurators take it; figures are those of models.estimate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.closed_loop import Load
from models.device import Device
from models.engine import Engine, Settings
from models.estimate import StepCosts, estimate
from models.llm import Llm
from planners.offers.engines import Variants, legal_engines

MOST_CONCURRENCY = 512
BUDGETS = (2048, 8192)  # tokens a step
RANKS = (1, 2, 4, 8)  # that share one set of experts


@dataclass(frozen=True, slots=True)
class Point:
    """An engine at the concurrency at which it serves most within the limits; per_device: output tokens/s a device."""

    engine: Engine
    concurrency: int
    per_device: float
    ttft_s: float
    tpot_s: float


def best_point(engine: Engine, load: Load, ttft_limit_s: float, tpot_limit_s: float) -> Point | None:
    """Return the best concurrency of an engine, by doubling and halving; None where even one client waits too long."""
    costs = StepCosts(engine)

    def at(concurrency: int) -> Point | None:
        try:
            seen = estimate(engine, replace(load, concurrency=concurrency), costs)
        except ValueError:
            return None
        kept = seen.ttft_s <= ttft_limit_s and seen.tpot_s <= tpot_limit_s
        per_device = seen.output_tokens_per_s / engine.devices
        return Point(engine, concurrency, per_device, seen.ttft_s, seen.tpot_s) if kept else None

    best, low, high = at(1), 1, 2
    while best is not None and high <= MOST_CONCURRENCY and (found := at(high)) is not None:
        best, low, high = found, high, 2 * high
    while best is not None and high - low > max(1, low // 16):
        middle = (low + high) // 2
        found = at(middle)
        if found is None:
            high = middle
        else:
            best, low = found, middle
    return best


def ranking(
    llm: Llm,
    device: Device,
    load: Load,
    ttft_limit_s: float,
    tpot_limit_s: float,
    dtypes: Sequence[str] = ("fp8",),
) -> tuple[Point, ...]:
    """Return every cut that keeps the limits, the one that serves most per device first."""
    found = []
    context = load.input_tokens + load.output_tokens
    for budget in BUDGETS:
        settings = Settings(max_num_batched_tokens=budget, max_num_seqs=MOST_CONCURRENCY)
        for engine in legal_engines(
            llm, [device], context_tokens=context, variants=Variants(tuple(dtypes), dp=RANKS), settings=settings
        ):
            point = best_point(engine, load, ttft_limit_s, tpot_limit_s)
            if point is not None:
                found.append(point)
    return tuple(sorted(found, key=lambda point: (-point.per_device, point.engine.devices, point.engine.name)))
