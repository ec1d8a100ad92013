"""SkyPilot: one service per pool."""

import shlex
from typing import Any

from planners.exports import arguments, yaml_text
from planners.exports.deployment import DeployedPool, Deployment
from planners.exports.kubernetes import PORT


def services(deployment: Deployment) -> dict[str, str]:
    """Return one service file per pool, for `sky serve up`."""
    return {
        f"{pool.name}.yaml": yaml_text.text_of([service(deployment, pool)], deployment.about)
        for pool in deployment.pools
    }


def service(deployment: Deployment, pool: DeployedPool) -> dict[str, Any]:
    """Return the service of a pool with as many replicas as planned."""
    serve = ["vllm", "serve", deployment.model, "--port", str(PORT), *arguments.vllm(pool.engine)]
    document: dict[str, Any] = {
        "name": pool.name,
        "resources": {"accelerators": f"{pool.sky_name}:{pool.devices_per_node}", "ports": PORT},
        "service": {"readiness_probe": "/health", "replicas": pool.replicas},
        "setup": "pip install vllm",
        "run": shlex.join(serve),
    }
    if pool.nodes > 1:
        document["num_nodes"] = pool.nodes
    return document
