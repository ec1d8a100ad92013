"""An Engine in the words of serving engines: the flags that make vLLM, SGLang and TensorRT-LLM run what was planned."""

import json
from collections.abc import Collection
from typing import Any

from models.engine import UNLIMITED_TOKENS, Engine

VLLM_DTYPES = {"bf16": ("--dtype", "bfloat16"), "fp16": ("--dtype", "float16"), "fp32": ("--dtype", "float32")}
HANDING_OVER = json.dumps({"kv_connector": "NixlConnector", "kv_role": "kv_both"})
DRAFT_MODEL = "DRAFT-MODEL"  # to be filled in: plans know how many tokens are drafted and accepted, not by which model
SGLANG_KV_DTYPES = {"fp8": "fp8_e4m3"}
TENSORRT_KV_DTYPES = {"bf16": "auto", "fp16": "auto"}


def vllm(engine: Engine, role: str = "both") -> list[str]:
    """Return the flags of `vllm serve MODEL`; a pool that only prefills or decodes hands KV over or takes it.

    Number formats other than 16 bit and fp8 need a checkpoint in that format; vLLM sees the format itself.
    """
    settings = engine.settings
    flags = ["--tensor-parallel-size", str(engine.tp), "--pipeline-parallel-size", str(engine.pp)]
    if engine.dp > 1:
        flags += ["--data-parallel-size", str(engine.dp)]
    if engine.ep > 1:
        flags += ["--enable-expert-parallel"]
    flags += VLLM_DTYPES.get(engine.dtype, ())
    if engine.dtype.startswith("fp8") and not engine.llm.native_dtype.startswith("fp8"):
        flags += ["--quantization", "fp8"]
    flags += ["--kv-cache-dtype", "fp8" if engine.kv_dtype == "fp8" else "auto"]
    flags += ["--max-num-seqs", str(settings.max_num_seqs)]
    flags += ["--max-num-batched-tokens", str(settings.max_num_batched_tokens)]
    flags += ["--max-model-len", str(engine.limits.max_context_tokens)]
    flags += ["--gpu-memory-utilization", f"{settings.memory_fraction:g}", "--block-size", str(settings.block_tokens)]
    if not settings.chunked_prefill:
        flags += ["--no-enable-chunked-prefill"]
    if settings.long_prefill_tokens != UNLIMITED_TOKENS:
        flags += ["--long-prefill-token-threshold", str(settings.long_prefill_tokens)]
    if settings.scheduling_policy != "fcfs":
        flags += ["--scheduling-policy", settings.scheduling_policy]
    if not settings.async_scheduling:
        flags += ["--no-async-scheduling"]
    if settings.speculation is not None:
        drafted = {"model": DRAFT_MODEL, "num_speculative_tokens": settings.speculation.draft_tokens}
        flags += ["--speculative-config", json.dumps(drafted)]
    if role != "both":
        flags += ["--kv-transfer-config", HANDING_OVER]
    return flags


def sglang(engine: Engine, role: str = "both") -> list[str]:
    """Return the flags of `python -m sglang.launch_server --model-path MODEL`."""
    settings = engine.settings
    flags = ["--tp-size", str(engine.tp), "--pp-size", str(engine.pp)]
    if engine.dp > 1:
        flags += ["--dp-size", str(engine.dp)]
    if engine.ep > 1:
        flags += ["--ep-size", str(engine.ep)]
    flags += VLLM_DTYPES.get(engine.dtype, ())
    if engine.dtype.startswith("fp8") and not engine.llm.native_dtype.startswith("fp8"):
        flags += ["--quantization", "fp8"]
    flags += ["--kv-cache-dtype", SGLANG_KV_DTYPES.get(engine.kv_dtype, "auto")]
    flags += ["--max-running-requests", str(settings.max_num_seqs)]
    chunk = settings.max_num_batched_tokens if settings.chunked_prefill else -1
    flags += ["--chunked-prefill-size", str(chunk)]
    flags += ["--context-length", str(engine.limits.max_context_tokens)]
    flags += ["--mem-fraction-static", f"{_static_fraction(engine):.3g}", "--page-size", str(settings.block_tokens)]
    if not settings.async_scheduling:
        flags += ["--disable-overlap-schedule"]
    return flags + ([] if role == "both" else ["--disaggregation-mode", role])


def tensorrt_llm(engine: Engine) -> tuple[list[str], dict[str, Any]]:
    """Return the flags of `trtllm-serve MODEL` and the content of the option file that goes with them."""
    settings = engine.settings
    flags = ["--tp_size", str(engine.tp), "--pp_size", str(engine.pp), "--max_batch_size", str(settings.max_num_seqs)]
    if engine.ep > 1:
        flags += ["--ep_size", str(engine.ep)]
    flags += ["--max_num_tokens", str(settings.max_num_batched_tokens)]
    flags += ["--max_seq_len", str(engine.limits.max_context_tokens)]
    options = {
        "enable_chunked_prefill": settings.chunked_prefill,
        "kv_cache_config": {
            "free_gpu_memory_fraction": round(_free_fraction(engine), 3),
            "dtype": TENSORRT_KV_DTYPES.get(engine.kv_dtype, engine.kv_dtype),
            "tokens_per_block": settings.block_tokens,
        },
    }
    return flags, options


def without(flags: list[str], dropped: Collection[str]) -> list[str]:
    """Return the flags without those dropped and their values.

    >>> without(["--tp", "2", "--eager", "--port", "80"], {"--tp", "--eager"})
    ['--port', '80']
    """
    kept = []
    is_dropped = False
    for flag in flags:
        is_dropped = flag in dropped if flag.startswith("--") else is_dropped
        if not is_dropped:
            kept.append(flag)
    return kept


def _static_fraction(engine: Engine) -> float:
    """Return weights and KV as a fraction of the memory, as SGLang counts it."""
    kv_bytes = engine.kv_tokens * engine.kv_bytes_per_token_per_device
    return min(
        engine.settings.memory_fraction, (engine.weight_bytes_per_device + kv_bytes) / engine.device.memory_bytes
    )


def _free_fraction(engine: Engine) -> float:
    """Return the KV as a fraction of the memory that the weights leave free, as TensorRT-LLM counts it."""
    free_bytes = engine.device.memory_bytes - engine.weight_bytes_per_device
    return min(engine.settings.memory_fraction, engine.kv_tokens * engine.kv_bytes_per_token_per_device / free_bytes)
