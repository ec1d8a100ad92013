"""Data-parallel ranks that share experts step together: a step lasts as long as the slowest rank's."""

import numpy as np
import pytest
import toys

from models import device, llm
from models.engine import Engine
from simulator.fleet import Fleet, Pool, priced
from simulator.replay import replay

MS = 1e-3


def ranks(count: int, together: bool = True, router: str = "round-robin", **costs) -> Fleet:
    """One replica of so many ranks, or as many replicas of one."""
    if not together:
        return Fleet((Pool(toys.engine(**costs), count),), router)
    return Fleet((Pool(toys.engine(ranks=count, **costs), 1),), router)


def test_a_step_lasts_as_long_as_the_slowest_ranks():
    # 10 us a token: rank 0 prefills 60 tokens in 0.6 ms, rank 1 ten, and both end together.
    trace = toys.trace([0.0, 0.0], [60, 10], 1)
    apart = replay(trace, ranks(2, together=False, step_ps=0, token_ps=10**7))
    assert np.round(apart.ttft_s / MS, 9).tolist() == [0.6, 0.1]
    # The first comes to an empty replica and starts a round at once; the second joins the next.
    together = replay(trace, ranks(2, step_ps=0, token_ps=10**7))
    assert np.round(together.ttft_s / MS, 9).tolist() == [0.6, 0.7]


def test_an_arrival_waits_for_the_round_under_way_though_its_rank_is_idle():
    run = replay(toys.trace([0.0, 0.0004], 10, [5, 1]), ranks(2))
    assert run.queue_s[1] == pytest.approx(0.6 * MS)
    assert run.ttft_s[1] == pytest.approx(1.6 * MS)


def test_a_long_prompt_on_one_rank_slows_the_decodes_of_the_other():
    # 1 us a token and 1 ms a step; a decode on rank 1 while rank 0 prefills 64 tokens takes 1.064 ms, not 1.001.
    run = replay(toys.trace([0.0, 0.0], [1, 1], [2, 20]), ranks(2, token_ps=10**6))
    slowed = replay(toys.trace([0.0, 0.0, 0.0045], [1, 1, 64], [2, 20, 1]), ranks(2, token_ps=10**6))
    assert slowed.e2e_s[1] - run.e2e_s[1] == pytest.approx(0.063 * MS, rel=1e-6)


def test_ranks_with_equal_work_lose_nothing_by_stepping_together():
    # Eight requests a rank; the very first starts alone, all others a step later: 1 + 20 steps.
    trace = toys.trace(np.zeros(32), 4, 20)
    for fleet in (ranks(4), ranks(4, together=False)):
        assert replay(trace, fleet).span_s == pytest.approx(21 * MS)


def test_the_coordinator_sends_to_the_rank_with_the_shortest_queue():
    run = replay(toys.trace(np.zeros(6), 4, 50), ranks(3, router="join-shortest-queue"))
    assert sorted(run.outcome.lane.tolist()) == [0, 0, 1, 1, 2, 2]


def test_only_ranks_that_share_experts_step_together():
    moe, dense = llm.load("qwen3-235b-a22b"), llm.load("llama-3.1-8b")
    card = device.load("h200-sxm")
    assert Engine(moe, card, tp=1, ep=8, dp=8).steps_together
    assert not Engine(moe, card, tp=8, ep=8).steps_together
    assert not Engine(dense, card, dp=8).steps_together


def test_an_attention_dp_engine_replays():
    engine = Engine(llm.load("qwen3-235b-a22b"), device.load("h200-sxm"), tp=1, ep=8, dp=8, dtype="fp8")
    fleet = Fleet((Pool(priced(engine), 2),))
    rng = np.random.default_rng(0)
    trace = toys.trace(np.cumsum(rng.exponential(0.05, 400)), rng.integers(100, 2_000, 400), rng.integers(2, 200, 400))
    run = replay(trace, fleet)
    assert run.counts()["finished"] == 400
    assert run.lanes.size == 16
