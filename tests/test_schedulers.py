"""Lanes scheduled in Python: the physics of the data plane, cursors that resume, what defines each scheduler."""

import numpy as np
import pytest
import simpy
import toys
from hypothesis import example, given, settings
from hypothesis import strategies as st

from simulator.control.estimators import OutputLengths, RunningMean, factors, fit, with_error
from simulator.control.kv_pool import KvPool
from simulator.control.lane_view import IllegalStep, LaneView, Request, Slice, Step
from simulator.control.scheduled_lane import ScheduledLane
from simulator.control.schedulers import SCHEDULERS, edf, fcfs, most_tokens, no_preempt, priority, s_edf, vllm_chunked
from simulator.control.step_prices import StepPrices
from simulator.fleet import Fleet, Pool
from simulator.replay import replay

MS = toys.PS_PER_MS


def lane_of(priced, scheduler, environment, kv_tokens=None, **keywords):
    tokens = kv_tokens or priced.limits.total_blocks * priced.limits.block_tokens
    return ScheduledLane(environment, StepPrices(priced), scheduler, KvPool(tokens), **keywords)


def serve(priced, scheduler, rows, kv_tokens=None, leaving=(), **keywords):
    """Serve (request, output tokens) in order of arrival; clients leave at (ps, number). Return the lane and served."""
    environment = simpy.Environment(initial_time=0)
    lane = lane_of(priced, scheduler, environment, kv_tokens, **keywords)

    def arrive():
        for request, output_tokens in rows:
            yield environment.timeout(request.arrival_ps - environment.now)
            lane.submit(request, output_tokens)

    def leave():
        for at_ps, number in sorted(leaving):
            yield environment.timeout(at_ps - environment.now)
            lane.cancel(number)

    environment.process(leave())
    environment.process(arrive())
    environment.run()
    assert lane.is_idle
    assert lane.held_tokens == 0
    assert lane.outstanding == 0
    assert lane.pool.free_tokens() == lane.pool.capacity_tokens
    assert len(lane.served) + len(lane.refused) + len(lane.cancelled) == len(rows)
    return lane, {each.request.number: each for each in lane.served}


def toy(layers=4, token_ms=1, **limits):
    """An engine of four layers whose step takes a millisecond a token, half of it in feed-forward layers."""
    bounds = toys.limits(max_batched_tokens=1000, max_sequences=64, block_tokens=1, total_blocks=10_000, **limits)
    priced = toys.engine(bounds, step_ps=0, token_ps=token_ms * MS)
    return type(priced)(priced.name, priced.limits, priced.table, layers=layers)


def asked(number, arrival_ms, input_tokens, **about):
    promise = about.pop("promise_ms", None)
    deadline = {} if promise is None else {"deadline_ps": round((arrival_ms + promise) * MS)}
    return Request(number, round(arrival_ms * MS), input_tokens, **deadline, **about)


def exact_ps(number, tokens):
    return tokens * MS


@pytest.mark.parametrize("block", range(6))
def test_chunked_batching_in_python_is_the_data_planes_to_the_last_picosecond(block):
    evictions = 0
    for seed in range(25 * block, 25 * block + 25):
        rng = np.random.default_rng(seed)
        bounds = toys.limits(
            max_sequences=int(rng.integers(1, 9)),
            max_batched_tokens=int(rng.integers(8, 65)),
            block_tokens=1,
            total_blocks=int(rng.integers(120, 220)),
            max_context_tokens=120,
            long_prefill_tokens=int(rng.choice([5, 1000])),
        )
        priced = toys.engine(
            bounds,
            step_ps=int(rng.integers(1, 3 * MS)),
            token_ps=int(rng.integers(0, 10_000_000)),
            sequence_ps=int(rng.integers(0, 1_000_000)),
            pair_ps=int(rng.integers(0, 100_000)),
            rng=rng,
        )
        count = int(rng.integers(1, 60))
        gaps_s = rng.exponential(float(rng.choice([0.1, 2.0, 20.0])) * 1e-3, count) * (rng.random(count) < 0.8)
        trace = toys.trace(np.cumsum(gaps_s), rng.integers(1, 60, count), rng.integers(1, 60, count))
        run = replay(trace, Fleet((Pool(priced, 1),)))
        scheduler = vllm_chunked(bounds.max_batched_tokens, bounds.max_sequences, bounds.long_prefill_tokens)
        rows = [
            (Request(number, int(arrival), int(inputs)), int(outputs))
            for number, (arrival, inputs, outputs) in enumerate(
                zip(run.arrival_ps, trace.input_tokens, trace.output_tokens, strict=True)
            )
        ]
        lane, served = serve(priced, scheduler, rows, max_context_tokens=bounds.max_context_tokens)
        assert {number for number in range(count) if run.is_finished[number]} == set(served)
        for number, each in served.items():
            assert each.first_token_ps == run.outcome.first_token_ps[number], seed
            assert each.finish_ps == run.outcome.finish_ps[number], seed
            assert each.evictions == run.outcome.preemptions[number], seed
            evictions += each.evictions
        assert lane.busy_ps == run.lanes["busy_ps"][0], seed
    assert evictions > 0, "the cases must be tight enough to evict"


