"""An Engine: one model cut over devices in one dtype under one serving engine, and what of it fits in memory."""

from dataclasses import dataclass, field

from models.device import Device
from models.llm import Llm
from models.speculation import PART_SHIFT, Speculation, check

UNLIMITED_TOKENS = 1 << 40
POLICIES = ("fcfs", "priority")
BYTES_PER_ACTIVATION = 2
BYTES_PER_LOGIT = 4
PICOSECONDS_PER_SECOND = 10**12
LIVE_ACTIVATIONS_PER_TOKEN = 4  # hidden-sized tensors alive at once: residual, normed input, block output, workspace
FIXED_RESERVE_BYTES = 1 << 30  # CUDA context, graphs, communication buffers: assumed, vLLM reports 0.5-1.5 GiB


@dataclass(frozen=True, slots=True)
class Settings:
    """How the serving engine is run; names and defaults are vLLM v1's."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    block_tokens: int = 16
    long_prefill_tokens: int = UNLIMITED_TOKENS
    chunked_prefill: bool = True
    watermark_fraction: float = 0.0
    memory_fraction: float = 0.9
    async_scheduling: bool = True
    scheduling_policy: str = "fcfs"  # one of POLICIES
    prefill_first: bool = False  # prefills go alone and before decodes, as SGLang's do
    no_evict: bool = False  # a request is admitted only if it can finish, as TensorRT-LLM's guaranteed-no-evict
    reserve_ratio: float = 0.0  # of answers to come that admission leaves room for at first, as SGLang's 0.7; 0 is none
    swap_preempted: bool = False  # to host memory, over the host link, instead of computing again
    swap_operation_s: float = 0.0  # that each copy takes: of every layer's next swap_operation_blocks, as FastSwitch's
    swap_operation_blocks: int = 1
    swap_keeps_copies: bool = False  # of what is read back, so that only what has come since is written again
    prefix_caching: bool = True
    fuse_allreduce_rms: bool = False  # reductions also add the residual and normalise, by kernels as TensorRT-LLM's
    moe_backend: str = (
        ""  # whose kernel runs the experts, one of predict.MOE_BACKENDS; as the engine chooses where empty
    )
    max_cudagraph_capture_size: int | None = None  # tokens of the largest step that is a graph; None is as the engine's
    max_model_tokens: int | None = None
    speculation: Speculation | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What one lane (a scheduler with its own KV pool) may hold at once."""

    max_sequences: int
    max_batched_tokens: int
    block_tokens: int
    total_blocks: int
    max_context_tokens: int
    long_prefill_tokens: int = UNLIMITED_TOKENS
    chunked_prefill: bool = True
    watermark_blocks: int = 0
    asynchronous: bool = False
    caching: bool = False
    prefill_first: bool = False
    reserves: bool = False
    by_priority: bool = False
    swap_ps_per_token: int = 0
    swap_operation_ps: int = 0
    swap_operation_blocks: int = 1
    swap_keeps_copies: bool = False
    reserve: int = 0
    reserve_least: int = 0
    reserve_fall: int = 0
    verified_tokens: int = 1
    growth_parts: int = 1
    part_shift: int = 0


