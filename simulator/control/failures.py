"""What goes wrong: lanes, nodes and links that fail and are mended, devices that slow down, clients that leave."""

from collections.abc import Callable, Sequence

import numpy as np
import simpy

from simulator.control.actions import Cancel, Close, Fail, Open, SetVariant
from simulator.control.fabric import Fabric
from simulator.control.plane import Controller, Plane, Process
from simulator.layout import COMING, FINISHED


def failing(groups: list[list[int]], up_s: float, down_s: float, seed: int = 0) -> Controller:
    """Let each group of lanes (a replica's, a node's) fail at random and come back, exponential times of these means.

    What a lane held is lost; its requests go back to the gateway and are computed again elsewhere.
    """

    def controller(plane: Plane) -> Process:
        for index, group in enumerate(groups):
            plane.environment.process(_fail_and_mend(plane, group, up_s, down_s, np.random.default_rng([seed, index])))
        yield plane.wait(0)

    return controller


def _fail_and_mend(plane: Plane, group: list[int], up_s: float, down_s: float, rng: np.random.Generator) -> Process:
    while True:
        yield plane.wait(rng.exponential(up_s))
        failed = [lane for lane in group if plane.is_open[lane]]
        for lane in failed:
            plane.do(Close(lane))
        for lane in failed:
            plane.do(Fail(lane))
        yield plane.wait(rng.exponential(down_s))
        for lane in failed:
            plane.do(Open(lane))


def failing_links(
    fabric: Callable[[simpy.Environment], Fabric], links: Sequence[str], up_s: float, down_s: float, seed: int = 0
) -> Controller:
    """Let each of these links of a fabric fail at random and be mended, exponential times of these means."""

    def controller(plane: Plane) -> Process:
        for index, link in enumerate(links):
            rng = np.random.default_rng([seed, index])
            plane.environment.process(_cut_and_mend(plane, fabric(plane.environment), link, up_s, down_s, rng))
        yield plane.wait(0)

    return controller


def _cut_and_mend(
    plane: Plane, fabric: Fabric, link: str, up_s: float, down_s: float, rng: np.random.Generator
) -> Process:
    while True:
        yield plane.wait(rng.exponential(up_s))
        fabric.fail(link)
        plane.ledger.count("Link failed")
        yield plane.wait(rng.exponential(down_s))
        fabric.mend(link)


def straggling(lane: int, from_s: float, until_s: float, variant: int = 1) -> Controller:
    """Let a lane's steps be priced from another of its pool's tables for a while: a device that is slow."""

    def controller(plane: Plane) -> Process:
        yield plane.wait(from_s)
        plane.do(SetVariant(lane, variant))
        yield plane.wait(until_s - from_s)
        plane.do(SetVariant(lane, 0))

    return controller


def leaving(rate_per_s: float, seed: int = 0) -> Controller:
    """Let clients of random requests in flight give up, so many a second."""

    def controller(plane: Plane) -> Process:
        rng = np.random.default_rng(seed)
        while True:
            yield plane.wait(rng.exponential(1.0 / rate_per_s))
            status = plane.requests["status"]
            in_flight = np.flatnonzero((status > COMING) & (status < FINISHED))
            if in_flight.size:
                plane.do(Cancel(int(rng.choice(in_flight))))

    return controller
