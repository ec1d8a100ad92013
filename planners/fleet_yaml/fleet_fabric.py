"""The fabric of a fleet.yaml: replicas in nodes, their adapters on a switch, pools far away, and the shared tiers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from planners.fleet_yaml.fleet_parts import Wrong
from planners.strict import strict

if TYPE_CHECKING:
    import simpy

    from simulator.control.fabric import Fabric, Link
    from simulator.control.plane import Controller
    from simulator.fleet import Fleet

STORE = "store"


@strict
@dataclass(frozen=True, slots=True)
class FarLine:
    """Pools in another datacenter, over a link of bytes_per_s each way: a number, or steps [from_s, bytes_per_s]."""

    pools: tuple[int, ...]
    bytes_per_s: float | tuple[tuple[float, float], ...]
    latency_s: float = 0.0


@strict
@dataclass(frozen=True, slots=True)
class FabricLine:
    """One adapter a replica on a switch, shared by what moves; with up_s and down_s adapters fail and are mended.

    Neighbours of a pool, replicas_per_node of them, also have a scale-up domain (NVLink, xGMI) in common. far are pools
    in another datacenter. With store_bytes_per_s shared tiers hang on the switch, too, and what pools fetch from them,
    outside the batch, goes over the fabric.
    """

    nic_bytes_per_s: float
    latency_s: float = 0.0
    operation_s: float = 0.0
    up_s: float | None = None
    down_s: float | None = None
    seed: int = 0
    replicas_per_node: int = 1
    scale_up_bytes_per_s: float | None = None
    far: tuple[FarLine, ...] = ()
    store_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Laid:
    """A fabric as laid out: what makes it, the place of each lane, and what controls it."""

    make: "Callable[[simpy.Environment], Fabric]"
    places: tuple[str, ...]
    controllers: "list[Controller]" = field(default_factory=list)


def laid(line: FabricLine, fleet: "Fleet") -> Laid:
    """Return the fabric that a line says; Wrong names the key of a mistake."""
    from simulator.control.failures import failing_links
    from simulator.control.fetching import fetching
    from simulator.control.migration import one_fabric

    _check(line, fleet)
    replicas = [(index, pool) for index, pool in enumerate(fleet.pools) for _ in range(pool.replicas)]
    places = tuple(f"r{place}" for place, (_, pool) in enumerate(replicas) for _ in range(pool.engine.lanes))
    adapters = _adapters(line, [index for index, _ in replicas])
    links = [*adapters, *_domains(line, fleet), *_far(line)]
    controllers = []
    if line.store_bytes_per_s is not None:
        links += _both_ways(line, STORE, "switch", line.store_bytes_per_s)
    make = one_fabric(links)
    if line.store_bytes_per_s is not None:
        controllers.append(fetching(make, places, STORE))
    if line.up_s is not None and line.down_s is not None:
        controllers.append(failing_links(make, [each.name for each in adapters], line.up_s, line.down_s, line.seed))
    return Laid(make, places, controllers)


def _check(line: FabricLine, fleet: "Fleet") -> None:
    if (line.up_s is None) != (line.down_s is None):
        raise Wrong(("up_s",), "up_s and down_s belong together")
    for key in ("nic_bytes_per_s", "up_s", "down_s", "scale_up_bytes_per_s", "store_bytes_per_s", "replicas_per_node"):
        value = getattr(line, key)
        if value is not None and not value > 0:
            raise Wrong((key,), f"must be positive, got {value:g}")
    if (line.replicas_per_node > 1) != (line.scale_up_bytes_per_s is not None):
        raise Wrong(("replicas_per_node",), "nodes of several replicas and scale_up_bytes_per_s belong together")
    for place, far in enumerate(line.far):
        for pool in far.pools:
            if not 0 <= pool < len(fleet.pools):
                raise Wrong(("far", place, "pools"), f"no pool {pool}; the fleet has 0 to {len(fleet.pools) - 1}")
    if line.store_bytes_per_s is not None and not any(
        pool.fetches == "outside" and pool.tiers and pool.tiers[-1].is_shared for pool in fleet.pools
    ):
        raise Wrong(("store_bytes_per_s",), "no pool fetches outside the batch from a shared tier")


def _both_ways(line: FabricLine, one: str, other: str, bytes_per_s: float) -> "tuple[Link, ...]":
    from simulator.control.fabric import both_ways

    return both_ways(one, other, bytes_per_s, latency_s=line.latency_s, operation_s=line.operation_s)


def _adapters(line: FabricLine, pools: list[int]) -> "list[Link]":
    """Return each replica's adapter on the switch of its datacenter."""
    far = {pool: f"switch{place + 1}" for place, each in enumerate(line.far) for pool in each.pools}
    return [
        link
        for replica, pool in enumerate(pools)
        for link in _both_ways(line, f"r{replica}", far.get(pool, "switch"), line.nic_bytes_per_s)
    ]


def _domains(line: FabricLine, fleet: "Fleet") -> "list[Link]":
    """Return the links of replicas to their node's scale-up domain; a node holds replicas of one pool."""
    links: list[Link] = []
    first = 0
    for pool in fleet.pools:
        for place in range(pool.replicas if line.scale_up_bytes_per_s is not None else 0):
            domain = f"p{first}n{place // line.replicas_per_node}"
            links += _both_ways(line, f"r{first + place}", domain, line.scale_up_bytes_per_s or 0.0)
        first += pool.replicas
    return links


def _far(line: FabricLine) -> "list[Link]":
    from simulator.control.fabric import both_ways

    links: list[Link] = []
    for place, each in enumerate(line.far):
        try:
            links += both_ways("switch", f"switch{place + 1}", each.bytes_per_s, latency_s=each.latency_s)
        except ValueError as error:
            raise Wrong(("far", place, "bytes_per_s"), str(error)) from None
    return links
