"""An Llm from a local Hugging Face config.json, which says its shapes under many names."""

import json
from pathlib import Path
from typing import Any

from models import config_formats, config_layers, dtype, llm
from models.config_keys import Keys
from models.config_layers import DENSE, FULL, LINEAR, NO_FFN, WINDOW, Layers
from models.llm import Encoder, LinearAttention, Llm

_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")
# Architectures whose feed-forward part has no gate: two matrices instead of three.
_UNGATED = (
    *("opt", "gpt2", "gpt_neox", "gptj", "gpt_bigcode", "bloom", "falcon", "phi", "starcoder2", "nemotron"),
    "nemotron_h",
)
_PER_TENSOR_FP8 = ("llama",)
# Architectures that normalise every head's queries and keys, and that tie the head to the embedding, unless the config
# says otherwise.
_NORMS_HEADS = ("qwen3", "gemma3")
_TIED = ("gemma", "opt", "gpt2", "gpt_bigcode", "bloom", "falcon", "cohere")
QKV_CONVOLUTION = 4


def read(path: Path) -> Llm:
    """Return the Llm of a config.json, or of the folder that holds one (with hf_quant_config.json beside it).

    ValueError names the file and what is missing, contradicts itself, or looks structural and is not understood.
    """
    file = path / "config.json" if path.is_dir() else path
    config = _json(file)
    sidecar_file = file.with_name("hf_quant_config.json")
    sidecar = _json(sidecar_file) if sidecar_file.is_file() else None
    name = file.parent.resolve().name if file.name == "config.json" else file.stem
    return from_config(str(file), name.lower(), config, sidecar)


def from_config(place: str, name: str, config: dict[str, Any], sidecar: dict[str, Any] | None = None) -> Llm:
    """Return the Llm of a config.json's content; place stands in errors and in the source."""
    keys = Keys(place, _text_config(config), outer=config)
    context_tokens = keys.count(
        "max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "model_max_length"
    )
    experts = keys.count("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts", default=0)
    layers = config_layers.read(keys, experts, context_tokens)
    experts = experts if layers.count(config_layers.MOE) else 0
    plain = str(keys.get("dtype", "torch_dtype") or "bf16")
    formats = config_formats.read(place, plain, keys.get("quantization_config"), sidecar)
    shapes: dict[str, Any] = {
        "layers": len(layers.mixers),
        "ffn_layers": len(layers.ffns) - layers.ffns.count(NO_FFN),
        "hidden": keys.count("hidden_size", "n_embd", "d_model"),
        "vocabulary": keys.count("vocab_size"),
        "context_tokens": context_tokens,
        "tied_embeddings": keys.flag("tie_word_embeddings", default=_model_type(keys).startswith(_TIED)),
        "ffn_matrices": 2 if _is_ungated(keys) else 3,
        "mtp_layers": keys.count("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules", default=0),
        "native_dtype": formats.weights,
        "native_expert_dtype": formats.experts if experts else "",
        "native_kv_dtype": formats.kv_cache,
        "fp8_dtype": _fp8_dtype(keys, formats.weights),
    }
    shapes |= _attention(keys, layers, shapes["hidden"])
    shapes |= _windows(keys, layers, shapes)
    shapes |= _linear(keys, layers, shapes)
    shapes |= _feed_forward(keys, layers, experts)
    keys.refuse_unread()
    encoder, note = _encoder(place, config, shapes["hidden"])
    shapes["attention"] = _attention_name(shapes)
    return llm.make(place, name=name, source=place, encoder=encoder, note=note, **shapes)


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object")
    return content


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    for name in _TEXT_CONFIGS:
        if isinstance(config.get(name), dict):
            return _text_config(config[name])
    return config


def _model_type(keys: Keys) -> str:
    return str(keys.get("model_type") or "")


def _is_ungated(keys: Keys) -> bool:
    activation = str(keys.get("mlp_hidden_act", "hidden_act", "activation_function", "hidden_activation") or "")
    return activation == "relu2" or _model_type(keys) in _UNGATED


def _fp8_dtype(keys: Keys, stored: str) -> str:
    """Return how fp8 weights are scaled: as they are here, else as checkpoints of the family usually are."""
    if stored.startswith("fp8"):
        return stored
    return "fp8" if _model_type(keys).startswith(_PER_TENSOR_FP8) else "fp8_block"


