"""What is fetched from a shared tier over a fabric takes the bytes over the bottleneck, whoever else is on it."""

from dataclasses import replace

import numpy as np
import pytest
from test_tiers import MS, PROMPT, asked, dram, found, pool

from simulator.control.actions import Fail, Open
from simulator.control.fabric import both_ways
from simulator.control.fetching import fetching
from simulator.control.migration import one_fabric
from simulator.control.plane import operate
from simulator.fleet import Fleet

NIC = 1e9  # a token a millisecond


def on(replicas, store_bytes_per_s):
    """Return a fleet over a shared tier, and what moves what it fetches."""
    links = both_ways("store", "switch", store_bytes_per_s)
    places = [f"r{lane}" for lane in range(replicas)]
    for place in places:
        links += both_ways(place, "switch", NIC)
    tier = dram(bytes_per_s=1e12, is_shared=True, writes_through=True)
    fleet = Fleet((pool(tier, replicas=replicas, prompts=2, fetches="outside"),), "round-robin")
    return fleet, fetching(one_fabric(links), places, "store")


def evicted_and_asked_again(at_once):
    """Return prompts of which the last two, at once, come to two replicas that have evicted them."""
    trace = asked([1, 2, *range(3, 11), 1, 2])
    if not at_once:
        return trace
    arrival_ns = trace.arrival_ns.copy()
    arrival_ns[-1] = arrival_ns[-2]
    return replace(trace, arrival_ns=arrival_ns)


@pytest.mark.parametrize(("at_once", "last_ms"), [(False, [16, 16]), (True, [32, 32])])
def test_two_that_fetch_at_once_share_the_stores_link(at_once, last_ms):
    fleet, controller = on(2, NIC)
    run = operate(evicted_and_asked_again(at_once), fleet, controllers=[controller]).run
    assert found(run)[-2:] == [1, 1]
    assert run.ttft_s[-2:] / MS == pytest.approx(np.array(last_ms) + 1, rel=1e-6)  # and a step of a millisecond


def test_behind_a_wide_store_each_takes_its_own_adapter():
    fleet, controller = on(2, 10 * NIC)
    run = operate(evicted_and_asked_again(True), fleet, controllers=[controller]).run
    assert run.ttft_s[-2:] / MS == pytest.approx([17, 17], rel=1e-6)


def test_a_replica_that_fails_while_it_fetches_loses_nothing():
    fleet, controller = on(1, NIC)
    names = [1, 2, 3, 4, 5, 1]

    def failing(plane):
        yield plane.wait(0.505)
        plane.do(Fail(0))
        yield plane.wait(0.1)
        plane.do(Open(0))

    run = operate(asked(names), fleet, controllers=[controller, failing]).run
    assert run.is_finished.all()
    assert found(run)[-1] == 1
    assert run.lanes["fetching"].sum() == 0
    assert (run.lanes["free_blocks"] == run.lanes["total_blocks"]).all()
    assert run.traffic[0].read_tokens == 2 * PROMPT  # once in vain
