"""AIBrix: a Deployment with its labels and a PodAutoscaler per pool."""

from typing import Any

from planners.exports import yaml_text
from planners.exports.deployment import DeployedPool, Deployment, dns_name
from planners.exports.kubernetes import PORT, full_name, one_node, service


def deployments(deployment: Deployment) -> dict[str, str]:
    """Return one file per pool; ValueError for replicas that span nodes, which its Deployments cannot hold."""
    texts = {}
    for pool in deployment.pools:
        if pool.nodes > 1:
            raise ValueError(f"{pool.engine.name} spans {pool.nodes} nodes; AIBrix Deployments hold one, use lws")
        documents = [_labelled(deployment, pool), service(deployment, pool), _autoscaler(deployment, pool)]
        texts[f"{pool.name}.yaml"] = yaml_text.text_of(documents, deployment.about)
    return texts


def _labelled(deployment: Deployment, pool: DeployedPool) -> dict[str, Any]:
    document = one_node(deployment, pool)
    model = dns_name(deployment.model)
    labels = {"model.aibrix.ai/name": model, "model.aibrix.ai/port": str(PORT), "model.aibrix.ai/engine": "vllm"}
    document["metadata"]["labels"] = document["metadata"]["labels"] | labels
    template = document["spec"]["template"]["metadata"]
    template["labels"] = template["labels"] | labels
    return document


def _autoscaler(deployment: Deployment, pool: DeployedPool) -> dict[str, Any]:
    """Return an autoscaler whose floor is the plan: it may add, never take away."""
    name = full_name(deployment, pool)
    return {
        "apiVersion": "autoscaling.aibrix.ai/v1alpha1",
        "kind": "PodAutoscaler",
        "metadata": {"name": name},
        "spec": {
            "scalingStrategy": "KPA",
            "minReplicas": pool.replicas,
            "maxReplicas": 2 * pool.replicas,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "metricsSources": [
                {
                    "metricSourceType": "pod",
                    "protocolType": "http",
                    "port": str(PORT),
                    "path": "/metrics",
                    "targetMetric": "kv_cache_usage_perc",
                    "targetValue": "0.8",
                }
            ],
        },
    }
