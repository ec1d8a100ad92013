"""Spans of a tracing system taken apart: each that generates text is a request."""

from collections.abc import Sequence

from traces.errors import BadTrace
from traces.nested_cells import (
    ESTIMATED,
    CountTokens,
    Row,
    estimate_tokens,
    first_of,
    lower_keys,
    made_of,
    objects,
    seconds_between,
    text_of,
)
from traces.table import Table

GENERATING = ("chat", "text_completion", "generate_content", "completion", "responses")


def spans_apart(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Span lists: one document with `spans`, or one span an object."""
    if "spans" not in table.columns:
        spans = [{name: column[row] for name, column in table.columns.items()} for row in range(len(table.lines))]
        return _otel(table, spans, table.lines, count_tokens)
    spans, lines = [], []
    for index, found in enumerate(table.columns["spans"]):
        inner = objects(table, index, "spans", found)
        spans += [lower_keys(each) for each in inner]
        lines += [table.lines[index]] * len(inner)
    return _otel(table, spans, lines, count_tokens)


def otlp(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """OTLP-JSON: resources of scopes of spans."""
    spans: list[Row] = []
    lines: list[int] = []
    for index, resources in enumerate(table.columns["resourcespans"]):
        for resource in objects(table, index, "resourceSpans", resources):
            for scope in objects(table, index, "scopeSpans", resource.get("scopeSpans") or []):
                found = objects(table, index, "spans", scope.get("spans") or [])
                spans += [lower_keys(each) for each in found]
                lines += [table.lines[index]] * len(found)
    return _otel(table, spans, lines, count_tokens)


def _otel(table: Table, spans: Sequence[Row], lines: Sequence[int], count_tokens: CountTokens | None) -> Table:
    """Keep the spans that generate text; a span waits for the nearest kept one above it in the tree."""
    attributes = [_attributes(each) for each in spans]
    by_id = {str(first_of(span, ("span_id", "spanid"))): number for number, span in enumerate(spans)}
    kept = [number for number, each in enumerate(attributes) if each.get("gen_ai.operation.name") in GENERATING]
    if not kept:
        raise BadTrace(table.file, 1, 1, f"no span with gen_ai.operation.name among {', '.join(GENERATING)}")
    row_of = {number: row for row, number in enumerate(kept)}
    count = count_tokens or estimate_tokens
    rows, estimated = [], False
    for number in kept:
        span, about = spans[number], attributes[number]
        row: Row = {"start_time": first_of(span, ("start_time", "starttimeunixnano", "start_time_unix_nano"))}
        end = first_of(span, ("end_time", "endtimeunixnano", "end_time_unix_nano"))
        row["duration_s"] = seconds_between(row["start_time"], end)
        for kind, keys, text in _OTEL_TOKENS:
            row[kind] = first_of(about, keys)
            if row[kind] is None and (words := first_of(about, text)) is not None:
                row[kind], estimated = count(text_of(words)), True
        row["model"] = first_of(about, ("gen_ai.response.model", "gen_ai.request.model"))
        row["cached"] = first_of(about, ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cached_tokens"))
        row["session"] = first_of(about, ("gen_ai.conversation.id", "exgentic.session.id", "session.id"))
        row["session"] = row["session"] or first_of(span, ("trace_id", "traceid"))
        row["status"] = "failed" if _is_error(span) else "ok"
        row["request_id"] = row_of[number]
        row["parent_ids"] = _kept_ancestor(number, spans, by_id, row_of)
        rows.append(row)
    notes = [ESTIMATED] if estimated and count_tokens is None else []
    return made_of(table, rows, [lines[number] for number in kept], "otel", {"notes": notes})


_OTEL_TOKENS = (
    (
        "input_tokens",
        ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.usage.prompt_tokens"),
        ("gen_ai.input.messages", "gen_ai.prompt"),
    ),
    (
        "output_tokens",
        ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.usage.completion_tokens"),
        ("gen_ai.output.text", "gen_ai.output.messages", "gen_ai.completion"),
    ),
)


def _kept_ancestor(number: int, spans: Sequence[Row], by_id: dict[str, int], row_of: dict[int, int]) -> list[int]:
    above = by_id.get(str(first_of(spans[number], ("parent_span_id", "parentspanid"))))
    for _ in range(len(spans)):
        if above is None or above == number:
            return []
        if above in row_of:
            return [row_of[above]]
        above = by_id.get(str(first_of(spans[above], ("parent_span_id", "parentspanid"))))
    return []


def _attributes(span: Row) -> Row:
    listed = span.get("attributes")
    if isinstance(listed, list):
        pairs = [each for each in listed if isinstance(each, dict) and isinstance(each.get("value"), dict)]
        return {str(each.get("key")): next(iter(each["value"].values()), None) for each in pairs}
    if isinstance(listed, dict):
        return listed
    return {name.removeprefix("attributes."): value for name, value in span.items() if name.startswith("attributes.")}


def _is_error(span: Row) -> bool:
    status = span.get("status")
    code = status.get("code") if isinstance(status, dict) else span.get("status.code")
    return code in (2, "2", "ERROR", "STATUS_CODE_ERROR")
