"""What serving engines do, feature by feature, on toy hardware: a step takes a millisecond unless said otherwise."""

from dataclasses import replace

import numpy as np
import pytest
import toys

from models.engine import reserve_of
from simulator.fleet import Fleet, Pool
from simulator.replay import replay

MS = 1e-3
WHOLE = (0.0, 1e6)


def one_lane(*, costs=None, **changes) -> Fleet:
    return Fleet((Pool(toys.engine(toys.limits(**changes), **(costs or {})), 1),))


def ms(seconds) -> list[float]:
    return np.round(np.asarray(seconds) / MS, 6).tolist()


def test_without_chunked_prefill_a_prompt_waits_until_it_fits_whole():
    # One decode leaves 63 of 64 tokens: the prompt of 64 begins when the decode has ended, at 5 ms.
    trace = toys.trace([0.0, 0.0015], [10, 64], [5, 1])
    assert ms(replay(trace, one_lane()).ttft_s)[1] == 2.5
    assert ms(replay(trace, one_lane(chunked_prefill=False)).ttft_s)[1] == 4.5


def test_a_long_prompt_is_cut_into_chunks_of_the_long_prefill_limit():
    # 20 tokens by 5: four steps, though 64 would fit; a short one beside it is through in one.
    run = replay(toys.trace([0.0, 0.0], [20, 5], 1), one_lane(long_prefill_tokens=5))
    assert ms(run.ttft_s) == [4.0, 2.0]


def test_the_watermark_keeps_blocks_free_at_admission():
    # Of ten blocks the first takes five and soon a sixth; three more fit unless two must stay free.
    trace = toys.trace([0.0, 0.0015], [20, 12], [10, 1])
    small = dict(total_blocks=10, max_context_tokens=40)
    assert ms(replay(trace, one_lane(**small)).ttft_s)[1] == 1.5
    assert ms(replay(trace, one_lane(**small, watermark_blocks=2)).ttft_s)[1] == 9.5


TIGHT = dict(total_blocks=6, max_context_tokens=24)


def test_swapped_requests_do_not_compute_again_but_pay_the_way_there_and_back():
    trace = toys.trace([0.0, 0.0], 8, 12)
    recomputed, swapped = (
        replay(trace, one_lane(**TIGHT, swap_ps_per_token=swap), log_s=WHOLE) for swap in (0, toys.PS_PER_MS)
    )
    assert recomputed.outcome.preemptions.tolist() == swapped.outcome.preemptions.tolist() == [0, 1]
    again = recomputed.steps.rows["new_tokens"].sum() - 16
    assert again > 1
    assert swapped.steps.rows["new_tokens"].sum() - 16 == 1  # its last token, whose KV was not written yet
    extra_ps = swapped.steps.rows["end_ps"] - swapped.steps.rows["start_ps"] - toys.PS_PER_MS
    assert extra_ps.sum() == 2 * (again - 1) * toys.PS_PER_MS


def test_guaranteed_no_evict_admits_only_what_can_finish():
    run = replay(toys.trace([0.0, 0.0], 8, 12), one_lane(**TIGHT, reserves=True))
    assert run.outcome.preemptions.tolist() == [0, 0]
    assert ms(run.queue_s) == [0.0, 12.0]


def test_an_asynchronous_scheduler_takes_notice_a_step_later():
    # It arrives at 1.5 ms; the step from 2 to 3 ms was formed at 1 ms.
    trace = toys.trace([0.0, 0.0015], 10, [20, 1])
    assert ms(replay(trace, one_lane()).ttft_s)[1] == 1.5
    assert ms(replay(trace, one_lane(asynchronous=True)).ttft_s)[1] == 2.5


def test_urgent_requests_overtake_those_that_wait():
    trace = toys.trace([0.0, 0.001, 0.002], 1, 10, priority=np.array([0, 1, 0]))
    # One at a time, ten steps each: by priority the third goes before the second.
    assert ms(replay(trace, one_lane(max_sequences=1)).queue_s) == [0.0, 9.0, 18.0]
    assert ms(replay(trace, one_lane(max_sequences=1, by_priority=True)).queue_s) == [0.0, 19.0, 8.0]


def test_of_running_requests_the_least_urgent_is_preempted():
    trace = toys.trace([0.0, 0.0], 8, 12, priority=np.array([1, 0]))
    assert replay(trace, one_lane(**TIGHT)).outcome.preemptions.tolist() == [0, 1]
    assert replay(trace, one_lane(**TIGHT, by_priority=True)).outcome.preemptions.tolist() == [1, 0]


def test_where_prefills_go_first_no_step_mixes_and_decodes_wait():
    trace = toys.trace([0.0, 0.0025, 0.0035], [10, 60, 60], [9, 1, 1])
    mixed, apart = (replay(trace, one_lane(prefill_first=first), log_s=WHOLE) for first in (False, True))
    assert ((mixed.steps.rows["decodes"] > 0) & (mixed.steps.rows["chunks"] > 0)).any()
    assert not ((apart.steps.rows["decodes"] > 0) & (apart.steps.rows["chunks"] > 0)).any()
    assert ms(apart.e2e_s)[0] == ms(mixed.e2e_s)[0] + 2


