"""Chaos: whatever fails, leaves, moves or changes at random, nothing is lost, nothing leaks, and seeds decide."""

from dataclasses import replace

import numpy as np
import pytest
from test_dataplane import outcome, random_case

from simulator.actions import DEPART, DROP, LAND, LEASE, UNLEASE
from simulator.control.actions import (
    Assign,
    Cancel,
    Close,
    Fail,
    Open,
    Pin,
    PushOut,
    SetLimit,
    SetRole,
    SetVariant,
    Withdraw,
)
from simulator.control.fabric import both_ways
from simulator.control.fetching import fetching
from simulator.control.migration import one_fabric, rebalancing_queues
from simulator.control.plane import operate
from simulator.control.retries import timing_out
from simulator.layout import DECODING, FINISHED, HELD, MOVING, NONE, WAITING

KINDS = ("fail", "close", "open", "cancel", "withdraw", "migrate", "reprice", "limit", "role", "pin", "push out")


def meddling(seed, mean_gap_s):
    """Do random things at random times, then open all lanes again."""

    def controller(plane):
        rng = np.random.default_rng(seed)
        for _ in range(int(rng.integers(5, 60))):
            yield plane.wait(rng.exponential(mean_gap_s))
            meddle(plane, rng, str(rng.choice(KINDS)))
        yield plane.wait(mean_gap_s)
        plane.unpin_all()
        for lane in np.flatnonzero(~plane.is_open).tolist():
            plane.do(Open(lane))

    return controller


def meddle(plane, rng, kind):
    lane = int(rng.integers(plane.lanes.size))
    numbers = np.flatnonzero((plane.requests["status"] >= WAITING) & (plane.requests["status"] <= MOVING))
    number = int(rng.choice(numbers)) if numbers.size else 0
    if kind == "fail" and plane.lanes["ranks"][lane] == 1:
        plane.do(Fail(lane))
    elif kind == "close":
        plane.do(Close(lane))
    elif kind == "open":
        plane.do(Open(lane))
    elif kind == "cancel":
        plane.do(Cancel(number))
    elif kind == "withdraw" and plane.do(Withdraw(number)) is None:
        if plane.status(number) == HELD:
            plane.do(Assign(number, lane))
            plane.offer_all()
        else:
            plane.act(DROP, number)
    elif kind == "migrate" and plane.status(number) == DECODING:
        plane.environment.process(migrate(plane, number, lane, float(rng.exponential(2e-3))))
    elif kind == "reprice":
        plane.do(SetVariant(lane, int(rng.integers(0, 2))))
    elif kind == "limit":
        plane.do(SetLimit(lane, "long_prefill_tokens", int(rng.integers(4, 40))))
    elif kind in ("pin", "push out"):
        done = np.flatnonzero(plane.requests["status"] == FINISHED)
        if done.size:
            plane.do((Pin if kind == "pin" else PushOut)(int(rng.choice(done))))
    elif kind == "role" and not (plane.lanes["role"] > 0).any():
        plane.do(SetRole(lane, "both"))


def migrate(plane, number, lane, seconds):
    """Move a decoding request with its KV, and give up where that cannot be."""
    if not plane.act(LEASE, number, lane, int(plane.requests["computed_tokens"][number])):
        return
    yield plane.wait(seconds)
    if plane.status(number) == DECODING and plane.act(DEPART, number):
        while plane.status(number) == DECODING:
            yield plane.wait(5e-4)
    if plane.status(number) == MOVING:
        yield plane.wait(seconds)
        if plane.status(number) == MOVING and not plane.act(LAND, number):
            plane.act(DROP, number)
    elif plane.requests["leased_lane"][number] != NONE:
        plane.act(UNLEASE, number)


def slower(table):
    return table._replace(token_ps=2 * table.token_ps)


def case(seed):
    trace, fleet = random_case(seed)
    if seed % 3 == 0:
        pools = tuple(replace(pool, variants=(slower(pool.engine.table),)) for pool in fleet.pools)
        fleet = replace(fleet, pools=pools)
    gap_s = max(1e-4, trace.arrival_ns[-1] / 1e9 / 30)
    controllers = [meddling(seed, gap_s)]
    if seed % 4 == 1:
        controllers += [timing_out(5 * gap_s, first_s=gap_s, seed=seed), rebalancing_queues(2 * gap_s)]
    if seed % 2 == 0:
        controllers.append(over_a_fabric(fleet))
    return trace, fleet, controllers


def over_a_fabric(fleet):
    """Fetch what shared tiers have, outside the batch, over adapters and a store's link that all have in common."""
    lanes = sum(pool.replicas * pool.engine.lanes for pool in fleet.pools)
    links = [each for lane in range(lanes) for each in both_ways(f"r{lane}", "switch", 2e10)]
    make = one_fabric([*links, *both_ways("store", "switch", 2e10, latency_s=1e-5)])
    return fetching(make, [f"r{lane}" for lane in range(lanes)], "store")


@pytest.mark.parametrize("block", range(10))
def test_nothing_is_lost_and_nothing_leaks_whatever_happens(block):
    for seed in range(100 * block, 100 * block + 100):
        trace, fleet, controllers = case(seed)
        run = operate(trace, fleet, controllers=controllers).run
        counts = run.counts()
        assert counts["in_flight"] == 0, seed
        assert counts["finished"] + counts["rejected"] + counts["failed"] == len(trace), seed
        lanes = run.lanes
        for name in (
            "running",
            "waiting",
            "outstanding",
            "loading",
            "fetching",
            "decoding",
            "waiting_tokens",
            "context_tokens",
        ):
            assert (lanes[name] == 0).all(), (seed, name, lanes[name])
        assert (lanes["free_blocks"] == lanes["total_blocks"]).all(), seed
        finished = run.is_finished
        assert (run.outcome.first_token_ps[finished] <= run.outcome.finish_ps[finished]).all(), seed


def test_the_same_seed_gives_the_same_bytes():
    for seed in range(10):
        trace, fleet, controllers = case(seed)
        first, second = (operate(trace, fleet, controllers=controllers).run for _ in range(2))
        assert outcome(first).tobytes() == outcome(second).tobytes()


def test_single_steps_and_runs_of_steps_meet_the_same_chaos():
    for seed in range(60):
        trace, fleet, controllers = case(seed)
        fast = operate(trace, fleet, controllers=controllers).run
        slow = operate(trace, fleet, controllers=controllers, fast_forward=False).run
        assert (outcome(fast) == outcome(slow)).all(), seed
