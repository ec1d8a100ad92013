"""Systems composed of the control plane's parts: what each does on toys, before any study of the real thing."""

from dataclasses import replace

import pytest
import toys

from models import device, llm
from models.engine import Engine, Settings
from simulator.control.step_prices import StepPrices, prices_of
from simulator.fleet import priced
from simulator.studies.workloads import gaps, lengths
from simulator.systems import flow_prefill, s_lora

MS = toys.PS_PER_MS


@pytest.fixture(scope="module")
def prices():
    """A step takes a millisecond a token; eight layers."""
    bounds = toys.limits(max_batched_tokens=4000, max_sequences=130, block_tokens=1, total_blocks=50_000)
    return StepPrices(replace(toys.engine(bounds, step_ps=0, token_ps=MS), layers=8))


def ttft_s(build, prices, *prompts):
    asked = [flow_prefill.Prompt(*each, label="any") for each in prompts]
    return [round(each, 4) for each in flow_prefill.serve(build, prices, 50_000, asked).ttft_s]


LONG, SHORT = (0.0, 3000, 10.0), (0.1, 50, 0.3)


def test_a_short_prompt_waits_for_a_whole_one_a_chunk_or_an_operator(prices):
    assert ttft_s(flow_prefill.whole_prompts, prices, LONG, SHORT) == [3.0, 2.95]
    assert ttft_s(flow_prefill.flow_prefill, prices, LONG, SHORT)[1] == pytest.approx(0.0875 + 0.05, abs=1e-4)
    # chunks of 512 keep the order of arrival: the last of the long prompt, 440 tokens, leaves room for the short
    assert ttft_s(flow_prefill.chunks, prices, LONG, SHORT) == [3.05, 2.95]


def test_flow_prefill_is_no_different_where_nobody_waits(prices):
    apart = [(5.0 * number, 1000, 2.0) for number in range(4)]
    assert ttft_s(flow_prefill.flow_prefill, prices, *apart) == ttft_s(flow_prefill.whole_prompts, prices, *apart)


def test_a_run_is_given_up_as_soon_as_too_many_are_late_and_only_then(prices):
    asked = [flow_prefill.Prompt(0.5 * number, 1000, 1.2, "any") for number in range(30)]
    whole = flow_prefill.serve(flow_prefill.whole_prompts, prices, 50_000, asked)
    late = sum(each > 1.2 for each in whole.ttft_s)  # twice what can be carried: all but the first
    assert late == 29
    for label in ("any", ""):
        assert flow_prefill.serve(flow_prefill.whole_prompts, prices, 50_000, asked, {label: 29}) == whole
        assert flow_prefill.serve(flow_prefill.whole_prompts, prices, 50_000, asked, {label: 5}) is None
        assert flow_prefill.serve(flow_prefill.whole_prompts, prices, 50_000, asked, {"other": 5}) == whole


def test_the_profile_is_what_steps_cost(prices):
    found = flow_prefill.profiled(prices)
    assert [found(tokens) / MS for tokens in (100, 1000, 3000)] == pytest.approx([100, 1000, 3000], rel=1e-6)


@pytest.fixture(scope="module")
def small():
    """A model of a billion weights on an L4, and the prices of its steps."""
    engine = Engine(llm.load("tinyllama-1.1b"), device.load("l4"), settings=Settings(max_num_batched_tokens=512))
    return engine, prices_of(priced(engine))


def asked(count, adapters, rank=8, gap_s=0.01):
    return [s_lora.Asked(gap_s * number, 40, 20, number % adapters, rank) for number in range(count)]


def test_adapters_cost_kv_loads_and_time(small):
    setting = s_lora.Setting(2000, 512, adapter_copy_s=1e-4, kernel_launch_s=1e-6)
    base, one, many = (s_lora.serve(*small, setting, each) for each in (asked(60, 1, 0), asked(60, 1), asked(60, 30)))
    assert (base.loads, many.loads > 30) == (0, True)
    assert base.requests_per_s > one.requests_per_s > many.requests_per_s
    slow = s_lora.serve(*small, setting._replace(step_host_s=0.01), asked(60, 1))
    assert slow.latency_s > one.latency_s + 0.01 * 20  # each request waits for some twenty steps
    kept = s_lora.serve(*small, setting._replace(keeps_unused=True), asked(60, 30))
    assert kept.loads < many.loads


def test_one_pool_serves_more_than_two_of_the_same_size_together(small):
    one = s_lora.Setting(2000, 512)
    two = one._replace(pool_tokens=1000, adapter_room_tokens=1000)
    few = asked(100, 2, rank=32, gap_s=0.001)
    assert s_lora.serve(*small, one, few).requests_per_s > 1.1 * s_lora.serve(*small, two, few).requests_per_s


def test_merged_models_fit_as_often_as_their_weights_do():
    engine = Engine(llm.load("llama-2-7b"), device.load("a100-sxm-80gb"), settings=Settings(max_num_batched_tokens=512))
    fit = s_lora.merged_models(engine)
    assert fit <= 0.95 * engine.device.memory_bytes // engine.weight_bytes_per_device
    larger = replace(engine, device=replace(engine.device, memory_bytes=2 * engine.device.memory_bytes))
    assert s_lora.merged_models(larger) >= 2 * fit


def test_made_lengths_have_the_published_quantiles_and_gaps_the_asked_variation():
    import numpy as np

    rng = np.random.default_rng(0)
    drawn = lengths(rng, [0.0, 0.5, 0.9, 1.0], [10, 100, 1000, 5000], 40_000)
    assert np.quantile(drawn, [0.5, 0.9]) == pytest.approx([100, 1000], rel=0.03)
    assert 10 <= drawn.min() < 12
    assert 4000 < drawn.max() <= 5000
    for variation in (0.5, 1.0, 3.0):
        made = gaps(rng, variation, 100_000)
        assert (made.mean(), made.std()) == pytest.approx((1.0, variation), rel=0.05)
