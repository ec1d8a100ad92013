"""In which number formats a Hugging Face checkpoint stores its weights and its KV cache."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from models import dtype

# What ModelOpt calls its formats.
_ALGORITHMS = {
    "FP8": "fp8",
    "FP8_PB_WO": "fp8_block",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4",
    "W4A16_AWQ": "int4",
    "W4A8_AWQ": "int4",
    "INT4_AWQ": "int4",
    "W4A16_MXFP4": "mxfp4",
    "W4A8_MXFP4_FP8": "mxfp4",
    "MXFP4": "mxfp4",
    "MXFP8": "fp8",
    "W8A8_SQ_PER_CHANNEL": "int8",
    "W8A16": "int8",
    "INT8": "int8",
}
_BITS_TO_FORMAT = {("int", 4): "int4", ("int", 8): "int8", ("float", 8): "fp8", ("float", 4): "nvfp4"}
MIXED = "MIXED_PRECISION"


@dataclass(frozen=True, slots=True)
class Formats:
    """weights as stored, experts where theirs differs ("" = as weights), kv_cache."""

    weights: str = "bf16"
    experts: str = ""
    kv_cache: str = "bf16"


def read(place: str, plain: str, config: dict[str, Any] | None, sidecar: dict[str, Any] | None) -> Formats:
    """Return the formats from quantization_config and the hf_quant_config.json beside it, which wins.

    plain is the dtype of what is not quantised. ValueError names the place and the unknown method or algorithm.
    """
    plain = dtype.canonical(plain.removeprefix("torch."))
    if sidecar:
        return _modelopt(place, plain, sidecar.get("quantization", {}))
    if not config:
        return Formats(weights=plain)
    method = str(config.get("quant_method", "")).lower()
    kept = config.get("modules_to_not_convert") or config.get("ignore") or config.get("ignored_layers") or []
    if method == "modelopt":
        return _modelopt(place, plain, config)
    if method in ("fp8", "fbgemm_fp8"):
        return _stored(plain, "fp8_block" if config.get("weight_block_size") else "fp8", kept)
    if method == "mxfp4":
        return Formats(weights=plain, experts="mxfp4")
    if method in ("awq", "gptq", "auto-round", "gptq_marlin", "awq_marlin"):
        return _stored(plain, _by_bits(place, "int", config.get("bits", config.get("w_bit"))), kept)
    if method == "bitsandbytes":
        return _stored(plain, "int4" if config.get("load_in_4bit") else "int8", kept)
    if method == "compressed-tensors":
        return _compressed_tensors(place, plain, config, kept)
    raise ValueError(f"{place}: unknown quant_method {method!r}")


def _modelopt(place: str, plain: str, table: dict[str, Any]) -> Formats:
    algorithm = table.get("quant_algo")
    kv_cache = _algorithm(place, table.get("kv_cache_quant_algo"), "bf16")
    if algorithm == MIXED:
        layers = table.get("quantized_layers", {})
        of_experts = [layer["quant_algo"] for name, layer in layers.items() if "expert" in name]
        of_others = [layer["quant_algo"] for name, layer in layers.items() if "expert" not in name]
        weights = _algorithm(place, _commonest(of_others), plain)
        return Formats(weights, _algorithm(place, _commonest(of_experts), ""), kv_cache)
    stored = _stored(
        plain, _algorithm(place, algorithm, plain), table.get("exclude_modules") or table.get("ignore") or []
    )
    return Formats(stored.weights, stored.experts, kv_cache)


def _compressed_tensors(place: str, plain: str, config: dict[str, Any], kept: Iterable[str]) -> Formats:
    groups = list((config.get("config_groups") or {}).values())
    if not groups:
        raise ValueError(f"{place}: compressed-tensors without config_groups")
    weights = groups[0]["weights"]
    stored = _stored(plain, _by_bits(place, weights.get("type", "int"), weights.get("num_bits")), kept)
    scheme = config.get("kv_cache_scheme")
    kv_cache = _by_bits(place, scheme.get("type", "float"), scheme.get("num_bits")) if scheme else "bf16"
    return Formats(stored.weights, stored.experts, kv_cache)


def _stored(plain: str, narrow: str, kept: Iterable[str]) -> Formats:
    """Checkpoints that leave attention alone quantise the experts only."""
    if any("self_attn" in module for module in kept):
        return Formats(weights=plain, experts=narrow)
    return Formats(weights=narrow)


def _algorithm(place: str, name: str | None, default: str) -> str:
    if not name:
        return default
    if name.upper() not in _ALGORITHMS:
        raise ValueError(f"{place}: unknown quant_algo {name!r}; known: {', '.join(_ALGORITHMS)}, {MIXED}")
    return _ALGORITHMS[name.upper()]


def _by_bits(place: str, kind: str, bits: object) -> str:
    stored = _BITS_TO_FORMAT.get((kind, bits)) if isinstance(bits, int) else None
    if stored is None:
        raise ValueError(f"{place}: no format with {bits} bits of type {kind!r} is known")
    return stored


def _commonest(names: list[str]) -> str | None:
    return max(sorted(set(names)), key=names.count, default=None)
