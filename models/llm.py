"""Llm: the shapes of one language model, and what follows from them alone: weights, KV cache, states."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from models import parameters as parts
from models import toml_file
from models.dtype import NATIVE, bytes_per_value, canonical

FOLDER = Path(__file__).parent / "catalogue" / "llms"
LINEAR_KINDS = ("gated-deltanet", "mamba2", "kda", "lightning")
WIDE_BYTES = 2.0
INDEX_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """The mixer of layers that keep a constant state per sequence instead of a KV cache.

    For mamba2 the value heads are its heads, the key heads its groups, and key_dim its state size.
    """

    kind: str
    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int = 0
    state_dtype: str = "fp32"

    @property
    def state_bytes(self) -> float:
        """Return the bytes of one layer's recurrent state of one sequence."""
        return self.value_heads * self.key_dim * self.value_dim * bytes_per_value(self.state_dtype)

    @property
    def convolution_bytes(self) -> float:
        """Return the bytes of the past inputs, in 16 bit, that one layer's short convolution keeps of one sequence."""
        channels = 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
        return channels * max(0, self.conv_kernel - 1) * WIDE_BYTES


@dataclass(frozen=True, slots=True)
class Encoder:
    """A vision or audio tower: blocks, then projectors of the given widths into the text model.

    patch and merge are in pixels and patches a side; audio has patch 0 and two convolutions over input_channels.
    """

    kind: str
    layers: int
    hidden: int
    heads: int
    ffn: int
    ffn_matrices: int = 2
    patch: int = 0
    merge: int = 1
    projectors: int = 1
    projector_widths: tuple[int, ...] = ()
    input_channels: int = 0
    input_kernel: int = 0
    tokens: int = 0
    tokens_note: str = ""


