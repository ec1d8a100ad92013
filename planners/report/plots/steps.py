"""The roofline of a device, with whole steps of an engine under it."""

from typing import Any

import numpy as np

from models.dtype import bytes_per_value
from models.step import PICOSECONDS_PER_SECOND
from planners.report.colours import BAD, NEUTRAL, of_device
from planners.report.plots.axes import dress, label_line
from planners.report.plots.latency import _decode_step_ps

DECODE_BATCHES = (1, 4, 16, 64, 256)
PREFILL_TOKENS = (128, 512, 2048, 8192)
CONTEXT_TOKENS = 1024


def roofline(ax: Any, priced: Any) -> Any:
    """Draw a device's roofline and what decode and prefill steps of an engine reach under it, per device."""
    engine = priced.engine
    device, devices = engine.device, engine.devices
    peak = device.peak_flops_per_s(engine.dtype)
    ridge = peak / device.bandwidth_bytes_per_s
    intensities = np.geomspace(0.3, 30 * ridge, 200)
    colour = of_device(device.name)
    ax.plot(intensities, np.minimum(peak, intensities * device.bandwidth_bytes_per_s), color=colour)
    reached = []
    for batch in _legal(DECODE_BATCHES, priced.limits.max_sequences, priced, CONTEXT_TOKENS):
        seconds = _decode_step_ps(priced.table, batch, batch * CONTEXT_TOKENS) / PICOSECONDS_PER_SECOND
        flops, moved = _work(engine, batch, batch * CONTEXT_TOKENS)
        reached.append(_point(ax, flops / devices, moved / devices, seconds, f"decode {batch}", NEUTRAL))
    for tokens in _legal(PREFILL_TOKENS, priced.limits.max_batched_tokens, priced, 1):
        picoseconds = (
            priced.table.token_ps[0, tokens] + priced.table.sequence_ps[0, 1] + priced.table.prefill_ps[0, tokens]
        )
        flops, moved = _work(engine, tokens, 0)
        seconds = float(picoseconds) / PICOSECONDS_PER_SECOND
        reached.append(_point(ax, flops / devices, moved / devices, seconds, f"prefill {tokens}", BAD))
    ax.set_xscale("log")
    ax.set_yscale("log")
    best = max(reached, default=0.0) / peak
    finding = f"{device.name}: steps of {engine.llm.name} reach {best:.0%} of the {engine.dtype} peak at best"
    return dress(ax, finding, "FLOP per byte", "FLOP/s a device")


def _work(engine: Any, tokens: int, context_tokens: int) -> tuple[float, float]:
    """Return the FLOPs of weights and the bytes of weights and KV that a step of so many tokens needs, all devices."""
    flops = 2.0 * engine.llm.active_parameters * tokens
    weights = engine.llm.active_parameters * bytes_per_value(engine.dtype)
    return flops, weights + context_tokens * engine.llm.kv_bytes_per_token(engine.kv_dtype)


def _legal(choices: tuple[int, ...], most: int, priced: Any, context_tokens: int) -> list[int]:
    room = priced.limits.total_blocks * priced.limits.block_tokens // context_tokens
    return [choice for choice in choices if choice <= min(most, room)]


def _point(ax: Any, flops: float, moved: float, seconds: float, words: str, colour: str) -> float:
    ax.plot(flops / moved, flops / seconds, "o", color=colour, markersize=4)
    label_line(ax, flops / moved, flops / seconds, words, colour)
    return flops / seconds
