"""Requests inside other objects: sessions, spans and benchmark reports taken apart into one row a request."""

from collections.abc import Callable

from traces import nested_reports, nested_sessions, nested_spans
from traces.nested_cells import CountTokens
from traces.table import Table


def unnest(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Return one row a request where the objects of a table hold several, or hold them by reference; else the table.

    Raises BadTrace where the nested parts are not what they should be.
    """
    if table.kind != "json":
        return table
    for marks, take_apart in NESTS:
        if marks <= set(table.columns):
            return take_apart(table, count_tokens, context)
    return table


def is_nested(table: Table) -> bool:
    """Return whether objects of a table hold requests, or hold them by reference."""
    return table.kind == "json" and any(marks <= set(table.columns) for marks, _ in NESTS)


NESTS: tuple[tuple[frozenset[str], Callable[[Table, CountTokens | None, str | None], Table]], ...] = (
    (frozenset({"timing_events", "input_tokens_total"}), nested_sessions.tracelab),
    (frozenset({"resourcespans"}), nested_spans.otlp),
    (frozenset({"spans"}), nested_spans.spans_apart),
    (frozenset({"attributes.gen_ai.operation.name"}), nested_spans.spans_apart),
    (frozenset({"attributes", "spanid"}), nested_spans.spans_apart),
    (frozenset({"attributes", "span_id"}), nested_spans.spans_apart),
    (frozenset({"benchmarks"}), nested_reports.guidellm),
    (frozenset({"metadata.request_start_ns"}), nested_reports.aiperf),
    (frozenset({"start_time", "end_time", "info.input_tokens"}), nested_reports.inference_perf),
    (frozenset({"input_lens", "output_lens"}), nested_reports.vllm_bench),
    (frozenset({"conversations"}), nested_sessions.sharegpt),
    (frozenset({"requests"}), nested_sessions.weka),
    (frozenset({"sub_requests"}), nested_sessions.llmservingsim),
    (frozenset({"session_id", "request_arrival_delta_s"}), nested_sessions.weka_rows),
    (frozenset({"session_id", "pre_gap_s"}), nested_sessions.gaps),
    (frozenset({"input_chars", "output_chars", "timestamp_us"}), nested_sessions.chains),
    (frozenset({"session_id", "delay", "input_length", "output_length"}), nested_sessions.turns),
)