@dataclass(frozen=True, slots=True)
class Llm:
    """Shapes of one language model; counts of layers by kind, widths in values, window and context in tokens.

    full_attention_layers + window_layers + linear_layers are the mixers; ffn_layers have a feed-forward part, of
    which dense_layers are dense and the rest are mixtures of experts. Hybrids that put mixers and feed-forward parts
    in layers of their own have layers = mixers + ffn_layers. shared_ffn is the width of all shared experts together.
    expert_latent is the width the routed experts work in where that is not hidden (else 0). norms_all_heads means that
    queries and keys are normalised over all their heads together. fp8_dtype is how the model's fp8 checkpoints scale:
    "fp8" each tensor, "fp8_block" blocks of 128 x 128.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    ffn: int
    ffn_matrices: int
    ffn_layers: int
    dense_layers: int
    dense_ffn: int
    vocabulary: int
    context_tokens: int
    attention: str
    full_attention_layers: int
    source: str
    tied_embeddings: bool = False
    output_gate: bool = False
    norms_all_heads: bool = False
    norms_each_head: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    expert_latent: int = 0
    alike_tokens: float = 0.0
    shared_experts: int = 0
    shared_ffn: int = 0
    q_lora: int = 0
    kv_lora: int = 0
    rope_dim: int = 0
    nope_dim: int = 0
    index_heads: int = 0
    index_dim: int = 0
    index_topk: int = 0
    window_tokens: int = 0
    window_layers: int = 0
    window_kv_heads: int = 0
    window_head_dim: int = 0
    window_v_head_dim: int = 0
    shared_kv_full_layers: int = 0
    shared_kv_window_layers: int = 0
    linear_layers: int = 0
    linear: LinearAttention | None = None
    cross_attention_layers: int = 0
    encoder: Encoder | None = None
    mtp_layers: int = 0
    native_dtype: str = "bf16"
    native_expert_dtype: str = ""
    native_kv_dtype: str = "bf16"
    fp8_dtype: str = "fp8_block"
    published_parameters: float | None = None
    published_covers: str = "all"
    note: str = ""

    @property
    def native_format(self) -> str:
        """Return the narrowest number format of the published weights, that of the experts where they are apart."""
        return self.native_expert_dtype or self.native_dtype

    @property
    def moe_layers(self) -> int:
        """Return the number of layers whose feed-forward part is a mixture of experts."""
        return self.ffn_layers - self.dense_layers

    @property
    def parameters(self) -> int:
        """Return the number of weights, encoder included, multi-token-prediction heads excluded."""
        return parts.count(self).total

    @property
    def active_parameters(self) -> int:
        """Return the number of weights of the text model that one token passes through, embeddings included."""
        whole = parts.count(self)
        idle_experts = self.moe_layers * (self.experts - self.experts_per_token) * parts.expert(self)
        return whole.total - whole.encoder - idle_experts

    @property
    def linear_state_bytes(self) -> float:
        """Return the bytes of one linear layer's recurrent state of one sequence."""
        return self.linear.state_bytes if self.linear else 0.0

    def weight_bytes(self, dtype: str = NATIVE) -> float:
        """Return the bytes of all weights stored in a dtype.

        Embeddings, head, router, norms and encoder stay in 16 bit (in fp32 all is fp32), as quantised checkpoints
        keep them. "native", or the name of the narrow format of the published experts, means as published.
        """
        whole = parts.count(self)
        dense, expert = self._stored_as(dtype)
        wide_bytes = max(WIDE_BYTES, bytes_per_value(dense))
        return (
            whole.projections * bytes_per_value(dense)
            + whole.experts * bytes_per_value(expert)
            + whole.kept_wide * wide_bytes
        )

    def format_of(self, dtype: str) -> str:
        """Return our name of a number format, as this model is published in it: for "native", and for fp8 its scales.

        ValueError names the formats that are known.
        """
        if dtype == NATIVE:
            return self.native_format
        name = canonical(dtype)
        return self.fp8_dtype if name == "fp8" else name

    def expert_bytes(self, dtype: str = NATIVE) -> float:
        """Return the bytes of all routed experts' weights stored in a dtype."""
        return parts.count(self).experts * bytes_per_value(self._stored_as(dtype)[1])

    def _stored_as(self, dtype: str) -> tuple[str, str]:
        if dtype in (NATIVE, self.native_expert_dtype):
            return self.native_dtype, self.native_format
        return dtype, dtype

    def kv_bytes_per_token(self, kv_dtype: str = "bf16") -> float:
        """Return the bytes by which the KV cache grows with each token of context (full-attention layers)."""
        layers = self.full_attention_layers - self.shared_kv_full_layers
        if self.kv_lora:
            return layers * (self.kv_lora + self.rope_dim) * bytes_per_value(kv_dtype)
        return layers * self.kv_heads * (self.head_dim + self.v_head_dim) * bytes_per_value(kv_dtype)

    def window_bytes_per_token(self, kv_dtype: str = "bf16") -> float:
        """Return the bytes that one token takes in the sliding windows, while it is inside them."""
        layers = self.window_layers - self.shared_kv_window_layers
        width = self.window_kv_heads * (self.window_head_dim + self.window_v_head_dim)
        return layers * width * bytes_per_value(kv_dtype)

    def kv_fixed_bytes(self, kv_dtype: str = "bf16") -> float:
        """Return the bytes one sequence holds whatever its length: full windows, states, encoder keys and values."""
        state_bytes = self.linear.state_bytes + self.linear.convolution_bytes if self.linear else 0.0
        return (
            self.window_tokens * self.window_bytes_per_token(kv_dtype)
            + self.linear_layers * state_bytes
            + self._cross_attention_bytes(kv_dtype)
        )

    def index_bytes_per_token(self) -> float:
        """Return the bytes per token of the fp8 keys, with their scales, by which sparse attention picks tokens."""
        if not self.index_dim:
            return 0.0
        return self.full_attention_layers * (self.index_dim * bytes_per_value("fp8") + INDEX_SCALE_BYTES)

    def _cross_attention_bytes(self, kv_dtype: str) -> float:
        tokens = self.encoder.tokens if self.encoder else 0
        return self.cross_attention_layers * tokens * 2 * self.heads * self.head_dim * bytes_per_value(kv_dtype)


def names() -> tuple[str, ...]:
    """Return the names of all models in the catalogue."""
    return toml_file.names_in(FOLDER)


def load(name_or_path: str) -> Llm:
    """Return a model by catalogue name, or from a local Hugging Face config.json, its folder, or a TOML file.

    ValueError names the nearest and all known models, or the file and the keys that are wrong.

    >>> load("llama-3.1-8b").kv_bytes_per_token("bf16")
    131072.0
    """
    path = Path(name_or_path)
    if path.suffix == ".toml" and path.is_file():
        return _read(path)
    if path.suffix == ".json" or path.is_dir():
        from models import huggingface

        return huggingface.read(path)
    file = FOLDER / f"{name_or_path}.toml"
    if "/" in name_or_path or not file.is_file():
        raise toml_file.unknown_name("model", name_or_path, names())
    return _read(file)


