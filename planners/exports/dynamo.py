"""Dynamo: one DynamoGraphDeployment of a frontend and a worker component per pool."""

from typing import Any

from planners.exports import arguments, yaml_text
from planners.exports.deployment import DeployedPool, Deployment

IMAGE = "nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.2.0"  # a tag that tells the version: admission wants one
SECRET = "hf-token-secret"


def graph(deployment: Deployment) -> dict[str, str]:
    """Return the graph in nvidia.com/v1beta1."""
    components = [_frontend(), *(_worker(deployment, pool) for pool in deployment.pools)]
    document = {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": deployment.name},
        "spec": {"backendFramework": "vllm", "components": components},
    }
    return {"graph.yaml": yaml_text.text_of([document], deployment.about)}


def graph_v1alpha1(deployment: Deployment) -> dict[str, str]:
    """Return the graph in nvidia.com/v1alpha1, which older operators serve."""
    services: dict[str, Any] = {
        "Frontend": {
            "componentType": "frontend",
            "replicas": 1,
            "extraPodSpec": {"mainContainer": {"image": IMAGE}},
        }
    }
    for pool in deployment.pools:
        service: dict[str, Any] = {
            "envFromSecret": SECRET,
            "componentType": "worker",
            **({} if pool.role == "both" else {"subComponentType": pool.role}),
            "replicas": pool.replicas,
            "resources": {"limits": {"gpu": str(pool.devices_per_node)}},
            "extraPodSpec": {
                "nodeSelector": pool.node_labels,
                "mainContainer": {"image": IMAGE, "command": _command(), "args": _older_arguments(deployment, pool)},
            },
        }
        if pool.nodes > 1:
            service["multinode"] = {"nodeCount": pool.nodes}
        services[_component_name(pool)] = service
    document = {
        "apiVersion": "nvidia.com/v1alpha1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": deployment.name},
        "spec": {"backendFramework": "vllm", "services": services},
    }
    return {"graph.yaml": yaml_text.text_of([document], deployment.about)}


def _frontend() -> dict[str, Any]:
    pod = {"containers": [{"name": "main", "image": IMAGE}]}
    return {"name": "Frontend", "type": "frontend", "replicas": 1, "podTemplate": {"spec": pod}}


def _worker(deployment: Deployment, pool: DeployedPool) -> dict[str, Any]:
    devices = {pool.resource: str(pool.devices_per_node)}
    container = {
        "name": "main",
        "image": IMAGE,
        "command": _command(),
        "args": _arguments(deployment, pool) + _mode(pool),
        "envFrom": [{"secretRef": {"name": SECRET}}],
        "resources": {"limits": devices, "requests": devices},
    }
    component: dict[str, Any] = {
        "name": _component_name(pool),
        "type": "worker" if pool.role == "both" else pool.role,
        "replicas": pool.replicas,
        "podTemplate": {"spec": {"nodeSelector": pool.node_labels, "containers": [container]}},
    }
    if pool.nodes > 1:
        component["multinode"] = {"nodeCount": pool.nodes}
    return component


def _component_name(pool: DeployedPool) -> str:
    return f"Worker-{pool.name}"


def _command() -> list[str]:
    return ["python3", "-m", "dynamo.vllm"]


def _arguments(deployment: Deployment, pool: DeployedPool) -> list[str]:
    return ["--model", deployment.model, *arguments.vllm(pool.engine, pool.role)]


def _mode(pool: DeployedPool) -> list[str]:
    return [] if pool.role == "both" else ["--disaggregation-mode", pool.role]


def _older_arguments(deployment: Deployment, pool: DeployedPool) -> list[str]:
    return _arguments(deployment, pool) + (["--is-prefill-worker"] if pool.role == "prefill" else [])
