"""The steps of a window: written down the same whether decodes ran in one go or step by step."""

import numpy as np
import pytest
import test_dataplane
import toys

from simulator.fleet import Fleet, Link, Pool
from simulator.replay import replay
from simulator.saturation import verdict

WHOLE = (0.0, 1e6)


@pytest.mark.parametrize("block", range(4))
def test_the_log_of_a_fast_forward_run_is_that_of_single_steps(block):
    for seed in range(30 * block, 30 * block + 30):
        trace, fleet = test_dataplane.random_case(seed)
        fast = replay(trace, fleet, log_s=WHOLE)
        slow = replay(trace, fleet, log_s=WHOLE, fast_forward=False)
        order = [np.lexsort((run.steps.rows["lane"], run.steps.rows["end_ps"])) for run in (fast, slow)]
        assert np.array_equal(fast.steps.rows[order[0]], slow.steps.rows[order[1]]), seed
        assert fast.steps.rows.size == fast.lanes["scheduled_steps"].sum(), seed
        busy_ps = (fast.steps.rows["end_ps"] - fast.steps.rows["start_ps"]).sum()
        assert busy_ps == fast.lanes["busy_ps"].sum(), seed


def test_every_token_is_in_a_logged_step():
    trace = toys.trace(np.arange(20) * 0.003, 30, 12)
    rows = replay(trace, toys.fleet(2), log_s=WHOLE).steps.rows
    assert rows["new_tokens"].sum() == 20 * 30
    assert rows["decodes"].sum() == 20 * 11
    assert rows["chunks"].sum() == 20


def test_only_steps_that_reach_into_the_window_are_kept():
    run = replay(toys.trace([0.0], 10, 50), toys.fleet(), log_s=(0.0105, 0.0135))
    # Steps of a millisecond: those that begin at 10, 11, 12 and 13 ms.
    assert run.steps.rows["start_ps"].tolist() == [at * toys.PS_PER_MS for at in (10, 11, 12, 13)]
    assert run.steps.rows["context_tokens"].tolist() == [19, 20, 21, 22]


def test_nothing_is_logged_unless_asked_for():
    assert replay(toys.trace([0.0], 10, 5), toys.fleet()).steps is None


def test_a_decode_pool_that_cannot_keep_up_is_overload():
    engine = toys.engine(kv_bytes=1e3)
    few = toys.engine(toys.limits(max_sequences=1), kv_bytes=1e3)
    pools = (Pool(engine, 1, role="prefill"), Pool(few, 1, role="decode"))
    # The decode lane takes one request of 30 steps at a time: one in 30 ms, where one comes in 20.
    trace = toys.trace(np.arange(60) * 0.02, 4, 31)
    run = replay(trace, Fleet(pools, link=Link(latency_s=0.0)))
    assert verdict(run) == "overloaded"
    assert run.ttft_s.max() < 0.005
