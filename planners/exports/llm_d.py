"""llm-d: Helm values of the llm-d-modelservice chart, one release per pool."""

from typing import Any

from planners.exports import arguments, yaml_text
from planners.exports.deployment import DeployedPool, Deployment, dns_name
from planners.exports.kubernetes import PORT, metadata, resources

SAID_BY_PARALLELISM = ("--tensor-parallel-size", "--data-parallel-size")
BEHIND_PROXY = 8200  # where the engine listens when the proxy takes the service's port
TYPES = {"nvidia.com/gpu": "nvidia", "amd.com/gpu": "amd", "habana.ai/gaudi": "intel-gaudi", "google.com/tpu": "google"}


def values(deployment: Deployment) -> dict[str, str]:
    """Return a values file per pool; install each as a release of its own behind one InferencePool."""
    return {
        f"values-{pool.name}.yaml": yaml_text.text_of([release(deployment, pool)], deployment.about)
        for pool in deployment.pools
    }


def release(deployment: Deployment, pool: DeployedPool) -> dict[str, Any]:
    """Return the values of one release: pods that prefill and decode are `decode` to the chart.

    Pods that only decode stand behind the chart's proxy, which fetches what the prefill pods have computed.
    """
    engine = pool.engine
    parallelism = {"tensor": engine.tp, "data": engine.dp, "dataLocal": engine.dp, "workers": pool.nodes}
    container = {
        "name": "vllm",
        "image": pool.image,
        "modelCommand": "vllmServe",
        "args": arguments.without(arguments.vllm(engine, pool.role), SAID_BY_PARALLELISM),
        "resources": resources(pool),
        "mountModelVolume": True,
    }
    pods = {
        "create": True,
        "replicas": pool.replicas,
        "nodeSelector": pool.node_labels,
        "parallelism": parallelism,
        "containers": [container],
    }
    does = "prefill" if pool.role == "prefill" else "decode"
    target = BEHIND_PROXY if pool.role == "decode" else PORT
    result: dict[str, Any] = {
        "fullnameOverride": metadata(deployment, pool)["name"],
        "modelArtifacts": {
            "name": deployment.model,
            "uri": deployment.model if "://" in deployment.model else f"hf://{deployment.model}",
            "size": f"{-(-int(engine.llm.weight_bytes(engine.dtype) * 1.2) // 2**30)}Gi",
            "authSecretName": "hf-token",
            "labels": {"llm-d.ai/inferenceServing": "true", "llm-d.ai/model": dns_name(deployment.model)},
        },
        "multinode": pool.nodes > 1,
        "routing": {"servicePort": PORT, "proxy": {"enabled": pool.role == "decode", "targetPort": target}},
        **{role: pods if role == does else {"create": False, "replicas": 0} for role in ("decode", "prefill")},
    }
    if pool.resource in TYPES:
        result["accelerator"] = {"type": TYPES[pool.resource]}
    return result
