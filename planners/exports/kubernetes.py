"""Kubernetes: a Deployment and a Service per pool, LeaderWorkerSets where a replica spans nodes, and the routing.

Pools that prefill or decode alone stand behind a vLLM router of their own, which takes each request from the one to the
other; NIXL carries the KV between pods.
"""

import json
from typing import Any

from planners.exports import arguments, yaml_text
from planners.exports.deployment import POOL_LABEL, DeployedPool, Deployment, router_image

PORT = 8000
SHARED_MEMORY = "16Gi"
WEIGHT_SCALE = 1000
NIXL_HOST = {"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
USD_ANNOTATION = "fleetplan.dev/usd-per-replica-hour"


def deployments(deployment: Deployment) -> dict[str, str]:
    """Return one file per pool and one for the routing; replicas that span nodes become LeaderWorkerSets."""
    texts = {}
    for pool in deployment.pools:
        replicas = leader_worker_set(deployment, pool) if pool.nodes > 1 else one_node(deployment, pool)
        texts[f"{pool.name}.yaml"] = yaml_text.text_of([replicas, service(deployment, pool)], deployment.about)
    texts["routing.yaml"] = yaml_text.text_of(routing(deployment), deployment.about)
    return texts


def leader_worker_sets(deployment: Deployment) -> dict[str, str]:
    """Return one LeaderWorkerSet per pool and the routing."""
    texts = {
        f"{pool.name}.yaml": yaml_text.text_of(
            [leader_worker_set(deployment, pool), service(deployment, pool)], deployment.about
        )
        for pool in deployment.pools
    }
    return texts | {"routing.yaml": yaml_text.text_of(routing(deployment), deployment.about)}


def one_node(deployment: Deployment, pool: DeployedPool) -> dict[str, Any]:
    """Return the Deployment of a pool."""
    labels = labels_of(deployment, pool)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(deployment, pool),
        "spec": {
            "replicas": pool.replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod_spec(pool, command(deployment, pool))},
        },
    }


def leader_worker_set(deployment: Deployment, pool: DeployedPool) -> dict[str, Any]:
    """Return the LeaderWorkerSet of a pool: a group of pods per replica, joined by Ray."""
    leader = ["sh", "-c", f"ray start --head --port=6379 && exec {' '.join(command(deployment, pool))}"]
    worker = ["sh", "-c", "exec ray start --address=$LWS_LEADER_ADDRESS:6379 --block"]
    labels = labels_of(deployment, pool)
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": metadata(deployment, pool),
        "spec": {
            "replicas": pool.replicas,
            "leaderWorkerTemplate": {
                "size": pool.nodes,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {
                    "metadata": {"labels": labels | {"role": "leader"}},
                    "spec": pod_spec(pool, leader),
                },
                "workerTemplate": {
                    "metadata": {"labels": labels | {"role": "worker"}},
                    "spec": pod_spec(pool, worker, serves=False),
                },
            },
        },
    }


def service(deployment: Deployment, pool: DeployedPool) -> dict[str, Any]:
    """Return the Service in front of a pool."""
    selector = labels_of(deployment, pool) | ({"role": "leader"} if pool.nodes > 1 else {})
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployment, pool),
        "spec": {"selector": selector, "ports": [{"name": "http", "port": PORT, "targetPort": PORT}]},
    }


