"""What each layer of a Hugging Face model is: its mixer and its feed-forward part."""

from dataclasses import dataclass

from models.config_keys import Keys

FULL, WINDOW, LINEAR, NO_MIXER = "full", "window", "linear", ""
DENSE, MOE, NO_FFN = "dense", "moe", ""

_LAYER_TYPES = {
    **dict.fromkeys(("full_attention", "attention", "*"), FULL),
    **dict.fromkeys(("sliding_attention", "chunked_attention", "local_attention"), WINDOW),
    **dict.fromkeys(("linear_attention", "mamba", "mamba2", "M"), LINEAR),
    **dict.fromkeys(("moe", "mlp", "E", "-"), NO_MIXER),
}
_FFN_OF_BLOCK = {"moe": MOE, "E": MOE, "mlp": DENSE, "-": DENSE}
_FFN_TYPES = {"sparse": MOE, "moe": MOE, "dense": DENSE, 1: MOE, 0: DENSE}

# Architectures that fix in code, not in the config, after how many layers a full-attention one comes.
_LAYERS_PER_FULL = {"gemma2": 2, "gpt_oss": 2, "gemma3_text": 6, "gemma3": 6, "cohere2": 4, "qwen3_next": 4}
_CHUNK_LAYERS_PER_FULL = 4


@dataclass(frozen=True, slots=True)
class Layers:
    """The kinds of all layers, in order; "" where a layer has no mixer or no feed-forward part."""

    mixers: tuple[str, ...]
    ffns: tuple[str, ...]

    def count(self, kind: str) -> int:
        """Return how many layers have this mixer or feed-forward part."""
        return (*self.mixers, *self.ffns).count(kind)


def read(keys: Keys, experts: int, context_tokens: int) -> Layers:
    """Return the kinds of all layers; ValueError where two keys disagree on how many layers there are."""
    blocks = _blocks(keys)
    layers = keys.count("num_hidden_layers", "n_layer", "num_layers", "n_layers", default=len(blocks))
    if layers == 0:
        raise ValueError(f"{keys.place}: missing num_hidden_layers")
    if blocks:
        _check_length(keys, "hybrid_override_pattern or layers_block_type", len(blocks), layers)
        mixers = tuple(_known(keys, _LAYER_TYPES, block) for block in blocks)
        if any(block in _FFN_OF_BLOCK for block in blocks):
            return Layers(mixers, tuple(_FFN_OF_BLOCK.get(block, NO_FFN) for block in blocks))
    else:
        mixers = _mixers(keys, layers, context_tokens)
    return Layers(mixers, _ffns(keys, layers, experts))


def _blocks(keys: Keys) -> list[str]:
    pattern = keys.get("hybrid_override_pattern")
    return list(pattern) if pattern else [str(block) for block in keys.entries("layers_block_type")]


def _mixers(keys: Keys, layers: int, context_tokens: int) -> tuple[str, ...]:
    types = keys.entries("layer_types")
    if types:
        _check_length(keys, "layer_types", len(types), layers)
        return tuple(_known(keys, _LAYER_TYPES, kind) for kind in types)
    numbers = keys.entries("hybrid_layer_pattern")
    if numbers:
        _check_length(keys, "hybrid_layer_pattern", len(numbers), layers)
        return tuple(WINDOW if number else FULL for number in numbers)
    numbers = keys.entries("attn_type_list")
    if numbers:
        _check_length(keys, "attn_type_list", len(numbers), layers)
        return tuple(FULL if number else LINEAR for number in numbers)
    kimi = keys.get("linear_attn_config")
    if kimi:
        full = set(kimi["full_attn_layers"])
        _check_length(keys, "linear_attn_config", len(full) + len(kimi["kda_layers"]), layers)
        return tuple(FULL if layer in full else LINEAR for layer in range(1, layers + 1))
    return _periodic_mixers(keys, layers, context_tokens)


def _periodic_mixers(keys: Keys, layers: int, context_tokens: int) -> tuple[str, ...]:
    of_architecture = _LAYERS_PER_FULL.get(str(keys.get("model_type")), 0)
    period = keys.count("full_attention_interval", default=0)
    if period or keys.get("linear_num_value_heads"):
        return _every(period or of_architecture, layers, LINEAR)
    if keys.get("attention_chunk_size"):
        return _every(_CHUNK_LAYERS_PER_FULL, layers, WINDOW)
    window_tokens = keys.count("sliding_window", "sliding_window_size", default=0)
    period = keys.count("sliding_window_pattern", "_sliding_window_pattern", default=of_architecture)
    if not 0 < window_tokens < context_tokens or not keys.flag("use_sliding_window", default=True):
        return (FULL,) * layers
    if period:
        return _every(period, layers, WINDOW)
    first_window = keys.count("max_window_layers", default=0) if keys.flag("use_sliding_window") else 0
    return tuple(WINDOW if layer >= first_window else FULL for layer in range(layers))


def _every(period: int, layers: int, others: str) -> tuple[str, ...]:
    return tuple(FULL if period and (layer + 1) % period == 0 else others for layer in range(layers))


def _ffns(keys: Keys, layers: int, experts: int) -> tuple[str, ...]:
    if not experts:
        return (DENSE,) * layers
    for name in ("mlp_layer_types", "moe_layer_freq"):
        kinds = keys.get(name)
        if isinstance(kinds, list):
            _check_length(keys, name, len(kinds), layers)
            return tuple(_known(keys, _FFN_TYPES, kind) for kind in kinds)
    listed = keys.get("moe_layers", "moe_layers_enum")
    if listed:
        indices = {int(index) for index in (listed.split(",") if isinstance(listed, str) else listed)}
        return tuple(MOE if layer in indices else DENSE for layer in range(layers))
    return tuple(MOE if _is_moe(keys, layer) else DENSE for layer in range(layers))


def _is_moe(keys: Keys, layer: int) -> bool:
    if layer in keys.entries("mlp_only_layers"):
        return False
    if layer < keys.count("first_k_dense_replace", default=0):
        return False
    if layer % keys.count("moe_layer_freq", default=1):
        return False
    return (layer + 1) % keys.count("decoder_sparse_step", "interleave_moe_layer_step", default=1) == 0


def _known(keys: Keys, kinds: dict[str, str] | dict[object, str], kind: object) -> str:
    if kind not in kinds:
        raise ValueError(f"{keys.place}: unknown kind of layer {kind!r}; known: {', '.join(map(str, kinds))}")
    return kinds[kind]  # type: ignore[index]


def _check_length(keys: Keys, name: str, length: int, layers: int) -> None:
    if length != layers:
        raise ValueError(f"{keys.place}: num_hidden_layers is {layers} but {name} lists {length}")
