"""Operators: what physics says must hold, and each kernel against its naive twin."""

from itertools import pairwise

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import attention, operators
from models.calibration import boosting, load, residual
from models.calibration.forms import FORMS, form_told
from models.experts import MOE_PARAMETERS, hottest_share, moe_traits, tokens_of_rank
from models.operators import GEMM_PARAMETERS, Formats, Machine

TOY = Machine(flops_per_s=1e15, bandwidth_bytes_per_s=1e12, processors=100.0, cache_bytes=1e6)
BF16 = Formats(2.0, 2.0, 2.0, 2.0)
FP8 = Formats(1.0, 1.0, 2.0, 1.0)

tokens = st.integers(1, 8192).map(float)
widths = st.sampled_from([64.0, 512.0, 1000.0, 4096.0, 28672.0])
heads = st.sampled_from([(1.0, 1.0), (8.0, 1.0), (32.0, 8.0), (64.0, 1.0), (16.0, 16.0)])
windows = st.sampled_from([0.0, 128.0, 4096.0])
formats = st.sampled_from([BF16, FP8])


NO_TILE = (0.0, 0.0, 0.0, 0.0)  # of a kernel that does not tell, and whose copies do not stray


def guess(name, codes=0):
    """Return a form's starting parameters with one of its discrete choices, as kernels take them."""
    form = FORMS[name]
    return np.array([*form.guesses.values(), *form.codes[codes % len(form.codes)]])


def plain(name):
    return tuple(float(value) for value in guess(name))


@given(tokens, widths, widths, formats, st.integers(0, 2))
@settings(deadline=None, max_examples=60)
def test_gemm_agrees_with_its_twin(m, n, k, formats, menu):
    fit = guess("gemm", menu)
    assert operators.gemm_traits(m, n, k, formats, TOY, fit)[0] == pytest.approx(naive.gemm(m, n, k, formats, TOY, fit))


@given(tokens, st.sampled_from([(8.0, 2.0), (128.0, 8.0), (512.0, 22.0)]), st.sampled_from([1.0, 4.0, 8.0]),
       st.sampled_from([1.0, 8.0, 64.0]), st.sampled_from([0.0, 1.01, 1.2, 1.0]), st.integers(0, 9),
       st.sampled_from([NO_TILE, (16.0, 32.0, 64.0, 1.0), (256.0, 128.0, 64.0, 0.0)]))  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_experts_agree_with_their_twin(m, routing, ep, tp, uneven, choice, tile):
    fit = guess("moe", choice)
    arguments = (m, 2048.0, 1536.0, *routing, tp, ep, uneven, 3.0, *tile, BF16, TOY, fit)
    assert moe_traits(*arguments)[0] == pytest.approx(naive.moe(*arguments))


@given(tokens, st.integers(1, 100_000).map(float), heads, st.sampled_from([64.0, 128.0, 192.0, 256.0]),
       st.sampled_from([0.0, 128.0, 8192.0]), formats, st.integers(0, 15))  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_decode_attention_agrees_with_its_twin(batch, context, heads, head_dim, window, formats, codes):
    arguments = (batch, context, *heads, head_dim, window, formats, TOY, guess("decode", codes))
    assert attention.attention_decode_traits(*arguments)[0] == pytest.approx(naive.attention_decode(*arguments))


@given(tokens, st.integers(0, 20_000).map(float), heads, windows, st.sampled_from([0.0, 1.0]), st.integers(0, 7))
@settings(deadline=None, max_examples=60)
def test_prefill_attention_agrees_with_its_twin(q_len, past, heads, window, causal, codes):
    arguments = (2.0, q_len, past, *heads, 128.0, window, causal, BF16, TOY, guess("prefill", codes))
    assert attention.attention_prefill_traits(*arguments)[0] == pytest.approx(naive.attention_prefill(*arguments))


@given(tokens, st.integers(0, 9000).map(float), st.integers(0, 300).map(float), tokens, heads, windows,
       st.integers(0, 1))  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_mixed_attention_agrees_with_its_twin(q_len, past, decodes, context, heads, window, codes):
    arguments = (q_len, past, decodes, context, *heads, 64.0, window, BF16, TOY, guess("mixed", codes))
    assert attention.attention_mixed_traits(*arguments)[0] == pytest.approx(naive.attention_mixed(*arguments))


