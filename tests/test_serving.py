"""Fleets of several models and several devices: each request comes to lanes that serve it, as fast as they can."""

import json

import numpy as np
import pytest
import toys
from click.testing import CliRunner

import traces
from planners.cli import main
from simulator.control.actions import Assign, Close, Fail, Open
from simulator.control.autoscalers import target_tracking
from simulator.control.migration import link, one_mover, pairing, rebalancing_queues
from simulator.control.plane import operate
from simulator.control.routers import ROUTERS, routing_of
from simulator.control.scaling import autoscale
from simulator.fleet import Fleet, Pool
from simulator.replay import replay
from traces.trace import Labels

MS = 1e-3
SETTINGS = {"length-classes": {"edges_tokens": (20,), "shares": (1, 1)}}


def named(codes, names=("small", "large"), gap_s=2 * MS, **columns):
    """Return requests for models by code, one every so often."""
    codes = np.asarray(codes, np.int32)
    return toys.trace(np.arange(codes.size) * gap_s, 8, 6, model=Labels(codes, tuple(names)), **columns)


def fleet(small=2, large=2, **costs):
    """Return lanes 0 and 1 that serve the small model, 2 and 3 the large one."""
    engine = toys.engine(kv_bytes=1e6, **costs)
    return Fleet((Pool(engine, small, serves=("small",)), Pool(engine, large, serves=("large",))))


