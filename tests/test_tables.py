"""Step tables: what is looked up must be what the operators add up to."""

from dataclasses import replace

import numpy as np
import pytest

from models import device, forward, llm, step
from models.engine import Engine
from models.framework import load, of_engine
from models.tables import COARSE, step_table, total_s

H100 = device.load("h100-sxm")
LLAMA = llm.load("llama-3.1-8b")
PLAIN = replace(
    load("vllm"), decode_factor=1.0, prefill_factor=1.0, eager_layer_s=0.0
)  # nothing fused, nothing waited for


def ideal_cost(engine, call):
    """A device that reaches its data sheet: FLOP over peak plus bytes over bandwidth, linear in every shape."""
    shape = call.shape
    if call.op == "gemm":
        flops, moved = 2 * shape["m"] * shape["n"] * shape["k"], 2 * shape["n"] * shape["k"]
    elif call.op in ("attn_decode", "attn_prefill"):
        pairs = shape["batch"] * shape["q_len"] * (shape["past"] + (shape["q_len"] + 1) / 2)
        flops = 4 * pairs * shape["heads"] * shape["head_dim"]
        moved = 4 * shape["batch"] * (shape["past"] + shape["q_len"]) * shape["kv_heads"] * shape["head_dim"]
    elif call.op == "attn_mixed":
        pairs = shape["q_len"] * (shape["past"] + (shape["q_len"] + 1) / 2) + shape["n_decode"] * shape["kv_decode"]
        flops = 4 * pairs * shape["heads"] * shape["head_dim"]
        tokens = shape["past"] + shape["q_len"] + shape["n_decode"] * shape["kv_decode"]
        moved = 4 * tokens * shape["kv_heads"] * shape["head_dim"]
    else:
        flops, moved = 0 * next(iter(shape.values())), 0
    return flops / engine.device.flops_per_s["bf16"] + moved / engine.device.bandwidth_bytes_per_s


@pytest.fixture(scope="module")
def engine():
    return Engine(LLAMA, H100)


@pytest.fixture(scope="module")
def table(engine):
    return step_table(engine, ideal_cost, PLAIN)


def packed(*tables):
    """Return the prices and the place of the last table among all."""
    places, prices = step.pack(tables)
    return prices, places[-1]


def seconds(calls, engine):
    return float(total_s(engine, ideal_cost, calls)[0])


@pytest.mark.parametrize("tokens", [1, 8, 512, 2048, 5000, 8192])
def test_token_times_are_the_sum_of_their_operators(engine, table, tokens):
    host_s = load("vllm").step_s(LLAMA.layers)
    expected = seconds(forward.token_calls(engine, np.array([float(tokens)])), engine) + host_s
    assert table.token_ps[0, tokens] * 1e-12 == pytest.approx(expected, rel=1e-6)


def test_small_batches_cost_what_their_graph_costs(table):
    assert table.token_ps[0, 9] == table.token_ps[0, 16]
    assert table.token_ps[0, 3] == table.token_ps[0, 4]
    assert table.token_ps[0, 257] == table.token_ps[0, 272]


@pytest.mark.parametrize(("sequences", "context"), [(1, 1), (1, 100_000), (7, 5_000), (64, 1_000), (256, 900)])
def test_decode_attention_is_looked_up_as_priced(engine, table, sequences, context):
    ones = np.ones(1)
    expected = seconds(forward.decode_calls(engine, sequences * ones, context * ones), engine)
    for beside in (step.ALONE, step.BESIDE_PREFILL):
        looked_up = step.decode_ps(*packed(table), beside, sequences, sequences * context)
        assert looked_up * 1e-12 == pytest.approx(expected, rel=2e-3, abs=2e-7)


@pytest.mark.parametrize(("chunk", "past"), [(1, 0), (100, 0), (1000, 4096), (2048, 50_000), (8192, 100)])
def test_prefill_attention_is_looked_up_as_priced(engine, table, chunk, past):
    expected = seconds(forward.prefill_calls(engine, np.array([float(chunk)]), np.array([float(past)])), engine)
    assert step.prefill_ps(*packed(table), chunk, past) * 1e-12 == pytest.approx(expected, rel=5e-3, abs=1e-7)


def test_a_model_reads_its_weights_once_a_step(engine, table):
    matrices_s = (LLAMA.parameters - LLAMA.vocabulary * LLAMA.hidden) * 2 / H100.bandwidth_bytes_per_s
    step_s = (table.token_ps[0, 1] + table.sequence_ps[0, 1]) * 1e-12 - load("vllm").step_s(LLAMA.layers)
    assert step_s == pytest.approx(matrices_s, rel=0.01)