@given(st.floats(0, 1e13), st.floats(1, 1e10), st.integers(1, 5000).map(float))
@settings(deadline=None, max_examples=40)
def test_roofline_agrees_with_its_twin(flops, moved, rows):
    arguments = (flops, moved, rows, TOY, guess("roofline"))
    assert operators.roofline_traits(*arguments)[0] == pytest.approx(naive.roofline(*arguments))


@given(
    *(st.floats(1, 1e10), st.integers(1, 8).map(float), st.sampled_from([1.0, 2.0]), st.sampled_from([0.0, 1.0])),
    st.sampled_from(
        [operators.RINGS_ONLY, operators.SHOTS_BY_TIME, operators.SHOTS_BY_SIZE, operators.SHOTS_BY_TOKENS]
    ),
)
@settings(deadline=None, max_examples=60)
def test_collectives_agree_with_their_twin(moved, devices, nodes, all_pairs, shots):
    fit = guess("collective", shots)
    fit[operators.COLLECTIVE_PARAMETERS.index("crowding")] = 1.3
    arguments = (moved, devices, nodes, all_pairs, 2.0, fit)
    assert operators.collective(*arguments) == pytest.approx(naive.collective(*arguments))


@given(
    tokens,
    widths,
    st.integers(1, 10),
    st.integers(2, 64).map(float),
    st.sampled_from([1.0, 4.0]),
    st.sampled_from([0.0, 4.0, 24.0]),
)
@settings(deadline=None, max_examples=40)
def test_exchanges_agree_with_their_twin(m, hidden, topk, devices, nodes, processors):
    arguments = (m, hidden, float(topk), devices, nodes, processors, 2.0, guess("exchange"))
    assert operators.exchange_traits(*arguments)[0] == pytest.approx(naive.exchange(*arguments))


def test_a_token_is_sent_once_to_each_rank_that_holds_one_of_its_experts():
    fit = guess("exchange") * 0.0 + 1.0
    fit[:3], fit[4], fit[7] = 0.0, 1e30, 12.0
    # One expert a token: one rank, so 10 tokens of 4 values of 2 bytes take 80 s at 1 byte/s.
    assert operators.exchange_traits(10.0, 4.0, 1.0, 8.0, 1.0, 0.0, 2.0, fit)[0] == pytest.approx(80.0)
    # Very many experts a token: every one of the 8 ranks.
    assert operators.exchange_traits(10.0, 4.0, 1e3, 8.0, 1.0, 0.0, 2.0, fit)[0] == pytest.approx(640.0)


@given(tokens, widths, widths, st.sampled_from([1.0, 2.0, 4.0]), st.sampled_from([2.0, 4.0, 8.0]))
@settings(deadline=None, max_examples=40)
def test_matrix_products_by_lookup_agree_with_their_twin(m, n, k, bits, group):
    arguments = (m, n, k, bits, group, 1e11, 5e10, 1e-6)
    assert operators.lookup_gemm(*arguments) == pytest.approx(naive.lookup_gemm(*arguments))


def test_products_by_lookup_take_time_in_proportion_to_bits():
    # 4096 columns x 1024 groups of 4 x 2 bits, and 1024 tables of 8 entries: 8 396 800 lookups at 1e9/s.
    assert operators.lookup_gemm(1.0, 4096.0, 4096.0, 2.0, 4.0, 1e9, 1e15, 0.0) == pytest.approx(8.3968e-3)
    two, four = (operators.lookup_gemm(1.0, 4096.0, 4096.0, bits, 4.0, 1e9, 1e15, 0.0) for bits in (2.0, 4.0))
    assert four / two == pytest.approx(2.0, rel=0.01)


def test_products_by_lookup_read_the_weights_at_least_once():
    assert operators.lookup_gemm(1.0, 4096.0, 4096.0, 4.0, 4.0, 1e15, 8e9, 0.0) == pytest.approx(4096**2 / 2 / 8e9)


