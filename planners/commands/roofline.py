"""A roofline plot: the operators of one decode step and one prompt under the device's peaks."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from models.engine import Engine
    from models.forward import Call

FLOPS_PER_MAC = 2.0
LABELLED_SHARE = 0.03  # smaller operators are drawn without their name


def draw(engine: "Engine", isl: int, osl: int, batch: float, path: Path) -> None:
    """Write the plot to a file; its ending chooses the format."""
    from matplotlib.figure import Figure

    from models import forward
    from models.dtype import multiplied_in

    one = np.ones(1)
    chunk = float(min(isl, engine.settings.max_num_batched_tokens))
    steps = {
        "decode": [
            *forward.token_calls(engine, batch * one),
            *forward.decode_calls(engine, batch * one, (isl + osl / 2) * one),
        ],
        "prefill": [*forward.token_calls(engine, chunk * one), *forward.prefill_calls(engine, chunk * one, 0.0 * one)],
    }
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    peak = engine.device.peak_flops_per_s(multiplied_in(engine.dtype))
    intensity = np.geomspace(0.1, 1e5, 200)
    axes.loglog(intensity, np.minimum(peak, intensity * engine.device.bandwidth_bytes_per_s), color="black")
    for colour, marker, (name, calls) in zip(("tab:blue", "tab:orange"), ("o", "s"), steps.items(), strict=True):
        _scatter(axes, engine, calls, name, colour, marker)
    axes.set_xlabel("FLOP per byte moved")
    axes.set_ylabel("FLOP/s of one device")
    axes.set_title(engine.name, fontsize=9)
    axes.legend()
    figure.savefig(path)


def _scatter(axes: "object", engine: "Engine", calls: "list[Call]", name: str, colour: str, marker: str) -> None:
    from models.calibration.predict import call_s, work_of_call

    points = []
    for call in calls:
        flops, moved = work_of_call(engine, call)
        if flops > 0.0:
            points.append((flops / moved, call.times, flops, float(call_s(engine, call)[0]), call.label))
    total = sum(times * seconds for _, times, _, seconds, _ in points)
    for intensity, times, flops, seconds, label in points:
        axes.plot(intensity, flops / seconds, marker, color=colour)  # type: ignore[attr-defined]
        if times * seconds > LABELLED_SHARE * total:
            axes.annotate(label, (intensity, flops / seconds), fontsize=7)  # type: ignore[attr-defined]
    axes.plot([], [], marker, color=colour, label=name)  # type: ignore[attr-defined]
