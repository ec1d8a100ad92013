"""Migration: requests move with their KV or without, in time that is bytes over bandwidth, and nothing leaks."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest
import toys

from simulator.control.actions import Cancel, Close, Fail
from simulator.control.autoscalers import band
from simulator.control.fabric import Fabric, Link
from simulator.control.failures import failing_links
from simulator.control.freeness import freeness
from simulator.control.migration import (
    Move,
    Mover,
    PreCopy,
    Recompute,
    Stop,
    draining_by_moving,
    handing_over,
    link,
    one_fabric,
    one_mover,
    operations,
    over,
    pairing,
    rebalancing_queues,
)
from simulator.control.plane import operate
from simulator.control.replicas import Spot
from simulator.control.scaling import METRICS, autoscale
from simulator.fleet import Fleet, Pool
from simulator.fleet import Link as FleetLink
from simulator.replay import replay

MS = 1e-3
TOKEN_BYTES = 1e6
WIRE = link(1e9)  # a token a millisecond


def fleet(replicas=2, **bounds):
    return Fleet((Pool(toys.engine(toys.limits(**bounds), kv_bytes=TOKEN_BYTES), replicas),))


def pd(decoders=1, **bounds):
    return Fleet(
        (
            Pool(toys.engine(toys.limits(**bounds), kv_bytes=TOKEN_BYTES), 1, role="prefill"),
            Pool(toys.engine(toys.limits(**bounds), kv_bytes=TOKEN_BYTES), decoders, role="decode"),
        )
    )


def first_lane(plane):
    return lambda request, view: 0


def moving(moves, at_s, *orders, wire=WIRE, handshake_s=0.0):
    """A controller that gives orders at one time, and keeps what became of them."""

    def controller(plane):
        mover = Mover(plane, wire, handshake_s)
        yield plane.wait(at_s)
        for order in orders:
            moves.append((yield mover.start(order)))

    return controller


def operated(trace, controllers, on=None, **settings):
    operation = operate(trace, on or fleet(), routing=first_lane, controllers=controllers, **settings)
    nothing_leaks(operation.run)
    return operation


def nothing_leaks(run):
    assert run.counts()["in_flight"] == 0
    assert run.lanes["free_blocks"].tolist() == run.lanes["total_blocks"].tolist()
    assert not run.lanes["loading"].any()
    assert not run.lanes["outstanding"].any()


def test_a_stopped_request_is_out_for_as_long_as_its_kv_is_on_the_wire():
    moves = []
    run = operated(toys.trace([0], 10, 60), [moving(moves, 5.5 * MS, Move(0, 1, Stop()))]).run
    (moved,) = moves
    assert moved.why == ""
    assert moved.tokens == 15  # the prompt, and a token in each of the 5 steps after the first
    assert moved.downtime_s == pytest.approx(15 * MS)
    assert run.outcome.lane[0] == 1
    assert run.e2e_s[0] == pytest.approx((60 + 15) * MS)


def test_a_pre_copied_request_is_out_for_its_tail_alone_in_two_stages():
    moves = []
    trace = toys.trace([0], 40, 100)
    controller = moving(moves, 20.5 * MS, Move(0, 1, PreCopy(tail_blocks=2)), wire=link(10e9))
    run = operated(trace, [controller]).run
    (moved,) = moves
    assert moved.rounds == 2
    assert 0 < moved.downtime_s < 2 * MS  # at most 8 tokens at 0.1 ms
    assert run.e2e_s[0] == pytest.approx(100 * MS + moved.downtime_s, abs=1.1 * MS)


@pytest.mark.parametrize("mode", [Stop(), PreCopy(tail_blocks=2)])
def test_downtime_grows_with_length_where_the_copy_waits_and_not_where_it_goes_ahead(mode):
    downtimes_s = []
    for tokens in (16, 48, 96):
        moves = []
        controller = moving(moves, 5.5 * MS, Move(0, 1, mode), wire=link(10e9), handshake_s=3 * MS)
        operated(toys.trace([0], tokens, 60), [controller], fleet(2, max_batched_tokens=128))
        downtimes_s.append(moves[0].downtime_s)
    growth_s = max(downtimes_s) - min(downtimes_s)
    assert (growth_s > 7.9 * MS) == isinstance(mode, Stop)  # 80 tokens more at 0.1 ms
    assert min(downtimes_s) >= 3 * MS


def test_kv_that_grows_as_fast_as_it_is_copied_is_given_up():
    moves = []
    controller = moving(moves, 20.5 * MS, Move(0, 1, PreCopy(tail_blocks=1, most_rounds=3)), wire=link(0.9e9))
    run = operated(toys.trace([0], 16, 180), [controller]).run
    assert moves[0].why == "it grows as fast as it is copied"  # 36 tokens take 40 ms, 40 then 44
    assert run.outcome.lane[0] == 0
    assert run.e2e_s[0] == pytest.approx(180 * MS)


def test_a_move_without_kv_computes_again_and_sends_nothing():
    moves = []
    run = operated(toys.trace([0], 10, 60), [moving(moves, 5.5 * MS, Move(0, 1, Recompute()))]).run
    assert moves[0].why == ""
    assert moves[0].sent_bytes == 0
    assert run.outcome.lane[0] == 1
    assert run.e2e_s[0] == pytest.approx(60 * MS, abs=1.5 * MS)  # one step computes 15 tokens and emits the next


def test_a_request_that_ends_while_it_is_copied_gives_its_lease_back():
    moves = []
    trace = toys.trace([0, 0], 10, [8, 40])
    run = operated(trace, [moving(moves, 2.5 * MS, Move(0, 1, PreCopy(tail_blocks=1)))]).run
    assert moves[0].why == "it ended"
    assert run.outcome.lane.tolist() == [0, 0]


def test_a_request_that_is_cancelled_while_it_moves_is_done_where_it_lands():
    moves = []

    def cancelling(plane):
        yield plane.wait(10 * MS)
        plane.do(Cancel(0))

    run = operated(toys.trace([0], 10, 60), [moving(moves, 5.5 * MS, Move(0, 1, Stop())), cancelling]).run
    assert run.counts()["failed"] == 1


def test_a_move_to_a_lane_without_room_does_not_begin():
    moves = []

    def spread(plane):
        return lambda request, view: 0 if request.number == 0 else 1

    trace = toys.trace([0, 0, 0], [60, 60, 60], 60)
    crowded = fleet(2, total_blocks=40)
    run = operate(trace, crowded, routing=spread, controllers=[moving(moves, 5.5 * MS, Move(0, 1, Stop()))]).run
    nothing_leaks(run)
    assert moves[0].why == "there is no room"
    assert run.outcome.lane[0] == 0


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lane_that_fails_during_a_move_costs_a_recompute_and_no_request(lost):
    moves = []

    def failing(plane):
        yield plane.wait(10 * MS)
        plane.do(Fail(lost))

    trace = toys.trace([0], 10, 60)
    controllers = [moving(moves, 5.5 * MS, Move(0, 1, Stop())), failing]
    shown = operate(trace, fleet(3), controllers=controllers).run
    nothing_leaks(shown)
    assert shown.counts()["finished"] == 1
    assert moves[0].why == "a lane was lost"


def test_a_request_is_moved_by_one_order_at_a_time():
    moves = []
    controller = moving(moves, 5.5 * MS, Move(0, 0, Stop()), Move(5, 1, Stop()))
    operated(toys.trace([0], 10, 60), [controller])
    assert [moved.why for moved in moves] == ["there is no such way", "it does not decode"]


def test_freeness_counts_what_decodes_hold_by_now_and_what_the_head_of_the_queue_needs():
    seen = []

    def looking(plane):
        yield plane.wait(20.5 * MS)
        seen.append(freeness(plane).tolist())
        plane.do(Close(1))
        seen.append(freeness(plane).tolist())

    trace = toys.trace([0, 0, 20 * MS], [8, 8, 30], 100)
    operate(trace, fleet(2, max_sequences=2), routing=first_lane, controllers=[looking])
    # 64 blocks of 4; two requests hold 28 tokens each with that of the step under way, and 30 wait
    assert seen[0] == [((64 - 14) * 4 - 30) / 2, 256.0]
    assert seen[1][1] == -np.inf


def test_headroom_is_kept_beside_urgent_requests_alone():
    seen = []

    def looking(plane):
        yield plane.wait(2.5 * MS)
        seen.extend([freeness(plane)[0], freeness(plane, headroom_tokens=40)[0]])

    for priority in (0, -1):
        trace = toys.trace([0], 8, 100, priority=np.array([priority]))
        operate(trace, fleet(1), controllers=[looking])
    assert seen[0] == seen[1]
    assert seen[2] - seen[3] == 40


def test_pairing_moves_from_the_least_free_lane_and_saves_it_from_preempting():
    trace = toys.trace([0] * 4, 8, 100)
    crowded = fleet(2, total_blocks=64, max_sequences=8)
    still = operate(trace, crowded, routing=first_lane).run
    control = pairing(one_mover(link(1e12)), low=30.0, high=40.0, every_s=1 * MS)
    moved = operated(trace, [control], crowded)
    assert still.outcome.preemptions.sum() > 0
    assert moved.run.outcome.preemptions.sum() == 0
    assert sorted(moved.run.outcome.lane.tolist()) == [0, 0, 1, 1]
    assert moved.ledger.actions["Moved"] == 2


def test_pairing_leaves_lanes_alone_that_are_free_enough():
    control = pairing(one_mover(WIRE), low=5.0, high=40.0, every_s=1 * MS)
    operation = operated(toys.trace([0, 0], 8, 40), [control])
    assert "Moved" not in operation.ledger.actions


def test_queues_are_levelled_from_the_end():
    trace = toys.trace([0] * 6, 8, 40)
    operation = operated(trace, [rebalancing_queues(every_s=2 * MS)], fleet(2, max_sequences=2))
    assert operation.ledger.actions["Queue rebalanced"] >= 2
    assert (operation.run.outcome.lane == 1).sum() >= 2
    assert operation.run.e2e_s[-1] < operate(trace, fleet(2, max_sequences=2), routing=first_lane).run.e2e_s[-1]


def test_a_lane_is_drained_by_moving_what_decodes():
    done_s = []

    def draining(plane):
        yield plane.wait(5.5 * MS)
        plane.do(Close(0))
        yield from draining_by_moving(one_mover(link(10e9)))(plane, [0])
        done_s.append(plane.now_s)

    run = operated(toys.trace([0, 0, 0], 8, 150), [draining]).run
    assert run.outcome.lane.tolist() == [1, 1, 1]
    assert done_s[0] < 20 * MS


def test_a_band_of_freeness_scales_up_when_queues_wait_and_down_by_moving_when_lanes_are_idle():
    trace = toys.trace([*np.arange(40) * 1 * MS, 0.25], [8] * 41, [60] * 40 + [150])
    control = autoscale(
        *(0, band(10.0, 60.0), METRICS["freeness"]), every_s=5 * MS, drain=draining_by_moving(one_mover(link(10e9)))
    )
    operation = operate(trace, fleet(4), controllers=[control])
    nothing_leaks(operation.run)
    assert operation.run.counts()["finished"] == 41
    assert max(lanes for _, lanes in operation.ledger.paid[2:]) >= 3
    assert operation.ledger.paid[-1][1] == 1


def test_a_spot_replica_with_a_short_notice_moves_what_it_can():
    spot = Spot(evictions_per_hour=3600 * 10.0, notice_s=20 * MS, seed=1)
    trace = toys.trace(2 * MS * np.arange(60), 8, 60)
    finished = []
    for drain in (None, draining_by_moving(one_mover(link(10e9)))):
        chosen = {} if drain is None else {"drain": drain}
        control = autoscale(0, lambda history: 3, every_s=5 * MS, initial=3, spot=spot, **chosen)
        operation = operate(trace, fleet(4), controllers=[control])
        nothing_leaks(operation.run)
        finished.append(operation)
        assert operation.run.counts()["finished"] == 60
    waited, moved = finished
    assert waited.ledger.actions["Fail"] > moved.ledger.actions.get("Fail", 0)


def test_a_prompt_is_handed_over_in_bytes_over_bandwidth_as_the_data_plane_does():
    trace, on = toys.trace([0, 30 * MS], [8, 12], 10), pd()
    mine = operated(trace, [handing_over(WIRE)], on, hands_over=False).run
    theirs = replay(trace, replace(on, link=FleetLink(1e9, 0.0))).outcome
    assert mine.outcome.joined_ps.tolist() == theirs.joined_ps.tolist()
    assert mine.outcome.finish_ps.tolist() == theirs.finish_ps.tolist()


def test_block_wise_hand_over_pays_for_each_block_of_each_layer():
    on = pd()
    times_s = {
        grain: operated(
            toys.trace([0], 8, 10), [handing_over(link(1e9, operation_s=1 * MS), grain)], on, hands_over=False
        ).run.e2e_s[0]
        for grain in ("whole", "block-wise")
    }
    assert operations("block-wise", 8, 4, 1) == 2
    assert times_s["block-wise"] - times_s["whole"] == pytest.approx(1 * MS)


def test_layer_wise_hand_over_hides_what_fits_beside_the_last_chunk():
    on = pd()
    layered = Fleet(tuple(replace(pool, engine=replace(pool.engine, layers=4)) for pool in on.pools))
    whole, hidden = (
        operated(
            toys.trace([0], 8, 10), [handing_over(WIRE, grain, hides_bytes_per_s=1e9)], layered, hands_over=False
        ).run.e2e_s[0]
        for grain in ("whole", "layer-wise")
    )
    assert whole - hidden == pytest.approx(1 * MS)  # the prompt's step takes 1 ms, in which a token's KV goes


def test_prompts_wait_in_order_with_their_kv_while_decode_lanes_are_full():
    on = pd(total_blocks=20)
    run = operated(toys.trace([0, 1 * MS, 2 * MS], 30, 20), [handing_over(WIRE)], on, hands_over=False).run
    assert run.counts()["finished"] == 3
    assert np.diff(run.outcome.joined_ps).min() > 0


def test_transfers_over_a_fabric_share_what_they_have_in_common():
    on = pd(decoders=2, max_batched_tokens=64)
    links = [Link("p", "switch", 1e9), Link("switch", "d0", 1e9), Link("switch", "d1", 1e9)]
    wire = over(lambda environment: Fabric(environment, links), ["p", "d0", "d1"])
    run = operated(toys.trace([0, 0], 8, 10), [handing_over(wire)], on, hands_over=False).run
    apart = operated(toys.trace([0, 0], 8, 10), [handing_over(WIRE)], on, hands_over=False).run
    assert run.e2e_s.max() - apart.e2e_s.max() == pytest.approx(8 * MS)  # 16 tokens through one link, not 8


def cutting(fabric, link, fail_s, mend_s=None):
    """A controller that lets a link fail, and mends it where a time is given."""

    def controller(plane):
        yield plane.wait(fail_s)
        fabric(plane.environment).fail(link)
        if mend_s is not None:
            yield plane.wait(mend_s - fail_s)
            fabric(plane.environment).mend(link)

    return controller


def test_kv_cut_short_by_a_failing_link_comes_when_that_is_mended_or_is_computed_again():
    on, trace = pd(), toys.trace([0], 8, 10)
    whole = operated(trace, [handing_over(WIRE)], on, hands_over=False).run  # prompt until 1 ms, KV until 9 ms
    for mend_s, patience_s, later_ms in ((25 * MS, inf, 20), (None, 14 * MS, None)):
        fabric = one_fabric([Link("p", "d", 1e9)])
        hand = handing_over(over(fabric, ["p", "d"]), patience_s=patience_s)
        if mend_s is None:
            mend_s = 30 * MS  # after two tries and part of a third
        operation = operated(trace, [hand, cutting(fabric, "p>d", 5 * MS, mend_s)], on, hands_over=False)
        assert operation.run.is_finished.all()
        if later_ms:
            assert operation.run.e2e_s[0] - whole.e2e_s[0] == pytest.approx(later_ms * MS)
        else:
            assert operation.ledger.actions["Not handed over in time"] == 2
            assert operation.run.e2e_s[0] > whole.e2e_s[0] + 20 * MS


def test_a_move_whose_kv_does_not_come_in_time_is_computed_again():
    fabric, moves = one_fabric([Link("a", "b", 1e9)]), []

    def controller(plane):
        mover = Mover(plane, over(fabric, ["a", "b"]), patience_s=20 * MS)
        yield plane.wait(5 * MS)
        moves.append((yield mover.start(Move(0, 1, Stop()))))

    operation = operated(toys.trace([0], 8, 60), [controller, cutting(fabric, "a>b", 8 * MS)])
    assert moves[0].why == "its KV did not come in time"
    assert operation.run.is_finished.all()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_links_fail_no_request_is_lost_and_nothing_leaks(seed):
    rng = np.random.default_rng(seed)
    links = [Link("p", f"d{lane}", 1e9) for lane in range(2)] + [Link("p", "s", 5e8), Link("s", "d0", 5e8)]
    fabric = one_fabric(links)
    trace = toys.trace(np.cumsum(rng.exponential(4 * MS, 60)), rng.integers(1, 60, 60), rng.integers(2, 40, 60))
    patience_s = float(rng.choice([5 * MS, 40 * MS]))
    hand = handing_over(over(fabric, ["p", "d0", "d1"]), patience_s=patience_s)
    failing = failing_links(fabric, [link.name for link in links], 30 * MS, 10 * MS, seed)
    first, second = (operated(trace, [hand, failing], pd(2), hands_over=False) for _ in range(2))
    assert first.run.is_finished.all()
    assert first.ledger.actions["Link failed"] > 3
    assert outcome(first.run).tobytes() == outcome(second.run).tobytes()


def outcome(run):
    return np.stack([column.astype(np.int64) for column in run.outcome], axis=-1)


def test_the_same_seed_gives_the_same_moves():
    def once():
        rng = np.random.default_rng(3)
        trace = toys.trace(np.cumsum(rng.exponential(2 * MS, 80)), rng.integers(1, 60, 80), rng.integers(1, 100, 80))
        control = pairing(one_mover(link(1e9)), low=10.0, high=30.0, every_s=2 * MS)
        return operated(trace, [control, rebalancing_queues(5 * MS)], fleet(3, max_batched_tokens=128))

    first, second = once(), once()
    assert first.ledger.actions == second.ledger.actions
    assert first.run.outcome.finish_ps.tobytes() == second.run.outcome.finish_ps.tobytes()
    assert first.ledger.actions["Moved"] > 0