@pytest.mark.parametrize(("leaves", "leaf_rows"), [(4, 1.0), (8, 3.0), (30, 2.0)])
def test_grown_trees_agree_with_their_twin(leaves, leaf_rows):
    rng = np.random.default_rng(leaves)
    codes = rng.integers(0, 6, (40, 3)).astype(np.uint8)
    residuals = rng.normal(0.0, 1.0, 40) + codes[:, 0]
    forest = boosting.grow(codes, residuals, boosting.Budget(1, leaves, leaf_rows))
    left = residuals - np.median(residuals)
    clip = boosting.CLIP_SIZES * boosting.TYPICAL_PER_MEDIAN * np.median(np.abs(left))
    told = naive.grown(codes.tolist(), left.tolist(), leaves, leaf_rows, clip)
    packed = residual.pack(forest) | {
        "low": np.zeros(3),
        "high": np.full(3, 255.0),
        "sized": np.zeros(3, bool),
        "fade": 1.0,
    }
    corrected = np.log(residual.corrected(np.ones(40), codes + 0.5, residual.unpack(packed)))
    assert corrected == pytest.approx(np.array(told) + forest.baseline, abs=1e-6)


def test_packed_trees_agree_with_nested_ones():
    packed = load("h100-sxm").find("gemm", "bf16").packed
    low, high = packed["low"].astype(float), packed["high"].astype(float)
    rows = low + (high - low) * np.random.default_rng(2).uniform(-0.3, 1.3, (40, len(low)))
    corrected = residual.corrected(np.ones(40), rows, residual.unpack(packed))
    for row, value in zip(rows, corrected, strict=True):
        assert value == pytest.approx(naive.corrected(1.0, row, packed))


@pytest.mark.parametrize("grown", ["m", "n", "k"])
def test_a_larger_matrix_never_takes_much_less_time(grown):
    sizes = {"m": 256.0, "n": 4096.0, "k": 4096.0}
    times = [
        operators.gemm_traits(*{**sizes, grown: sizes[grown] * factor}.values(), BF16, TOY, guess("gemm"))[0]
        for factor in (1, 2, 4, 8, 16, 32)
    ]
    assert all(later > 0.95 * earlier for earlier, later in pairwise(times))


def test_a_huge_matrix_runs_at_the_share_of_the_peak_that_power_allows():
    fit = guess("gemm")
    fit[GEMM_PARAMETERS.index("reread_share")] = 0.0
    size = 65536.0
    ideal_s = 2 * size**3 / (TOY.flops_per_s * fit[GEMM_PARAMETERS.index("power_efficiency")])
    seconds = operators.gemm_traits(size, size, size, BF16, TOY, fit)[0]
    assert ideal_s < seconds < 1.2 * ideal_s


def test_panels_too_large_for_the_cache_are_read_again():
    fits = [guess("gemm"), guess("gemm")]
    fits[0][GEMM_PARAMETERS.index("reread_share")] = 0.0
    deep, shallow = (
        [operators.gemm_traits(4096.0, 8192.0, k, BF16, TOY, fit)[0] for fit in fits] for k in (131072.0, 32.0)
    )
    assert deep[1] > 1.001 * deep[0]
    assert shallow[1] == pytest.approx(shallow[0], rel=1e-3)


def test_a_product_waits_for_its_host_and_hides_behind_it():
    fit = guess("gemm")
    fit[GEMM_PARAMETERS.index("host_s")] = 1e-3
    small, large = (operators.gemm_traits(m, 4096.0, 4096.0, BF16, TOY, fit)[0] for m in (1.0, 65536.0))
    assert small == pytest.approx(1e-3, rel=1e-3)
    assert large == pytest.approx(operators.gemm_traits(65536.0, 4096.0, 4096.0, BF16, TOY, guess("gemm"))[0], rel=0.01)


def test_one_token_reads_the_weights_at_the_bandwidth_it_reaches():
    fit = guess("gemm")
    fit[GEMM_PARAMETERS.index("half_bytes")] = 0.0
    ideal_s = 28672 * 8192 * 2 / (TOY.bandwidth_bytes_per_s * fit[4])
    assert operators.gemm_traits(1.0, 28672.0, 8192.0, BF16, TOY, fit)[0] == pytest.approx(ideal_s, rel=0.03)