def _attention(keys: Keys, layers: Layers, hidden: int) -> dict[str, Any]:
    heads = keys.count("num_attention_heads", "n_head", "n_heads")
    kv_heads = 1 if keys.flag("multi_query") else keys.count("num_key_value_heads", "num_kv_heads", default=heads)
    norms_all_heads = keys.get("qk_norm_type") == "per_layer"
    shapes: dict[str, Any] = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": keys.count("head_dim", "attention_head_dim", default=hidden // heads),
        "output_gate": keys.flag("attn_output_gate", default=_model_type(keys) == "qwen3_next"),
        "norms_all_heads": norms_all_heads,
        "norms_each_head": not norms_all_heads
        and keys.flag("use_qk_norm", default=_model_type(keys).startswith(_NORMS_HEADS)),
        "full_attention_layers": layers.count(FULL),
    }
    if keys.get("kv_lora_rank"):
        nope, rope = keys.count("qk_nope_head_dim"), keys.count("qk_rope_head_dim")
        keys.get("qk_head_dim")
        shapes |= {
            "head_dim": nope + rope,
            "q_lora": keys.count("q_lora_rank", default=0),
            "kv_lora": keys.count("kv_lora_rank"),
            "nope_dim": nope,
            "rope_dim": rope,
            "index_heads": keys.count("index_n_heads", default=0),
            "index_dim": keys.count("index_head_dim", default=0),
            "index_topk": keys.count("index_topk", default=0),
        }
    shapes["v_head_dim"] = keys.count("v_head_dim", default=shapes["head_dim"])
    return shapes


def _windows(keys: Keys, layers: Layers, shapes: dict[str, Any]) -> dict[str, Any]:
    window_tokens = keys.count("attention_chunk_size", "sliding_window", "sliding_window_size", default=0)
    swa_heads = keys.count("swa_num_attention_heads", default=shapes["heads"])
    if swa_heads != shapes["heads"]:
        raise ValueError(f"{keys.place}: swa_num_attention_heads {swa_heads} differs from {shapes['heads']} heads")
    window: dict[str, Any] = {
        "window_kv_heads": keys.count("swa_num_key_value_heads", default=shapes["kv_heads"]),
        "window_head_dim": keys.count("swa_head_dim", default=shapes["head_dim"]),
        "window_v_head_dim": keys.count("swa_v_head_dim", default=shapes["v_head_dim"]),
    }
    if keys.get("global_head_dim"):  # Here the plain names mean the window layers.
        window["head_dim"] = window["v_head_dim"] = keys.count("global_head_dim")
        window["kv_heads"] = keys.count("num_global_key_value_heads", default=shapes["kv_heads"])
    shared = keys.count("num_kv_shared_layers", default=0)
    last = layers.mixers[len(layers.mixers) - shared :]
    return window | {
        "window_layers": layers.count(WINDOW),
        "window_tokens": window_tokens if layers.count(WINDOW) else 0,
        "shared_kv_full_layers": last.count(FULL),
        "shared_kv_window_layers": last.count(WINDOW),
    }


def _linear(keys: Keys, layers: Layers, shapes: dict[str, Any]) -> dict[str, Any]:
    if not layers.count(LINEAR):
        return {"linear_layers": 0}
    return {"linear_layers": layers.count(LINEAR), "linear": _linear_attention(keys, shapes)}