@pytest.mark.parametrize("name", list(ROUTERS))
def test_whatever_the_router_each_request_is_served_by_lanes_of_its_model(name):
    trace = named(
        np.random.default_rng(0).integers(0, 2, 80), session_id=Labels(np.arange(80, dtype=np.int32) % 7, "abcdefg")
    )
    run = operate(trace, fleet(), routing=routing_of(name, **SETTINGS.get(name, {}))).run
    assert run.is_finished.all()
    assert (run.outcome.lane // 2 == trace.columns["model"].codes).all()


def test_a_model_that_no_pool_serves_is_turned_away_and_a_pool_without_names_serves_all():
    trace = named([0, 1, 2, -1], ("small", "large", "huge"))
    run = operate(trace, fleet(), routing=routing_of("least-requests")).run
    assert run.counts() == {"arrived": 4, "finished": 2, "rejected": 2, "failed": 0, "in_flight": 0}
    rest = Fleet((*fleet().pools, Pool(toys.engine(), 1)))
    assert operate(trace, rest, routing=routing_of("least-requests")).run.outcome.lane.tolist()[2:] == [4, 4]


def test_a_model_without_an_open_lane_waits_and_holds_up_no_other():
    def closing(plane):
        plane.do(Close(0))
        yield plane.wait(30 * MS)
        plane.do(Open(0))

    run = operate(named([0, 0, 1, 1]), fleet(1, 1), routing=routing_of("least-requests"), controllers=[closing]).run
    assert run.is_finished.all()
    assert (run.queue_s[:2] > 25 * MS).all()
    assert (run.queue_s[2:] < 10 * MS).all()


def test_no_action_brings_a_request_to_a_lane_of_another_model():
    refused = []

    def wrong(plane):
        plane.do(Close(0))
        yield plane.wait(1 * MS)
        refused.append(plane.do(Assign(0, 1)).why)
        plane.do(Open(0))

    operate(named([0]), fleet(1, 1), routing=routing_of("least-requests"), controllers=[wrong])
    assert refused == ["the lane serves other models"]
    with pytest.raises(ValueError, match="named lane 1 for request 0 of model 'small'; it serves large"):
        operate(named([0]), fleet(1, 1), routing=lambda plane: lambda request, view: 1)


def test_migration_and_rebalancing_keep_to_a_models_lanes_and_nothing_leaks():
    rng = np.random.default_rng(1)
    trace = named((rng.random(150) < 0.8).astype(int), gap_s=1 * MS)
    controllers = [
        pairing(one_mover(link(1e10)), 20.0, 30.0, every_s=2 * MS), rebalancing_queues(2 * MS),
        lambda plane: failing(plane, rng),
    ]  # fmt: skip
    run = operate(trace, fleet(bounds=toys.limits(total_blocks=16, max_context_tokens=40)),
                  routing=routing_of("random"), controllers=controllers).run  # fmt: skip
    assert run.is_finished.all()
    assert (run.outcome.lane // 2 == trace.columns["model"].codes).all()
    assert (run.lanes["free_blocks"] == run.lanes["total_blocks"]).all()


def test_a_long_queue_of_one_model_goes_to_its_own_lanes_though_another_models_are_emptier():
    """All of the large model's requests come to lane 2; lanes 0 and 1 stand idle, and lane 3 takes half."""
    trace = named([1] * 40, gap_s=0.01 * MS)
    bounds = toys.limits(max_sequences=2)
    run = operate(trace, fleet(bounds=bounds), routing=lambda plane: lambda request, view: 2,
                  controllers=[rebalancing_queues(1 * MS)]).run  # fmt: skip
    assert set(run.outcome.lane.tolist()) == {2, 3}
    assert abs(int((run.outcome.lane == 3).sum()) - 20) <= 3


def failing(plane, rng):
    for _ in range(6):
        yield plane.wait(rng.exponential(20 * MS))
        lane = int(rng.integers(4))
        plane.do(Fail(lane))
        yield plane.wait(5 * MS)
        plane.do(Open(lane))


def test_a_pool_that_is_scaled_to_nothing_comes_up_for_its_own_model_alone():
    def scaled(pool):
        return autoscale(pool, target_tracking(4.0), every_s=50 * MS, initial=0, least=0)

    operation = operate(
        named([1, 1, 1], gap_s=5 * MS), fleet(1, 1), routing=routing_of("least-requests"),
        controllers=[scaled(0), scaled(1)],
    )  # fmt: skip
    assert operation.run.is_finished.all()
    assert {event.split(" wants")[0] for _, event in operation.ledger.events} == {"pool 1"}


def test_several_models_need_names_and_a_routing():
    with pytest.raises(ValueError, match="names no models"):
        operate(toys.trace([0], 4, 4), fleet(), routing=routing_of("random"))
    with pytest.raises(ValueError, match="needs a routing"):
        operate(named([0]), fleet())
    with pytest.raises(ValueError, match="needs the control plane"):
        replay(named([0]), fleet())


FILE = """
pools:
  - {device: l40s, model: llama-3.1-8b, serves: [chat]}
  - {device: l40s, model: qwen3-8b}
"""


def test_pools_of_a_fleet_file_serve_the_models_that_a_trace_names(tmp_path):
    traces.write(named([0, 1] * 50, ("chat", "qwen3-8b"), gap_s=0.1), tmp_path / "asked.parquet")
    arguments = ["simulate", str(tmp_path / "asked.parquet"), "--fleet", str(tmp_path / "fleet.yaml"), "--json"]
    (tmp_path / "fleet.yaml").write_text(FILE + "control: {routing: {name: least-requests}}\n")
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["result"]["requests"]["finished"] == 100
    (tmp_path / "fleet.yaml").write_text(FILE)
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 2
    assert "fleet.yaml:3:" in found.stderr
    assert "need control.routing" in found.stderr


@pytest.mark.parametrize(("slower", "gain"), [(4.0, 5.0), (1.0, 1.1)])
def test_on_mixed_devices_a_router_that_foresees_beats_turns_and_on_equal_ones_it_does_not(slower, gain):
    """At four fifths of what both carry together, half of the requests are too many for a device of a fifth."""
    quick = toys.engine(step_ps=0, token_ps=toys.PS_PER_MS // 4)
    slow = toys.engine(step_ps=0, token_ps=round(slower * toys.PS_PER_MS / 4))
    on = Fleet((Pool(quick, 1), Pool(slow, 1, speed=1 / slower)))
    per_s = 1 / (20 * 0.25 * MS) * (1 + 1 / slower)  # prompts of 20 tokens and one out
    rng = np.random.default_rng(2)
    trace = toys.trace(np.cumsum(rng.exponential(1 / (0.8 * per_s), 2000)), 20, 1)
    p99_s = {
        name: operate(trace, on, routing=routing_of(name)).run.percentile_s("ttft", 99)
        for name in ("round-robin", "latency-predictive", "weighted")
    }
    if slower > 1:
        assert p99_s["round-robin"] > gain * p99_s["latency-predictive"]
        assert p99_s["round-robin"] > gain * p99_s["weighted"]
    else:
        assert p99_s["latency-predictive"] < gain * p99_s["round-robin"]
        assert p99_s["round-robin"] < 2 * p99_s["latency-predictive"]