def test_decode_attention_reads_a_long_context_once():
    fit = guess("decode")
    kv_bytes = 2 * 64 * 8 * 100_000 * 128 * 2
    seconds = attention.attention_decode_traits(64.0, 1e5, 64.0, 8.0, 128.0, 0.0, BF16, TOY, fit)[0]
    assert seconds == pytest.approx(kv_bytes / (TOY.bandwidth_bytes_per_s * fit[2]), rel=0.15)


def test_a_window_bounds_what_decoding_costs():
    short, long = (
        attention.attention_decode_traits(8.0, context, 8.0, 8.0, 128.0, 128.0, BF16, TOY, guess("decode"))[0]
        for context in (200.0, 100_000.0)
    )
    assert short == long


def decoded(split, packing, batch, heads, kv_heads, kv_tokens):
    """Return into how many splits decode attention cuts each context on 132 processors, and the rows of a tile."""
    fit = np.array([*FORMS["decode"].guesses.values(), split, packing, 0.0])
    machine = TOY._replace(processors=132.0)
    traits = attention.attention_decode_traits(batch, kv_tokens, heads, kv_heads, 128.0, 0.0, BF16, machine, fit)
    return traits[4], traits[5]


@pytest.mark.parametrize(
    ("split", "blocks", "kv_tokens", "splits"),
    [
        (attention.SPLIT_NEVER, 1.0, 131072.0, 1.0),
        (attention.SPLIT_ALWAYS, 40.0, 131072.0, 3.0),  # 132 // 40
        (attention.SPLIT_ALWAYS, 120.0, 131072.0, 1.0),
        (attention.SPLIT_WAVES, 2.0, 131072.0, 91.0),  # sqrt(8 * 1024 parts), rounded up
        (attention.SPLIT_WAVES, 16.0, 131072.0, 66.0),  # 8 * 132 // 16
        (attention.SPLIT_WAVES, 16.0, 100.0, 1.0),
        (attention.SPLIT_LONE, 2.0, 131072.0, 1.0),
        (attention.SPLIT_FEW, 16.0, 131072.0, 8.0),
        (attention.SPLIT_FEW, 132.0, 64.0, 1.0),
        (attention.SPLIT_FULLEST, 32.0, 1024.0, 8.0),  # all eight steps of 128: 256 of 264 slots
        (attention.SPLIT_FULLEST, 100.0, 131072.0, 5.0),  # 500 of 528 slots, where two splits fill 200 of 264
        (attention.SPLIT_FULLEST, 212.0, 131072.0, 1.0),
        (attention.SPLIT_PLANNED, 32.0, 1000.0, 8.0),  # 264 // 32, of 128 tokens at least
        (attention.SPLIT_PLANNED, 32.0, 300.0, 3.0),
        (attention.SPLIT_SEGMENTS, 128.0, 4096.0, 16.0),
        (attention.SPLIT_SEGMENTS, 129.0, 4096.0, 1.0),
    ],
)
def test_a_context_is_split_by_the_rule_of_its_library(split, blocks, kv_tokens, splits):
    assert decoded(split, attention.PACK_ALWAYS, blocks, 4.0, 1.0, kv_tokens) == (splits, 4.0)


@pytest.mark.parametrize("split", [attention.SPLIT_WAVES, attention.SPLIT_LONE])
def test_lone_heads_of_tensorrt_llm_are_split_only_to_occupy_the_device(split):
    placed = ((1.0, 511.0), (1.0, 512.0), (1.0, 131072.0), (60.0, 131072.0), (132.0, 131072.0))
    splits = [decoded(split, attention.PACK_BUSY, blocks, 1.0, 1.0, tokens)[0] for blocks, tokens in placed]
    assert splits == [1.0, 2.0, 132.0, 3.0, 1.0]


def test_few_blocks_of_packed_heads_are_worked_off_head_by_head():
    for blocks, tokens, rows in ((32.0, 100.0, 1.0), (33.0, 100.0, 4.0), (4.0, 1152.0, 4.0)):  # the last: nine parts
        assert decoded(attention.SPLIT_WAVES, attention.PACK_BUSY, blocks, 4.0, 1.0, tokens)[1] == rows


