"""What a replay predicts, in the words of benchmark tools, so that their readers and plots can show it."""

import hashlib
import json
from typing import Any

import numpy as np

from planners.answer import plain
from planners.exports import arguments, yaml_text
from planners.exports.deployment import Deployment
from simulator.run import Run
from traces.trace import NS_PER_S

PERCENTILES = {
    "p0p1": 0.1,
    "p1": 1,
    "p5": 5,
    "p10": 10,
    "p25": 25,
    "p50": 50,
    "p75": 75,
    "p90": 90,
    "p95": 95,
    "p99": 99,
    "p99p9": 99.9,
}
REPORT_VERSION = "0.2.1"


def benchmark_report(deployment: Deployment, run: Run) -> dict[str, str]:
    """Return an llm-d benchmark report (0.2.1) of the replay: units as that format names them."""
    counts, span_s = run.counts(), run.span_s
    done = run.is_finished
    tokens_in, tokens_out = run.trace.input_tokens[done], run.trace.output_tokens[done]
    gaps = run.tpot_s[done]
    latency = {
        "time_to_first_token": _statistics(run.ttft_s[done], "s"),
        "time_per_output_token": _statistics(gaps[~np.isnan(gaps)], "s/token"),
        "request_latency": _statistics(run.e2e_s[done], "s"),
    }
    latency = {name: found for name, found in latency.items() if found}
    throughput = {
        "input_token_rate": {"units": "tokens/s", "mean": _rate(tokens_in.sum(), span_s) or 0.0},
        "output_token_rate": {"units": "tokens/s", "mean": _rate(tokens_out.sum(), span_s) or 0.0},
        "request_rate": {"units": "queries/s", "mean": _rate(done.sum(), span_s) or 0.0},
    }
    requests = {
        "total": counts["arrived"],
        "failures": counts["arrived"] - counts["finished"],
        "incomplete": counts["in_flight"],
        "input_length": _statistics(tokens_in, "count") or None,
        "output_length": _statistics(tokens_out, "count") or None,
    }
    report = {
        "version": REPORT_VERSION,
        "run": {"uid": run.trace.identity[:32], "description": "predicted by a replay, not measured"},
        "scenario": {"load": _load(run), "stack": [_stack(deployment, pool) for pool in deployment.pools]},
        "results": {
            "request_performance": {
                "aggregate": {"requests": requests, "latency": latency, "throughput": throughput},
            }
        },
    }
    return {"benchmark-report.yaml": yaml_text.text_of([plain(report)], deployment.about)}


def vllm_bench(deployment: Deployment, run: Run) -> dict[str, str]:
    """Return the replay in the form of `vllm bench serve --save-result --save-detailed`.

    Aggregates are in milliseconds, arrays in seconds; single gaps between tokens are not simulated and left out.
    """
    done, counts = run.is_finished, run.counts()
    span_s = run.span_s
    content: dict[str, Any] = {
        "endpoint_type": "fleetplan",
        "backend": "fleetplan",
        "label": "predicted by a replay, not measured",
        "model_id": deployment.model,
        "num_prompts": counts["arrived"],
        "request_rate": run.trace.rate_per_s,
        "max_concurrency": None,
        "duration": span_s,
        "completed": counts["finished"],
        "failed": counts["arrived"] - counts["finished"],
        "total_input_tokens": int(run.trace.input_tokens[done].sum()),
        "total_output_tokens": int(run.trace.output_tokens[done].sum()),
        "request_throughput": _rate(done.sum(), span_s),
        "output_throughput": _rate(run.trace.output_tokens[done].sum(), span_s),
    }
    for name, theirs in (("ttft", "ttft"), ("tpot", "tpot"), ("e2e", "e2el")):
        values = run.metric_s(name)[done]
        content |= _milliseconds(values[~np.isnan(values)] * 1e3, theirs)
    content["input_lens"] = run.trace.input_tokens.tolist()
    content["output_lens"] = np.where(done, run.trace.output_tokens, 0).tolist()
    content["ttfts"] = np.where(done, run.ttft_s, 0.0).tolist()
    content["start_times"] = (run.trace.arrival_ns / NS_PER_S).tolist()
    content["errors"] = np.where(done, "", "refused").tolist()
    return {"vllm-bench.json": json.dumps(plain(content)) + "\n"}


def _load(run: Run) -> dict[str, Any]:
    trace = run.trace
    lengths = {
        f"{name}_seq_len": {"distribution": "other", "value": float(tokens.mean()), "std_dev": float(tokens.std()),
                            "min": int(tokens.min()), "max": max(int(tokens.max()), 1)}
        for name, tokens in (("input", trace.input_tokens), ("output", trace.output_tokens))
    }  # fmt: skip
    standardized: dict[str, Any] = {"tool": "fleetplan", "tool_version": version(), "source": "sampled", **lengths}
    if np.isfinite(trace.rate_per_s):
        standardized["rate_qps"] = trace.rate_per_s
    about = {"cfg_id": trace.identity, "description": f"trace {trace.name}, request by request"}
    return {"metadata": about, "standardized": standardized, "native": {"config": {"chain": list(trace.chain)}}}


def version() -> str:
    """Return the version that is installed, or that there is none."""
    from importlib import metadata

    try:
        return metadata.version("fleetplan")
    except metadata.PackageNotFoundError:
        return "not installed"


def _stack(deployment: Deployment, pool: Any) -> dict[str, Any]:
    engine = pool.engine
    parallelism = {
        "tp": engine.tp, "pp": engine.pp, "dp": engine.dp, "ep": engine.ep,
        "dp_local": max(1, engine.dp // pool.nodes), "workers": pool.nodes,
    }  # fmt: skip
    count = engine.devices * pool.replicas
    accelerator = {"model": engine.device.title, "count": count, "parallelism": parallelism}
    standardized = {
        "kind": "inference_engine",
        "tool": engine.framework,
        "tool_version": "not said",
        "role": "replica" if pool.role == "both" else pool.role,
        "replicas": pool.replicas,
        "model": {"name": deployment.model},
        "accelerator": accelerator,
    }
    flags = arguments.vllm(engine, pool.role)
    native = {"args": {"vllm serve": " ".join(flags)}}
    about = {"label": pool.name, "cfg_id": hashlib.sha256(engine.name.encode()).hexdigest()[:16]}
    return {"metadata": about | {"description": engine.name}, "standardized": standardized, "native": native}


def _statistics(values: Any, units: str) -> dict[str, Any]:
    if not len(values):
        return {}
    found = {"units": units, "mean": float(np.mean(values)), "min": float(np.min(values)), "max": float(np.max(values))}
    return found | {name: float(np.percentile(values, percent)) for name, percent in PERCENTILES.items()}


def _milliseconds(values: Any, name: str) -> dict[str, float | None]:
    if not len(values):
        return {f"{kind}_{name}_ms": None for kind in ("mean", "median", "std", "p50", "p90", "p99")}
    found = {"mean": np.mean(values), "median": np.median(values), "std": np.std(values)}
    found |= {f"p{percent}": np.percentile(values, percent) for percent in (50, 90, 99)}
    return {f"{kind}_{name}_ms": float(value) for kind, value in found.items()}


def _rate(count: Any, span_s: float) -> float | None:
    return float(count) / span_s if span_s > 0 else None