def _linear_attention(keys: Keys, shapes: dict[str, Any]) -> LinearAttention:
    state_dtype = dtype.canonical(str(keys.get("mamba_ssm_cache_dtype", "mamba_ssm_dtype") or "fp32"))
    if keys.get("linear_num_value_heads"):
        return LinearAttention(
            kind="gated-deltanet",
            key_heads=keys.count("linear_num_key_heads"),
            value_heads=keys.count("linear_num_value_heads"),
            key_dim=keys.count("linear_key_head_dim"),
            value_dim=keys.count("linear_value_head_dim"),
            conv_kernel=keys.count("linear_conv_kernel_dim", default=QKV_CONVOLUTION),
            state_dtype=state_dtype,
        )
    if keys.get("ssm_state_size", "mamba_d_state"):
        return LinearAttention(
            kind="mamba2",
            key_heads=keys.count("n_groups", "mamba_n_groups"),
            value_heads=keys.count("mamba_num_heads", "mamba_n_heads"),
            key_dim=keys.count("ssm_state_size", "mamba_d_state"),
            value_dim=keys.count("mamba_head_dim", "mamba_d_head"),
            conv_kernel=keys.count("conv_kernel", "mamba_d_conv"),
            state_dtype=state_dtype,
        )
    kimi = keys.get("linear_attn_config")
    if kimi:
        heads, width = kimi["num_heads"], kimi["head_dim"]
        return LinearAttention("kda", heads, heads, width, width, kimi["short_conv_kernel_size"], state_dtype)
    if keys.get("attn_type_list"):
        heads, width = shapes["heads"], shapes["head_dim"]
        return LinearAttention("lightning", heads, heads, width, width, 0, state_dtype)
    raise ValueError(f"{keys.place}: linear layers, but none of the known keys for the shapes of their state")


def _feed_forward(keys: Keys, layers: Layers, experts: int) -> dict[str, Any]:
    is_llama4 = _model_type(keys).startswith("llama4")
    ffn = keys.count("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", default=0)
    shapes = {"dense_layers": layers.count(DENSE), "dense_ffn": keys.count("intermediate_size_mlp", default=ffn)}
    if not experts:
        return shapes | {"ffn": ffn}
    expert_ffn = keys.count("moe_intermediate_size", "expert_intermediate_size", default=ffn)
    shared_experts = keys.count("n_shared_experts", "num_shared_experts", default=1 if is_llama4 else 0)
    each = keys.count("moe_shared_expert_intermediate_size", default=expert_ffn)
    shared_ffn = keys.count(
        "shared_expert_intermediate_size", "shared_intermediate_size", "share_expert_dim", default=shared_experts * each
    )
    if keys.flag("enable_moe_block"):  # A dense part beside the experts of each layer.
        shared_ffn = ffn
    return shapes | {
        "ffn": ffn or expert_ffn,
        "experts": experts,
        "experts_per_token": keys.count(
            *("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_top_k")
        ),
        "expert_ffn": expert_ffn,
        "expert_latent": keys.count("moe_latent_size", "routed_expert_hidden_size", default=0),
        "shared_experts": max(shared_experts, 1 if shared_ffn else 0),
        "shared_ffn": shared_ffn,
    }


def _attention_name(shapes: dict[str, Any]) -> str:
    if shapes.get("kv_lora"):
        base = "mla-dsa" if shapes["index_topk"] else "mla"
    else:
        base = {1: "mqa", shapes["heads"]: "mha"}.get(shapes["kv_heads"], "gqa")
    if shapes["linear_layers"]:
        return f"{base}-{'mamba' if shapes['linear'].kind == 'mamba2' else 'linear'}"
    return f"{base}-window" if shapes["window_layers"] else base


def _encoder(place: str, config: dict[str, Any], hidden: int) -> tuple[Encoder | None, str]:
    table = config.get("vision_config") or config.get("thinker_config", {}).get("vision_config")
    if not table:
        return None, ""
    keys = Keys(f"{place}: vision_config", table)
    try:
        return _vision(keys, table, hidden), ""
    except ValueError as error:
        return None, f"vision tower left out of the weights: {error}"


def _vision(keys: Keys, table: dict[str, Any], hidden: int) -> Encoder:
    width = keys.count("vt_hidden_size", "embed_dim", "hidden_size")
    merge = keys.count("spatial_merge_size", "merge_kernel_size", default=1)
    merged = width * merge * merge
    ratio = keys.get("mlp_ratio")
    return Encoder(
        kind="vision",
        layers=keys.count("vt_num_hidden_layers", "depth", "num_hidden_layers"),
        hidden=width,
        heads=keys.count("vt_num_attention_heads", "num_heads", "num_attention_heads"),
        ffn=keys.count("vt_intermediate_size", "intermediate_size", default=int(ratio * width) if ratio else None),
        ffn_matrices=3 if str(table.get("model_type", "")).startswith("qwen2_5") else 2,
        patch=keys.count("patch_size"),
        merge=merge,
        projectors=1 + len(keys.entries("deepstack_visual_indexes")),
        projector_widths=(merged, merged, hidden) if merge > 1 else (width, hidden),
    )