def routing(deployment: Deployment) -> list[dict[str, Any]]:
    """Return how requests are spread: exactly, as a ConfigMap for a router that sees prompt lengths, and as weights.

    A Gateway that does not know lengths keeps the mean load of each pool, not who gets the long prompts.
    """
    plan = deployment.plan
    exact: dict[str, Any] = {"router": plan.router, "input_edges": plan.input_edges, "shares": plan.shares}
    exact |= {"classes": plan.classes} if plan.classes else {}
    exact["pools"] = [full_name(deployment, pool) for pool in deployment.pools]
    weights = {full_name(deployment, pool): pool.weight for pool in deployment.pools if pool.role == "both"}
    handing_over = sum(pool.weight for pool in deployment.pools if pool.role == "prefill")
    hand_over = hand_over_router(deployment) if handing_over else []
    weights |= {_router_name(deployment): handing_over} if handing_over else {}
    backends = [
        {"name": name, "port": PORT, "weight": max(1, round(weight * WEIGHT_SCALE))} for name, weight in weights.items()
    ]
    return [
        *hand_over,
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{deployment.name}-routing"},
            "data": {"routing.json": json.dumps(exact)},
        },
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": {"name": deployment.name},
            "spec": {"parentRefs": [{"name": "inference-gateway"}], "rules": [{"backendRefs": backends}]},
        },
    ]


def hand_over_router(deployment: Deployment) -> list[dict[str, Any]]:
    """Return the router, and its Service, that sends a request to a prefill pool first and then to a decode pool.

    It knows pools by their Services, so that the pod of a pool is Kubernetes' choice.
    """
    urls = [
        word
        for pool in deployment.pools
        if pool.role != "both"
        for word in (f"--{pool.role}", f"http://{full_name(deployment, pool)}:{PORT}")
    ]
    labels = {"app.kubernetes.io/name": deployment.name, POOL_LABEL: "router"}
    about = {"name": _router_name(deployment), "labels": labels}
    listening = ["--host", "0.0.0.0", "--port", str(PORT)]
    container = {
        "name": "router",
        "image": router_image(),
        "command": ["vllm-router", "--vllm-pd-disaggregation", "--policy", "round_robin", *urls, *listening],
        "ports": [{"containerPort": PORT, "name": "http"}],
    }
    pods = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    ports = [{"name": "http", "port": PORT, "targetPort": PORT}]
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": about,
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pods},
        },
        {"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": {"selector": labels, "ports": ports}},
    ]


def _router_name(deployment: Deployment) -> str:
    return f"{deployment.name}-router"


def pod_spec(pool: DeployedPool, starts: list[str], serves: bool = True) -> dict[str, Any]:
    """Return a pod on the nodes of the pool's device, with as many devices as a replica takes on a node."""
    container: dict[str, Any] = {"name": "main", "image": pool.image, "command": starts}
    if serves:
        container["ports"] = [{"containerPort": PORT, "name": "http"}]
        container["readinessProbe"] = {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10}
        container["startupProbe"] = {
            "httpGet": {"path": "/health", "port": PORT},
            "periodSeconds": 10,
            "failureThreshold": 180,
        }
    if pool.role != "both":
        container["env"] = [NIXL_HOST]
    container["resources"] = resources(pool)
    container["volumeMounts"] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    memory = {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}}
    return {"nodeSelector": pool.node_labels, "containers": [container], "volumes": [memory]}


def resources(pool: DeployedPool) -> dict[str, Any]:
    """Return the devices that a container asks for."""
    return {
        "limits": {pool.resource: str(pool.devices_per_node)},
        "requests": {pool.resource: str(pool.devices_per_node)},
    }


def command(deployment: Deployment, pool: DeployedPool) -> list[str]:
    """Return the command that serves the model as planned."""
    return ["vllm", "serve", deployment.model, "--port", str(PORT), *arguments.vllm(pool.engine, pool.role)]


def metadata(deployment: Deployment, pool: DeployedPool) -> dict[str, Any]:
    """Return name, labels and the price of a replica."""
    return {
        "name": full_name(deployment, pool),
        "labels": labels_of(deployment, pool),
        "annotations": {USD_ANNOTATION: f"{pool.usd_per_hour / pool.replicas:.6g}"},
    }


def labels_of(deployment: Deployment, pool: DeployedPool) -> dict[str, str]:
    """Return the labels that tell a pool's pods from others."""
    return {"app.kubernetes.io/name": deployment.name, POOL_LABEL: pool.name}


def full_name(deployment: Deployment, pool: DeployedPool) -> str:
    """Return the name of a pool's objects."""
    return f"{deployment.name}-{pool.name}"