def test_a_kernel_whose_name_tells_its_rule_follows_no_other():
    assert form_told("decode", "sglang", "triton").codes == ((attention.SPLIT_FEW, attention.PACK_ALWAYS, 1.0),)
    assert form_told("decode", "sglang", "fa3") is FORMS["decode"]
    assert form_told("prefill", "sglang", "triton") is FORMS["prefill"]


def test_a_chunk_is_read_whole_only_by_kernels_that_do_not_know_chunks():
    codes = FORMS["decode"].codes
    knows, ignores = codes.index((6.0, 7.0, 0.0)), codes.index((6.0, 7.0, 1.0))
    seconds = {
        (code, window): attention.attention_decode_traits(
            8.0, 1e5, 8.0, 8.0, 128.0, window, BF16, TOY, guess("decode", code)
        )[0]
        for code in (knows, ignores)
        for window in (0.0, 128.0, 8192.0)
    }
    assert seconds[ignores, 8192.0] == seconds[ignores, 0.0] > 3 * seconds[knows, 8192.0]
    assert seconds[ignores, 128.0] == seconds[knows, 128.0]


def test_a_chunk_beside_decodes_costs_more_than_alone():
    fit = guess("mixed")
    alone = attention.attention_mixed_traits(512.0, 0.0, 0.0, 0.0, 32.0, 8.0, 128.0, 0.0, BF16, TOY, fit)[0]
    beside = attention.attention_mixed_traits(512.0, 0.0, 64.0, 4096.0, 32.0, 8.0, 128.0, 0.0, BF16, TOY, fit)[0]
    assert beside > alone


@pytest.mark.parametrize(
    ("q_len", "past", "window"), [(1, 0, 0), (7, 100, 0), (100, 0, 10), (64, 90, 100), (5, 500, 8)]
)
def test_the_mean_context_is_that_of_its_queries(q_len, past, window):
    closed = attention.causal_context(float(q_len), float(past), float(window))
    assert closed == pytest.approx(naive.causal_context(q_len, past, window))


@pytest.mark.parametrize(("experts", "ranks"), [(8, 2), (128, 8), (128, 32), (256, 32), (512, 128), (128, 128)])
@pytest.mark.parametrize("ratio", [200.0, 1000.0])
def test_the_busiest_rank_is_as_busy_as_draws_of_the_law_say(experts, ranks, ratio):
    draws = np.random.default_rng(5).random((400, experts))
    loads = (ratio**-0.01 * draws - draws + 1.0) ** (1 / -0.01)
    loads /= loads.sum(axis=1, keepdims=True)
    drawn = loads.reshape(400, ranks, -1).sum(axis=2).max(axis=1).mean() * ranks
    assert hottest_share(experts / ranks, float(ranks), ratio, 1.01) == pytest.approx(drawn, rel=0.15)


def test_experts_cost_at_least_the_weights_that_tokens_reach():
    few, many = (
        moe_traits(m, 4096.0, 1536.0, 128.0, 8.0, 1.0, 1.0, 0.0, 3.0, *NO_TILE, BF16, TOY, guess("moe"))[0]
        for m in (1.0, 64.0)
    )
    expert_s = 3 * 4096 * 1536 * 2 / TOY.bandwidth_bytes_per_s
    assert few > 8 * expert_s
    assert many > 128 * expert_s


def moe_s(m=64.0, inter=1536.0, tp=1.0, ep=1.0, tile=NO_TILE, **changed):
    """Return the seconds of a layer of 128 experts, 8 of them a token, under some parameters of our own."""
    fit = guess("moe")
    for name, value in changed.items():
        fit[MOE_PARAMETERS.index(name)] = value
    return moe_traits(m, 4096.0, inter, 128.0, 8.0, tp, ep, 0.0, 3.0, *tile, BF16, TOY, fit)[0]


