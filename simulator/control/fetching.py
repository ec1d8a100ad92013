"""Fetching over a fabric: what prompts wait for in a shared tier comes on links that all transfers have in common."""

from collections.abc import Callable, Sequence

import simpy

from simulator.actions import FETCHED
from simulator.control.fabric import Fabric
from simulator.control.plane import Controller, Plane, Process
from simulator.layout import TELL_FETCHING


def fetching(make: Callable[[simpy.Environment], Fabric], places: Sequence[str], store: str) -> Controller:
    """Return the controller that moves what lanes, at these places, fetch from the shared tiers, which are at `store`.

    For pools that fetch outside the batch. What replicas' own tiers have comes over their own links meanwhile; the
    links' operations and latencies count, not the shared tier's. What is written to it takes the tier's own rate.
    """

    def control(plane: Plane) -> Process:
        fabric = make(plane.environment)
        plane.clock["fetches"] = False

        def carry(number: int) -> Process:
            row = plane.requests[number]
            lane, lands_ps, tokens = (int(row[name]) for name in ("lane", "lands_ps", "remote_tokens"))
            pool = plane.pool_of(lane)
            blocks = -(-tokens // pool.engine.limits.block_tokens)
            operations = -(-blocks // pool.tiers[-1].operation_blocks)
            sent = fabric.carry(store, places[lane], tokens * pool.engine.kv_bytes_per_token, operations)
            yield sent & plane.environment.timeout(max(0, lands_ps - int(plane.environment.now)))
            if (row["lane"], row["lands_ps"]) == (lane, lands_ps):  # not lost meanwhile
                plane.act(FETCHED, number)

        def begin(number: int) -> None:
            plane.environment.process(carry(number))

        plane.listen(TELL_FETCHING, begin)
        yield plane.wait(0)

    return control
