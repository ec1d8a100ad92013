"""Command lines: what starts one replica of each pool, and what checks the plan in production."""

import shlex
from collections.abc import Sequence

from planners.exports import arguments, yaml_text
from planners.exports.deployment import DeployedPool, Deployment

PORT = 8000


def vllm(deployment: Deployment) -> dict[str, str]:
    """Return a script per pool that starts one replica under vLLM."""
    return {
        f"run-{pool.name}.sh": _script(
            deployment,
            pool,
            ["vllm", "serve", deployment.model, "--port", str(PORT), *arguments.vllm(pool.engine, pool.role)],
        )
        for pool in deployment.pools
    }


def sglang(deployment: Deployment) -> dict[str, str]:
    """Return a script per pool that starts one replica under SGLang."""
    start = ["python3", "-m", "sglang.launch_server", "--model-path", deployment.model, "--port", str(PORT)]
    return {
        f"run-{pool.name}.sh": _script(deployment, pool, [*start, *arguments.sglang(pool.engine, pool.role)])
        for pool in deployment.pools
    }


def tensorrt_llm(deployment: Deployment) -> dict[str, str]:
    """Return a script and an option file per pool for TensorRT-LLM."""
    texts = {}
    for pool in deployment.pools:
        flags, options = arguments.tensorrt_llm(pool.engine)
        file = f"options-{pool.name}.yaml"
        start = ["trtllm-serve", deployment.model, "--port", str(PORT), *flags, "--extra_llm_api_options", file]
        texts[file] = yaml_text.text_of([options], deployment.about)
        texts[f"run-{pool.name}.sh"] = _script(deployment, pool, start)
    return texts


def benchmark(deployment: Deployment) -> dict[str, str]:
    """Return a script that loads the deployed fleet as the trace did and asks for the promised percentiles.

    vLLM's client draws its own lengths and arrivals; a replay of the trace itself needs a client that reads traces.
    """
    rate = deployment.requests_per_s
    command = ["vllm", "bench", "serve", "--model", deployment.model, "--base-url", "${URL:-http://localhost:8000}"]
    command += ["--request-rate", f"{rate:.6g}" if rate else "inf", "--percentile-metrics", "ttft,tpot,e2el"]
    command += ["--metric-percentiles", "50,90,99", "--seed", str(deployment.seed)]
    command += ["--save-result", "--save-detailed"]
    line = " ".join(each if each.startswith("${") else shlex.quote(each) for each in command)
    words = "Then: plan validate, which holds the result against the plan."
    return {"benchmark.sh": _text(deployment.about, [f"# {words}", f'{line} "$@"'])}


def _script(deployment: Deployment, pool: DeployedPool, command: Sequence[str]) -> str:
    devices = f"{pool.engine.devices} x {pool.engine.device.title}"
    return _text(
        deployment.about,
        [f"# One replica of {pool.replicas}, on {devices}{_words(pool.role)}.", f'exec {shlex.join(command)} "$@"'],
    )


def _words(role: str) -> str:
    return "" if role == "both" else f"; it only does {role}: a proxy that hands requests over stands in front"


def _text(about: Sequence[str], lines: Sequence[str]) -> str:
    return "\n".join(["#!/usr/bin/env bash", *(f"# {line}" for line in about), "set -euo pipefail", *lines]) + "\n"
