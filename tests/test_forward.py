"""Which operators a step runs: their weights must add up to the model, their cuts to the whole."""

from dataclasses import replace

import numpy as np
import pytest

from models import device, forward, llm
from models.calibration import predict
from models.engine import Engine, Settings
from models.parameters import count

ONE = np.ones(1)
H100 = device.load("h100-sxm")


def weights(calls) -> float:
    """Return the values of all weight matrices that the calls multiply by."""
    total = 0.0
    for call in calls:
        shape = {name: float(column[0]) for name, column in call.shape.items()}
        if call.op == "gemm":
            total += call.times * shape["n"] * shape["k"]
        elif call.op == "moe":
            local = shape["experts"] / shape["ep"] * shape["inter"] / shape["tp"]
            total += call.times * local * shape["matrices"] * shape["k"]
    return total


@pytest.mark.parametrize("name", llm.names())
def test_the_matrices_of_a_step_hold_the_models_parameters(name):
    model = llm.load(name)
    engine = Engine(model, H100)
    if model.cross_attention_layers:
        with pytest.raises(ValueError, match="cross-attention"):
            forward.token_calls(engine, ONE)
        return
    calls = [*forward.token_calls(engine, ONE), *forward.sequence_calls(engine, ONE)]
    parts = count(model)
    expected = parts.total - parts.encoder - model.vocabulary * model.hidden * (0 if model.tied_embeddings else 1)
    assert weights(calls) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("name", ["llama-3.1-70b", "qwen3-32b", "mixtral-8x7b", "qwen3-30b-a3b"])
@pytest.mark.parametrize("tp", [2, 4])
def test_ranks_together_hold_each_weight_once(name, tp):
    model = llm.load(name)
    whole = forward.token_calls(Engine(model, H100), ONE)
    rank = forward.token_calls(Engine(model, H100, tp=tp), ONE)
    router = model.moe_layers * model.experts * model.hidden
    assert tp * weights(rank) - (tp - 1) * router == pytest.approx(weights(whole), rel=1e-9)


def test_tensor_parallel_ranks_reduce_twice_a_layer():
    calls = forward.token_calls(Engine(llm.load("llama-3.1-8b"), H100, tp=2), np.array([10.0]))
    (reduce,) = [call for call in calls if call.op == "all_reduce"]
    assert reduce.times == 64
    assert reduce.shape["bytes"][0] == 10 * 4096 * 2


def test_kv_heads_are_copied_where_ranks_outnumber_them():
    calls = forward.decode_calls(Engine(llm.load("llama-3.1-8b"), H100, tp=16), ONE, ONE * 100)
    assert calls[0].shape["kv_heads"][0] == 1
    assert calls[0].shape["heads"][0] == 2


def test_a_reduction_that_normalises_spares_the_norms_after_it():
    model = llm.load("llama-3.1-8b")
    norms = [
        sum(
            call.times
            for call in forward.token_calls(Engine(model, H100, tp=tp, framework=name), ONE)
            if call.op == "norm"
        )
        for name, tp in (("tensorrt-llm", 1), ("tensorrt-llm", 2), ("llama.cpp", 2))
    ]
    assert norms == [65, 1, 65]


def by_op(engine, op, tokens=10.0):
    return [call for call in forward.token_calls(engine, np.array([tokens])) if call.op == op]


def test_reductions_normalise_where_the_engine_is_set_to():
    settings = Settings(fuse_allreduce_rms=True)
    model = llm.load("llama-3.1-8b")
    assert sum(call.times for call in by_op(Engine(model, H100, tp=2, settings=settings), "norm")) == 1


def test_ranks_that_share_experts_alone_gather_tokens_before_them_and_sum_parts_after():
    engine = Engine(llm.load("qwen3-30b-a3b"), H100, dp=4, ep=4)
    for op in ("all_gather", "reduce_scatter"):
        (exchange,) = by_op(engine, op)
        assert exchange.times == engine.llm.moe_layers
        assert exchange.shape["n_devices"][0] == 4
        assert exchange.shape["bytes"][0] == 4 * 10 * engine.llm.hidden * 2
    assert not by_op(Engine(engine.llm, H100, tp=4, ep=4), "all_gather")


def test_experts_are_cut_by_what_expert_parallelism_leaves_of_the_ranks():
    cuts = [by_op(Engine(llm.load("qwen3-30b-a3b"), H100, tp=8, ep=ep), "moe")[0].shape["tp"][0] for ep in (1, 2, 8)]
    assert cuts == [8, 4, 1]


def test_norms_over_all_heads_sum_squares_over_ranks():
    model = llm.load("minimax-m2.5")
    squares = by_op(Engine(model, H100, tp=4), "all_reduce")[1]
    assert squares.times == model.layers
    assert squares.shape["bytes"][0] == 10 * 2 * 4
    assert not by_op(Engine(model, H100), "all_reduce")


def test_sparse_attention_reads_no_more_than_it_picks_but_scores_all():
    model = llm.load("glm-5")
    for context, read in ((1000.0, 999.5), (100_000.0, 2047.5)):
        indexer, latent = forward.decode_calls(Engine(model, H100), ONE, ONE * context)
        assert latent.shape["past"][0] + 0.5 == pytest.approx(read, abs=1)
        assert indexer.shape["past"][0] == pytest.approx(0.5 * (context - 1))
    latent = forward.prefill_calls(Engine(model, H100), ONE * 8192, ONE * 0)[1]
    assert latent.shape["batch"][0] * latent.shape["q_len"][0] == 8192
    assert latent.shape["q_len"][0] / 2 == model.index_topk


def test_gathering_takes_no_longer_than_reducing_the_same():
    (gather,) = by_op(Engine(llm.load("qwen3-30b-a3b"), H100, dp=4, ep=4), "all_gather")
    engine = Engine(llm.load("qwen3-30b-a3b"), H100, dp=4, ep=4)
    assert predict.call_s(engine, gather)[0] <= predict.call_s(engine, replace(gather, op="all_reduce"))[0]


def test_fused_reductions_take_the_lesser_time():
    engine = Engine(llm.load("llama-3.1-70b"), H100, tp=8)
    reduce = by_op(engine, "all_reduce", np.geomspace(1, 8192, 5)[2])[0]
    fused = replace(engine, settings=Settings(fuse_allreduce_rms=True))
    assert predict.call_s(fused, reduce)[0] <= predict.call_s(engine, reduce)[0]
