"""Adapters share the KV pool: slots are never given twice, loads queue on the host link, the unused are let go."""

import numpy as np
import pytest
import simpy
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from models import device, llm
from models.engine import Engine
from simulator.control.adapters import AdapterPool, HostLink, LoraCost, adapter_tokens, host_link, lora_cost
from simulator.control.lane_view import Request
from simulator.control.scheduled_lane import ScheduledLane
from simulator.control.schedulers import no_preempt
from simulator.control.step_prices import StepPrices

MS = toys.PS_PER_MS
LINK = HostLink(bytes_per_token=1e6, bytes_per_s=1e9)  # a millisecond a slot


def using(adapter, tokens=10, number=0):
    return Request(number, 0, 5, adapter=adapter, adapter_tokens=tokens)


def test_a_rank_takes_four_slots_of_a_token():
    assert [adapter_tokens(rank) for rank in (8, 64)] == [32, 256]


def test_adapters_load_one_after_another_and_only_once():
    pool = AdapterPool(100, LINK)
    assert pool.ready_ps([using(1), using(2), using(1)], 0) == 20 * MS
    assert pool.ready_ps([using(1)], 5 * MS) == 10 * MS
    assert pool.ready_ps([using(1), using(2)], 30 * MS) == 30 * MS
    assert pool.ready_ps([using(None, 0)], 40 * MS) == 40 * MS
    assert (pool.loads, pool.loaded_tokens, pool.free_tokens()) == (2, 20, 80)


def test_operations_are_paid_beside_bytes():
    link = HostLink(1e6, 1e9, operations=64, operation_s=1e-5)
    assert AdapterPool(100, link).ready_ps([using(1)], 0) == 10 * MS + 640_000_000


def test_the_unused_are_dropped_at_once_or_kept_until_their_slots_are_needed():
    dropping, keeping = AdapterPool(25, LINK), AdapterPool(25, LINK, keeps_unused=True)
    for pool in (dropping, keeping):
        pool.ready_ps([using(1)], 0)
        pool.ready_ps([using(2)], 0)
        pool.keep([])
    assert (dropping.resident, dropping.free_tokens()) == ((), 25)
    assert (keeping.resident, keeping.free_tokens()) == ((1, 2), 25)
    assert keeping.ready_ps([using(1)], 50 * MS) == 50 * MS  # no load; the second is now the longest unused
    keeping.take(10)
    assert keeping.resident == (1,)
    keeping.keep([])
    assert not keeping.can_load([using(3)], 6)
    assert keeping.can_load([using(3)], 5)


def test_what_is_in_use_is_never_dropped():
    pool = AdapterPool(30, LINK, keeps_unused=True)
    pool.ready_ps([using(1), using(2)], 0)
    assert pool.free_tokens() == 10
    assert not pool.can_load([using(3, 11)], 0)
    assert not pool.can_load([using(1)], 11)
    assert pool.can_load([using(1)], 10)


def test_a_prefetched_adapter_is_there_when_it_is_needed_unless_there_was_no_room():
    pool = AdapterPool(25, LINK)
    pool.prefetch([using(1), using(2), using(3)], 0)
    assert pool.resident == (1, 2)
    pool.keep([])
    assert pool.ready_ps([using(1)], 15 * MS) == 15 * MS
    assert pool.ready_ps([using(2)], 15 * MS) == 20 * MS


def test_a_room_of_their_own_neither_gives_nor_takes_kv():
    pool = AdapterPool(100, LINK, adapter_room_tokens=20)
    pool.ready_ps([using(1), using(2)], 0)
    assert pool.free_tokens() == 100
    assert not pool.can_load([using(3)], 1)
    assert pool.can_load([using(1)], 100)


def test_adapters_cost_the_greater_of_sums_and_reads_and_their_launches():
    cost = LoraCost(flops_per_slot=1e6, bytes_per_slot=1e6, flops_per_s=1e9, bytes_per_s=1e9, launches=2, launch_s=1e-3)
    # ten slots: 10 ms a token to multiply, 10 ms an adapter to read
    assert cost([(using(1), 1)]) == 12 * MS
    assert cost([(using(1), 3)]) == 32 * MS
    assert cost([(using(1), 1), (using(2), 1)]) == 22 * MS
    assert cost([(using(None, 0), 100)]) == 0


def test_an_adapter_of_a_real_model_is_as_large_as_its_matrices():
    engine = Engine(llm.load("llama-2-7b"), device.load("a10g"))
    matrices_bytes = 4 * 2 * 64 * 4096 * 2 * 32  # q, k, v, o; A and B; rank; width; bytes; layers
    assert adapter_tokens(64) * host_link(engine, 0.0).bytes_per_token == matrices_bytes
    cost = lora_cost(engine, 0.0)
    assert adapter_tokens(64) * cost.flops_per_slot == 2 * 4 * 2 * 64 * 4096 * 32


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9), st.booleans(), st.booleans())
def test_random_fleets_of_adapters_are_served_without_overflow(seed, is_apart, keeps_unused):
    rng = np.random.default_rng(seed)
    room = 40 if is_apart else None
    pool = AdapterPool(160, LINK, room, keeps_unused)
    priced = toys.engine(toys.limits(block_tokens=1, total_blocks=200, max_batched_tokens=128, max_sequences=32))
    environment = simpy.Environment(initial_time=0)
    scheduler = no_preempt(
        64, 32, int(rng.integers(0, 6)), not is_apart, room or 160, prefetch=bool(rng.random() < 0.5)
    )
    cost = LoraCost(1e3, 1e3, 1e12, 1e9, 1, 1e-5)
    lane = ScheduledLane(environment, StepPrices(priced), scheduler, pool, extra_ps=cost)
    count = int(rng.integers(1, 50))

    def arrive():
        for number in range(count):
            yield environment.timeout(int(rng.integers(0, 4 * MS)))
            inputs, outputs = int(rng.integers(1, 30)), int(rng.integers(1, 30))
            adapter = int(rng.integers(0, 12))
            request = Request(number, environment.now, inputs, outputs, adapter=adapter, adapter_tokens=4 + adapter)
            lane.submit(request, outputs)
            assert pool.kv_tokens + (0 if is_apart else sum(pool._tokens.values())) <= pool.capacity_tokens
            assert pool.kv_tokens == lane.held_tokens

    environment.process(arrive())
    environment.run()
    assert len(lane.served) == count
    assert pool.kv_tokens == 0
    assert all(each.evictions == 0 for each in lane.served)


def test_a_step_waits_for_its_adapter_and_is_not_busy_meanwhile():
    environment = simpy.Environment(initial_time=0)
    priced = toys.engine(toys.limits(block_tokens=1))
    lane = ScheduledLane(environment, StepPrices(priced), no_preempt(64), AdapterPool(100, LINK))
    lane.submit(Request(0, 0, 5, 1, adapter=1, adapter_tokens=10), 1)
    environment.run()
    assert lane.served[0].first_token_ps == 11 * MS
    assert lane.busy_ps == MS


@pytest.mark.parametrize("keeps_unused", [False, True])
def test_adapters_that_stay_are_loaded_fewer_times(keeps_unused):
    environment = simpy.Environment(initial_time=0)
    pool = AdapterPool(100, LINK, keeps_unused=keeps_unused)
    lane = ScheduledLane(environment, StepPrices(toys.engine()), no_preempt(64), pool)
    for number in range(4):
        lane.submit(Request(number, environment.now, 5, 2, adapter=number % 2, adapter_tokens=10), 2)
        environment.run()
    assert pool.loads == (2 if keeps_unused else 4)
