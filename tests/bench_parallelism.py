"""Our choice of a cut against another configurator's, both under our model: equal requests, a closed loop.

python tests/bench_parallelism.py [--all] [--choices CHOICES.csv]

CHOICES, parallelism_choices.csv by default, has the columns model, device, ttft_s, tpot_ms and cut, as "tp4pp1ep1dp1":
what another configurator chose; its own estimate of tokens/s a device; and where that was read. Only those cases are
looked at, or with --all every model on every device under every pair of limits.
"""

import argparse
import csv
import itertools
import sys
from pathlib import Path

from models import device, llm
from models.closed_loop import Load
from planners.place.parallelism import Point, ranking

MODELS = ("qwen3-32b", "llama-3.1-70b", "deepseek-v3")  # all in fp8
DEVICES = ("h100-sxm", "h200-sxm", "b200-sxm")
LIMITS = ((1.0, 0.02), (1.0, 0.04), (3.0, 0.02), (3.0, 0.04))  # TTFT, TPOT [s]
CHOICES = Path(__file__).with_name("parallelism_choices.csv")
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


def chosen_by_others(path: Path) -> dict[tuple[str, str, float, float], tuple[str, str]]:
    """Return the cut and the tokens/s a device that another configurator told, by case."""
    with path.open(newline="") as file:
        return {
            (row["model"], row["device"], float(row["ttft_s"]), float(row["tpot_ms"]) / 1e3): (
                row["cut"],
                row["tokens_per_s_per_device"],
            )
            for row in csv.DictReader(file)
        }


def main() -> None:
    """Print our choice and theirs, case by case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--choices", type=Path, default=CHOICES)
    asked = parser.parse_args()
    theirs = chosen_by_others(asked.choices)
    every = [(model, name, *limits) for model, name, limits in itertools.product(MODELS, DEVICES, LIMITS)]
    for case in every if asked.all else [case for case in every if case in theirs]:
        model, name, ttft_s, tpot_s = case
        points = ranking(llm.load(model), device.load(name), LOAD, ttft_s, tpot_s)
        print(f"{model} {name} TTFT {ttft_s:g} s TPOT {tpot_s * 1e3:g} ms")
        print("  ours:   " + describe(points[0] if points else None))
        if case in theirs:
            cut, per_device = theirs[case]
            point = next((point for point in points if cut_of(point) == cut), None)
            print(f"  theirs: {cut}, by their own model {per_device}; " + describe(point))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
