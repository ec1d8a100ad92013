"""KServe: one LLMInferenceService per pool (serving.kserve.io/v1alpha2)."""

import shlex
from typing import Any

from planners.exports import arguments, yaml_text
from planners.exports.deployment import DeployedPool, Deployment
from planners.exports.kubernetes import full_name, metadata, resources

SAID_BY_PARALLELISM = (
    *("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size"),
    "--enable-expert-parallel",
)


def services(deployment: Deployment) -> dict[str, str]:
    """Return one LLMInferenceService per pool, behind one scheduler each."""
    return {
        f"{pool.name}.yaml": yaml_text.text_of([inference_service(deployment, pool)], deployment.about)
        for pool in deployment.pools
    }


def inference_service(deployment: Deployment, pool: DeployedPool) -> dict[str, Any]:
    """Return the LLMInferenceService of a pool."""
    engine = pool.engine
    parallelism: dict[str, Any] = {"tensor": engine.tp, "pipeline": engine.pp}
    if engine.dp > 1:
        parallelism["data"] = engine.dp
    if engine.ep > 1:
        parallelism["expert"] = True
    flags = arguments.without(arguments.vllm(engine), SAID_BY_PARALLELISM)
    container = {
        "name": "main",
        "env": [{"name": "VLLM_ADDITIONAL_ARGS", "value": shlex.join(flags)}],
        "resources": resources(pool),
    }
    template = {"nodeSelector": pool.node_labels, "containers": [container]}
    spec: dict[str, Any] = {
        "model": {"uri": _uri(deployment.model), "name": deployment.model},
        "replicas": pool.replicas,
        "parallelism": parallelism,
        "template": template,
        "router": {"route": {}, "gateway": {}, "scheduler": {}},
    }
    if pool.nodes > 1:
        spec["worker"] = template
    about = metadata(deployment, pool) | {"name": full_name(deployment, pool)}
    return {"apiVersion": "serving.kserve.io/v1alpha2", "kind": "LLMInferenceService", "metadata": about, "spec": spec}


def _uri(model: str) -> str:
    return model if "://" in model else f"hf://{model}"
