"""Trace formats that are JSON, one object a line or one document: Mooncake, Bailian and the simulators' own."""

from dataclasses import replace

import numpy as np

from traces.formats_csv import LITELLM
from traces.layout import Field, Format, arrival, lengths
from traces.trace import MISSING, Column, Labels, Ragged


def _sessions_from_parents(columns: dict[str, Column]) -> dict[str, Column]:
    """A session is the root of the chain of parents; a parent outside the file starts a session of its own."""
    chats, parents = columns.pop("chat_id"), columns.pop("parent_chat_id")
    assert isinstance(chats, Labels)
    assert isinstance(parents, Labels)
    row_of = {chats[row]: row for row in range(len(chats))}
    row_of.pop(None, None)
    parent_rows = [row_of.get(parents[row], MISSING) for row in range(len(parents))]
    roots = [_root(row, parent_rows) for row in range(len(parent_rows))]
    names = {root: index for index, root in enumerate(dict.fromkeys(roots))}
    codes = np.array([names[root] for root in roots], np.int32)
    known = np.array([parent != MISSING for parent in parent_rows], np.int64)
    listed = np.array([parent for parent in parent_rows if parent != MISSING], np.int64)
    return columns | {
        "session_id": Labels(codes, tuple(chats[root] or f"row {root}" for root in names)),
        "request_id": np.arange(len(chats)),
        "parent_ids": Ragged(np.concatenate([[0], np.cumsum(known)]).astype(np.int64), listed),
    }


def _root(row: int, parent_rows: list[int]) -> int:
    for _ in range(len(parent_rows)):
        if parent_rows[row] in (MISSING, row):
            break
        row = parent_rows[row]
    return row


BLOCKS = Field("prefix_blocks", ("hash_ids",), "blocks")
SESSION = Field("session_id", ("session_id",), "label")
TREE = (Field("request_id", ("request_id",), "count"), Field("parent_ids", ("parent_ids",), "blocks"))

MOONCAKE = Format(
    "mooncake",
    "json",
    "Mooncake JSON lines: milliseconds, blocks of 512 tokens",
    (arrival("timestamp"), *lengths("input_length", "output_length"), BLOCKS, SESSION),
    time_unit="ms",
    forbidden=frozenset({"chat_id", "parent_chat_id", "hash_ids.sys_prompt"}),
    block_tokens=512,
)
MOONCAKE_TURNS = Format(
    "mooncake_turns",
    "json",
    "Mooncake JSON lines of sessions with delays: milliseconds, each turn its new tokens unless context says otherwise",
    (
        *MOONCAKE.fields,
        *TREE,
        Field("release_delay_ns", ("release_delay_ms",), "duration_ms"),
    ),
    time_unit="ms",
    nested=True,
    block_tokens=512,
)


def _segments(columns: dict[str, Column]) -> dict[str, Column]:
    """The pieces of a prompt in their order, each kind of piece with ids of its own."""
    found = [kind for kind, name in enumerate(SEGMENTS) if name in columns]
    parts = [columns.pop(SEGMENTS[kind]) for kind in found]
    if not parts:
        return columns
    kinds = len(SEGMENTS)
    lengths_of = [part.lengths for part in parts if isinstance(part, Ragged)]
    offsets = np.concatenate([[0], np.cumsum(np.sum(lengths_of, axis=0))]).astype(np.int64)
    values = np.empty(int(offsets[-1]), np.int64)
    starts = offsets[:-1].copy()
    for kind, part in zip(found, parts, strict=True):
        assert isinstance(part, Ragged)
        places = np.repeat(starts - part.offsets[:-1], part.lengths) + np.arange(len(part.values))
        values[places] = part.values.astype(np.int64) * kinds + kind
        starts += part.lengths
    return columns | {"prefix_segments": Ragged(offsets, values)}