def test_a_step_stops_at_the_operator_boundary_and_goes_on_from_there():
    # the long prompt takes 400 ms: 4 layers of 50 ms attention and 50 ms feed-forward
    rows = [(asked(0, 0, 400, promise_ms=2000), 1), (asked(1, 120, 10, promise_ms=100), 1)]
    lane, served = serve(toy(), edf(), rows)
    assert served[1].first_token_ps == (150 + 10) * MS  # the boundary after the second attention
    assert served[0].first_token_ps == 410 * MS  # nothing is done twice
    assert lane.blocking_ps == [30 * MS]
    assert lane.preemptions == 1
    assert lane.busy_ps == 410 * MS


@pytest.mark.parametrize(
    ("preempt", "quantum_ms", "boundary_ms"), [("op", 0, 150), ("layer", 0, 200), ("op", 180, 200), ("step", 0, 400)]
)
def test_coarser_boundaries_are_waited_for_longer(preempt, quantum_ms, boundary_ms):
    rows = [(asked(0, 0, 400, promise_ms=2000), 1), (asked(1, 120, 10, promise_ms=100), 1)]
    scheduler = s_edf(exact_ps, preempt=preempt, quantum_ps=quantum_ms * MS)
    lane, served = serve(toy(), scheduler, rows)
    assert lane.blocking_ps == [(boundary_ms - 120) * MS]
    last = served[1].first_token_ps
    assert last == ((boundary_ms + 10) * MS if preempt != "step" else 410 * MS)


