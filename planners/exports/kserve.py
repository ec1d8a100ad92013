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
    """Return one LLMInferenceService per pool, behind one scheduler each; one for a prefill and a decode pool together.

    ValueError where several pools prefill or decode alone: a service has room for one of each.
    """
    roles = [pool.role for pool in deployment.pools]
    if set(roles) - {"both"}:
        if sorted(roles) != ["decode", "prefill"]:
            raise ValueError(
                f"a KServe service holds one prefill and one decode pool; this plan has {', '.join(roles)}"
            )
        prefill, decode = sorted(deployment.pools, key=lambda pool: pool.role == "decode")
        together = inference_service(deployment, decode)
        together["spec"]["prefill"] = workload(prefill)
        return {f"{decode.name}.yaml": yaml_text.text_of([together], deployment.about)}
    return {
        f"{pool.name}.yaml": yaml_text.text_of([inference_service(deployment, pool)], deployment.about)
        for pool in deployment.pools
    }


def inference_service(deployment: Deployment, pool: DeployedPool) -> dict[str, Any]:
    """Return the LLMInferenceService of a pool."""
    spec: dict[str, Any] = {
        "model": {"uri": _uri(deployment.model), "name": deployment.model},
        **workload(pool),
        "router": {"route": {}, "gateway": {}, "scheduler": {}},
    }
    about = metadata(deployment, pool) | {"name": full_name(deployment, pool)}
    return {"apiVersion": "serving.kserve.io/v1alpha2", "kind": "LLMInferenceService", "metadata": about, "spec": spec}


def workload(pool: DeployedPool) -> dict[str, Any]:
    """Return replicas, parallelism and pods of a pool."""
    engine = pool.engine
    parallelism: dict[str, Any] = {"tensor": engine.tp, "pipeline": engine.pp}
    if engine.dp > 1:
        parallelism["data"] = engine.dp
    if engine.ep > 1:
        parallelism["expert"] = True
    flags = arguments.without(arguments.vllm(engine, pool.role), SAID_BY_PARALLELISM)
    container = {
        "name": "main",
        "env": [{"name": "VLLM_ADDITIONAL_ARGS", "value": shlex.join(flags)}],
        "resources": resources(pool),
    }
    template = {"nodeSelector": pool.node_labels, "containers": [container]}
    spec: dict[str, Any] = {"replicas": pool.replicas, "parallelism": parallelism, "template": template}
    if pool.nodes > 1:
        spec["worker"] = template
    return spec


def _uri(model: str) -> str:
    return model if "://" in model else f"hf://{model}"
