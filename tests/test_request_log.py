"""Request logs of real engines, replayed: the replay's own errors are judged where the logs are at hand."""

import numpy as np
import pandas
import pytest
import toys

from simulator.fleet import Fleet, Pool
from simulator.replay import replay
from simulator.request_log import replay_log


@pytest.fixture(scope="module")
def log(shared):
    return pandas.read_parquet(shared / "data" / "request_logs.parquet")


@pytest.fixture(scope="module")
def replayed(log):
    blind = log.drop(columns=[name for name in log if name.endswith(("_ms", "_ts"))])
    runs, reasons = replay_log(blind, sample_s=1.0)
    assert not reasons
    return {one.name: one for one in runs}


def test_a_log_is_replayed_without_a_look_at_its_times(log, replayed):
    assert sorted(replayed) == sorted(log["run"].unique())
    assert all(one.run.counts()["finished"] == 300 for one in replayed.values())


def test_a_preempting_engine_is_followed_request_by_request(log, replayed):
    one = replayed["RTX4090/Llama-3.1-8B"]
    assert one.run.outcome.preemptions.sum() > 100, "this log is of an engine short of KV blocks"
    for metric, seconds in one.seconds().items():
        truth = log[f"{metric}_ms"].to_numpy()[one.rows] * 1e-3
        assert np.median(np.abs(seconds / truth - 1)) < 0.10, metric
        assert np.mean(seconds) == pytest.approx(np.mean(truth), rel=0.10), metric


def test_a_log_of_an_older_release_is_priced_with_that_releases_collectives(log, replayed):
    one = replayed["RTXPRO6000/Qwen3-32B"]
    assert one.engine.framework_version == "0.19.0"
    for metric, seconds in one.seconds().items():
        truth = log[f"{metric}_ms"].to_numpy()[one.rows] * 1e-3
        assert np.median(np.abs(seconds / truth - 1)) < 0.06, metric


def test_running_and_waiting_requests_and_kv_follow_the_recorded_ones(shared, replayed):
    recorded = pandas.read_parquet(shared / "data" / "request_logs_timeseries.parquet")
    one = replayed["RTX4090/Llama-3.1-8B"]
    series, theirs = one.run.series, recorded[recorded["run"] == one.name]
    ours = {"running": series.running, "waiting": series.waiting, "kv_cache_pct": 100 * series.kv_fraction}
    for name, column in ours.items():
        rows = min(len(theirs), len(column))
        truth = theirs[name].to_numpy()[:rows]
        assert np.abs(column[:rows, 0] - truth).mean() < 0.10 * truth.mean(), name


def test_a_series_shows_the_pools_at_even_times():
    # One request of 5 steps of 1 ms, another of 3 that comes at 2.5 ms and is seen at 3 ms.
    run = replay(toys.trace([0.0, 0.0025], 4, [5, 3]), Fleet((Pool(toys.engine(), 1),)), sample_s=0.001)
    assert run.series.time_s.tolist() == [0.001, 0.002, 0.003, 0.004, 0.005]
    assert run.series.running[:, 0].tolist() == [1, 1, 2, 2, 1]
    assert run.series.waiting[:, 0].tolist() == [0, 0, 0, 0, 0]
    assert (run.series.kv_fraction > 0).all()


def test_a_sampled_replay_has_the_same_outcome():
    trace = toys.trace(np.arange(40) * 0.003, 10, 9)
    plain, sampled = replay(trace, toys.fleet(2)), replay(trace, toys.fleet(2), sample_s=0.0007)
    assert all((a == b).all() for a, b in zip(plain.outcome, sampled.outcome, strict=True))