@dataclass(frozen=True, slots=True)
class Engine:
    """One Llm on tp x pp devices of one kind; experts spread over ep of the tp ranks.

    framework_version is the serving framework's release; None is the newest that was measured.
    """

    llm: Llm
    device: Device
    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp: int = 1
    dtype: str = "bf16"
    kv_dtype: str = "bf16"
    framework: str = "vllm"
    settings: Settings = field(default_factory=Settings)
    framework_version: str | None = None

    @property
    def devices(self) -> int:
        """Return the devices that one replica takes."""
        return self.tp * self.pp * self.dp

    @property
    def name(self) -> str:
        """Return a short name: model, device, cut and dtype."""
        return f"{self.llm.name}/{self.device.name}/tp{self.tp}pp{self.pp}ep{self.ep}dp{self.dp}/{self.dtype}"

    @property
    def weight_bytes_per_device(self) -> float:
        """Return the weights that one device holds; experts may spread over data-parallel ranks too."""
        experts = self.llm.expert_bytes(self.dtype)
        rest = self.llm.weight_bytes(self.dtype) - experts
        return (rest / self.tp + experts / max(self.tp, self.ep)) / self.pp

    @property
    def kv_bytes_per_token_per_device(self) -> float:
        """Return the KV bytes that one token takes on one device: heads split over tp, latent KV is copied."""
        copies = self.tp if self.llm.attention == "mla" else max(1, self.tp // self.llm.kv_heads)
        return self.llm.kv_bytes_per_token(self.kv_dtype) * copies / (self.tp * self.pp)

    @property
    def reserve_bytes(self) -> float:
        """Return the memory kept for activations of the largest step, logits and the runtime."""
        settings = self.settings
        hidden = settings.max_num_batched_tokens * self.llm.hidden * LIVE_ACTIVATIONS_PER_TOKEN * BYTES_PER_ACTIVATION
        widest = settings.max_num_batched_tokens * 2 * max(self.llm.ffn, self.llm.dense_ffn) / self.tp
        logits = settings.max_num_seqs * self.llm.vocabulary * BYTES_PER_LOGIT / self.tp
        return hidden + widest * BYTES_PER_ACTIVATION + logits + FIXED_RESERVE_BYTES

    @property
    def kv_tokens(self) -> int:
        """Return the KV tokens that the devices of one rank can hold; below one block the Engine does not fit."""
        usable_bytes = self.device.memory_bytes * self.settings.memory_fraction
        left_bytes = usable_bytes - self.weight_bytes_per_device - self.reserve_bytes
        left_bytes -= self.settings.max_num_seqs * self.llm.kv_fixed_bytes(self.kv_dtype) / (self.tp * self.pp)
        per_token = self.kv_bytes_per_token_per_device
        return max(0, int(left_bytes // per_token)) if per_token > 0 else UNLIMITED_TOKENS

    @property
    def lanes(self) -> int:
        """Return the schedulers of a replica: one batch in flight per pipeline stage, per data-parallel rank."""
        return self.pp * self.dp

    @property
    def steps_together(self) -> bool:
        """Say whether data-parallel ranks wait for each other in every step: where they share experts."""
        return self.dp > 1 and self.pp == 1 and self.ep > self.tp

    @property
    def _swap_s_per_token(self) -> float:
        """Return the time to move one token's KV between a device and its host; all devices of a replica at once."""
        return self.kv_bytes_per_token_per_device / self.device.host_link_bytes_per_s

    @property
    def limits(self) -> Limits:
        """Return what one lane may hold; pipeline lanes share the KV of their devices evenly, ranks have their own."""
        settings = self.settings
        blocks = self.kv_tokens // self.pp // settings.block_tokens
        watermark = int(blocks * settings.watermark_fraction)
        context = min(self.llm.context_tokens, (blocks - watermark) * settings.block_tokens)
        if settings.max_model_tokens is not None:
            context = min(context, settings.max_model_tokens)
        if not settings.chunked_prefill:
            context = min(context, settings.max_num_batched_tokens)
        drafts = settings.speculation
        if drafts is not None:
            check(settings.max_num_seqs, settings.max_num_batched_tokens, drafts)
            context = max(0, min(context, blocks * settings.block_tokens - drafts.draft_tokens))
        return Limits(
            max_sequences=settings.max_num_seqs,
            max_batched_tokens=settings.max_num_batched_tokens,
            block_tokens=settings.block_tokens,
            total_blocks=blocks,
            max_context_tokens=context,
            long_prefill_tokens=settings.long_prefill_tokens,
            chunked_prefill=settings.chunked_prefill,
            watermark_blocks=watermark,
            asynchronous=settings.async_scheduling,
            caching=settings.prefix_caching,
            prefill_first=settings.prefill_first,
            reserves=settings.no_evict,
            by_priority=settings.scheduling_policy == "priority",
            swap_ps_per_token=round(self._swap_s_per_token * PICOSECONDS_PER_SECOND) if settings.swap_preempted else 0,
            swap_operation_ps=round(self.llm.layers / self.pp * settings.swap_operation_s * PICOSECONDS_PER_SECOND),
            swap_operation_blocks=settings.swap_operation_blocks,
            swap_keeps_copies=settings.swap_keeps_copies,
            **reserve_of(settings.reserve_ratio),
            verified_tokens=drafts.verified_tokens if drafts else 1,
            growth_parts=drafts.growth_parts if drafts else 1,
            part_shift=PART_SHIFT if drafts else 0,
        )


RESERVE_PARTS = 1 << 20
RESERVE_LEAST = 0.14  # of the first ratio, reached after so many decode steps: SGLang's defaults
RESERVE_STEPS = 600


def reserve_of(ratio: float) -> dict[str, int]:
    """Return the limits of an admission that leaves room for a part of the answers to come, in 1 / 2**20.

    >>> reserve_of(0.0)
    {'reserve': 0, 'reserve_least': 0, 'reserve_fall': 0}
    """
    start = round(ratio * RESERVE_PARTS)
    least = round(ratio * RESERVE_LEAST * RESERVE_PARTS)
    return {"reserve": start, "reserve_least": least, "reserve_fall": (start - least) // RESERVE_STEPS}
