"""Serving results of other kinds than closed loops: static batches, rates, split pools, power."""

from dataclasses import replace

import numpy as np
import pandas
import pytest

from models import device, llm
from models.calibration import end_to_end, serving
from models.calibration.validation import none_yet, summary
from models.engine import Engine
from models.estimate import StepCosts
from models.power import BUSY_SHARE, MULTIPLYING_SHARE, device_w, multiplying

NOTHING = dict.fromkeys(end_to_end.READ_OTHERS, np.nan)
ROW = NOTHING | {
    "source": "llm_inference_bench",
    "device": "a100_sxm",
    "n_devices": 1.0,
    "engine": "vLLM",
    "model": "meta-llama/Meta-Llama-3-8B",
    "mode": "offline_static",
    "weight_dtype": "fp16/bf16",
    "tp": 1.0,
    "isl": 1024.0,
    "osl": 128.0,
    "batch": 16.0,
}


@pytest.fixture(scope="module")
def costs():
    return {}


def told(costs, **changes):
    return serving.answer(ROW | changes, costs)


def test_a_static_batch_prefills_together_then_takes_a_step_a_token(costs):
    one, many = told(costs, batch=1.0), told(costs)
    assert many["e2e"] == pytest.approx(many["ttft"] + 127 * many["tpot"])
    assert 8 < many["ttft"] / one["ttft"] < 20
    assert many["throughput"] == pytest.approx(16 / many["tpot"])


def test_a_higher_rate_keeps_more_requests_running(costs):
    slow, fast = (told(costs, mode="Server", request_rate=rate) for rate in (0.5, 6.0))
    assert fast["tpot"] > slow["tpot"]
    assert fast["ttft"] > slow["ttft"]
    with pytest.raises(ValueError, match="neither a rate nor a concurrency"):
        told(costs, mode="Server", batch=np.nan)


def test_requests_that_all_wait_are_told_by_throughput_alone(costs):
    assert "ttft" not in told(costs, mode="Offline")


def test_decodes_in_a_pool_of_their_own_meet_no_prompts(costs):
    pools = {f"{pool}_{name}": 1.0 for pool in "pd" for name in ("workers", "tp", "attn_dp")}
    split = told(costs, mode="disagg", concurrency=8.0, **pools)
    shared = told(costs, mode="online", concurrency=8.0, batch=np.nan)
    assert split["tpot"] < shared["tpot"]
    crowded = told(costs, mode="disagg", concurrency=256.0, **pools)
    assert crowded["ttft"] > 10 * split["ttft"]


def test_what_is_not_said_is_the_narrowest_cut_that_fits():
    unsaid = serving.read(ROW | {"model": "llama2-70b-99.9", "n_devices": 8.0, "tp": np.nan, "weight_dtype": "bf16"})
    assert (unsaid.engine.tp, unsaid.replicas) == (2, 4.0)
    assert unsaid.engine.llm.name == "llama-2-70b"


def test_rows_that_cannot_be_told_say_why():
    frame = pandas.DataFrame([ROW, ROW | {"mode": "on the moon"}, ROW | {"device": "abacus"}])
    found = end_to_end.predict(frame)
    assert found.reason[0] == ""
    assert "not described; known: disagg" in found.reason[1]
    assert "abacus" in found.reason[2]


def test_rows_that_lack_the_same_are_counted_together():
    reasons = np.array(
        ["", "x: a request of 497 tokens does not fit; use more tp", "x: a request of 9 tokens does not fit"]
    )
    predictions = replace(none_yet(3, ()), reason=reasons.astype(object))
    told = summary(pandas.DataFrame(index=range(3)), {}, predictions)
    assert told["unpredicted"] == {"x: a request does not fit": 2}


def test_a_device_draws_its_idle_watts_its_busy_ones_and_those_of_multiplying():
    h100 = device.load("h100-sxm")
    span_w = h100.tdp_w - h100.idle_w
    assert device_w(h100, 0.0, 0.0) == h100.idle_w
    assert device_w(h100, 1.0, 0.2) == pytest.approx(h100.idle_w + (BUSY_SHARE + 0.2 * MULTIPLYING_SHARE) * span_w)
    assert device_w(h100, 1.0, 1.0) == h100.tdp_w


def test_multiplying_is_two_flop_a_weight_and_token():
    engine = Engine(llm.load("llama-3.1-8b"), device.load("h100-sxm"), tp=2)
    expected = 2 * engine.llm.active_parameters * 1e4 / 2 / engine.device.flops_per_s["bf16"]
    assert multiplying(engine, 1e4) == pytest.approx(expected)


def test_nine_in_ten_rows_of_every_kind_are_predicted(shared):
    frame = pandas.read_parquet(shared / "data" / "end_to_end.parquet")
    few = frame[frame["mode"] != end_to_end.LOOP].iloc[::60]
    found = end_to_end.predict(few)
    assert (found.reason == "").mean() >= 0.85


def test_threads_of_a_cpu_are_what_multiplies(costs):
    looked_up = {"device": "cpu:Raspberry Pi 5", "engine": "t-mac", "model": "Llama-2-7B", "weight_dtype": "w4"}
    at = looked_up | {"mode": "single_stream", "isl": 0.0, "osl": 128.0, "batch": 1.0}
    one, two = (told(costs, **at, parallel_note=f"threads={threads}")["tpot"] for threads in (1, 2))
    assert 1.5 < one / two < 2.0


def test_looked_up_products_of_other_cpus_follow_their_cores_and_bandwidth(shared):
    frame = pandas.read_parquet(shared / "data" / "end_to_end.parquet")
    frame = frame[(frame["source"] == "t_mac") & frame["engine"].str.startswith("t-mac") & frame["tpot_ms"].notna()]
    ratio = end_to_end.predict(frame).value["tpot"] * 1e3 / frame["tpot_ms"].to_numpy()
    assert np.isfinite(ratio).sum() >= 17
    assert np.nanmedian(np.abs(ratio - 1.0)) < 0.25


def test_power_of_steady_states_is_told_within_a_quarter(shared):
    frame = pandas.read_parquet(shared / "data" / "end_to_end.parquet")
    steady = frame[(frame["source"] == "ml_energy")].iloc[::4]
    found = end_to_end.predict(steady.drop(columns=["power_w_per_device", "energy_j_per_token", "tpot_ms"]))
    error = np.abs(found.value["power"] / steady["power_w_per_device"].to_numpy(float) - 1)
    assert np.nanmedian(error) < 0.25


def test_a_prompt_longer_than_a_step_takes_several(costs):
    told(costs)
    cost = next(iter(costs.values()))
    assert isinstance(cost, StepCosts)
    one, two = (serving.prefill_s(cost, tokens, tokens) for tokens in (8192, 16384))
    assert two > 2 * one
