"""What a Run tells: usage, energy, saturation, attainment by class, and intervals over replications."""

import math
from dataclasses import replace

import numpy as np
import pytest
import toys

from models import device, llm
from models.engine import Engine
from simulator.fleet import Fleet, Pool, priced
from simulator.replay import replay
from simulator.replication import figures_of, interval, replicate
from simulator.saturation import verdict
from simulator.usage import energy_j, usage
from traces.trace import Labels

STEP_S = 1e-3


def one_server(sequences: int = 1, **changes) -> Fleet:
    bounds = toys.limits(max_sequences=sequences, total_blocks=100_000, max_context_tokens=400_000)
    return replace(Fleet((Pool(toys.engine(bounds, cell_shift=12), 1, usd_per_hour=3.6),)), **changes)


def poisson(load: float, requests: int = 20_000, seed: int = 0):
    """Requests of one step of a millisecond each, at a load of one server."""
    return toys.trace(np.cumsum(np.random.default_rng(seed).exponential(STEP_S / load, requests)), 1, 1)


@pytest.mark.parametrize("load", [0.3, 0.5])
def test_a_fleet_with_room_to_spare_is_stable(load):
    fleet = toys.fleet(2)
    outputs = np.full(4_000, 8)  # two replicas of eight sequences: 2,000 requests a second
    arrivals_s = np.cumsum(np.random.default_rng(1).exponential(1 / (load * 2_000), outputs.size))
    assert verdict(replay(toys.trace(arrivals_s, 1, outputs), fleet)) == "stable"


@pytest.mark.parametrize("load", [1.1, 1.5, 3.0])
def test_more_than_the_fleet_can_carry_is_overload(load):
    assert verdict(replay(poisson(load), one_server())) == "overloaded"


@pytest.mark.parametrize("load", [0.5, 0.8, 0.95])
def test_a_queue_that_comes_and_goes_is_no_overload(load):
    assert verdict(replay(poisson(load), one_server())) != "overloaded"


def test_a_burst_that_the_fleet_catches_up_with_is_a_backlog():
    arrivals_s = np.concatenate([np.zeros(300), np.arange(1, 1_000) * 0.01])
    assert verdict(replay(toys.trace(arrivals_s, 1, 1), one_server())) == "backlogged"


def test_impatient_clients_do_not_hide_an_overload():
    patient, impatient = one_server(), one_server(patience_s=0.05)
    assert verdict(replay(poisson(1.5), patient)) == "overloaded"
    run = replay(poisson(1.5), impatient)
    assert run.counts()["failed"] > 0
    assert verdict(run) == "overloaded"


def test_refused_requests_are_no_backlog():
    assert verdict(replay(toys.trace(np.arange(9), 10_000, 1), toys.fleet())) == "stable"


def hopper(replicas: int = 1, **cut) -> Fleet:
    engine = Engine(llm.load("llama-3.1-8b"), device.load("h100-sxm"), **cut)
    return Fleet((Pool(priced(engine), replicas, usd_per_hour=2.0),))


@pytest.fixture(scope="module")
def busy_run():
    """A hundred requests of 1,000 tokens in, 100 out, all at once on one H100."""
    return replay(toys.trace(np.zeros(100), 1_000, 100), hopper())


def test_arithmetic_and_traffic_are_fractions_of_what_the_device_can_do(busy_run):
    (found,) = usage(busy_run)
    parameters = 8.03e9 - 128_256 * 4096  # all but the table of embeddings
    least_flops = 2 * parameters * 100 * 1_000
    most_flops = 1.2 * 2 * parameters * 100 * 1_100
    peak = busy_run.span_s * 989.4e12
    assert least_flops / peak < found.compute < most_flops / peak
    assert 0.2 < found.bandwidth < 1.0
    assert found.busy == pytest.approx(1.0, abs=1e-6)


def test_weights_are_read_once_a_step():
    run = replay(toys.trace([0.0], 10, 101), hopper())
    (found,) = usage(run)
    # 101 steps read 16.06 GB of weights each; 100 decodes 60 tokens of 131,072 bytes on average.
    moved_bytes = 101 * 16.06e9 + 100 * 60.5 * 131_072
    assert found.bandwidth * run.span_s * 3.352e12 == pytest.approx(moved_bytes, rel=5e-3)


def test_kv_in_use_is_what_requests_hold_over_what_fits():
    run = replay(toys.trace([0.0], 100, 5), toys.fleet())
    # Two steps of prefill (64 tokens a step) hold 100 tokens; four of decode 102.5; of 256 tokens for 6 ms.
    (found,) = usage(run)
    assert found.kv == pytest.approx((2 * 100 + 4 * 102.5) / (6 * 256))


