"""What is deployed: the pools of a plan under names that Kubernetes takes, with the hardware each asks for."""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.engine import Engine
    from planners.plan import Plan

ACCELERATORS = Path(__file__).parent / "accelerators.toml"
LONGEST_NAME = 52  # a Deployment's pods add a hash to its name, and a label holds 63 characters
NODE_LABEL = "fleetplan.dev/device"
POOL_LABEL = "fleetplan.dev/pool"


@dataclass(frozen=True, slots=True)
class DeployedPool:
    """Equal replicas: nodes per replica, devices per node, the resource and node labels that stand for the device.

    role is both, or what a pool does alone: prefill, handing its KV over, or decode.
    """

    name: str
    engine: "Engine"
    replicas: int
    usd_per_hour: float
    weight: float
    resource: str
    node_labels: dict[str, str]
    image: str
    sky_name: str
    role: str = "both"

    @property
    def nodes(self) -> int:
        """Return the nodes that one replica spans."""
        return -(-self.engine.devices // self.engine.device.node_size)

    @property
    def devices_per_node(self) -> int:
        """Return the devices that a replica takes on each of its nodes."""
        return -(-self.engine.devices // self.nodes)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A plan made ready to deploy: a name, the model as the serving engine loads it, and the pools."""

    name: str
    model: str
    pools: tuple[DeployedPool, ...]
    plan: "Plan"
    promises: tuple[str, ...] = ()
    requests_per_s: float | None = None
    seed: int = 0

    @property
    def about(self) -> tuple[str, ...]:
        """Return what the head of every file says."""
        described = " + ".join(f"{pool.replicas} x {pool.engine.name}" for pool in self.pools)
        proof = "held in a replay of the trace" if self.plan.is_rehearsed else "estimated, not rehearsed"
        return (
            f"Written by fleetplan: {described}",
            f"{self.plan.usd_per_hour:.6g} USD/h; no fleet can do it below {self.plan.usd_per_hour_bound:.6g} USD/h",
            f"Promises: {', '.join(self.promises) or 'none'}; {proof}, not yet on real hardware",
        )


def of_plan(
    plan: "Plan",
    model: str,
    *,
    promises: tuple[str, ...] = (),
    requests_per_s: float | None = None,
    image: str | None = None,
    seed: int = 0,
) -> Deployment:
    """Return a plan ready to deploy; model is what the serving engine is told to load.

    ValueError for a plan of toy hardware.
    """
    shares = _request_shares(plan)
    pools = []
    for index, pool in enumerate(plan.pools):
        engine = pool.engine
        if engine is None:
            raise ValueError(f"pool {pool.name!r} is toy hardware; only engines of catalogue devices are deployed")
        facts = accelerator(engine.device.vendor, engine.device.name)
        labels = {facts["label"]: facts["product"]} if "product" in facts else {NODE_LABEL: engine.device.name}
        pools.append(
            DeployedPool(
                name=dns_name(f"{index}-{engine.device.name}-tp{engine.tp}{_suffix(pool.role)}", LONGEST_NAME - 20),
                engine=engine,
                replicas=pool.replicas,
                usd_per_hour=pool.usd_per_hour,
                weight=shares[index],
                resource=facts["resource"],
                node_labels=labels,
                image=image or facts["image"],
                sky_name=facts.get("sky", engine.device.name.upper()),
                role=pool.role,
            )
        )
    name = dns_name(plan.pools[0].engine.llm.name if plan.pools[0].engine else model, 30)
    return Deployment(name, model, tuple(pools), plan, promises, requests_per_s, seed)


def dns_name(text: str, longest: int = LONGEST_NAME) -> str:
    """Return a text as a DNS label: lower case, digits and hyphens.

    >>> dns_name("Llama-3.1_8B")
    'llama-3-1-8b'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:longest].rstrip("-")


@cache
def _accelerators() -> dict[str, Any]:
    return tomllib.loads(ACCELERATORS.read_text(encoding="utf-8"))


def accelerator(vendor: str, device: str) -> dict[str, str]:
    """Return the resource, image and node label of a device: its vendor's, and its own where there are any."""
    known = _accelerators()
    return {**known["vendors"]["other"], **known["vendors"].get(vendor, {}), **known["devices"].get(device, {})}


def router_image() -> str:
    """Return the image of the router that hands requests over between pools."""
    image: str = _accelerators()["router"]["image"]
    return image


def _suffix(role: str) -> str:
    return "" if role == "both" else f"-{role}"


def _request_shares(plan: "Plan") -> list[float]:
    """Return the fraction of requests per pool where every bucket is equally common; by capacity without a plan.

    Pools that only decode are sent no request: they take over from others.
    """
    if plan.shares:
        rows = len(plan.shares)
        sent = [sum(row[pool] for row in plan.shares) / rows for pool in range(len(plan.shares[0]))]
        return sent + [0.0] * (len(plan.pools) - len(sent))
    weights = [pool.replicas * pool.speed * (pool.role != "decode") for pool in plan.pools]
    return [weight / sum(weights) for weight in weights]
