"""Trace formats that are tables of text: ours, Azure, BurstGPT, splitwise, vidur."""

import numpy as np

from traces.layout import Field, Format, arrival, lengths
from traces.trace import MISSING, Array, Column, Status

OPTIONAL = (
    Field("status", ("status",), "status"),
    Field("session_id", ("session_id",), "label"),
    Field("turn", ("turn",), "count"),
    Field("prefix_blocks", ("prefix_blocks",), "blocks"),
    Field("request_id", ("request_id",), "count"),
    Field("parent_ids", ("parent_ids",), "blocks"),
    Field("release_delay_ns", ("release_delay_ns",), "duration_ns"),
    Field("reasoning_tokens", ("reasoning_tokens",), "count"),
    Field("cached_input_tokens", ("cached_input_tokens",), "count"),
    Field("model", ("model",), "label"),
    Field("tenant", ("tenant",), "label"),
    Field("client", ("client",), "label"),
    Field("adapter", ("adapter",), "label"),
    Field("priority", ("priority",), "count"),
    Field("slo_class", ("slo_class",), "label"),
    Field("images", ("images",), "count"),
    Field("source_ttft_ns", ("source_ttft_ns",), "duration_ns"),
    Field("source_e2e_ns", ("source_e2e_ns",), "duration_ns"),
    Field("image_tokens", ("image_tokens",), "count"),
    Field("audio_tokens", ("audio_tokens",), "count"),
    Field("video_tokens", ("video_tokens",), "count"),
    Field("prefix_segments", ("prefix_segments",), "blocks"),
    Field("source_line", ("source_line",), "count"),
)


def _ok_unless_nothing_came_out(columns: dict[str, Column]) -> dict[str, Column]:
    """A request without a generated token failed; one without input too failed before its prefill."""
    output: Array = columns["output_tokens"]  # type: ignore[assignment]
    return columns | {"status": np.where(output > 0, Status.OK, Status.FAILED).astype(np.int8)}


OWN = Format(
    "fleetplan",
    "csv",
    "our own columns: arrival_s, input_tokens, output_tokens, and any of " + ", ".join(each.name for each in OPTIONAL),
    (arrival("arrival_s"), *lengths("input_tokens", "output_tokens"), *OPTIONAL),
    keeps_origin=True,
)
OWN_NS = Format(
    "fleetplan_ns",
    "csv",
    "our own columns with arrival_ns, whole nanoseconds",
    (arrival("arrival_ns"), *lengths("input_tokens", "output_tokens"), *OPTIONAL),
    time_unit="ns",
    keeps_origin=True,
)
AZURE = Format(
    "azure",
    "csv",
    "Azure LLM inference traces 2023 and 2024: dates with or without fraction and zone, or epoch numbers",
    (arrival("TIMESTAMP"), *lengths("ContextTokens", "GeneratedTokens")),
    time_unit=None,
    tz="UTC",
    forbidden=frozenset({"numimages"}),
    derive=_ok_unless_nothing_came_out,
)
AZURE_LMM = Format(
    "azure_lmm",
    "csv",
    "Azure multimodal trace 2024: as azure, with the number of images",
    (*AZURE.fields, Field("images", ("NumImages",), "count", required=True)),
    time_unit=None,
    tz="UTC",
    notes=("half of the requests have images by construction of the sample",),
    derive=_ok_unless_nothing_came_out,
)
BURSTGPT = Format(
    "burstgpt",
    "csv",
    "BurstGPT with 6 or 8 columns: seconds in an unknown local zone",
    (
        arrival("Timestamp"),
        *lengths("Request tokens", "Response tokens"),
        Field("model", ("Model",), "label", required=True),
        Field("tenant", ("Log Type",), "label", required=True),
        Field("session_id", ("Session ID",), "label"),
        Field("source_e2e_ns", ("Elapsed time",), "duration_s"),
    ),
    derive=_ok_unless_nothing_came_out,
)
SPLITWISE = Format(
    "splitwise",
    "csv",
    "splitwise-sim request traces: seconds",
    (
        arrival("arrival_timestamp"),
        *lengths("prompt_size", "token_size"),
        Field("tenant", ("application_id",), "label"),
    ),
)
VIDUR = Format(
    "vidur",
    "csv",
    "vidur traces: seconds since the start",
    (arrival("arrived_at"), *lengths("num_prefill_tokens", "num_decode_tokens")),
)
LENGTHS = Format(
    "lengths",
    "csv",
    "tables of lengths without times, as vidur keeps them",
    lengths("num_prefill_tokens", "num_decode_tokens"),
    time_unit=None,
    marks=frozenset({"num_total_tokens", "pd_ratio"}),
    forbidden=frozenset({"arrived_at"}),
    timeless=True,
)


def _latencies_from_stamps(columns: dict[str, Column]) -> dict[str, Column]:
    """Times to the first and last chunk from their stamps; a stamp of zero was never taken."""
    sent, first, last = (columns.pop(name, None) for name in ("sent_ns", "first_ns", "last_ns"))
    found: dict[str, Column] = {}
    for name, stamp in (("source_ttft_ns", first), ("source_e2e_ns", last)):
        if isinstance(sent, np.ndarray) and isinstance(stamp, np.ndarray):
            known = (stamp > 0) & (sent >= 0) & (stamp >= sent)
            found[name] = np.where(known, stamp - sent, MISSING)
    return columns | found


BLIS = Format(
    "blis",
    "csv",
    "BLIS TraceV2 data: microseconds",
    (
        arrival("arrival_time_us"),
        *lengths("input_tokens", "output_tokens"),
        Field("request_id", ("request_id",), "count"),
        Field("client", ("client_id",), "label"),
        Field("tenant", ("tenant_id",), "label"),
        Field("slo_class", ("slo_class",), "label"),
        Field("session_id", ("session_id",), "label"),
        Field("turn", ("round_index",), "count"),
        Field("model", ("model",), "label"),
        Field("image_tokens", ("image_tokens",), "count"),
        Field("audio_tokens", ("audio_tokens",), "count"),
        Field("video_tokens", ("video_tokens",), "count"),
        Field("status", ("status",), "status"),
        Field("sent_ns", ("send_time_us",), "duration_us"),
        Field("first_ns", ("first_chunk_time_us",), "duration_us"),
        Field("last_ns", ("last_chunk_time_us",), "duration_us"),
    ),
    time_unit="us",
    derive=_latencies_from_stamps,
)
LITELLM = Format(
    "litellm",
    "csv",
    "LiteLLM spend logs: dates",
    (
        arrival("startTime"),
        *lengths("prompt_tokens", "completion_tokens"),
        Field("model", ("model_group", "model"), "label"),
        Field("tenant", ("team_id", "user"), "label"),
        Field("session_id", ("session_id",), "label"),
        Field("status", ("status",), "status"),
    ),
    time_unit=None,
    tz="UTC",
    marks=frozenset({"endtime"}),
)

CSV_FORMATS = (OWN, OWN_NS, AZURE, AZURE_LMM, BURSTGPT, SPLITWISE, VIDUR, LENGTHS, BLIS, LITELLM)
