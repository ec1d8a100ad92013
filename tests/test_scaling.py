"""Autoscalers by the property that defines each, and replicas that start, drain, sleep and are taken away."""

from pathlib import Path

import numpy as np
import pytest
import toys

from simulator.control.autoscalers import (
    AUTOSCALERS,
    Reading,
    apa,
    band,
    kpa,
    mean_wait,
    predictive,
    queueing,
    target_tracking,
)
from simulator.control.plane import operate
from simulator.control.replicas import AT_ONCE, Part, Spot, Startup, startup
from simulator.control.scaling import METRICS, autoscale

MS = 1e-3
SLOW = Startup((Part("image pull", 0.05, "assumed"), Part("warm-up", 0.01, "assumed")))


def readings(totals, serving=4, wanted=None, every_s=10.0):
    """A history of totals, all replicas serving unless told."""
    wanteds = wanted if wanted is not None else [serving] * len(totals)
    return [
        Reading(every_s * place, total, min(serving, each), each)
        for place, (total, each) in enumerate(zip(totals, wanteds, strict=True))
    ]


def test_target_tracking_asks_for_total_over_target_and_tolerates_a_tenth():
    policy = target_tracking(10.0)
    assert policy(readings([80.0])) == 8
    assert policy(readings([43.0])) == 4  # 1.075 of the target
    assert policy(readings([45.0])) == 5


def test_target_tracking_goes_down_only_to_the_most_asked_for_within_its_window():
    policy = target_tracking(10.0, stabilisation_s=300.0)
    assert policy(readings([35.0, *[10.0] * 20])) == 4  # the 35 of 200 s ago would have kept 4
    assert policy(readings([35.0, *[10.0] * 40])) == 1


def test_target_tracking_counts_replicas_that_start_as_idle_and_does_not_ask_twice():
    policy = target_tracking(10.0)
    assert policy([Reading(0.0, 80.0, 4, 8)]) == 8
    assert policy([Reading(0.0, 160.0, 4, 8)]) == 16


def test_kpa_follows_the_stable_window_and_panics_on_twice_the_load():
    policy = kpa(10.0)
    assert policy(readings([40.0] * 18 + [64.0] * 2)) == 5  # 42.7 over the last 18: no panic, as 48 over 60 s is not 80
    calm = [40.0] * 18
    assert policy(readings([*calm, *[100.0] * 6])) == 10  # 100 over the panic window
    after = readings([*calm, *[100.0] * 6, *[10.0] * 6])
    assert policy(after) == 4  # it panics still: never down from what is wanted
    assert policy(readings([*calm, *[100.0] * 6, *[10.0] * 30])) == 2  # down at most by half


def test_apa_ignores_a_tenth_doubles_at_most_and_waits_before_it_goes_down():
    policy = apa(10.0)
    assert policy(readings([43.0])) == 4
    assert policy(readings([60.0])) == 6
    assert policy(readings([900.0])) == 8
    assert policy(readings([4.0])) == 2
    fresh = readings([80.0, *[4.0] * 20], wanted=[2, *[4] * 20])
    assert policy(fresh) == 4  # changed 190 s ago
    assert policy(readings([80.0, *[4.0] * 40], wanted=[2, *[4] * 40])) == 2


def test_a_band_moves_one_replica_at_a_time_and_only_when_all_have_come():
    policy = band(10.0, 60.0)
    assert [policy(readings([4 * each])) for each in (9.0, 10.0, 60.0, 61.0)] == [5, 4, 4, 3]
    assert policy([Reading(0.0, 4.0, 4, 5)]) == 5


def test_queueing_wants_the_fewest_replicas_that_keep_the_mean_wait():
    policy = queueing(rate_per_s=2.0, wait_s=0.1)
    wanted = policy(readings([9.0]))  # 4.5 busy replicas
    assert mean_wait(4.5, wanted) / 2.0 <= 0.1 < mean_wait(4.5, wanted - 1) / 2.0
    assert policy(readings([0.0])) == 0
    assert queueing(2.0, 0.1, variation=0.0)(readings([9.0])) <= wanted


def test_mean_waits_are_erlangs():
    assert mean_wait(0.8, 1) == pytest.approx(4.0)  # rho / (1 - rho)
    assert mean_wait(2.0, 3) == pytest.approx(4 / 9)  # Erlang C of 2 in 3 servers is 4/9
    assert mean_wait(3.0, 3) == float("inf")


def test_a_trend_is_followed_up_before_it_comes_and_down_only_as_it_does():
    policy = predictive(10.0, window_s=300.0, ahead_s=100.0)
    assert policy(readings([10.0 + 2.0 * place for place in range(11)])) == 5  # 30 now, 50 in 100 s
    assert policy(readings([30.0 - 2.0 * place for place in range(11)])) == 1
    assert policy(readings([30.0] * 11)) == 3


def test_every_autoscaler_is_a_pure_function_of_its_history():
    builds = {"band": (), "queueing": (2.0, 0.1)}
    history = readings([40.0, 90.0, 20.0, 70.0])
    for name, build in AUTOSCALERS.items():
        policy = build(*builds.get(name, (10.0,)))
        assert policy(history) == policy(history) == build(*builds.get(name, (10.0,)))(tuple(history))


