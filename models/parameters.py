"""How many weights each part of a language model has, from its shapes alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.llm import Encoder, LinearAttention, Llm

IMAGE_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Parameters:
    """Weights by part, in numbers of values; biases and scalars per head are left out (under 0.1 %).

    Quantised checkpoints store `projections` and `experts` in the narrow format and keep the rest in 16 bit.
    """

    embedding: int
    head: int
    projections: int
    experts: int
    router: int
    norms: int
    encoder: int

    @property
    def total(self) -> int:
        """Return the number of all weights."""
        return self.kept_wide + self.projections + self.experts

    @property
    def kept_wide(self) -> int:
        """Return the number of weights that quantised checkpoints keep in 16 bit."""
        return self.embedding + self.head + self.router + self.norms + self.encoder


def count(llm: Llm) -> Parameters:
    """Return the weights of a model by part; multi-token-prediction heads are left out."""
    return Parameters(
        embedding=llm.vocabulary * llm.hidden,
        head=0 if llm.tied_embeddings else llm.vocabulary * llm.hidden,
        projections=_mixers(llm) + _dense_ffns(llm) + llm.moe_layers * _shared_and_latent(llm),
        experts=llm.moe_layers * llm.experts * expert(llm),
        router=llm.moe_layers * llm.hidden * (llm.experts + (1 if llm.shared_ffn else 0)),
        norms=(2 * llm.layers + 1) * llm.hidden,
        encoder=encoder(llm.encoder) if llm.encoder else 0,
    )


def expert(llm: Llm) -> int:
    """Return the weights of one routed expert of one layer."""
    return llm.ffn_matrices * (llm.expert_latent or llm.hidden) * llm.expert_ffn


def attention(llm: Llm) -> int:
    """Return the weights of one full-attention layer: projections of queries, keys, values and output."""
    if llm.kv_lora:
        return _latent_attention(llm)
    return _grouped_attention(llm, llm.kv_heads, llm.head_dim, llm.v_head_dim)


def window_attention(llm: Llm) -> int:
    """Return the weights of one sliding-window layer, whose heads may differ from the full-attention ones."""
    if llm.kv_lora:
        return _latent_attention(llm)
    return _grouped_attention(llm, llm.window_kv_heads, llm.window_head_dim, llm.window_v_head_dim)


def linear_attention(hidden: int, mixer: LinearAttention) -> int:
    """Return the weights of one linear-attention or state-space layer.

    gated-deltanet: q, k, v, output gate z, decay and write strength per head, short convolution, output.
    mamba2: one input projection to z, x, B, C and dt, short convolution, gate norm, output (arXiv 2405.21060).
    kda: q, k, v, two low-rank gates through one head dimension, write strength, output (arXiv 2510.26692).
    lightning: q, k, v, output gate, output (arXiv 2501.08313).
    """
    keys = mixer.key_heads * mixer.key_dim
    values = mixer.value_heads * mixer.value_dim
    convolution = (2 * keys + values) * mixer.conv_kernel
    output = values * hidden
    if mixer.kind == "mamba2":
        return (
            hidden * (2 * values + 2 * keys + mixer.value_heads) + convolution + 3 * mixer.value_heads + values + output
        )
    if mixer.kind == "kda":
        gates = (hidden + values) * mixer.value_dim + (hidden + keys) * mixer.key_dim
        return hidden * (2 * keys + values + mixer.value_heads) + gates + convolution + output
    if mixer.kind == "lightning":
        return hidden * (2 * keys + 2 * values) + output
    return hidden * (2 * keys + 2 * values + 2 * mixer.value_heads) + convolution + output


def encoder(tower: Encoder) -> int:
    """Return the weights of a vision or audio encoder with its input layer and its projectors to the text model."""
    block = 4 * tower.hidden**2 + tower.ffn_matrices * tower.hidden * tower.ffn
    if tower.patch:
        entrance = IMAGE_CHANNELS * tower.patch**2 * tower.hidden
    else:
        entrance = tower.input_kernel * (tower.input_channels + tower.hidden) * tower.hidden
    widths = tower.projector_widths
    projector = sum(first * second for first, second in itertools.pairwise(widths))
    return tower.layers * block + entrance + tower.projectors * projector


def _mixers(llm: Llm) -> int:
    linear = linear_attention(llm.hidden, llm.linear) if llm.linear else 0
    cross = 4 * llm.hidden * llm.heads * llm.head_dim
    return (
        llm.full_attention_layers * attention(llm)
        + llm.window_layers * window_attention(llm)
        + llm.linear_layers * linear
        + llm.cross_attention_layers * cross
    )


def _dense_ffns(llm: Llm) -> int:
    return llm.dense_layers * llm.ffn_matrices * llm.hidden * llm.dense_ffn


def _shared_and_latent(llm: Llm) -> int:
    return llm.ffn_matrices * llm.hidden * llm.shared_ffn + 2 * llm.hidden * llm.expert_latent


def _grouped_attention(llm: Llm, kv_heads: int, head_dim: int, v_head_dim: int) -> int:
    queries = llm.heads * head_dim * (2 if llm.output_gate else 1)
    return llm.hidden * (queries + kv_heads * (head_dim + v_head_dim) + llm.heads * v_head_dim)


def _latent_attention(llm: Llm) -> int:
    """Multi-head latent attention (arXiv 2405.04434), with the indexer of sparse attention where there is one."""
    query_width = llm.heads * (llm.nope_dim + llm.rope_dim)
    queries = llm.hidden * llm.q_lora + llm.q_lora * query_width if llm.q_lora else llm.hidden * query_width
    latent = llm.hidden * (llm.kv_lora + llm.rope_dim) + llm.kv_lora * llm.heads * (llm.nope_dim + llm.v_head_dim)
    indexer = llm.q_lora * llm.index_heads * llm.index_dim + llm.hidden * (llm.index_dim + llm.index_heads)
    return queries + latent + llm.heads * llm.v_head_dim * llm.hidden + indexer
