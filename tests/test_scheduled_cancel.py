"""Lanes scheduled in Python: clients that leave are let go as in the data plane, and a scheduler may wait."""

import numpy as np
import pytest
import toys
from test_schedulers import MS, asked, serve, toy

from simulator.control.lane_view import IllegalStep, Request, Slice, Step, Wait
from simulator.control.schedulers import edf, fcfs, vllm_chunked, windowed
from simulator.fleet import Fleet, Pool
from simulator.layout import CANCELLED
from simulator.replay import replay


@pytest.mark.parametrize("block", range(4))
def test_clients_without_patience_leave_as_they_do_in_the_data_plane(block):
    gone = 0
    for seed in range(20 * block, 20 * block + 20):
        rng = np.random.default_rng([seed, 7])
        bounds = toys.limits(
            max_sequences=int(rng.integers(1, 9)),
            max_batched_tokens=int(rng.integers(8, 65)),
            block_tokens=1,
            total_blocks=int(rng.integers(120, 220)),
            max_context_tokens=120,
            long_prefill_tokens=int(rng.choice([5, 1000])),
        )
        priced = toys.engine(bounds, step_ps=int(rng.integers(1, 3 * MS)), token_ps=int(rng.integers(0, MS // 100)))
        count = int(rng.integers(2, 50))
        trace = toys.trace(
            np.cumsum(rng.exponential(2e-3, count)), rng.integers(1, 60, count), rng.integers(1, 60, count)
        )
        patience_ps = int(rng.integers(10, 100)) * MS + 1
        run = replay(trace, Fleet((Pool(priced, 1),), patience_s=patience_ps / 1e12))
        rows = [
            (Request(number, int(arrival), int(inputs)), int(outputs))
            for number, (arrival, inputs, outputs) in enumerate(
                zip(run.arrival_ps, trace.input_tokens, trace.output_tokens, strict=True)
            )
        ]
        leaving = [(request.arrival_ps + patience_ps, request.number) for request, _ in rows]
        scheduler = vllm_chunked(bounds.max_batched_tokens, bounds.max_sequences, bounds.long_prefill_tokens)
        lane, served = serve(priced, scheduler, rows, leaving=leaving, max_context_tokens=bounds.max_context_tokens)
        assert {number for number in range(count) if run.is_finished[number]} == set(served), seed
        for number, each in served.items():
            assert each.finish_ps == run.outcome.finish_ps[number], seed
        left = {number for number in range(count) if run.outcome.status[number] == CANCELLED}
        assert {each.number for each in lane.cancelled} == left, seed
        assert lane.busy_ps == run.lanes["busy_ps"][0], seed
        gone += len(left)
    assert gone > 0, "some clients must lose their patience"


def test_who_leaves_a_step_under_way_stays_until_its_end_and_who_waits_leaves_at_once():
    rows = [(asked(0, 0, 100), 5), (asked(1, 1, 10), 5), (asked(2, 2, 10), 1)]
    lane, served = serve(toy(), fcfs(), rows, leaving=[(50 * MS, 0), (60 * MS, 1)])
    assert [each.number for each in lane.cancelled] == [1, 0]
    assert served[2].first_token_ps == (100 + 10) * MS


def test_a_step_that_stands_at_a_boundary_is_forgotten_when_its_client_leaves():
    rows = [(asked(0, 0, 400, promise_ms=2000), 1), (asked(1, 120, 10, promise_ms=100), 1)]
    lane, served = serve(toy(), edf(), rows, leaving=[(155 * MS, 0)])
    assert lane.preemptions == 1
    assert [each.number for each in lane.cancelled] == [0]
    assert served[1].finish_ps == 160 * MS
    assert lane.busy_ps == 160 * MS


def test_whoever_leaves_whenever_nothing_leaks_and_others_are_served():
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rows = [
            (asked(number, at_ms, int(rng.integers(1, 200)), promise_ms=int(rng.integers(1, 900))), int(outputs))
            for number, (at_ms, outputs) in enumerate(
                zip(np.sort(rng.integers(0, 900, 20)).tolist(), rng.integers(1, 9, 20), strict=True)
            )
        ]
        leaving = [(int(rng.integers(0, 3000)) * MS, int(number)) for number in rng.choice(20, 8, replace=False)]
        for scheduler in (edf(), fcfs(), windowed(30 * MS, 300)):
            serve(toy(), scheduler, rows, leaving=leaving, kv_tokens=700)


def test_a_scheduler_that_waits_is_asked_again_at_its_time_or_when_something_comes():
    asked_ps = []

    def plan(view):
        asked_ps.append(view.now_ps // MS)
        if view.running:
            return Step(tuple(Slice(each.number, 1) for each in view.running))
        if len(view.waiting) < 2 and view.now_ps < 50 * MS:
            return Wait(50 * MS)
        return Step(tuple(Slice(each.number, each.prefill_left) for each in view.waiting)) if view.waiting else None

    _, served = serve(toy(), plan, [(asked(0, 10, 5), 1), (asked(1, 30, 5), 1), (asked(2, 41, 5), 1)])
    assert served[0].first_token_ps == served[1].first_token_ps == 40 * MS
    assert served[2].first_token_ps == 55 * MS
    assert asked_ps == [10, 30, 40, 41, 50, 55]


def test_a_wait_that_is_over_is_no_answer():
    with pytest.raises(IllegalStep, match="not after now"):
        serve(toy(), lambda view: Wait(view.now_ps), [(asked(0, 10, 5), 1)])


def test_a_window_gathers_prompts_until_it_is_over_or_the_batch_is_full():
    rows = [(asked(number, at_ms, 10), 1) for number, at_ms in enumerate([0, 5, 12, 300])]
    lane, served = serve(toy(), windowed(20 * MS, batch_tokens=100), rows)
    assert {served[number].scheduled_ps // MS for number in (0, 1, 2)} == {20}  # one batch when the window is over
    assert served[3].scheduled_ps == 320 * MS
    lane, served = serve(toy(), windowed(20 * MS, batch_tokens=20), rows)
    assert [served[number].scheduled_ps // MS for number in range(3)] == [12, 12, 32]  # full when the third comes
    assert lane.steps == 3