def test_a_preempted_step_may_be_preempted_again_and_others_in_between():
    rows = [(asked(0, 0, 400, promise_ms=5000), 1)]
    rows += [(asked(1, 10, 200, promise_ms=2000), 1), (asked(2, 60, 40, promise_ms=150), 1)]
    lane, served = serve(toy(), edf(), rows)
    # 50 ms of the first; then 25 ms of the second up to its first boundary; the third; the second; the first
    assert [served[number].first_token_ps // MS for number in (2, 1, 0)] == [115, 290, 640]
    assert lane.preemptions == 2


def test_a_run_of_decodes_is_cut_at_the_step_in_which_a_request_comes():
    priced = toys.engine(toys.limits(block_tokens=1, total_blocks=500))  # a millisecond a step
    _, served = serve(priced, fcfs(), [(asked(0, 0, 5), 100), (asked(1, 20.5, 5), 1)])
    assert served[1].first_token_ps == 22 * MS
    assert served[0].finish_ps == 101 * MS


def test_a_run_of_decodes_is_what_its_single_steps_are():
    priced = toys.engine(toys.limits(block_tokens=1, total_blocks=900), rng=np.random.default_rng(3))
    rows = [(asked(number, 2.2 * number, 4 + number), 20 + 7 * number) for number in range(6)]

    def singly(view: LaneView):
        step = fcfs()(view)
        return step and Step(step.slices)

    _, at_once = serve(priced, fcfs(), rows)
    _, one_by_one = serve(priced, singly, rows)
    assert at_once == one_by_one


def test_fcfs_serves_whole_prompts_in_order_and_priority_the_urgent_first():
    rows = [(asked(0, 0, 100), 1), (asked(1, 1, 900, priority=1), 1), (asked(2, 2, 900), 1)]
    _, in_order = serve(toy(), fcfs(batch_tokens=500), rows)
    _, urgent_first = serve(toy(), priority(batch_tokens=500), rows)
    assert [in_order[number].first_token_ps // MS for number in (0, 1, 2)] == [100, 1000, 1900]
    assert [urgent_first[number].first_token_ps // MS for number in (0, 2, 1)] == [100, 1000, 1900]


def test_small_prompts_share_a_batch_up_to_its_tokens():
    rows = [(asked(0, 0, 100), 1), *((asked(number, 1, 100), 1) for number in (1, 2, 3))]
    _, served = serve(toy(), fcfs(batch_tokens=200), rows)
    assert [served[number].first_token_ps // MS for number in range(4)] == [100, 300, 300, 400]


def test_edf_serves_what_is_lost_while_s_edf_saves_what_can_be_saved():
    """At 300 ms the first deadline cannot be met any more; EDF still serves it first and so loses the second too."""
    rows = [(asked(0, 0, 300, promise_ms=350), 1)]
    rows += [(asked(1, 1, 200, promise_ms=400), 1), (asked(2, 2, 150, promise_ms=480), 1)]
    _, by_edf = serve(toy(), edf(batch_tokens=0), rows)
    _, by_s_edf = serve(toy(), s_edf(exact_ps, batch_tokens=0), rows)

    def in_time(served):
        return [number for number, each in sorted(served.items()) if each.first_token_ps <= each.request.deadline_ps]

    assert in_time(by_edf) == [0]
    assert in_time(by_s_edf) == [0, 2]
    assert by_s_edf[1].first_token_ps > by_s_edf[2].first_token_ps


def test_s_edf_takes_small_prompts_along_only_while_the_heads_promise_has_room():
    def together(promise_ms):
        rows = [(asked(0, 0, 100, promise_ms=10_000), 1)]
        rows += [(asked(number, 1, 100, promise_ms=promise_ms), 1) for number in (1, 2, 3)]
        _, served = serve(toy(), s_edf(exact_ps, preempt="step"), rows)
        return [served[number].first_token_ps // MS for number in (1, 2, 3)]

    assert together(10_000) == [400, 400, 400]
    # at 100 ms the head has 351 - 99 - 35 = 217 ms in hand: itself and one more
    assert together(351) == [300, 300, 400]


def test_s_edf_believes_its_estimate_and_not_the_truth():
    rows = [
        (asked(0, 0, 300, promise_ms=350), 1),
        (asked(1, 1, 200, promise_ms=600), 1),
        (asked(2, 2, 290, promise_ms=601), 1),
    ]
    # believing steps to be four times as long, it gives the second up at once, and the third with it
    _, served = serve(toy(), s_edf(lambda number, tokens: 4 * tokens * MS, batch_tokens=0), rows)
    assert served[2].first_token_ps < served[1].first_token_ps


@pytest.mark.parametrize("seed", range(5))
def test_what_no_preempt_admits_is_never_evicted_and_never_too_much(seed):
    rng = np.random.default_rng(seed)
    priced = toys.engine(toys.limits(block_tokens=1, total_blocks=300, max_batched_tokens=300, max_sequences=64))
    rows = []
    for number in range(60):
        inputs, outputs = int(rng.integers(1, 60)), int(rng.integers(1, 80))
        rows.append((asked(number, 2 * number, inputs, limit_tokens=outputs), outputs))
    _, served = serve(priced, no_preempt(batch_tokens=100), rows)  # the pool asserts that it never overflows
    assert all(each.evictions == 0 for each in served.values())
    admitted_ps = [served[number].scheduled_ps for number in sorted(served)]
    assert admitted_ps == sorted(admitted_ps)


def test_the_most_kv_of_a_running_set_is_that_of_its_simulation():
    rng = np.random.default_rng(0)
    for _ in range(200):
        rows = [(int(rng.integers(1, 50)), int(rng.integers(0, 50))) for _ in range(rng.integers(1, 9))]
        held = max(sum(has + step for has, left in rows if left >= step) for step in range(51))
        assert most_tokens(rows) == held


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Step(()), "without slices"),
        (Step((Slice(7, 1),)), "request 7 is not on this lane"),
        (Step((Slice(0, 11),)), "10 tokens to compute, not 11"),
        (Step((Slice(0, 5), Slice(0, 5))), "two slices of one request"),
        (Step((Slice(0, 10),), preempt="token"), "known: step, layer, op"),
        (Step((Slice(0, 10),), repeat=2), "cannot be repeated"),
        (Step((Slice(0, 10),), evict=(0,)), "request 0 does not run"),
    ],
)
def test_a_step_against_the_rules_is_refused_with_words(step, words):
    environment = simpy.Environment(initial_time=0)
    lane = lane_of(toy(), lambda view: step, environment)
    with pytest.raises(IllegalStep, match=words):
        lane.submit(asked(0, 0, 10), 1)


def test_a_step_that_needs_more_kv_than_is_free_is_refused():
    lane = lane_of(toy(), lambda view: None, simpy.Environment(initial_time=0), 11)
    lane.submit(asked(0, 0, 6), 1)
    lane.scheduler = lambda view: Step((Slice(0, 6), Slice(1, 6)))
    with pytest.raises(IllegalStep, match="needs 12 KV tokens; 11 are free"):
        lane.submit(asked(1, 0, 6), 1)


def test_a_request_of_a_paused_step_runs_on_only_with_it():
    environment = simpy.Environment(initial_time=0)
    priced = toy()
    seen = []

    def meddle(view):
        seen.append(view)
        if view.paused:
            return Step((Slice(0, 10),))
        return edf()(view)

    lane = lane_of(priced, meddle, environment)
    lane.submit(asked(0, 0, 400, promise_ms=5000), 1)
    environment.run(until=10 * MS)
    lane.submit(asked(1, 10, 10, promise_ms=100), 1)
    with pytest.raises(IllegalStep, match="in a paused step of 1 requests"):
        environment.run()
    assert seen[-1].paused[0].done_ps == 50 * MS


def test_what_can_never_fit_is_refused_and_told():
    told = []
    lane, served = serve(
        toy(), fcfs(), [(asked(0, 0, 90), 20)], kv_tokens=100, listener=lambda *event: told.append(event)
    )
    assert (lane.refused, served) == ([asked(0, 0, 90)], {})
    assert told == [("refused", asked(0, 0, 90))]


def test_first_tokens_and_ends_are_told_as_they_happen():
    told = []
    serve(toy(), fcfs(), [(asked(0, 0, 10), 3)], listener=lambda what, request: told.append((what, request.number)))
    assert told == [("first token", 0), ("finished", 0)]


def test_a_scheduler_cannot_see_how_long_answers_will_be():
    """All that hangs on a view is walked through; the answer's length is not among it."""
    secret, seen = 31_337, []

    def spy(view):
        if view.decode_steps < 100:
            seen.append(reached(view))
        return fcfs()(view)

    rows = [(asked(number, 20 * number, 10), secret) for number in range(5)]
    serve(toy(), spy, rows, kv_tokens=1_000_000)
    assert len(seen) > 5
    assert any(10 in found for found in seen)  # what a scheduler may know is found
    assert not any(secret in found for found in seen)


def reached(thing, depth=6):
    """Return the whole numbers that can be reached from a thing through fields, items and attributes."""
    if isinstance(thing, int):
        return {thing}
    if depth == 0 or isinstance(thing, str) or thing is None:
        return set()
    parts = list(thing) if isinstance(thing, tuple | list) else []
    parts += [
        getattr(thing, name) for name in dir(thing) if not name.startswith("__") and not callable(getattr(thing, name))
    ]
    return set().union(*(reached(part, depth - 1) for part in parts))


@example(268, "s-edf")
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(sorted(SCHEDULERS)))
def test_every_scheduler_serves_all_and_gives_all_kv_back(seed, name):
    rng = np.random.default_rng(seed)
    bounds = toys.limits(block_tokens=1, total_blocks=400, max_batched_tokens=128, max_sequences=16)
    priced = toys.engine(bounds, rng=rng, token_ps=MS // 10)
    makers = {
        "s-edf": lambda: s_edf(exact_ps, max_sequences=6, batch_tokens=60),
        "vllm-chunked": lambda: vllm_chunked(64, 8, int(rng.choice([7, 1000]))),
        "no-preempt": lambda: no_preempt(100, 16, int(rng.integers(0, 12))),
    }
    scheduler = makers.get(name, lambda: SCHEDULERS[name](60, 4))()
    rows, arrival_ms = [], 0.0
    for number in range(int(rng.integers(1, 40))):
        arrival_ms += float(rng.exponential(3.0))
        outputs = int(rng.integers(1, 30))
        about = {"limit_tokens": outputs, "promise_ms": float(rng.uniform(1, 200)), "priority": int(rng.integers(0, 3))}
        rows.append((asked(number, arrival_ms, int(rng.integers(1, 60)), **about), outputs))
    lane, served = serve(priced, scheduler, rows)
    assert len(served) == len(rows)
    for request, _ in rows:
        each = served[request.number]
        assert request.arrival_ps <= each.scheduled_ps < each.first_token_ps <= each.finish_ps
    assert lane.busy_ps <= max(each.finish_ps for each in served.values())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(["op", "layer", "step"]))
def test_preemption_loses_no_work_and_leaves_no_time_unused(seed, preempt):
    rng = np.random.default_rng(seed)
    priced = toy(layers=int(rng.integers(1, 9)))
    rows = []
    for number in range(int(rng.integers(1, 30))):
        about = {"promise_ms": float(rng.uniform(1, 2000))}
        rows.append((asked(number, 30 * number * rng.random(), int(rng.integers(1, 300)), **about), 1))
    rows.sort(key=lambda row: row[0].arrival_ps)
    environment = simpy.Environment(initial_time=0)
    inner = s_edf(exact_ps, batch_tokens=0, preempt=preempt, quantum_ps=int(rng.choice([0, 7 * MS])))

    def watched(view):
        assert lane.pool.used_tokens == lane.held_tokens
        assert view.free_tokens == lane.pool.capacity_tokens - lane.held_tokens
        return inner(view)

    lane = lane_of(priced, watched, environment)

    def arrive():
        for request, output_tokens in rows:
            yield environment.timeout(request.arrival_ps - environment.now)
            lane.submit(request, output_tokens)

    environment.process(arrive())
    environment.run()
    free_ps = 0
    for request, _ in rows:  # one server that always works ends when any other would
        free_ps = max(free_ps, request.arrival_ps) + lane.prices.step_ps([(request.input_tokens, 0)], 0, 0)
    assert max(each.finish_ps for each in lane.served) == free_ps
    assert lane.busy_ps == sum(lane.prices.step_ps([(request.input_tokens, 0)], 0, 0) for request, _ in rows)


def test_estimates_are_off_by_a_stated_spread_with_median_one():
    found = factors(20_000, 0.5, seed=1)
    assert np.median(found) == pytest.approx(1.0, rel=0.02)
    assert np.log(found).std() == pytest.approx(0.5, rel=0.02)
    assert (factors(20_000, 0.5, seed=1) == found).all()
    assert not (factors(20_000, 0.5, seed=2) == found).any()


def test_predicted_lengths_are_exact_only_without_error_and_keep_no_truth():
    truth = list(range(10, 500))
    exact = OutputLengths(truth, 0.0, seed=0)
    assert [exact.tokens(number) for number in range(len(truth))] == truth
    rough = OutputLengths(truth, 0.5, seed=0)
    assert sum(rough.tokens(number) == length for number, length in enumerate(truth)) < 20
    assert OutputLengths.__slots__ == ("_predicted",)


def test_a_step_time_is_off_by_the_same_factor_whenever_it_is_asked():
    rough = with_error(lambda tokens: 10.0 * tokens, 0.5, seed=3)
    assert rough(7, 20) == pytest.approx(2 * rough(7, 10))
    assert rough(7, 10) != rough(8, 10)
    again = with_error(lambda tokens: 10.0 * tokens, 0.5, seed=3)
    assert [again(number, 10) for number in (8, 7)] == [rough(8, 10), rough(7, 10)]


def test_a_cubic_fits_what_is_a_cubic():
    truth = (4e9, 6e6, 90.0, 0.003)
    found = fit(
        lambda tokens: sum(part * tokens**power for power, part in enumerate(truth)), [64, 256, 1024, 4096, 16384]
    )
    for tokens in (100, 5000, 15000):
        assert found(tokens) == pytest.approx(sum(part * tokens**power for power, part in enumerate(truth)), rel=1e-6)


def test_a_mean_is_learnt_class_by_class():
    lengths = RunningMean(prior=100.0)
    for value in (10.0, 10.0):
        lengths.observe("search", value)
    assert (lengths.predict("search"), lengths.predict("chat")) == (40.0, 100.0)