def find(label: str) -> Llm:
    """Return the model that logs and tables call by this label (`meta-llama/Llama-3.1-8B`, `Qwen/Qwen3-32B`).

    What was only tuned otherwise has the same shapes: `-Instruct`, `-Chat` and `-it` are passed over.
    """
    wanted = toml_file.squeezed(label)
    for ending in ("", "instruct", "chat", "it"):
        for name in names():
            if toml_file.squeezed(name) == wanted.removesuffix(ending):
                return load(name)
    raise toml_file.unknown_name("model label", label, names())


def make(place: str, **shapes: Any) -> Llm:
    """Return an Llm from its shapes, filling in what follows from the rest; ValueError names the place and the flaw."""
    shapes.setdefault("v_head_dim", shapes["head_dim"])
    for part in ("kv_heads", "head_dim", "v_head_dim"):
        shapes[f"window_{part}"] = shapes.get(f"window_{part}") or shapes[part]
    shapes.setdefault("ffn_layers", shapes["layers"])
    shapes.setdefault("ffn_matrices", 3)
    shapes.setdefault("dense_layers", 0 if shapes.get("experts") else shapes["ffn_layers"])
    shapes.setdefault("dense_ffn", shapes["ffn"])
    others = shapes.get("window_layers", 0) + shapes.get("linear_layers", 0)
    shapes.setdefault("full_attention_layers", shapes["layers"] - others)
    llm = Llm(**shapes)
    _check(place, llm)
    return llm


_REQUIRED = (
    *("layers", "hidden", "heads", "kv_heads", "head_dim", "ffn", "vocabulary", "context_tokens", "attention"),
    "source",
)


def _read(path: Path) -> Llm:
    optional = [entry.name for entry in fields(Llm) if entry.name not in (*_REQUIRED, "name")]
    table = toml_file.read(path, _REQUIRED, optional)
    tables: tuple[tuple[str, type[LinearAttention] | type[Encoder]], ...]
    tables = (("linear", LinearAttention), ("encoder", Encoder))
    for key, part in tables:
        if key in table:
            known = [entry.name for entry in fields(part)]
            toml_file.check_keys(f"{path}: [{key}]", table[key], (), known)
            inner: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in table[key].items()
            }
            table[key] = part(**inner)
    return make(str(path), name=path.stem, **table)


def _check(place: str, llm: Llm) -> None:
    for key in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocabulary", "context_tokens"):
        value = getattr(llm, key)
        if not isinstance(value, int) or value <= 0:
            raise ValueError(f"{place}: {key} must be a positive whole number, not {value!r}")
    mixers = llm.full_attention_layers + llm.window_layers + llm.linear_layers
    if not mixers <= llm.layers <= mixers + llm.ffn_layers or llm.full_attention_layers < 0:
        raise ValueError(
            f"{place}: {llm.layers} layers, but {llm.full_attention_layers} full, {llm.window_layers} window, "
            f"{llm.linear_layers} linear mixers and {llm.ffn_layers} feed-forward parts"
        )
    if llm.heads % llm.kv_heads and not llm.kv_lora:
        raise ValueError(f"{place}: {llm.heads} heads cannot share {llm.kv_heads} KV heads evenly")
    if llm.experts_per_token > llm.experts or (llm.experts > 0) != (llm.moe_layers > 0):
        raise ValueError(
            f"{place}: {llm.experts_per_token} of {llm.experts} experts a token in {llm.moe_layers} MoE layers"
        )
    if bool(llm.window_layers) != bool(llm.window_tokens):
        raise ValueError(f"{place}: {llm.window_layers} window layers with a window of {llm.window_tokens} tokens")
    if bool(llm.linear_layers) != bool(llm.linear):
        raise ValueError(f"{place}: {llm.linear_layers} linear layers, and linear shapes {llm.linear}")
    if llm.linear and llm.linear.kind not in LINEAR_KINDS:
        raise ValueError(f"{place}: linear kind {llm.linear.kind!r} is none of {', '.join(LINEAR_KINDS)}")
