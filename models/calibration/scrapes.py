"""Read what serving engines tell Prometheus: scrapes of /metrics, and answers of its query_range.

Histograms are cumulative since the start of a server: the difference of two scrapes is what happened between them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SAMPLE = re.compile(
    r"^(?:(?:vllm|sglang):|(?=tgi_))(\w+)(?:\{([^}]*)\})?\s+([-+.\deE]+|NaN)(?:\s+\d+)?\s*$", re.MULTILINE
)
PREFILL = 'method="prefill"'
GAUGES = ("num_requests_running", "num_running_reqs", "tgi_batch_current_size")


@dataclass(frozen=True, slots=True)
class Means:
    """Mean lengths in tokens, mean requests in flight, mean times; None where an engine does not tell them."""

    input_tokens: float
    output_tokens: float
    in_flight: float
    ttft_s: float | None
    tpot_s: float | None


def is_scrape(text: str) -> bool:
    """Return whether a text holds samples of an engine that we know."""
    return SAMPLE.search(text) is not None


def is_answer(value: Any) -> bool:
    """Return whether a JSON value is Prometheus's answer to a query over a range of time."""
    return isinstance(value, Mapping) and isinstance(value.get("data"), Mapping) and "resultType" in value["data"]


def samples(text: str) -> dict[str, float]:
    """Return the values of a scrape by name, summed over engines; batches of TGI's prefill under a name of their own.

    >>> samples('vllm:num_requests_running{engine="0"} 3.0')
    {'num_requests_running': 3.0}
    """
    found: dict[str, float] = {}
    for name, labels, value in SAMPLE.findall(text):
        own = f"prefill_{name}" if PREFILL in labels else name
        if "le=" not in labels:
            found[own] = found.get(own, 0.0) + float(value)
    return found


def between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return what happened between two scrapes of the same server; gauges are as in the later one."""
    return {name: value if name in GAUGES else value - before.get(name, 0.0) for name, value in after.items()}


def over_range(place: str, answer: Mapping[str, Any]) -> dict[str, float]:
    """Return what happened over the range of a query: gauges are means, everything else grew by so much."""
    found: dict[str, float] = {}
    for series in answer["data"]["result"]:
        name = re.sub(r"^(vllm|sglang):", "", series["metric"].get("__name__", ""))
        values = [float(value) for _, value in series.get("values", [])]
        if not name or not values:
            raise ValueError(
                f"{place}: a series has no name or no values; ask for the metrics themselves, not for rates"
            )
        if "le" in series["metric"]:
            continue
        if PREFILL.split('"')[1] == series["metric"].get("method"):
            name = f"prefill_{name}"
        grown = sum(values) / len(values) if name in GAUGES else values[-1] - values[0]
        found[name] = found.get(name, 0.0) + grown
    return found


def means(place: str, sums: Mapping[str, float]) -> Means:
    """Return the means that sums and counts tell; ValueError names what is missing."""

    def mean(*names: str) -> float | None:
        known = (name for name in names if sums.get(f"{name}_count"))
        return next((sums[f"{name}_sum"] / sums[f"{name}_count"] for name in known), None)

    prompt = mean("request_prompt_tokens", "tgi_request_input_length", "prompt_tokens_histogram")
    reply = mean("request_generation_tokens", "tgi_request_generated_tokens", "generation_tokens_histogram")
    requests = sums.get("num_requests_total") or sums.get("request_success_total")
    if requests:
        prompt = prompt if prompt is not None else sums.get("prompt_tokens_total", 0.0) / requests
        reply = reply if reply is not None else sums.get("generation_tokens_total", 0.0) / requests
    if not prompt or not reply:
        needs = "request_prompt_tokens, or prompt_tokens_total and num_requests_total"
        raise ValueError(f"{place}: lengths are missing: needs {needs}")
    tpot_s = mean(
        *("request_time_per_output_token_seconds", "inter_token_latency_seconds", "time_per_output_token_seconds"),
        "tgi_request_mean_time_per_token_duration",
    )
    ttft_s = mean("time_to_first_token_seconds")
    prefill_s, queue_s = mean("prefill_tgi_batch_forward_duration"), mean("tgi_request_queue_duration")
    if ttft_s is None and prefill_s is not None:
        ttft_s = prefill_s + (queue_s or 0.0)
    if ttft_s is None and tpot_s is None:
        raise ValueError(f"{place}: histogram time_to_first_token_seconds is missing or empty")
    running = next((sums[name] for name in GAUGES if sums.get(name)), 1.0)
    return Means(prompt, reply, running, ttft_s, tpot_s)