def test_prompts_are_found_in_the_cache_block_by_block():
    # 40 tokens: two whole contents of 16 and 8 more; the second prompt shares the first two of the first's.
    trace = toys.trace([0.0, 0.1, 0.2], 40, 1, [[1, 2, 3], [1, 2, 4], [5, 2, 3]])
    run = replay(trace, one_lane(caching=True))
    assert run.outcome.cached_tokens.tolist() == [0, 32, 0]  # a prefix is found from its beginning, or not at all


def test_of_cached_prompts_the_least_recently_used_is_forgotten():
    # Room for two prompts of 16 tokens: C takes the blocks of B, for A was used since.
    contents = {"A": [1], "B": [2], "C": [3]}
    order = "ABACAB"
    trace = toys.trace(np.arange(6) * 0.1, 16, 1, [contents[name] for name in order])
    run = replay(trace, one_lane(caching=True, total_blocks=8, max_context_tokens=32))
    # A prompt found whole still computes its last token.
    assert run.outcome.cached_tokens.tolist() == [0, 0, 16, 0, 16, 0]


def test_cached_blocks_in_use_are_shared_and_not_forgotten():
    # Five prompts of 16 tokens at once take 4 blocks once and one each for their answers: they all fit into 12 blocks.
    trace = toys.trace([0.0, *np.full(5, 0.0105)], 16, [40, *[9] * 5], [[1]] * 6)
    bounds = dict(total_blocks=4 + 10 + 5 * 3, max_context_tokens=100)
    shared, alone = (replay(trace, one_lane(**bounds, caching=caching)) for caching in (True, False))
    assert ms(shared.queue_s)[1:] == [0.5] * 5
    assert shared.outcome.preemptions.sum() == 0
    assert (shared.lanes["free_blocks"] == shared.lanes["total_blocks"]).all()
    assert max(ms(alone.queue_s)) > 0.5


def test_answers_are_as_long_as_the_trace_says_whatever_the_model_would_do():
    outputs = np.array([1, 2, 7, 30])
    run = replay(toys.trace(np.arange(4) * 0.05, 5, outputs), one_lane())
    assert ms(run.e2e_s) == outputs.tolist()


def test_a_batch_of_mixed_lengths_costs_what_its_total_context_costs():
    # 1 us a context token: decodes at 10 and 90 tokens read as much as two at 50.
    costs = dict(costs=dict(context_ps=10**6), max_batched_tokens=200, total_blocks=200)
    mixed = replay(toys.trace([0.0, 0.0], [10, 90], 40), one_lane(**costs))
    even = replay(toys.trace([0.0, 0.0], [50, 50], 40), one_lane(**costs))
    spans = [run.outcome.finish_ps.max() for run in (mixed, even)]
    assert spans[0] == spans[1]


def test_in_flight_batching_lets_a_request_join_and_leave_at_every_step():
    run = replay(toys.trace([0.0, 0.0025, 0.0035], 4, [20, 3, 2]), one_lane())
    assert ms(run.e2e_s) == [20.0, 3.5, 2.5]


def reserving(ratio: float, **changes) -> Fleet:
    bounds = replace(toys.limits(**{"total_blocks": 16, "max_context_tokens": 64, **changes}), **reserve_of(ratio))
    return Fleet((Pool(toys.engine(bounds), 1),))


def test_sglang_keeps_room_for_a_part_of_the_answers_to_come():
    # 64 tokens. The first holds 8 and may answer 40 more; the second needs 8 + 16 = 24 of the 56 left.
    trace = toys.trace([0.0, 0.0015], 8, [41, 16])
    # Half of what is left of 40 kept, and it begins at once; all of it kept, and it waits until the first has ended.
    assert ms(replay(trace, reserving(0.5)).queue_s)[1] == 0.5
    assert ms(replay(trace, reserving(1.0)).queue_s)[1] == 39.5


def test_sglang_retracts_the_request_that_has_answered_least():
    # Both grow until nothing is left: the later has answered less and is computed again.
    trace = toys.trace([0.0, 0.0105], 8, [40, 30])
    run = replay(trace, reserving(0.05))
    assert run.outcome.preemptions[0] == 0
    assert run.outcome.preemptions[1] > 0
    assert run.counts()["finished"] == 2


def test_a_radix_cache_shares_prompts_to_the_token():
    # Blocks of one token: the 23 tokens that both begin with are found, no matter how blocks of 16 would lie.
    trace = toys.trace([0.0, 0.1], [23, 30], 1, [[7], [7, 9]], content_tokens=23)
    run = replay(trace, one_lane(caching=True, block_tokens=1, total_blocks=256))
    assert run.outcome.cached_tokens.tolist() == [0, 23]


@pytest.mark.parametrize("ratio", [0.0, 0.7])
def test_admission_by_a_falling_part_ends_as_single_steps_do(ratio):
    rng = np.random.default_rng(1)
    trace = toys.trace(np.cumsum(rng.exponential(2e-3, 300)), rng.integers(1, 20, 300), rng.integers(1, 40, 300))
    fast, slow = (replay(trace, reserving(ratio), fast_forward=quick) for quick in (True, False))
    assert all(np.array_equal(one, other) for one, other in zip(fast.outcome, slow.outcome, strict=True))
