"""Read what benchmark tools wrote: runs as (prompt tokens, answer tokens, concurrency, TTFT, time per token).

Times are converted to ours: TTFT from sending to the first token, time per token without the first.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.calibration import llama_bench, records, scrapes

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
    return read_all([path])


def read_all(paths: Sequence[Path]) -> list[Run]:
    """Return the runs of several files; two scrapes of metrics one after the other tell what was between them."""
    found: list[Run] = []
    earlier: dict[str, float] | None = None
    for path in paths:
        text = path.read_text()
        if not scrapes.is_scrape(text):
            found += _read(path, text)
            continue
        now = scrapes.samples(text)
        if earlier is not None:
            found[-1] = _run(str(path), scrapes.means(str(path), scrapes.between(earlier, now)))
        else:
            found.append(_run(str(path), scrapes.means(str(path), now)))
        earlier = now
    return found


def _read(path: Path, text: str) -> list[Run]:
    if path.suffix == ".csv" or llama_bench.is_table(text):
        rows = enumerate(llama_bench.rows(str(path), text), 1)
        return [run for number, row in rows for run in _llama_bench(f"{path}#{number}", row)]
    values = list(_values(path, text))
    if values and all(map(records.is_aiperf, values)):
        return [_run(str(path), records.seen(str(path), records.aiperf(values)))]
    return [run for number, value in enumerate(values, 1) for run in _runs(f"{path}#{number}", value)]


def _runs(place: str, value: Any) -> list[Run]:
    for name, (fits, runs) in FORMATS.items():
        if fits(value):
            try:
                return list(runs(place, value))
            except (KeyError, TypeError, ZeroDivisionError) as error:
                raise ValueError(f"{place}: looks like {name}, but {error!r} is missing or malformed") from error
    raise ValueError(f"{place}: no known benchmark result; known: {', '.join(FORMATS)}, prometheus text")


def _run(place: str, told: scrapes.Means | records.Seen) -> Run:
    return Run(place, told.input_tokens, told.output_tokens, told.in_flight, told.ttft_s, told.tpot_s)


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


def _aiperf(place: str, report: Row) -> Iterator[Run]:
    def seconds(name: str) -> float:
        return float(report[name]["avg"]) * records.UNITS[report[name]["unit"]]

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
        return float(latency[name]["mean"]) * records.UNITS[latency[name]["units"]]

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
    if row.get("n_prompt") and not row.get("n_gen"):
        yield Run(place, float(row["n_prompt"]), 2.0, 1.0, row["n_prompt"] / tokens_per_s, None)
    elif row.get("n_gen") and not row.get("n_prompt"):
        yield Run(place, max(1.0, depth), float(row["n_gen"]), 1.0, None, 1.0 / tokens_per_s)


def _without_lengths(place: str, _: Any) -> Iterator[Run]:
    raise ValueError(f"{place}: genai-perf's profile_export.json tells no prompt lengths; give its summary beside it")


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
    "inference-perf summary or stage": (
        records.is_inference_perf,
        lambda place, value: iter([_run(place, records.inference_perf(value))]),
    ),
    "inference-perf requests": (
        records.is_inference_perf_requests,
        lambda place, value: iter([_run(place, records.seen(place, records.inference_perf_requests(value)))]),
    ),
    "prometheus query_range": (
        scrapes.is_answer,
        lambda place, value: iter([_run(place, scrapes.means(place, scrapes.over_range(place, value)))]),
    ),
    "genai-perf requests": (_has("experiments"), _without_lengths),
}
