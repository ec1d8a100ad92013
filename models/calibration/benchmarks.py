"""Read what benchmark tools wrote: runs as (prompt tokens, answer tokens, concurrency, TTFT, time per token).

Times are converted to ours: TTFT from sending to the first token, time per token without the first.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
MILLISECOND = 1e-3


@dataclass(frozen=True, slots=True)
class Run:
    """One benchmark run: mean lengths in tokens, mean requests in flight, times as the tool's typical value or None."""

    place: str
    input_tokens: float
    output_tokens: float
    concurrency: float
    ttft_s: float | None
    tpot_s: float | None


def read(path: Path) -> list[Run]:
    """Return the runs of a file, whatever tool wrote it; ValueError names the formats where none fits."""
    text = path.read_text()
    if re.search(r"^(vllm|sglang)[:_]\w+", text, re.MULTILINE):
        return [_prometheus(str(path), text)]
    found = []
    for number, value in enumerate(_values(path, text), start=1):
        place = f"{path}#{number}"
        for name, (fits, runs) in FORMATS.items():
            if fits(value):
                try:
                    found += list(runs(place, value))
                except (KeyError, TypeError, ZeroDivisionError) as error:
                    raise ValueError(f"{place}: looks like {name}, but {error!r} is missing or malformed") from error
                break
        else:
            raise ValueError(f"{place}: no known benchmark result; known: {', '.join(FORMATS)}, prometheus text")
    return found


def _values(path: Path, text: str) -> Iterator[Any]:
    """Yield every JSON value of a text, one after the other, or the one value of a YAML file."""
    if path.suffix in (".yaml", ".yml"):
        import yaml

        yield yaml.safe_load(text)
        return
    decoder, at = json.JSONDecoder(), 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}:{error.colno}: no JSON: {error.msg}") from error
        yield value


def _seconds(row: Row, *names: str) -> float | None:
    """Return the first of several millisecond columns that is there, in seconds."""
    for name in names:
        if isinstance(row.get(name), int | float) and math.isfinite(row[name]) and row[name] > 0:
            return float(row[name]) * MILLISECOND
    return None


def _bench(place: str, row: Row) -> Iterator[Run]:
    """Yield one run of `vllm bench serve` or SGLang's bench_serving."""
    requests = row["completed"]
    answers = row["total_output_tokens"] / requests
    ttft_s = _seconds(row, "mean_ttft_ms", "median_ttft_ms")
    tpot_s = _seconds(row, "mean_tpot_ms", "median_tpot_ms")
    in_flight = row.get("max_concurrency") or row.get("concurrency")
    if not in_flight:
        in_flight = requests / row["duration"] * ((ttft_s or 0.0) + (tpot_s or 0.0) * answers)
    yield Run(place, row["total_input_tokens"] / requests, answers, float(in_flight), ttft_s, tpot_s)


def _guidellm(place: str, report: Row) -> Iterator[Run]:
    for number, benchmark in enumerate(report["benchmarks"]):
        metrics = benchmark["metrics"]

        def mean(name: str, metrics: Row = metrics) -> float:
            return float(metrics[name]["successful"]["mean"])

        yield Run(
            f"{place}.benchmarks[{number}]",
            mean("prompt_token_count"),
            mean("output_token_count"),
            mean("request_concurrency"),
            mean("time_to_first_token_ms") * MILLISECOND,
            mean("inter_token_latency_ms") * MILLISECOND,
        )


_UNITS = {"ms": 1e-3, "s": 1.0, "us": 1e-6, "ns": 1e-9, "s/token": 1.0, "ms/token": 1e-3}


def _aiperf(place: str, report: Row) -> Iterator[Run]:
    def seconds(name: str) -> float:
        return float(report[name]["avg"]) * _UNITS[report[name]["unit"]]

    throughput = float(report["request_throughput"]["avg"])
    yield Run(
        place,
        float(report["input_sequence_length"]["avg"]),
        float(report["output_sequence_length"]["avg"]),
        throughput * seconds("request_latency"),
        seconds("time_to_first_token"),
        seconds("inter_token_latency"),
    )


