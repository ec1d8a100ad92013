"""A fleet whose lanes ask schedulers in Python: as the data plane where the rule is the same, and told as any run."""

import numpy as np
import pytest
import toys

from simulator.control.scheduled_fleet import built, serve
from simulator.control.schedulers import SCHEDULERS
from simulator.fleet import Fleet, Pool
from simulator.replay import replay

MS = toys.PS_PER_MS
NEEDED = {"windowed": {"window_s": 0.002}, "no-preempt": {"wait_steps": 3}}


def fleet(replicas=3, **about):
    bounds = toys.limits(max_batched_tokens=200, block_tokens=1, total_blocks=400, max_context_tokens=150)
    return Fleet((Pool(toys.engine(bounds, token_ps=MS // 50), replicas),), **about)


def trace(count=60, seed=0):
    rng = np.random.default_rng(seed)
    arrivals_s = np.cumsum(rng.exponential(2e-3, count))
    return toys.trace(arrivals_s, rng.integers(1, 80, count), rng.integers(1, 40, count))


def test_chunked_batching_on_a_fleet_is_the_data_planes():
    run, twin = serve(trace(), fleet(), built("vllm-chunked")), replay(trace(), fleet())
    for name in ("scheduled_ps", "first_token_ps", "finish_ps", "lane", "status", "preemptions"):
        assert (getattr(run.outcome, name) == getattr(twin.outcome, name)).all(), name
    assert run.lanes["busy_ps"].tolist() == twin.lanes["busy_ps"].tolist()


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_every_scheduler_by_name_serves_a_fleet(name):
    run = serve(trace(), fleet(ttft_limit_s=0.05), built(name, **NEEDED.get(name, {})))
    assert run.is_finished.all()
    assert set(run.outcome.lane.tolist()) == {0, 1, 2}
    assert 0 < run.busy_fraction()[0] <= 1


def test_deadlines_are_the_fleets_promise_and_clients_have_its_patience():
    crowded = trace(200)
    run = serve(crowded, fleet(1, ttft_limit_s=0.02, patience_s=0.05), built("edf"))
    counts = run.counts()
    assert counts["failed"] > 0
    assert counts["finished"] + counts["failed"] == 200


def test_a_scheduler_of_ones_own_is_a_function_of_an_engine():
    def one_at_a_time(engine, prices):
        return SCHEDULERS["fcfs"](batch_tokens=0, max_sequences=1)

    run = serve(trace(20), fleet(), one_at_a_time)
    assert run.is_finished.all()


def test_what_such_lanes_have_not_is_said_before():
    with pytest.raises(ValueError, match="pool toy has pipeline stages, which lanes scheduled in Python have not"):
        serve(trace(), Fleet((Pool(toys.engine(stages=2), 1),)), built("fcfs"))
    with pytest.raises(ValueError, match="unknown scheduler 'lifo'; known: fcfs"):
        built("lifo")
    with pytest.raises(ValueError, match="scheduler fcfs has no setting 'window_s'; known: batch_tokens"):
        built("fcfs", window_s=1.0)
    with pytest.raises(ValueError, match="a larger max_num_batched_tokens"):
        serve(toys.trace([0], 90, 1), Fleet((Pool(toys.engine(), 1),)), built("fcfs"))