SEGMENTS = ("sys_prompt", "passages_ids", "history", "web_search", "user_input")
RAGPULSE = Format(
    "ragpulse",
    "json",
    "RAGPulse JSON lines: seconds, Beijing time, prompts made of pieces",
    (
        arrival("timestamp"),
        *lengths("input_length", "output_length"),
        SESSION,
        *(Field(name, (f"hash_ids.{name}",), "blocks") for name in SEGMENTS),
    ),
    tz="Asia/Shanghai",
    marks=frozenset({"hash_ids.sys_prompt"}),
    derive=_segments,
)
WEKA = Format(
    "weka",
    "json",
    "Weka agent sessions: seconds since the session's start, block ids of the session",
    (
        arrival("t"),
        *lengths("in", "out"),
        BLOCKS,
        *TREE,
        Field("session_id", ("session",), "label"),
        Field("model", ("model",), "label"),
        Field("release_delay_ns", ("release_delay_s",), "duration_s"),
        Field("source_ttft_ns", ("ttft",), "duration_s"),
        Field("source_e2e_ns", ("api_time",), "duration_s"),
    ),
    nested=True,
    interleaved=True,
    block_tokens=64,
    block_scope="session",
)
WEKA_ROWS = Format(
    "weka_rows",
    "json",
    "calls of agent sessions, one a line, with the seconds since the call before",
    (
        arrival("t"),
        *lengths("input_tokens", "output_tokens"),
        *TREE,
        SESSION,
        Field("turn", ("turn_index",), "count"),
        Field("model", ("model_id",), "label"),
        Field("release_delay_ns", ("release_delay_s",), "duration_s"),
        Field("source_ttft_ns", ("ttft_s",), "duration_s"),
        Field("source_e2e_ns", ("api_time_s",), "duration_s"),
    ),
    nested=True,
    interleaved=True,
)
LMCACHE_GAPS = Format(
    "lmcache_gaps",
    "json",
    "calls of agent sessions, one a line, with the gap before each",
    (
        arrival("t"),
        *lengths("input_len", "output_tokens"),
        *TREE,
        SESSION,
        Field("model", ("model_id",), "label"),
        Field("release_delay_ns", ("release_delay_s",), "duration_s"),
    ),
    nested=True,
    interleaved=True,
)
LMCACHE_CHAINS = Format(
    "lmcache_chains",
    "json",
    "calls of agents with lengths in characters and ids of pieces of 256 characters: epoch microseconds",
    (
        arrival("timestamp_us"),
        *lengths("input_tokens", "output_tokens"),
        BLOCKS,
        SESSION,
        Field("tenant", ("agent",), "label"),
    ),
    time_unit="us",
    nested=True,
    interleaved=True,
    block_tokens=64,
)
TRACELAB = Format(
    "tracelab",
    "json",
    "TraceLab rounds of coding agents: dates of events",
    (
        arrival("sent_at"),
        *lengths("input_tokens_total", "output_tokens"),
        SESSION,
        Field("turn", ("round_index",), "count"),
        Field("model", ("model",), "label"),
        Field("tenant", ("project",), "label"),
        Field("cached_input_tokens", ("prefix_tokens",), "count"),
        Field("reasoning_tokens", ("reasoning_output_tokens",), "count"),
        Field("source_ttft_ns", ("first_s",), "duration_s"),
        Field("source_e2e_ns", ("last_s",), "duration_s"),
    ),
    time_unit=None,
    nested=True,
    interleaved=True,
)
OTEL = Format(
    "otel",
    "json",
    "OpenTelemetry GenAI spans: OTLP-JSON, span lists, or a span a line",
    (
        arrival("start_time"),
        *lengths("input_tokens", "output_tokens"),
        *TREE,
        Field("session_id", ("session",), "label"),
        Field("model", ("model",), "label"),
        Field("cached_input_tokens", ("cached",), "count"),
        Field("status", ("status",), "status"),
        Field("source_e2e_ns", ("duration_s",), "duration_s"),
    ),
    time_unit=None,
    nested=True,
    interleaved=True,
)
SHAREGPT = Format(
    "sharegpt",
    "json",
    "ShareGPT conversations: texts without times",
    (*lengths("input_tokens", "output_tokens"), *TREE, SESSION, Field("turn", ("turn",), "count")),
    time_unit=None,
    nested=True,
    timeless=True,
)
MEASURED = (
    Field("status", ("status",), "status"),
    Field("source_ttft_ns", ("ttft_s",), "duration_s"),
    Field("source_e2e_ns", ("e2e_s",), "duration_s"),
)
VLLM_BENCH = Format(
    "vllm_bench",
    "json",
    "detailed results of vLLM's serving benchmark: seconds",
    (
        arrival("start_s"),
        *lengths("input_tokens", "output_tokens"),
        *MEASURED,
        Field("model", ("model",), "label"),
    ),
    nested=True,
)
VLLM_BENCH_LENGTHS = Format(
    "vllm_bench_lengths",
    "json",
    "detailed results of a serving benchmark without start times",
    VLLM_BENCH.fields[1:],
    time_unit=None,
    nested=True,
    timeless=True,
)
GUIDELLM = Format(
    "guidellm",
    "json",
    "reports of GuideLLM: epoch seconds",
    (
        arrival("start_time"),
        *lengths("input_tokens", "output_tokens"),
        *MEASURED,
        Field("tenant", ("benchmark",), "label"),
    ),
    nested=True,
    interleaved=True,
)
INFERENCE_PERF = Format(
    "inference_perf",
    "json",
    "per-request reports of inference-perf: seconds",
    (arrival("start_time"), *lengths("input_tokens", "output_tokens"), *MEASURED),
    nested=True,
)
AIPERF = Format(
    "aiperf",
    "json",
    "per-request exports of AIPerf: epoch nanoseconds",
    (
        arrival("start_ns"),
        *lengths("input_tokens", "output_tokens"),
        SESSION,
        Field("turn", ("turn",), "count"),
        Field("reasoning_tokens", ("reasoning_tokens",), "count"),
        Field("status", ("status",), "status"),
        Field("source_ttft_ns", ("ttft_ms",), "duration_ms"),
        Field("source_e2e_ns", ("e2e_ms",), "duration_ms"),
    ),
    time_unit="ns",
    nested=True,
)
BAILIAN = Format(
    "bailian",
    "json",
    "Bailian (Qwen) JSON lines: seconds, blocks of 16 tokens, chats linked to their parents",
    (
        arrival("timestamp"),
        *lengths("input_length", "output_length"),
        BLOCKS,
        Field("chat_id", ("chat_id",), "label", required=True),
        Field("parent_chat_id", ("parent_chat_id",), "label", required=True),
        Field("turn", ("turn",), "count"),
        Field("tenant", ("type",), "label"),
    ),
    block_tokens=16,
    row_by_row=False,
    derive=_sessions_from_parents,
)
LLMSERVINGSIM = Format(
    "llmservingsim",
    "json",
    "LLMServingSim JSON lines: nanoseconds",
    (
        arrival("arrival_time_ns"),
        *lengths("input_toks", "output_toks"),
        *TREE,
        SESSION,
        Field("release_delay_ns", ("release_delay_ns",), "duration_ns"),
    ),
    time_unit="ns",
)
ROUTER = Format(
    "router",
    "json",
    "router decision logs of semantic-router and fleet-sim: seconds",
    (
        arrival("timestamp"),
        *lengths("prompt_tokens", "generated_tokens"),
        Field("model", ("selected_model", "model"), "label"),
        Field("slo_class", ("complexity",), "label"),
        Field("tenant", ("category",), "label"),
    ),
)

LITELLM_JSON = replace(LITELLM, name="litellm_json", shape="json")
NESTED = (
    *(MOONCAKE_TURNS, WEKA, WEKA_ROWS, LMCACHE_GAPS, LMCACHE_CHAINS, TRACELAB, OTEL, SHAREGPT),
    *(VLLM_BENCH, VLLM_BENCH_LENGTHS, GUIDELLM, INFERENCE_PERF, AIPERF),
)
JSON_FORMATS = (MOONCAKE, BAILIAN, RAGPULSE, LLMSERVINGSIM, ROUTER, LITELLM_JSON, *NESTED)