def test_rows_of_experts_that_are_not_aligned_take_longer():
    aligned, narrower = moe_s(inter=1536.0, tp=8.0), moe_s(inter=1528.0, tp=8.0, unaligned_slowdown=5.0)
    assert moe_s(inter=1528.0, tp=8.0, unaligned_slowdown=1.0) == pytest.approx(aligned, rel=0.01)
    assert narrower > 1.5 * aligned


def test_remote_experts_cost_the_start_of_their_tiles():
    started = moe_s(ep=8.0, remote_block_s=1e-6) - moe_s(ep=8.0, remote_block_s=1e-9)
    assert started == pytest.approx(112 * (2 * 1536 / 128 + 4096 / 128) * 1e-6 / 100, rel=0.01)


def test_experts_are_read_slowly_through_shallow_tiles():
    shallow, deep = (moe_s(m=1.0, tp=8.0, tile=(16.0, 32.0, depth, 0.0)) for depth in (16.0, 128.0))
    assert shallow > 1.5 * deep


def test_copies_for_other_ranks_that_stray_are_multiplied_too():
    apart, strayed = (moe_s(m=4096.0, ep=8.0, tile=(64.0, 128.0, 64.0, strays)) for strays in (0.0, 1.0))
    assert strayed > 4.0 * apart


@pytest.mark.parametrize(("experts", "topk", "ep"), [(128, 8, 8), (256, 8, 32), (16, 1, 2)])
def test_tokens_of_the_busiest_rank_are_those_of_drawn_loads(experts, topk, ep):
    m, ratio = 4096, 0.8 * 4096
    rng = np.random.default_rng(0)
    loads = 1.0 / (1.0 - rng.random((400, experts)) * (1.0 - ratio**-0.01)) ** (1.0 / 0.01)
    loads *= m * topk / loads.sum(axis=1, keepdims=True)
    ranks = np.minimum(loads, m).reshape(400, ep, -1)
    busiest = ranks[np.arange(400), ranks.sum(axis=2).argmax(axis=1)]
    drawn = busiest.sum(axis=1) if topk == 1 else m * (1.0 - np.prod(1.0 - busiest / m, axis=1))
    assert tokens_of_rank(float(m), float(experts), float(topk), float(ep), 1.01) == pytest.approx(
        drawn.mean(), rel=0.15
    )


def test_experts_larger_than_the_cache_are_read_once_a_tile():
    once, twice = (moe_s(m, tile_code=1.0, reread_traffic=1.0, routed_traffic=1e-9) for m in (256.0, 512.0))
    weights_s = 128 * 3 * 4096 * 1536 * 2 / TOY.bandwidth_bytes_per_s
    assert twice - once > weights_s


def test_a_collective_of_one_device_is_free():
    assert operators.collective(1e9, 1.0, 1.0, 0.0, 2.0, guess("collective")) == 0.0


def test_a_large_all_reduce_moves_twice_the_message_over_the_link():
    fit = guess("collective")
    seconds = operators.collective(1e11, 8.0, 1.0, 0.0, 2.0, fit)
    assert seconds == pytest.approx(2 * 7 / 8 * 1e11 / fit[2], rel=0.02)


@pytest.mark.parametrize("size", [2048.0, 131072.0, 1e9])
@pytest.mark.parametrize(
    "shots", [operators.RINGS_ONLY, operators.SHOTS_BY_TIME, operators.SHOTS_BY_SIZE, operators.SHOTS_BY_TOKENS]
)
@pytest.mark.parametrize("crowding", [0.9, 1.0, 1.5])
def test_four_devices_take_a_time_between_those_of_two_and_eight(size, shots, crowding):
    fit = guess("collective", shots)
    fit[operators.COLLECTIVE_PARAMETERS.index("crowding")] = crowding
    two, four, eight = (operators.collective(size, devices, 1.0, 0.0, 2.0, fit) for devices in (2.0, 4.0, 8.0))
    assert two < four < eight


def test_one_shot_reads_the_message_of_every_other_device():
    fit = guess("collective", operators.SHOTS_BY_SIZE)
    two, eight = (operators.collective(2e5, devices, 1.0, 0.0, 2.0, fit) for devices in (2.0, 8.0))
    assert eight - two == pytest.approx(6 * (fit[4] + 2e5 / fit[5]))
