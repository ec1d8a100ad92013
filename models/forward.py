"""Which operators one engine step runs on a rank, and on what shapes; a cost model prices them.

Shapes are those of models/calibration/shapes.py. Cuts as in Megatron-LM (Shoeybi et al., 2019): column- then
row-parallel matrices, one all-reduce after attention and one after the feed-forward part.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from models import framework
from models.engine import Engine
from models.llm import Llm

Floats = npt.NDArray[np.float64]

BYTES_PER_ACTIVATION = 2
BYTES_PER_SUM = 4
WIDE = "bf16"  # what embeddings, head, router, norms and activations are kept in


@dataclass(frozen=True, slots=True)
class Call:
    """One operator that a step runs `times` times: its kind, what it is for, dtype, and shape columns [rows]."""

    op: str
    label: str
    dtype: str
    times: float
    shape: Mapping[str, Floats]


def token_calls(engine: Engine, tokens: Floats) -> list[Call]:
    """Return all that depends on a step's new tokens alone: projections, experts, norms, collectives, hand-overs.

    Raises ValueError for models with cross-attention, whose decoder steps are not described yet.
    """
    if engine.llm.cross_attention_layers:
        raise ValueError(
            f"{engine.llm.name}: steps with cross-attention are not described yet; choose a decoder-only model"
        )
    calls = [*_attention_matrices(engine, tokens), *_feed_forward(engine, tokens), *_elementwise(engine, tokens)]
    calls += _collectives(engine, tokens)
    return [call for call in calls if call.times > 0]


def sequence_calls(engine: Engine, sequences: Floats) -> list[Call]:
    """Return what is done once a scheduled sequence: the head and the sampler."""
    vocabulary = ceil(engine.llm.vocabulary / engine.tp)
    logits = _rows(sequences, m=sequences, n=engine.llm.vocabulary)
    return [
        _gemm("head", WIDE, 1, sequences, vocabulary, engine.llm.hidden),
        Call("sampler", "sampler", WIDE, 1, logits),
    ]


def decode_calls(engine: Engine, sequences: Floats, kv_tokens: Floats) -> list[Call]:
    """Return attention of `sequences` decodes that each read `kv_tokens` of cache."""
    past = np.maximum(kv_tokens - 1.0, 0.0)
    return list(_attention(engine, "decode", sequences, np.ones_like(sequences), past))


def prefill_calls(engine: Engine, chunk_tokens: Floats, past_tokens: Floats) -> list[Call]:
    """Return attention of one prefill chunk after `past_tokens` in cache."""
    return list(_attention(engine, "prefill", np.ones_like(chunk_tokens), chunk_tokens, past_tokens))


def mixed_calls(
    engine: Engine, chunk_tokens: Floats, past_tokens: Floats, sequences: Floats, kv_tokens: Floats
) -> list[Call]:
    """Return attention of one call with a prefill chunk and `sequences` decodes; latent attention runs two calls."""
    llm = engine.llm
    if llm.kv_lora:
        return [*decode_calls(engine, sequences, kv_tokens), *prefill_calls(engine, chunk_tokens, past_tokens)]
    calls = []
    for layers, heads, kv_heads, head_dim, window in _attention_kinds(engine):
        shape = _rows(
            sequences,
            q_len=chunk_tokens,
            past=past_tokens,
            n_decode=sequences,
            kv_decode=kv_tokens,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            window=window,
        )
        calls.append(Call("attn_mixed", "attention", WIDE, layers, shape))
    return calls + list(_linear_attention(engine, sequences, np.ones_like(sequences)))


def _rows(like: Floats, **columns: Floats | float) -> dict[str, Floats]:
    return {name: np.broadcast_to(np.asarray(column, np.float64), like.shape) for name, column in columns.items()}


def _gemm(label: str, dtype: str, times: float, tokens: Floats, n: float, k: float) -> Call:
    return Call("gemm", label, dtype, times, _rows(tokens, m=tokens, n=n, k=k))


def _mixers(llm: Llm) -> int:
    return llm.full_attention_layers + llm.window_layers + llm.linear_layers


def _kv_heads(engine: Engine, kv_heads: int) -> int:
    """Return the KV heads of a rank; a head is copied where there are more ranks than heads."""
    return max(1, kv_heads // engine.tp)


def _attention_kinds(engine: Engine) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (layers, heads, KV heads, head width, window) for full and for sliding-window attention."""
    llm, heads = engine.llm, max(1, engine.llm.heads // engine.tp)
    if llm.full_attention_layers:
        yield llm.full_attention_layers, heads, _kv_heads(engine, llm.kv_heads), llm.head_dim, 0
    if llm.window_layers:
        kv_heads, width = llm.window_kv_heads or llm.kv_heads, llm.window_head_dim or llm.head_dim
        yield llm.window_layers, heads, _kv_heads(engine, kv_heads), width, llm.window_tokens


def _attention_matrices(engine: Engine, tokens: Floats) -> Iterator[Call]:
    llm, dtype, heads = engine.llm, engine.dtype, max(1, engine.llm.heads // engine.tp)
    if llm.kv_lora:
        yield from _latent_matrices(engine, tokens, heads)
    else:
        for layers, per_rank, kv_heads, width, _ in _attention_kinds(engine):
            gate = per_rank * width if llm.output_gate else 0
            value_width = llm.v_head_dim or width
            columns = per_rank * width + kv_heads * (width + value_width) + gate
            yield _gemm("qkv", dtype, layers, tokens, columns, llm.hidden)
            yield _gemm("attention out", dtype, layers, tokens, llm.hidden, per_rank * value_width)
    if llm.linear:
        mixer = llm.linear
        keys, values = mixer.key_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim
        yield _gemm("qkv", dtype, llm.linear_layers, tokens, (2 * keys + 2 * values) / engine.tp, llm.hidden)
        yield _gemm("attention out", dtype, llm.linear_layers, tokens, llm.hidden, values / engine.tp)


def _latent_matrices(engine: Engine, tokens: Floats, heads: int) -> Iterator[Call]:
    """Yield the matrices of latent attention (DeepSeek-V2, 2024); up-projections count the same absorbed or not."""
    llm, dtype, layers = engine.llm, engine.dtype, engine.llm.full_attention_layers
    query = heads * (llm.nope_dim + llm.rope_dim)
    if llm.q_lora:
        yield _gemm("qkv down", dtype, layers, tokens, llm.q_lora + llm.kv_lora + llm.rope_dim, llm.hidden)
        yield _gemm("q up", dtype, layers, tokens, query, llm.q_lora)
    else:
        yield _gemm("qkv", dtype, layers, tokens, query + llm.kv_lora + llm.rope_dim, llm.hidden)
    yield _gemm("kv up", dtype, layers, tokens, heads * (llm.nope_dim + llm.v_head_dim), llm.kv_lora)
    if llm.index_topk:
        yield _gemm("indexer", dtype, layers, tokens, llm.index_heads * llm.index_dim, llm.q_lora or llm.hidden)
        yield _gemm("indexer", dtype, layers, tokens, llm.index_dim + llm.index_heads, llm.hidden)
    yield _gemm("attention out", dtype, layers, tokens, llm.hidden, heads * llm.v_head_dim)


def _feed_forward(engine: Engine, tokens: Floats) -> Iterator[Call]:
    llm, dtype, tp = engine.llm, engine.dtype, engine.tp
    if llm.dense_layers:
        yield from _dense("ffn", engine, llm.dense_layers, tokens, llm.dense_ffn or llm.ffn)
    if not llm.moe_layers:
        return
    yield _gemm("router", WIDE, llm.moe_layers, tokens, llm.experts, llm.hidden)
    shape = _rows(
        tokens,
        m=_choosing(llm, tokens * max(1.0, engine.ep / tp)),  # data-parallel ranks share their experts' tokens
        k=llm.expert_latent or llm.hidden,
        inter=llm.expert_ffn,
        experts=llm.experts,
        topk=llm.experts_per_token,
        tp=max(1.0, tp / engine.ep),  # the ranks that share an expert
        ep=engine.ep,
        uneven=UNEVEN_EXPERTS,
        matrices=llm.ffn_matrices,
    )
    yield Call("moe", "experts", dtype, llm.moe_layers, shape)
    if llm.shared_ffn:
        yield from _dense("shared experts", engine, llm.moe_layers, tokens, llm.shared_ffn)


# Of many tokens, in multiples of experts / experts a token, some choose every expert, however alike others are.
ALIKE_AMONG = 2.0


def _choosing(llm: Llm, tokens: Floats) -> Floats:
    """Return how many tokens would choose as many experts, if none were more alike than by chance."""
    few = np.clip(tokens - 1.0, 0.0, ALIKE_AMONG * llm.experts / llm.experts_per_token)
    return np.asarray(tokens - llm.alike_tokens * few)


# Exponent of the power law of tokens over experts that real routers show (1.01 to 1.2 in the measurement tables).
UNEVEN_EXPERTS = 1.01


def _dense(label: str, engine: Engine, layers: int, tokens: Floats, width: int) -> Iterator[Call]:
    llm, rank_width = engine.llm, width / engine.tp
    yield _gemm(f"{label} up", engine.dtype, layers, tokens, (llm.ffn_matrices - 1) * rank_width, llm.hidden)
    yield _gemm(f"{label} down", engine.dtype, layers, tokens, llm.hidden, rank_width)
    yield Call("act", f"{label} activation", WIDE, layers, _rows(tokens, m=tokens, n=rank_width))


def _elementwise(engine: Engine, tokens: Floats) -> Iterator[Call]:
    llm = engine.llm
    hidden = _rows(tokens, m=tokens, n=llm.hidden)
    # An all-reduce that has the whole row in its registers adds the residual and normalises it at once.
    fuses = engine.settings.fuse_allreduce_rms or framework.of_engine(engine).fuses_norms
    fused = _mixers(llm) + llm.ffn_layers if engine.tp > 1 and fuses else 0
    yield Call("norm", "norms", WIDE, _mixers(llm) + llm.ffn_layers + 1 - fused, hidden)
    yield Call("embed", "embedding", WIDE, 1, hidden)
    for layers, heads, kv_heads, width, _ in _attention_kinds(engine):
        rotated = llm.rope_dim or width
        yield Call("rope", "rope", WIDE, layers, _rows(tokens, m=tokens, n=(heads + kv_heads) * rotated))
        if llm.norms_all_heads or llm.norms_each_head:
            yield Call("norm", "norms", WIDE, layers, _rows(tokens, m=tokens, n=(heads + kv_heads) * width))
    yield from _small_kernels(engine, tokens)


def _small_kernels(engine: Engine, tokens: Floats) -> Iterator[Call]:
    """Yield what sparse and linear attention run beside their matrices: the indexer's steps, gates and norms."""
    llm = engine.llm

    def small(op: str, times: float, width: float) -> Call:
        return Call(op, "small kernels", WIDE, times, _rows(tokens, m=tokens, n=width))

    if llm.index_topk:
        yield small("add", 4 * llm.full_attention_layers, llm.index_heads * llm.index_dim)
    if llm.linear:
        yield small("norm", 2 * llm.linear_layers, llm.linear.value_heads * llm.linear.value_dim / engine.tp)


def _collectives(engine: Engine, tokens: Floats) -> Iterator[Call]:
    llm, moved = engine.llm, tokens * engine.llm.hidden * BYTES_PER_ACTIVATION
    if engine.tp > 1:
        nodes = ceil(engine.tp / engine.device.node_size)
        shape = _rows(tokens, bytes=moved, n_devices=engine.tp, n_nodes=nodes)
        yield Call("all_reduce", "all-reduce", WIDE, _mixers(llm) + llm.ffn_layers, shape)
        if llm.norms_all_heads:  # ranks sum the squares of their heads' queries and keys
            squares = _rows(tokens, bytes=2 * BYTES_PER_SUM * tokens, n_devices=engine.tp, n_nodes=nodes)
            yield Call("all_reduce", "all-reduce", WIDE, _mixers(llm), squares)
    if engine.dp > 1 and llm.moe_layers and engine.ep > engine.tp:
        # Ranks that share experts but not tokens gather all ranks' tokens before them and sum the parts after.
        ranks = engine.tp * engine.dp
        nodes = ceil(ranks / engine.device.node_size)
        shape = _rows(tokens, bytes=moved * engine.dp, n_devices=ranks, n_nodes=nodes)
        yield Call("all_gather", "experts' tokens", WIDE, llm.moe_layers, shape)
        yield Call("reduce_scatter", "experts' tokens", WIDE, llm.moe_layers, shape)
    if engine.pp > 1:
        nodes = 2 if engine.tp * engine.pp > engine.device.node_size else 1
        shape = _rows(tokens, bytes=moved / engine.tp, n_devices=2, n_nodes=nodes)
        yield Call("p2p_send_recv", "stage hand-over", WIDE, engine.pp - 1, shape)


def _attention(engine: Engine, phase: str, batch: Floats, q_len: Floats, past: Floats) -> Iterator[Call]:
    llm = engine.llm
    if llm.kv_lora:
        yield from _latent_attention(engine, phase, batch, q_len, past)
    else:
        for layers, heads, kv_heads, width, window in _attention_kinds(engine):
            shape = _rows(
                batch,
                batch=batch,
                q_len=q_len,
                past=past,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=width,
                window=window,
            )
            yield Call(f"attn_{phase}", "attention", WIDE, layers, shape)
    yield from _linear_attention(engine, batch, q_len)


def _latent_attention(engine: Engine, phase: str, batch: Floats, q_len: Floats, past: Floats) -> Iterator[Call]:
    """Yield latent attention; sparse ones (DeepSeek-V3.2, 2025) score all keys by an indexer and attend to the best.

    Rows that would attend to more than index_topk tokens are priced as causal blocks whose mean context is that.
    """
    llm, heads = engine.llm, max(1, engine.llm.heads // engine.tp)
    if llm.index_topk:
        # Keys of the indexer are one head of fp8 that all its query heads share; there are no values to read.
        halved = _rows(batch, batch=batch, q_len=q_len, past=0.5 * past, heads=llm.index_heads, kv_heads=1)
        indexer = halved | _rows(batch, head_dim=llm.index_dim, window=0)
        yield Call(f"attn_{phase}", "indexer", WIDE, llm.full_attention_layers, indexer)
        block = np.minimum(q_len, 2.0 * llm.index_topk)
        batch, q_len = batch * q_len / block, block
        past = np.minimum(past, np.maximum(llm.index_topk - 0.5 * block, 0.0))
    shape = _rows(batch, batch=batch, q_len=q_len, past=past, heads=heads)
    yield Call(f"mla_{phase}", "attention", WIDE, llm.full_attention_layers, shape)


def _linear_attention(engine: Engine, batch: Floats, q_len: Floats) -> Iterator[Call]:
    mixer = engine.llm.linear
    if mixer is None:
        return
    shape = _rows(
        batch,
        batch=batch,
        q_len=q_len,
        k=engine.llm.hidden,
        heads=max(1, mixer.value_heads // engine.tp),
        kv_heads=max(1, mixer.key_heads // engine.tp),
        head_dim=mixer.value_dim,
    )
    op = {"gated-deltanet": "gdn", "kda": "kda", "mamba2": "mamba2", "lightning": "gdn"}[mixer.kind]
    yield Call(op, "linear attention", WIDE, engine.llm.linear_layers, shape)
