"""The control plane: what policies may see and do, and that nothing is lost whatever they do."""

import numpy as np
import pytest
import toys

from simulator.actions import DEPART, LAND, LEASE, UNLEASE
from simulator.control.actions import Assign, Close, Fail, Open, Refusal, Withdraw
from simulator.control.plane import Hold, Reject, operate
from simulator.control.sessions import families
from simulator.fleet import Fleet, Pool
from simulator.layout import TELL_DEPARTED
from simulator.replay import replay
from traces.sessions import Agents, generate_agents
from traces.statistics import prefix_reuse

MS = 1e-3


def outcome(run):
    return np.stack([column.astype(np.int64) for column in run.outcome], axis=-1)


def shortest(plane):
    return lambda request, view: int(np.where(view.is_open, view.outstanding, 1 << 40).argmin())


def busy_trace(seed=0, count=60):
    rng = np.random.default_rng(seed)
    return toys.trace(np.cumsum(rng.exponential(3 * MS, count)), rng.integers(1, 60, count), rng.integers(1, 40, count))


def test_a_plane_without_policies_does_what_a_replay_does():
    trace, fleet = busy_trace(), toys.fleet(3)
    assert (outcome(operate(trace, fleet).run) == outcome(replay(trace, fleet))).all()


def test_a_router_in_python_that_joins_the_shortest_queue_does_what_the_compiled_one_does():
    trace, fleet = busy_trace(), toys.fleet(3)
    assert (outcome(operate(trace, fleet, routing=shortest).run) == outcome(replay(trace, fleet))).all()


def test_what_a_router_holds_waits_and_what_it_rejects_is_turned_away():
    trace = toys.trace([0, 0, 0], 4, 2)

    def routing(plane):
        answers = {0: 0, 1: Hold(5 * MS), 2: Reject()}
        return lambda request, view: answers.pop(request.number, 0)

    run = operate(trace, toys.fleet(1), routing=routing).run
    assert run.counts()["finished"] == 2
    assert run.counts()["rejected"] == 1
    assert run.queue_s[1] == pytest.approx(5 * MS)


def test_a_failed_lane_loses_its_kv_but_no_request_and_what_was_sent_stays_sent():
    trace = toys.trace([0, 0, 1 * MS], 8, 20)

    def failing(plane):
        yield plane.wait(10.5 * MS)
        plane.do(Fail(0))

    operation = operate(trace, toys.fleet(2), routing=shortest, controllers=[failing])
    run = operation.run
    assert run.counts()["finished"] == 3
    assert (run.outcome.lane == 1).all()
    lost = run.outcome.first_token_ps[0]
    assert lost < 10e9  # its first token had gone out before
    assert run.e2e_s[0] > replay(trace, toys.fleet(2)).e2e_s[0]
    assert run.lanes["free_blocks"].tolist() == run.lanes["total_blocks"].tolist()


def test_actions_that_physics_does_not_allow_come_back_as_typed_refusals():
    seen = []

    def meddling(plane):
        yield plane.wait(1 * MS)
        seen.extend([plane.do(Assign(0, 0)), plane.do(Withdraw(0)), plane.do(Assign(0, 9)), plane.do(Open(0))])
        seen.append(plane.do(Close(1)))

    operate(toys.trace([0], 8, 20), toys.fleet(2), controllers=[meddling])
    assert [isinstance(each, Refusal) for each in seen] == [True] * 4 + [False]
    assert seen[0].why == "the request is not at the gateway"
    assert "no lane 9" in seen[2].why


def test_a_lane_that_is_closed_takes_no_more_and_ends_what_it_has():
    trace = toys.trace([0, 0, 5 * MS, 6 * MS], 4, 10)

    def closing(plane):
        yield plane.wait(2 * MS)
        plane.do(Close(0))

    run = operate(trace, toys.fleet(2), controllers=[closing]).run
    assert run.outcome.lane.tolist() == [0, 1, 1, 1]
    assert run.counts()["finished"] == 4


def test_a_child_comes_its_think_time_after_its_parent_has_ended():
    delays_ns = np.array([0, 7_000_000, 2_000_000])
    trace = toys.trace([0, 0, 0], 4, 3, parent_ids=toys.ragged([[], [0], [1]]), release_delay_ns=delays_ns)
    run = operate(trace, toys.fleet(1), closed_loop=families(trace)).run
    ends_s = run.outcome.finish_ps / 1e12
    assert run.arrival_ps[1] / 1e12 == pytest.approx(ends_s[0] + 7 * MS)
    assert run.arrival_ps[2] / 1e12 == pytest.approx(ends_s[1] + 2 * MS)