def test_idle_lanes_cost_what_is_not_busy():
    # One request of ten steps of a millisecond, then one more at 90 ms: 20 of 100 ms are busy.
    run = replay(toys.trace([0.0, 0.09], 1, 10), one_server())
    (found,) = usage(run)
    assert found.busy == pytest.approx(0.2)
    assert found.idle_usd == pytest.approx(0.8 * run.usd)


def test_energy_lies_between_idle_and_the_limit_and_a_busy_fleet_draws_more(busy_run):
    card = device.load("h100-sxm")
    assert card.idle_w * busy_run.span_s < energy_j(busy_run) <= card.tdp_w * busy_run.span_s
    idle = replay(toys.trace([0.0, 100.0], 10, 2), hopper())
    assert energy_j(idle) == pytest.approx(card.idle_w * idle.span_s, rel=0.01)


def test_energy_of_toy_hardware_is_not_known():
    run = replay(toys.trace([0.0], 1, 1), toys.fleet())
    assert energy_j(run) is None
    assert usage(run)[0].compute is None


def test_work_of_handed_over_requests_is_counted_once():
    engine = priced(Engine(llm.load("llama-3.1-8b"), device.load("h100-sxm")))
    pools = (Pool(engine, 2, role="prefill"), Pool(engine, 1, role="decode"))
    trace = toys.trace(np.arange(20) * 0.1, 500, 50)
    together, apart = replay(trace, Fleet((Pool(engine, 1),))), replay(trace, Fleet(pools))
    flops = [
        sum(found.compute * pool.replicas for found, pool in zip(usage(run), run.fleet.pools, strict=True)) * run.span_s
        for run in (together, apart)
    ]
    assert flops[0] == pytest.approx(flops[1], rel=1e-9)
    prefill, decode = usage(apart)
    assert prefill.compute > decode.compute
    assert prefill.bandwidth < decode.bandwidth


def test_goodput_counts_what_keeps_every_limit():
    run = replay(toys.trace(np.zeros(9), 1, 10), toys.fleet())
    # One of nine waits for a place until 10 ms and ends at 20 ms.
    assert run.goodput_per_s({"ttft": 0.005}) == pytest.approx(8 / 0.020)
    assert run.attainment({"ttft": 0.005}) == pytest.approx(8 / 9)
    assert run.attainment({}) == 1.0


def test_attainment_is_told_class_by_class():
    classes = Labels(np.array([0, 1, 1, 0, -1], np.int32), ("chat", "batch"))
    run = replay(toys.trace(np.arange(5.0), 1, [2, 9, 9, 9, 2], slo_class=classes), toys.fleet())
    assert run.attainment_by_class({"e2e": 0.005}) == {"batch": 0.0, "chat": 0.5}
    assert replay(toys.trace([0.0], 1, 1), toys.fleet()).attainment_by_class({}) == {}


def test_an_interval_is_students():
    # Values 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.3027.
    found = interval([1.0, 2.0, 3.0])
    assert (found.mean, found.replications) == (2.0, 3)
    assert found.high - found.mean == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert interval([1.0]).low == -math.inf
    assert interval([1.0, math.inf]).high == math.inf
    assert interval([math.nan]).replications == 0


def test_intervals_over_replications_hold_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(3)
    held = sum(
        found.low <= 5.0 <= found.high for found in (interval(rng.normal(5, 2, 6).tolist(), 0.9) for _ in range(1_000))
    )
    assert 870 <= held <= 930


def replication(seed: int):
    """One replication, as a worker can find it."""
    return replay(poisson(0.8, 500, seed), one_server())


def test_intervals_do_not_depend_on_the_number_of_workers():
    alone, together = (replicate(replication, range(4), figures_of, workers=workers) for workers in (1, 2))
    assert alone == together


def test_replicating_gives_an_interval_for_each_figure():
    found = replicate(lambda seed: replay(poisson(0.5, 500, seed), one_server()), range(5), figures_of)
    assert found["ttft.p50"].low < found["ttft.p50"].mean < found["ttft.p50"].high
    assert found["attainment"].mean == 1.0
    assert {"e2e.p99", "goodput_per_s", "usd"} <= set(found)
    with pytest.raises(ValueError, match="no seed given"):
        replicate(lambda seed: replay(poisson(0.5, 5, seed), one_server()), [], figures_of)
