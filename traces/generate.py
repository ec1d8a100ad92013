"""Traces made from laws: arrivals, lengths, and the bundled sample (`python -m traces.generate` writes it)."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from traces.arrival_laws import ARRIVAL_LAWS
from traces.length_laws import LengthLaw, sample_lengths
from traces.statistics import Lengths, Statistics, describe
from traces.trace import Array, Status, Trace
from traces.writing import write

CLOCK_NS = 1_000  # generated times are whole microseconds, as public traces have them


def generate(
    arrivals: str,
    parameters: Mapping[str, Any],
    lengths: LengthLaw | Trace,
    duration_s: float,
    seed: int,
    name: str = "generated",
) -> Trace:
    """Return a trace whose arrivals follow a law of `ARRIVAL_LAWS` and whose lengths are drawn in pairs.

    lengths is a law, or a trace whose rows are drawn. Raises ValueError for an unknown law or no arrival at all.
    """
    if arrivals not in ARRIVAL_LAWS:
        raise ValueError(f"unknown arrival law {arrivals!r}; known: {', '.join(ARRIVAL_LAWS)}")
    rng = np.random.default_rng(seed)
    arrival_ns = ARRIVAL_LAWS[arrivals](duration_s=duration_s, rng=rng, **parameters) // CLOCK_NS * CLOCK_NS
    if not len(arrival_ns):
        raise ValueError(f"{arrivals} with {dict(parameters)} makes no arrival in {duration_s} s")
    input_tokens, output_tokens = sample_lengths(lengths, len(arrival_ns), rng)
    about = {
        "arrivals": arrivals,
        **{name: _plain(value) for name, value in parameters.items()},
        "lengths": lengths.identity if isinstance(lengths, Trace) else _plain(asdict(lengths)),
        "duration_s": duration_s,
    }
    return build(name, arrival_ns, input_tokens, output_tokens, about, seed)


def build(
    name: str, arrival_ns: Array, input_tokens: Array, output_tokens: Array, parameters: Mapping[str, object], seed: int
) -> Trace:
    """Return a generated trace of the given columns, its parameters and seed on record."""
    metadata: dict[str, object] = {
        "source": "generated",
        "sha256": None,
        "format": "generated",
        "rows_read": len(arrival_ns),
        "rows_kept": len(arrival_ns),
        "rows_dropped": {},
        "time_unit": "ns",
        "time_quantum_ns": CLOCK_NS,
        "t0_ns": None,
        "tz": None,
        "warnings": [],
        "chain": [{"operation": "generate", "parameters": dict(parameters), "seed": seed}],
    }
    status = np.full(len(arrival_ns), Status.OK, np.int8)
    return Trace(name, arrival_ns, input_tokens, output_tokens, status, {}, metadata)


def generate_sample() -> Trace:
    """Return the bundled sample, made anew from the laws in samples/chat.toml."""
    laws = sample_laws()
    lengths = LengthLaw(**{name: _tuple(value) for name, value in laws["lengths"].items()})
    return generate("cox", laws["cox"], lengths, laws["duration_s"], laws["seed"], name="chat")


def sample_laws() -> dict[str, Any]:
    """Return the fitted laws behind the sample, their source, and the statistics they were fitted to."""
    return tomllib.loads(files("traces").joinpath("samples/chat.toml").read_text())


def sample_beside_source(trace: Trace) -> list[tuple[str, float, float]]:
    """Return (statistic, of the source trace, of the given trace) rows: the sample beside what it resembles."""
    found = flat(describe(trace))
    return [(name, float(value), found[name]) for name, value in sample_laws()["source_statistics"].items()]


def flat(statistics: Statistics) -> dict[str, float]:
    """Return the numbers that tell whether two traces are alike, by a name with its unit."""
    numbers = {"rows": statistics.rows, "span_s": statistics.span_s, "rate_per_s": statistics.rate_per_s}
    numbers |= {"iat_cv": statistics.iat_cv}
    numbers |= {f"idc_{window}_s": value for window, value in statistics.idc.items()}
    numbers |= _flat_lengths("input_tokens", statistics.input_tokens)
    numbers |= _flat_lengths("output_tokens", statistics.output_tokens)
    numbers |= {"rank_correlation": statistics.rank_correlation}
    return {name: float("nan") if value is None else float(value) for name, value in numbers.items()}


def _flat_lengths(name: str, lengths: Lengths) -> dict[str, float | None]:
    return {f"{name}_{each}": getattr(lengths, each) for each in ("mean", "p50", "p90", "p99", "max")}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, tuple | list | np.ndarray):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    write(generate_sample(), Path(__file__).parent / "samples" / "chat.csv.gz")
