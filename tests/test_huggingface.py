"""Hugging Face config.json files of real architectures give the shapes, weights and KV bytes of the catalogue."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_configs import (
    CONFIGS,
    GPT_OSS_20B,
    LLAMA_3_1_8B,
    MIXTRAL_8X7B,
    NEMOTRON_3_NANO,
    QWEN3_5_35B_A3B,
    QWEN3_30B_A3B,
    Config,
)

from models import huggingface, llm, parameters


def imported(config: Config, **changes: Any) -> llm.Llm:
    """Import a config with some of its top-level keys changed; None takes a key away."""
    changed = {key: value for key, value in {**config, **changes}.items() if value is not None}
    return huggingface.from_config("config.json", "toy", changed)


def text_parameters(model: llm.Llm) -> int:
    """Count the weights without the encoder."""
    return model.parameters - (parameters.encoder(model.encoder) if model.encoder else 0)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_and_the_catalogue_agree(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS[name]))
    ours, theirs = llm.load(name), llm.load(str(folder))
    assert theirs.name == name
    assert text_parameters(theirs) == text_parameters(ours)
    assert theirs.active_parameters == ours.active_parameters
    assert theirs.kv_bytes_per_token("bf16") == ours.kv_bytes_per_token("bf16")
    assert theirs.kv_fixed_bytes("bf16") == ours.kv_fixed_bytes("bf16")
    kinds = ("layers", "ffn_layers", "dense_layers", "full_attention_layers", "window_layers", "linear_layers")
    assert [getattr(theirs, kind) for kind in kinds] == [getattr(ours, kind) for kind in kinds]


def test_the_published_size_of_qwen3_next_follows_from_its_config() -> None:
    config = QWEN3_5_35B_A3B["text_config"] | {
        "model_type": "qwen3_next",
        "attn_output_gate": None,
        "layer_types": None,
        "mtp_num_hidden_layers": None,
        "num_hidden_layers": 48,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    }
    model = imported(config)
    assert model.linear_layers == 36
    assert model.parameters == pytest.approx(80e9, rel=0.015)
    assert 3e9 < model.active_parameters < 4e9


def test_kimi_linear_mixes_latent_attention_with_a_delta_rule() -> None:
    full = [4, 8, 12, 16, 20, 24, 27]
    linear = {"full_attn_layers": full, "kda_layers": [layer for layer in range(1, 28) if layer not in full]}
    config = {
        "model_type": "kimi_linear",
        "first_k_dense_replace": 1,
        "head_dim": 72,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "kv_lora_rank": 512,
        "linear_attn_config": linear | {"head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4},
        "model_max_length": 1048576,
        "moe_intermediate_size": 1024,
        "moe_layer_freq": 1,
        "num_attention_heads": 32,
        "num_expert_group": 1,
        "num_experts": 256,
        "num_experts_per_token": 8,
        "num_hidden_layers": 27,
        "num_key_value_heads": 32,
        "num_shared_experts": 1,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "tie_word_embeddings": False,
        "v_head_dim": 128,
        "vocab_size": 163840,
    }
    model = imported(config)
    assert model.parameters == pytest.approx(49e9, rel=0.015)
    assert model.kv_bytes_per_token() == 7 * (512 + 64) * 2
    assert model.linear_layers * model.linear_state_bytes == 20 * 32 * 128 * 128 * 4


def test_granite_hybrid_has_experts_beside_every_mixer() -> None:
    config = {
        "model_type": "granitemoehybrid",
        "hidden_size": 4096,
        "intermediate_size": 768,
        "layer_types": [*["mamba"] * 5, *(["attention"] + ["mamba"] * 9) * 3, "attention", *["mamba"] * 4],
        "mamba_chunk_size": 256,
        "mamba_d_conv": 4,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "mamba_expand": 2,
        "mamba_n_groups": 1,
        "mamba_n_heads": 128,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_experts_per_tok": 10,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "num_local_experts": 72,
        "shared_intermediate_size": 1536,
        "tie_word_embeddings": True,
        "vocab_size": 100352,
    }
    model = imported(config)
    assert (model.full_attention_layers, model.linear_layers, model.moe_layers) == (4, 36, 40)
    assert model.parameters == pytest.approx(32e9, rel=0.015)


def test_a_file_or_its_folder_may_be_named(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA_3_1_8B))
    assert llm.load(str(file)) == llm.load(str(tmp_path))


def test_a_file_that_is_not_json_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"hidden_size": 1,\n oops}')
    with pytest.raises(ValueError, match=r"config\.json:2:2: not JSON"):
        llm.load(str(file))
    with pytest.raises(ValueError, match=r"config\.json: no such file"):
        llm.load(str(tmp_path / "absent" / "config.json"))


@pytest.mark.parametrize(
    "key", ["hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"]
)
def test_a_missing_shape_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"missing .*{key}"):
        imported(LLAMA_3_1_8B, **{key: None})


@pytest.mark.parametrize(
    "key",
    ["expert_tower_size", "memory_layers", "o_lora_rank", "window_schedule", "compress_ratios", "mamba_gate_dim"],
)
def test_an_unread_structural_key_is_refused_by_name(key: str) -> None:
    with pytest.raises(ValueError, match=f"not understood: {key};"):
        imported(LLAMA_3_1_8B, **{key: 4})


@pytest.mark.parametrize("key", ["use_expert_gates", "layer_norm_eps", "decoder_layerdrop", "sliding_window"])
def test_a_structural_key_that_is_off_or_harmless_is_let_through(key: str) -> None:
    value = 1e-5 if key == "layer_norm_eps" else 0
    assert imported(LLAMA_3_1_8B, **{key: value}).layers == 32


def test_lists_of_layers_must_have_the_stated_length() -> None:
    with pytest.raises(ValueError, match="num_hidden_layers is 24 but layer_types lists 23"):
        imported(GPT_OSS_20B, layer_types=GPT_OSS_20B["layer_types"][1:])
    with pytest.raises(ValueError, match="num_hidden_layers is 53 but hybrid_override_pattern"):
        imported(NEMOTRON_3_NANO, num_hidden_layers=53)


def test_an_unknown_kind_of_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of layer 'conv'"):
        imported(GPT_OSS_20B, layer_types=["conv"] * 24)


def test_a_list_of_blocks_says_how_many_layers_there_are() -> None:
    words = {"M": "mamba", "E": "moe", "*": "attention"}
    blocks = [words[letter] for letter in NEMOTRON_3_NANO["hybrid_override_pattern"]]
    listed = imported(NEMOTRON_3_NANO, hybrid_override_pattern=None, num_hidden_layers=None, layers_block_type=blocks)
    assert listed == imported(NEMOTRON_3_NANO)


def test_a_window_as_long_as_the_context_is_no_window() -> None:
    assert imported(LLAMA_3_1_8B, sliding_window=131072).window_layers == 0
    assert imported(LLAMA_3_1_8B, sliding_window=4096).window_layers == 32
    assert imported(LLAMA_3_1_8B, sliding_window=4096, use_sliding_window=False).window_layers == 0


def test_layers_that_share_the_cache_of_earlier_ones_keep_none() -> None:
    shared = imported(GPT_OSS_20B, num_kv_shared_layers=4)
    whole = imported(GPT_OSS_20B)
    assert shared.kv_bytes_per_token() == whole.kv_bytes_per_token() * 10 / 12
    assert shared.window_bytes_per_token() == whole.window_bytes_per_token() * 10 / 12


def test_latent_experts_work_in_the_latent_width() -> None:
    latent, whole = imported(NEMOTRON_3_NANO, moe_latent_size=1344), imported(NEMOTRON_3_NANO)
    saved = 23 * (128 * 2 * 1856 * (2688 - 1344) - 2 * 2688 * 1344)
    assert whole.parameters - latent.parameters == saved


@pytest.mark.parametrize(
    ("config", "formats"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ("fp8_block", "")),
        ({"quant_method": "awq", "bits": 4}, ("int4", "")),
        ({"quant_method": "gptq", "bits": 8}, ("int8", "")),
        ({"quant_method": "mxfp4"}, ("bf16", "mxfp4")),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
                "ignore": ["lm_head", "re:.*self_attn.*"],
            },
            ("bf16", "int4"),
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, ("nvfp4", "")),
    ],
)
def test_quantised_checkpoints_say_what_is_stored_how(config: Config, formats: tuple[str, str]) -> None:
    model = imported(MIXTRAL_8X7B, quantization_config=config)
    assert (model.native_dtype, model.native_expert_dtype) == formats
    assert model.fp8_dtype == "fp8_block"


def test_fp8_scales_as_it_is_stored_or_as_the_family_does() -> None:
    one_scale = imported(MIXTRAL_8X7B, quantization_config={"quant_method": "fp8"})
    assert (one_scale.native_dtype, one_scale.fp8_dtype) == ("fp8", "fp8")
    assert imported(LLAMA_3_1_8B).fp8_dtype == "fp8"


def test_unknown_quantisation_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown quant_method 'magic'"):
        imported(LLAMA_3_1_8B, quantization_config={"quant_method": "magic"})
    with pytest.raises(ValueError, match="no format with 3 bits"):
        imported(LLAMA_3_1_8B, quantization_config={"quant_method": "gptq", "bits": 3})


def test_the_sidecar_of_modelopt_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_30B_A3B))
    sidecar = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(sidecar))
    model = llm.load(str(tmp_path))
    assert (model.native_dtype, model.native_kv_dtype) == ("nvfp4", "fp8")


def test_mixed_precision_is_told_apart_by_experts(tmp_path: Path) -> None:
    quantised = {
        "model.layers.0.self_attn.q_proj": {"quant_algo": "FP8"},
        "model.layers.0.mlp.experts.0.up_proj": {"quant_algo": "NVFP4"},
    }
    sidecar = {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": quantised}}
    model = huggingface.from_config("config.json", "toy", QWEN3_30B_A3B, sidecar)
    assert (model.native_dtype, model.native_expert_dtype) == ("fp8", "nvfp4")


def test_published_weights_of_gpt_oss_are_mostly_four_bit() -> None:
    model = imported(GPT_OSS_20B)
    assert model.weight_bytes() == pytest.approx(13.76e9, rel=0.02)  # size of the published safetensors
    assert model.weight_bytes("bf16") == 2 * model.parameters
