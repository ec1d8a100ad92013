"""Read benchmark results told request by request, and means of inference-perf: what a run saw on the whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
NANOSECOND = 1e-9
UNITS = {"ms": 1e-3, "s": 1.0, "us": 1e-6, "ns": 1e-9, "s/token": 1.0, "ms/token": 1e-3, "sec": 1.0}


@dataclass(frozen=True, slots=True)
class Request:
    """One answered request: lengths in tokens, when it was sent and answered, and when its first token came."""

    input_tokens: float
    output_tokens: float
    sent_s: float
    end_s: float
    first_s: float | None


@dataclass(frozen=True, slots=True)
class Seen:
    """Means over a run's requests."""

    input_tokens: float
    output_tokens: float
    in_flight: float
    ttft_s: float | None
    tpot_s: float | None


def seen(place: str, requests: Sequence[Request]) -> Seen:
    """Return what a run saw on the whole; in flight is the time that requests were open over the run's length."""
    if not requests:
        raise ValueError(f"{place}: no answered request")
    count = len(requests)
    span_s = max(r.end_s for r in requests) - min(r.sent_s for r in requests)
    open_s = sum(r.end_s - r.sent_s for r in requests)
    streamed = [(r, r.first_s) for r in requests if r.first_s is not None]
    longer = [(r, first_s) for r, first_s in streamed if r.output_tokens > 1]
    return Seen(
        sum(r.input_tokens for r in requests) / count,
        sum(r.output_tokens for r in requests) / count,
        open_s / span_s if span_s > 0 else float(count),
        sum(first_s - r.sent_s for r, first_s in streamed) / len(streamed) if streamed else None,
        sum((r.end_s - first_s) / (r.output_tokens - 1) for r, first_s in longer) / len(longer) if longer else None,
    )


def is_aiperf(value: Any) -> bool:
    """Return whether a JSON value is one line of AIPerf's profile_export.jsonl."""
    return isinstance(value, Mapping) and "request_start_ns" in (value.get("metadata") or ())


def aiperf(rows: Sequence[Row]) -> list[Request]:
    """Return the answered requests of AIPerf's records; those of its warm-up are left out."""
    found = []
    for row in rows:
        metrics, about = row.get("metrics"), row["metadata"]
        if not metrics or row.get("error") or about.get("benchmark_phase") == "warmup":
            continue
        sent_s = about["request_start_ns"] * NANOSECOND
        first = metrics.get("time_to_first_token")
        first_s = sent_s + first["value"] * UNITS[first["unit"]] if first else None
        prompt, reply = (float(metrics[f"{side}_sequence_length"]["value"]) for side in ("input", "output"))
        found.append(Request(prompt, reply, sent_s, about["request_end_ns"] * NANOSECOND, first_s))
    return found


def is_inference_perf_requests(value: Any) -> bool:
    """Return whether a JSON value is inference-perf's per_request_lifecycle_metrics.json."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "scheduled_time" in value[0]


def inference_perf_requests(rows: Sequence[Row]) -> list[Request]:
    """Return the answered requests of inference-perf, lengths where either of its layouts keeps them."""
    found = []
    for row in rows:
        if row.get("error"):
            continue
        info = row["info"]
        text = (info.get("request_metrics") or {}).get("text") or info
        answer = info.get("response_metrics") or info
        times = answer.get("output_token_times") or ()
        found.append(
            Request(
                float(text["input_tokens"]),
                float(answer.get("output_tokens") or len(times)),
                float(row["start_time"]),
                float(row["end_time"]),
                float(times[0]) if times else None,
            )
        )
    return found


def is_inference_perf(value: Any) -> bool:
    """Return whether a JSON value is a summary or a stage of inference-perf."""
    return isinstance(value, Mapping) and "load_summary" in value and "successes" in value


def inference_perf(report: Row) -> Seen:
    """Return the means of a stage or a summary of inference-perf; its times are in seconds."""
    done = report["successes"]
    latency, rate = done["latency"], done["throughput"]
    per_s = float(rate["requests_per_sec"])

    def mean(*names: str) -> float | None:
        return next((float(latency[name]["mean"]) for name in names if latency.get(name)), None)

    def length(own: str, tokens: str) -> float:
        return float(done[own]["mean"]) if own in done else float(rate[tokens]) / per_s

    return Seen(
        length("prompt_len", "input_tokens_per_sec"),
        length("output_len", "output_tokens_per_sec"),
        per_s * float(latency["request_latency"]["mean"]),
        mean("time_to_first_token"),
        mean("time_per_output_token", "inter_token_latency"),
    )