def test_decode_times_never_fall_with_context(table):
    assert (table.decode_slope_ps >= 0).all()


def test_packed_tables_price_each_engine_as_before(engine, table):
    other = step_table(Engine(LLAMA, H100, tp=2), ideal_cost, load("vllm"))
    for sequences, context in ((1, 100), (8, 20_000), (256, 400_000)):
        alone = step.decode_ps(*packed(other), 0, sequences, context)
        assert step.decode_ps(*packed(table, other), 0, sequences, context) == alone


@pytest.mark.parametrize("limit_ps", [-1, 0, 10**10, 10**11, 10**12, 1 << 62])
def test_a_run_of_decodes_is_the_sum_of_its_steps(table, limit_ps):
    sequences, context, elapsed, taken = 5, 3_000, 0, 0
    priced = packed(table)
    while taken < 400:
        taken += 1
        elapsed += int(table.token_ps[0, sequences] + table.sequence_ps[0, sequences])
        elapsed += int(step.decode_ps(*priced, 0, sequences, context + taken * sequences))
        if elapsed > limit_ps:
            break
    assert step.decode_run_ps(*priced, sequences, context, 400, limit_ps) == (taken, elapsed)


def test_a_tables_host_times_are_those_fitted_on_its_device(engine):
    host = of_engine(engine)
    assert host.provenance == "calibrated"
    free = replace(PLAIN, host_step_s=0.0, layer_s=0.0, host_sequence_s=0.0)
    bare, fitted = step_table(engine, ideal_cost, free), step_table(engine, ideal_cost)
    seconds_of = {"step": host.step_s(LLAMA.layers), "sequence": 64 * host.host_sequence_s}
    for kind, column in (("step", "token_ps"), ("sequence", "sequence_ps")):
        device_s = host.decode_factor * getattr(bare, column)[0, 64] * 1e-12
        assert getattr(fitted, column)[0, 64] * 1e-12 == pytest.approx(device_s + seconds_of[kind], rel=1e-6)


def test_a_step_without_a_graph_waits_for_the_host_to_launch_its_kernels(engine, table):
    waiting = step_table(engine, ideal_cost, replace(PLAIN, eager_layer_s=1e-3))
    assert waiting.token_ps[0, 512] == table.token_ps[0, 512]
    host_s = PLAIN.step_s(LLAMA.layers)
    assert waiting.token_ps[0, 513] * 1e-12 == pytest.approx(host_s + LLAMA.layers * 1e-3)
    assert waiting.token_ps[0, 8192] == table.token_ps[0, 8192]


def test_a_device_without_serving_results_has_the_frameworks_host_times():
    lone, h100 = load("vllm", "no_such_device"), load("vllm", "h100_sxm")
    assert lone.provenance == "modelled"
    assert 0.5 < lone.layer_s / h100.layer_s < 2.0
    assert lone.interval[0] <= h100.interval[0]
    assert load("llama.cpp", "h100_sxm").provenance == "assumed"


def test_scalars_are_those_of_the_release_or_the_last_one_before_it():
    every, old, later = (load("vllm", "h200_sxm", version) for version in ("", "0.12.0", "0.13.0"))
    assert old == later
    assert old != every


def test_a_coarse_table_prices_few_points_and_is_exact_where_times_are_straight_lines(engine, table):
    counted = {"fine": 0, "coarse": 0}

    def counting(kind):
        def cost(engine, call):
            seconds = ideal_cost(engine, call)
            counted[kind] += seconds.size
            return seconds

        return cost

    step_table(engine, counting("fine"), PLAIN)
    coarse = step_table(engine, counting("coarse"), PLAIN, COARSE)
    assert counted["coarse"] < counted["fine"] / 10
    for name in ("token_ps", "sequence_ps"):
        np.testing.assert_allclose(getattr(coarse, name), getattr(table, name), rtol=1e-6)
    np.testing.assert_allclose(coarse.decode_ps[0, 0, 1:, 1:], table.decode_ps[0, 0, 1:, 1:], rtol=1e-3)
    assert coarse._fields == table._fields
    assert [part.shape for part in coarse] == [part.shape for part in table]


def test_the_first_tokens_of_a_table_are_those_of_an_engine_with_a_smaller_step(engine, table):
    smaller = replace(engine, settings=replace(engine.settings, max_num_batched_tokens=2048))
    own, cut = step_table(smaller, ideal_cost, PLAIN), step.first_tokens(table, 2048)
    np.testing.assert_array_equal(own.token_ps, cut.token_ps)
    assert own.prefill_ps.shape == cut.prefill_ps.shape