def test_a_start_is_bytes_over_bandwidths_and_fixed_times_each_with_a_source():
    class Engine:
        weight_bytes_per_device, devices = 10e9, 4

    found = startup(Engine(), image_bytes=6e9, image_bytes_per_s=0.1e9, weight_bytes_per_s=2e9, graph_capture_s=8.0)
    assert [part.seconds for part in found.parts[:3]] == [60.0, 20.0, 8.0]
    assert all(part.source for part in found.parts)
    assert found.parts[-1].source.startswith("assumed")
    with pytest.raises(ValueError, match="unknown 'image_byte' of a start"):
        startup(Engine(), image_byte=1.0)


def burst(count=100, at_s=0.05, gap_s=2 * MS):
    return toys.trace(at_s + gap_s * np.arange(count), 8, 20)


def scaled(trace, policy, metric="concurrency", replicas=4, **changes):
    chosen = dict(every_s=5 * MS, start=AT_ONCE, initial=1) | changes
    return operate(trace, toys.fleet(replicas), controllers=[autoscale(0, policy, METRICS[metric], **chosen)])


def test_replicas_beyond_the_initial_serve_once_started_and_are_paid_from_when_they_were_asked_for():
    operation = scaled(burst(), apa(2.0), start=SLOW)
    run = operation.run
    assert run.counts()["finished"] == 100
    first_s = run.outcome.scheduled_ps[run.outcome.lane > 0].min() / 1e12
    asked_s = next(time_s for time_s, lanes in operation.ledger.paid if lanes > 1)
    assert first_s >= asked_s + SLOW.seconds
    assert operation.ledger.paid[:2] == [(0.0, 4), (0.0, 1)]
    assert operation.ledger.actions["Scaled up"] >= 1


def test_a_replica_that_is_taken_away_ends_what_it_has_and_is_paid_until_then():
    trace = toys.trace([0, 0, 0, 0], 4, [150, 100, 10, 10])
    operation = scaled(trace, lambda history: 1, initial=4)
    run = operation.run
    assert run.counts()["finished"] == 4
    assert operation.ledger.actions["Scaled down"] == 1
    assert operation.ledger.paid[-1][1] == 1
    assert operation.ledger.paid[-1][0] > 0.01


def test_reversals_are_counted():
    wants = iter([3, 2, 4, 4, 1] + [1] * 1000)
    operation = scaled(toys.trace([0], 4, 100), lambda history: next(wants))
    assert operation.ledger.actions["Scale reversal"] == 3


def test_a_start_that_was_given_up_does_not_shorten_the_next():
    wants = iter([2, 1, 2] + [2] * 1000)
    trace = toys.trace([0, *(0.002 * np.arange(50, 90))], 4, 60)
    operation = scaled(trace, lambda history: next(wants), start=SLOW, every_s=20 * MS, replicas=2)
    opened_s = operation.run.outcome.scheduled_ps[operation.run.outcome.lane == 1].min() / 1e12
    assert opened_s >= 0.06 + SLOW.seconds


def test_a_pool_at_nothing_is_woken_by_a_request_that_is_held():
    trace = toys.trace([0.2, 1.0], 4, 5)
    operation = scaled(trace, lambda history: 0, initial=0, least=0, start=SLOW, every_s=0.5)
    run = operation.run
    assert run.counts()["finished"] == 2
    assert run.queue_s[0] == pytest.approx(SLOW.seconds, abs=2 * MS)
    assert run.queue_s[1] == pytest.approx(SLOW.seconds, abs=2 * MS)
    assert operation.ledger.paid_lane_s(1.2) < 1.0


@pytest.mark.parametrize("notice_s", [0.0, 10.0])
def test_an_eviction_loses_no_request_and_with_notice_enough_none_computes_again(notice_s):
    trace = toys.trace(2 * MS * np.arange(60), 8, 30)
    spot = Spot(evictions_per_hour=3600 * 20.0, notice_s=notice_s, seed=1)
    operation = scaled(trace, lambda history: 3, initial=3, spot=spot)
    run = operation.run
    assert operation.ledger.actions["Evicted"] >= 1
    assert run.counts()["finished"] == 60
    assert ("Fail" in operation.ledger.actions) == (notice_s == 0.0)
    assert run.lanes["free_blocks"].tolist() == run.lanes["total_blocks"].tolist()


def test_replicas_that_failed_are_replaced():
    from simulator.control.actions import Fail

    def failing(plane):
        yield plane.wait(10 * MS)
        plane.do(Fail(0))

    trace = toys.trace(1 * MS * np.arange(40), 4, 30)
    control = autoscale(0, lambda history: 2, every_s=5 * MS, initial=2)
    operation = operate(trace, toys.fleet(3), controllers=[control, failing])
    assert operation.run.counts()["finished"] == 40
    assert set(operation.run.outcome.lane[20:].tolist()) == {1, 2}


def test_the_facts_of_a_start_have_sources():
    import tomllib

    from simulator.control import replicas

    facts = tomllib.loads(Path(replicas.FACTS).read_text(encoding="utf-8"))
    assert set(facts) - {"source"} == set(facts["source"])