def _llm_d(place: str, report: Row) -> Iterator[Run]:
    aggregate = report["results"]["request_performance"]["aggregate"]
    latency = aggregate["latency"]

    def seconds(name: str) -> float:
        return float(latency[name]["mean"]) * _UNITS[latency[name]["units"]]

    name = "time_per_output_token" if "time_per_output_token" in latency else "inter_token_latency"
    requests = aggregate["requests"]
    load = report["scenario"]["load"]["standardized"]
    answers = float(requests["output_length"]["mean"])
    in_flight = load.get("concurrency") or load["rate_qps"] * (seconds("time_to_first_token") + seconds(name) * answers)
    yield Run(
        place,
        float(requests["input_length"]["mean"]),
        answers,
        float(in_flight),
        seconds("time_to_first_token"),
        seconds(name),
    )


def _llama_bench(place: str, row: Row) -> Iterator[Run]:
    """Yield a prompt test as a time to the first token, a generation test as a time per token."""
    tokens_per_s, depth = float(row["avg_ts"]), float(row.get("n_depth", 0))
    if row["n_prompt"] and not row["n_gen"]:
        yield Run(place, float(row["n_prompt"]), 2.0, 1.0, row["n_prompt"] / tokens_per_s, None)
    elif row["n_gen"] and not row["n_prompt"]:
        yield Run(place, max(1.0, depth), float(row["n_gen"]), 1.0, None, 1.0 / tokens_per_s)


def _rows(runs: Callable[[str, Row], Iterator[Run]]) -> Callable[[str, Any], Iterator[Run]]:
    def every(place: str, value: Any) -> Iterator[Run]:
        for number, row in enumerate(value if isinstance(value, list) else [value]):
            yield from runs(f"{place}[{number}]" if isinstance(value, list) else place, row)

    return every


def _has(*names: str) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        first = value[0] if isinstance(value, list) and value else value
        return isinstance(first, Mapping) and all(name in first for name in names)

    return fits


FORMATS: dict[str, tuple[Callable[[Any], bool], Callable[[str, Any], Iterator[Run]]]] = {
    "vllm bench serve or sglang bench_serving": (
        _has("completed", "total_input_tokens", "total_output_tokens", "duration"),
        _rows(_bench),
    ),
    "guidellm report": (_has("benchmarks", "metadata"), _guidellm),
    "llm-d benchmark report": (_has("scenario", "results"), _llm_d),
    "aiperf summary": (_has("time_to_first_token", "inter_token_latency", "input_sequence_length"), _aiperf),
    "llama-bench": (_has("n_prompt", "n_gen", "avg_ts"), _rows(_llama_bench)),
}


def _prometheus(place: str, text: str) -> Run:
    """Return the means since the start of a server from one scrape of its metrics."""
    sums: dict[str, float] = {}
    for name, value in re.findall(r"^(?:vllm|sglang)[:_](\w+)(?:\{[^}]*\})?\s+([-+.\deE]+)", text, re.MULTILINE):
        sums[name] = sums.get(name, 0.0) + float(value)

    def mean(*names: str) -> float:
        for name in names:
            if sums.get(f"{name}_count"):
                return sums[f"{name}_sum"] / sums[f"{name}_count"]
        raise ValueError(f"{place}: histogram {names[0]} is missing or empty")

    ttft_s = mean("time_to_first_token_seconds")
    tpot_s = mean(
        "request_time_per_output_token_seconds", "inter_token_latency_seconds", "time_per_output_token_seconds"
    )
    in_flight = sums.get("num_requests_running") or 1.0
    return Run(place, mean("request_prompt_tokens"), mean("request_generation_tokens"), in_flight, ttft_s, tpot_s)