def test_a_step_that_joins_several_comes_after_the_last_of_them():
    columns = {"parent_ids": toys.ragged([[], [0], [0], [1, 2]]), "release_delay_ns": np.zeros(4, np.int64)}
    trace = toys.trace([0, 0, 0, 0], 4, [2, 3, 9, 2], **columns)
    run = operate(trace, toys.fleet(2), routing=shortest, closed_loop=families(trace)).run
    assert run.arrival_ps[3] == run.outcome.finish_ps[1:3].max()
    assert run.is_finished.all()


def test_generated_agents_run_to_their_end_with_their_prompts_cached():
    trace = generate_agents(Agents(steps_mean=6.0, start_tokens=2000), 60.0, seed=1, parameters={"rate_per_s": 0.2})
    served = toys.engine(toys.limits(max_sequences=16, total_blocks=4000, block_tokens=16, max_context_tokens=200_000,
                                     max_batched_tokens=2048, caching=True))  # fmt: skip
    run = operate(trace, Fleet((Pool(served, 1),)), closed_loop=families(trace)).run
    assert run.is_finished.all()
    found = run.outcome.cached_tokens.sum() / trace.input_tokens.sum()
    assert found == pytest.approx(prefix_reuse(trace)["token_hit_infinite"])


def test_policies_cannot_reach_the_true_answer_length():
    names = []

    def routing(plane):
        def route(request, view):
            names.extend([*request._fields, *view._fields])
            return 0

        return route

    operate(toys.trace([0], 4, 3), toys.fleet(1), routing=routing)
    assert not [name for name in names if "output" in name]


def test_prompts_handed_over_by_the_control_plane_wait_with_their_kv_until_moved():
    fleet = Fleet(
        (Pool(toys.engine(kv_bytes=1e6), 1, role="prefill"), Pool(toys.engine(kv_bytes=1e6), 1, role="decode"))
    )
    run = operate(toys.trace([0], 8, 5), fleet, hands_over=False).run
    assert run.counts()["in_flight"] == 1
    assert run.lanes["free_blocks"][0] == run.lanes["total_blocks"][0] - 2


def test_a_lease_in_the_middle_of_a_run_of_decodes_leaves_no_blocks_owed():
    least = []

    def leasing(plane):
        yield plane.wait(10.5 * MS)
        assert not plane.act(LEASE, 1, 0, 4 * 60)  # 64 blocks, 5 of them taken
        assert plane.act(LEASE, 1, 0, 4 * 58)
        for _ in range(30):
            yield plane.wait(1 * MS)
            least.append(int(plane.lanes["free_blocks"][0]))
        plane.act(UNLEASE, 1)

    def apart(plane):
        return lambda request, view: request.number

    trace = toys.trace([0, 0], [8, 8], [100, 100])
    run = operate(trace, toys.fleet(2), routing=apart, controllers=[leasing]).run
    assert run.lanes["free_blocks"].tolist() == run.lanes["total_blocks"].tolist()
    assert min(least) >= 0
    assert run.outcome.preemptions.tolist() == [1, 0]


def test_a_lease_of_more_than_lands_is_given_back():
    def moving(plane):
        yield plane.wait(5.5 * MS)
        plane.act(LEASE, 0, 1, 100)
        plane.act(DEPART, 0)
        yield plane.happens(TELL_DEPARTED, 0)
        assert plane.act(LAND, 0)
        assert plane.lanes["free_blocks"][1] == 64 - 4  # 15 tokens

    run = operate(toys.trace([0], 10, 60), toys.fleet(2), controllers=[moving]).run
    assert run.lanes["free_blocks"].tolist() == run.lanes["total_blocks"].tolist()


def test_what_waits_for_blocks_begins_when_a_move_has_freed_them_and_not_when_all_decodes_have_ended():
    def moving(plane):
        yield plane.wait(20.5 * MS)
        plane.act(LEASE, 1, 1, 80)
        plane.act(DEPART, 1)
        yield plane.happens(TELL_DEPARTED, 1)
        yield plane.wait(3 * MS)
        plane.act(LAND, 1)

    def chosen(plane):
        return lambda request, view: 0

    trace = toys.trace([0, 0, 10 * MS], [60, 60, 130], [100, 100, 5])  # of 256 tokens, a step a millisecond
    run = operate(
        trace, toys.fleet(2, bounds=toys.limits(max_batched_tokens=140)), routing=chosen, controllers=[moving]
    ).run
    assert run.queue_s[2] == pytest.approx(15 * MS)  # departed at 21, landed at 24, seen at 25
