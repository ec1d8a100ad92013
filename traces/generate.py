"""Traces made from laws: arrivals, lengths, and the bundled sample (`python -m traces.generate` writes it)."""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from traces import cells
from traces.arrival_laws import ARRIVAL_LAWS
from traces.errors import BadTrace
from traces.length_laws import LengthLaw, sample_lengths
from traces.servegen import Client, sample_client, window_s
from traces.source import load
from traces.statistics import Lengths, Statistics, describe
from traces.table import csv_table, decode
from traces.trace import Array, Labels, Status, Trace
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
        about = {name: brief(_plain(value)) for name, value in parameters.items()}
        raise ValueError(f"{arrivals} with {about} makes no arrival in {duration_s} s")
    input_tokens, output_tokens = sample_lengths(lengths, len(arrival_ns), rng)
    about = {
        "arrivals": arrivals,
        **{name: brief(_plain(value)) for name, value in parameters.items()},
        "lengths": lengths.identity if isinstance(lengths, Trace) else _plain(asdict(lengths)),
        "duration_s": duration_s,
    }
    return build(name, arrival_ns, input_tokens, output_tokens, about, seed)


def from_pool(
    clients: Sequence[Client],
    duration_s: float,
    seed: int,
    *,
    start_s: float = 0.0,
    factor: float = 1.0,
    lengths: LengthLaw | Trace | None = None,
    name: str = "generated",
) -> Trace:
    """Return requests of a ServeGen pool: every client by its own windows of rate, gap law and lengths.

    factor multiplies all rates; lengths, where given, stand in for clients without tables. Neither counts nor any
    client's are forced: a client expected less than once may come or not. Raises ValueError where no request comes.
    """
    rng = np.random.default_rng(seed)
    step_s = window_s(tuple(clients))
    parts: list[tuple[Array, Array, Array, Array]] = []
    for client in clients:
        times, inputs, outputs = sample_client(client, start_s, start_s + duration_s, step_s, factor, rng, lengths)
        parts.append((times, inputs, outputs, np.full(len(times), len(parts), np.int32)))
    times, inputs, outputs, codes = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(times):
        raise ValueError(f"a pool of {len(clients)} clients makes no request in {duration_s} s from {start_s} s")
    order = np.argsort(times, kind="stable")
    about = {"clients": len(clients), "start_s": start_s, "duration_s": duration_s, "factor": factor}
    trace = build(name, times[order], inputs[order], outputs[order], {"arrivals": "pool", **about}, seed)
    return replace(trace, columns={"client": Labels(codes[order], tuple(client.name for client in clients))})


def read_profile(path: str | Path, service: str | None = None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (times_s, rates_per_s) for `nhpp` from a CSV of counts per hour, day or minute, each rate at its middle.

    The columns are hour_index or hour, day, or minute, and requests or requests_est; `service` picks rows by the
    column of that name. Raises BadTrace, ValueError.
    """
    source = load(path)
    table = csv_table(source.file, decode(source.file, source.content))
    step = next((name for name in PROFILE_STEPS_S if name in table.columns), None)
    counts = next((name for name in ("requests", "requests_est", "count") if name in table.columns), None)
    if step is None or counts is None:
        steps = ", ".join(PROFILE_STEPS_S)
        raise BadTrace(source.file, 1, 1, f"expected a column of {steps} and one of requests; has {table.header}")
    services = table.columns.get("service", [""] * len(table.lines))
    rows = [row for row in range(len(table.lines)) if service is None or services[row] == service]
    if not rows or (service is None and len(set(services)) > 1):
        raise ValueError(f"service {service!r}; {source.file} has {', '.join(sorted(set(services)))}")
    length_s = PROFILE_STEPS_S[step]
    places, _ = cells.tokens([table.columns[step][row] for row in rows])
    found, faults = cells.tokens([table.columns[counts][row] for row in rows])
    if faults:
        row, (_, words) = next(iter(faults.items()))
        raise BadTrace(source.file, table.lines[rows[row]], 1, f"{counts} {words}")
    order = np.argsort(places)
    times = (places[order] - places[order][0] + 0.5) * length_s
    return tuple(times.tolist()), tuple((found[order] / length_s).tolist())


PROFILE_STEPS_S = {"minute": 60.0, "hour_index": 3600.0, "hour": 3600.0, "day": 86_400.0}


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


def brief(value: Any) -> Any:
    """Return a plain value, a list of more than a hundred numbers (in lists or not) told by their count and hash."""
    if not isinstance(value, list | tuple):
        return value
    numbers = sum(len(each) if isinstance(each, list | tuple) else 1 for each in value)
    if numbers <= MOST_TOLD:
        return list(value)
    return {"numbers": numbers, "sha256": hashlib.sha256(json.dumps(value).encode()).hexdigest()}


MOST_TOLD = 100


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    write(generate_sample(), Path(__file__).parent / "samples" / "chat.csv.gz")
