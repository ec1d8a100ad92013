"""Our choice of a cut against another configurator's, both under our model: equal requests, a closed loop.

python tests/bench_parallelism.py [CHOICES.csv]

CHOICES has the columns model, device, ttft_s, tpot_ms and cut, as "tp4pp1ep1dp1": what another configurator chose.
"""

import csv
import itertools
import sys

from models import device, llm
from models.closed_loop import Load
from planners.parallelism import Point, ranking

MODELS = ("qwen3-32b", "llama-3.1-70b", "deepseek-v3")  # all in fp8
DEVICES = ("h100-sxm", "h200-sxm", "b200-sxm")
LIMITS = ((1.0, 0.02), (1.0, 0.04), (3.0, 0.02), (3.0, 0.04))  # TTFT, TPOT [s]
LOAD = Load(input_tokens=4000, output_tokens=1000, concurrency=1)


def cut_of(point: Point) -> str:
    """Return the cut as engines are named."""
    return point.engine.name.split("/")[2]


def describe(point: Point | None) -> str:
    """Return a point in words."""
    if point is None:
        return "keeps the limits with no client"
    return (
        f"{cut_of(point)} {point.engine.settings.max_num_batched_tokens} tokens a step, {point.concurrency} clients: "
        f"{point.per_device:.0f} tokens/s a device, TTFT {point.ttft_s:.2f} s, TPOT {point.tpot_s * 1e3:.1f} ms"
    )


def main() -> None:
    """Print a row for every model, device and pair of limits."""
    chosen = {}
    if len(sys.argv) > 1:
        with open(sys.argv[1], newline="") as file:
            for row in csv.DictReader(file):
                key = row["model"], row["device"], float(row["ttft_s"]), float(row["tpot_ms"]) / 1e3
                chosen[key] = row["cut"]
    for model, name, (ttft_s, tpot_s) in itertools.product(MODELS, DEVICES, LIMITS):
        points = ranking(llm.load(model), device.load(name), LOAD, ttft_s, tpot_s)
        print(f"{model} {name} TTFT {ttft_s:g} s TPOT {tpot_s * 1e3:g} ms")
        print("  ours:   " + describe(points[0] if points else None))
        cut = chosen.get((model, name, ttft_s, tpot_s))
        if cut:
            theirs = next((point for point in points if cut_of(point) == cut), None)
            print(f"  theirs: {cut}: " + describe(theirs))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
