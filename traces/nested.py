"""Requests inside other objects: sessions, spans and benchmark reports taken apart into one row a request."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from traces.errors import BadTrace, shown
from traces.table import Table, object_table
from traces.times import UNIT_NS, date_time_ns, number_ns

CHARACTERS_PER_TOKEN = 4  # English text under common tokenizers, when no tokenizer is at hand
ESTIMATED = f"token counts estimated from texts, {CHARACTERS_PER_TOKEN} characters a token: count_tokens= counts them"
NO_COMMON_CLOCK = "sessions have no common clock: each starts at zero; transform.spread_sessions spreads their starts"
GENERATING = ("chat", "text_completion", "generate_content", "completion", "responses")
CountTokens = Callable[[str], int]
Row = dict[str, Any]


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


def estimate_tokens(text: str) -> int:
    """Return the tokens that a text would have at four characters each."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def _weka(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Sessions of calls, calls of subagents inside: a call waits for the call before it and the subagents it joins."""
    rows: list[Row] = []
    lines: list[int] = []
    sizes = set()
    for index, calls in enumerate(table.columns["requests"]):
        session = _cell(table, "id", index) or f"session {index}"
        sizes.add(_cell(table, "block_size", index))
        start = len(rows)
        _weka_calls(table, index, calls, str(session), 0.0, [], rows)
        lines += [table.lines[index]] * (len(rows) - start)
    sizes.discard(None)
    if len(sizes) > 1:
        raise BadTrace(table.file, 1, 1, f"sessions with blocks of different sizes: {sorted(map(str, sizes))}")
    about: Row = {"notes": [NO_COMMON_CLOCK] if len(table.lines) > 1 else []}
    if sizes and isinstance(size := sizes.pop(), int) and size > 0:
        about["block_tokens"] = size
    return _rows(table, rows, lines, "weka", about)


def _weka_calls(
    table: Table, index: int, calls: Any, session: str, base_s: float, parents: list[int], rows: list[Row]
) -> list[int]:
    """Append the calls of one agent; return the rows that end it, for whoever waits for it."""
    last, last_end_s, joined, ends = parents, base_s, [], []  # type: ignore[var-annotated]
    for call in _objects(table, index, "requests", calls):
        start_s = _float(call.get("t"))
        start_s = None if start_s is None else base_s + start_s
        if call.get("type") == "subagent" or "requests" in call:
            inner = _objects(table, index, "requests of a subagent", call.get("requests") or [])
            first_s = min((found for each in inner if (found := _float(each.get("t"))) is not None), default=0.0)
            relative = start_s is not None and first_s < (start_s - base_s) - 1e-3
            inner_base = (start_s or base_s) if relative else base_s
            finals = _weka_calls(table, index, inner, session, inner_base, last, rows)
            if call.get("status") != "async_launched":
                joined += [each for each in finals if each not in joined]
            continue
        overlaps = start_s is not None and bool(rows) and last_end_s > start_s + 1e-9 and bool(ends)
        before = (rows[last[0]]["parent_ids"] if last else []) if overlaps else last
        done = [each for each in joined if start_s is None or (_end_s(rows[each]) or 0.0) <= start_s + 1e-9]
        waits_for = list(dict.fromkeys([*before, *done]))
        joined = [each for each in joined if each not in done]
        number = len(rows)
        row = {**call, "t": start_s, "session": session, "request_id": number, "parent_ids": waits_for}
        row.pop("requests", None)
        parent_ends = [end for each in waits_for if (end := _end_s(rows[each])) is not None]
        if parent_ends and start_s is not None:
            row["release_delay_s"] = max(start_s - max(parent_ends), 0.0)
        rows.append(row)
        ends = [each for each in ends if each not in waits_for] + [number]
        end_s = _end_s(row)
        if not overlaps or (end_s or 0.0) >= last_end_s:
            last, last_end_s = [number], end_s or last_end_s
    return ends or parents


def _end_s(row: Row) -> float | None:
    start_s, length_s = _float(row.get("t")), _float(row.get("api_time"))
    return None if start_s is None else start_s + (length_s or 0.0)


def _weka_rows(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Calls of sessions one a line; despite its name, the "arrival delta" counts from the session's start."""
    rows = _chained(table, "api_time_s", lambda row, before_s: _float(row.get("request_arrival_delta_s")))
    return _rows(table, rows, table.lines, "weka_rows", {"notes": [NO_COMMON_CLOCK]})


def _gaps(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Calls of sessions one a line, each with the gap before it; how long calls took is not known."""
    rows = _chained(table, None, lambda row, before_s: _later(before_s, _float(row.get("pre_gap_s"))))
    notes = [NO_COMMON_CLOCK, "how long calls took is not in the file: a call is put a gap after the arrival before"]
    return _rows(table, rows, table.lines, "lmcache_gaps", {"notes": notes})


def _later(before_s: float | None, gap_s: float | None) -> float | None:
    return None if gap_s is None or gap_s < 0 else 0.0 if before_s is None else before_s + gap_s


def _chained(table: Table, length: str | None, time_s: Callable[[Row, float | None], float | None]) -> list[Row]:
    """Rows with their time in the session as `t`, each waiting for the row before it in the same session."""
    last: dict[str, tuple[float, int, float]] = {}
    rows = []
    for number in range(len(table.lines)):
        row = {name: table.columns[name][number] for name in table.columns}
        session = str(row.get("session_id"))
        before = last.get(session)
        row |= {"request_id": number, "parent_ids": [] if before is None else [before[1]]}
        row["t"] = time_s(row, None if before is None else before[0])
        if row["t"] is not None:
            if before is not None:
                row["release_delay_s"] = max(row["t"] - before[0] - before[2], 0.0)
            last[session] = (row["t"], number, (_float(row.get(length)) if length else None) or 0.0)
        rows.append(row)
    return rows


def _chains(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Calls whose lengths are in characters, with ids of pieces of 256 characters."""
    rows = []
    for number in range(len(table.lines)):
        row = {name: table.columns[name][number] for name in table.columns}
        for kind in ("input", "output"):
            characters = row.get(f"{kind}_chars")
            whole = isinstance(characters, int) and not isinstance(characters, bool)
            row[f"{kind}_tokens"] = -(-characters // CHARACTERS_PER_TOKEN) if whole else characters  # type: ignore[operator]
        rows.append(row)
    return _rows(table, rows, table.lines, "lmcache_chains", {"notes": [ESTIMATED]})


def _llmservingsim(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Sessions of calls, each released a tool call after the one before; flat requests may stand between them."""
    rows: list[Row] = []
    lines: list[int] = []
    for index, calls in enumerate(table.columns["sub_requests"]):
        start, session = _cell(table, "arrival_time_ns", index), _cell(table, "session_id", index)
        whole = {name: table.columns[name][index] for name in table.columns if name != "sub_requests"}
        parts = _objects(table, index, "sub_requests", calls) if calls is not None else [whole]
        tools_ns, delay_ns, parent = 0, 0, None
        for part in parts:
            number = len(rows)
            row = {**part, "request_id": number, "parent_ids": [] if parent is None else [parent]}
            row["session_id"] = session if calls is not None else None
            row["arrival_time_ns"] = _plus(start, tools_ns)
            if parent is not None:
                row["release_delay_ns"] = delay_ns
            delay_ns = part.get("tool_duration_ns") or 0
            tools_ns = tools_ns + delay_ns if isinstance(delay_ns, int) else tools_ns
            parent = number
            rows.append(row)
            lines.append(table.lines[index])
    note = "calls after the first are put a tool call after the one before: how long calls take is up to the fleet"
    return _rows(table, rows, lines, "llmservingsim", {"notes": [note]})


def _turns(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Mooncake rows of sessions: later turns come a delay after the one before and carry, by default, new tokens."""
    delta = (context or "delta") == "delta"
    clock: dict[str, tuple[float, int, int]] = {}
    rows = []
    for number in range(len(table.lines)):
        row = {name: table.columns[name][number] for name in table.columns}
        key = row.get("session_id")
        before = None if key is None else clock.get(str(key))
        stamp, delay = _float(row.get("timestamp")), _float(row.get("delay"))
        if stamp is None and row.get("timestamp") is None:
            stamp = (before[0] if before else 0.0) + (delay or 0.0)
            row["timestamp"] = stamp
        new, out = row.get("input_length"), row.get("output_length")
        whole = all(isinstance(each, int) and not isinstance(each, bool) for each in (new, out))
        total = (before[2] if before and delta else 0) + (new if whole else 0)  # type: ignore[operator]
        if whole:
            row["input_length"] = total
        row |= {"request_id": number, "parent_ids": [] if before is None else [before[1]]}
        if before is not None and delay is not None:
            row["release_delay_ms"] = delay
        if key is not None and stamp is not None:
            clock[str(key)] = (stamp, number, total + (out if whole else 0))  # type: ignore[operator]
        rows.append(row)
    about = {"context": "delta, added up along sessions" if delta else "cumulative"}
    return _rows(table, rows, table.lines, "mooncake_turns", about)


def _tracelab(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Rounds of coding agents: a request leaves at the last event of its input."""
    rows = []
    for number, events in enumerate(table.columns["timing_events"]):
        row = {name: table.columns[name][number] for name in table.columns if name not in ("timing_events", "tools")}
        stamps = {kind: [] for kind in ("input", "output")}  # type: ignore[var-annotated]
        for event in _objects(table, number, "timing_events", events):
            kind = "input" if event.get("event_type") in ("user_message", "tool_result") else "output"
            stamps[kind].append(str(event.get("timestamp")))
        row["sent_at"] = max(stamps["input"], default=min(stamps["output"], default=None))
        if stamps["input"] and stamps["output"]:
            row["first_s"] = _seconds_between(row["sent_at"], min(stamps["output"]))
            row["last_s"] = _seconds_between(row["sent_at"], max(stamps["output"]))
        rows.append(row)
    return _rows(table, rows, table.lines, "tracelab", {})


def _spans(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Span lists: one document with `spans`, or one span an object."""
    if "spans" not in table.columns:
        spans = [{name: column[row] for name, column in table.columns.items()} for row in range(len(table.lines))]
        return _otel(table, spans, table.lines, count_tokens)
    spans, lines = [], []
    for index, found in enumerate(table.columns["spans"]):
        inner = _objects(table, index, "spans", found)
        spans += [_lower(each) for each in inner]
        lines += [table.lines[index]] * len(inner)
    return _otel(table, spans, lines, count_tokens)


def _otlp(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """OTLP-JSON: resources of scopes of spans."""
    spans: list[Row] = []
    lines: list[int] = []
    for index, resources in enumerate(table.columns["resourcespans"]):
        for resource in _objects(table, index, "resourceSpans", resources):
            for scope in _objects(table, index, "scopeSpans", resource.get("scopeSpans") or []):
                found = _objects(table, index, "spans", scope.get("spans") or [])
                spans += [_lower(each) for each in found]
                lines += [table.lines[index]] * len(found)
    return _otel(table, spans, lines, count_tokens)


def _otel(table: Table, spans: Sequence[Row], lines: Sequence[int], count_tokens: CountTokens | None) -> Table:
    """Keep the spans that generate text; a span waits for the nearest kept one above it in the tree."""
    attributes = [_attributes(each) for each in spans]
    by_id = {str(_first(span, ("span_id", "spanid"))): number for number, span in enumerate(spans)}
    kept = [number for number, each in enumerate(attributes) if each.get("gen_ai.operation.name") in GENERATING]
    if not kept:
        raise BadTrace(table.file, 1, 1, f"no span with gen_ai.operation.name among {', '.join(GENERATING)}")
    row_of = {number: row for row, number in enumerate(kept)}
    count = count_tokens or estimate_tokens
    rows, estimated = [], False
    for number in kept:
        span, about = spans[number], attributes[number]
        row: Row = {"start_time": _first(span, ("start_time", "starttimeunixnano", "start_time_unix_nano"))}
        end = _first(span, ("end_time", "endtimeunixnano", "end_time_unix_nano"))
        row["duration_s"] = _seconds_between(row["start_time"], end)
        for kind, keys, text in _OTEL_TOKENS:
            row[kind] = _first(about, keys)
            if row[kind] is None and (words := _first(about, text)) is not None:
                row[kind], estimated = count(_words(words)), True
        row["model"] = _first(about, ("gen_ai.response.model", "gen_ai.request.model"))
        row["cached"] = _first(about, ("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cached_tokens"))
        row["session"] = _first(about, ("gen_ai.conversation.id", "exgentic.session.id", "session.id"))
        row["session"] = row["session"] or _first(span, ("trace_id", "traceid"))
        row["status"] = "failed" if _is_error(span) else "ok"
        row["request_id"] = row_of[number]
        row["parent_ids"] = _kept_ancestor(number, spans, by_id, row_of)
        rows.append(row)
    notes = [ESTIMATED] if estimated and count_tokens is None else []
    return _rows(table, rows, [lines[number] for number in kept], "otel", {"notes": notes})


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
    above = by_id.get(str(_first(spans[number], ("parent_span_id", "parentspanid"))))
    for _ in range(len(spans)):
        if above is None or above == number:
            return []
        if above in row_of:
            return [row_of[above]]
        above = by_id.get(str(_first(spans[above], ("parent_span_id", "parentspanid"))))
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


def _sharegpt(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Conversations: every answer is a request, its input all that was said before."""
    count = count_tokens or estimate_tokens
    rows: list[Row] = []
    lines: list[int] = []
    for index, said in enumerate(table.columns["conversations"]):
        total, turn, parents = 0, 0, list[int]()
        for message in _objects(table, index, "conversations", said):
            text = _first(message, ("value", "content"))
            tokens = count(text) if isinstance(text, str) else 0
            if _first(message, ("from", "role")) in ("gpt", "chatgpt", "assistant", "bing", "bard") and total:
                name = _cell(table, "id", index) or f"conversation {index}"
                row = {"input_tokens": total, "output_tokens": tokens, "session_id": str(name), "turn": turn}
                rows.append(row | {"request_id": len(rows), "parent_ids": parents})
                lines.append(table.lines[index])
                parents, turn = [len(rows) - 1], turn + 1
            total += tokens
    return _rows(table, rows, lines, "sharegpt", {"notes": [] if count_tokens else [ESTIMATED]})


def _vllm_bench(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Results of `vllm bench serve --save-detailed`: lists with one item a request."""
    rows: list[Row] = []
    lines: list[int] = []
    for index, inputs in enumerate(table.columns["input_lens"]):
        names = ("input_lens", "output_lens", "start_times", "ttfts", "itls", "errors")
        lists = {name: _cell(table, name, index) for name in names}
        if not isinstance(inputs, list) or not isinstance(lists["output_lens"], list):
            raise BadTrace(table.file, table.lines[index], 1, "input_lens and output_lens must be lists")
        for number in range(len(inputs)):
            items = {name: _item(each, number) for name, each in lists.items()}
            row = {"input_tokens": items["input_lens"], "output_tokens": items["output_lens"]}
            row |= {"start_s": items["start_times"], "model": _cell(table, "model_id", index)}
            row["ttft_s"] = _float(items["ttfts"]) or None
            gaps = items["itls"]
            if row["ttft_s"] and isinstance(gaps, list) and all(_float(gap) is not None for gap in gaps):
                row["e2e_s"] = row["ttft_s"] + sum(map(float, gaps))
            row["status"] = "failed" if items["errors"] else "ok"
            rows.append(row)
            lines.append(table.lines[index])
    timed = any(row["start_s"] is not None for row in rows)
    if not timed:
        rows = [{name: value for name, value in row.items() if name != "start_s"} for row in rows]
    return _rows(table, rows, lines, "vllm_bench" if timed else "vllm_bench_lengths", {})


def _guidellm(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Reports of GuideLLM: benchmarks of requests that succeeded, failed or were cut short."""
    rows: list[Row] = []
    lines: list[int] = []
    for index, benchmarks in enumerate(table.columns["benchmarks"]):
        for number, benchmark in enumerate(_objects(table, index, "benchmarks", benchmarks)):
            groups = benchmark.get("requests")
            groups = groups if isinstance(groups, dict) else {}
            for group, status in (("successful", "ok"), ("errored", "failed"), ("incomplete", "cancelled")):
                for each in _objects(table, index, f"requests.{group}", groups.get(group) or []):
                    rows.append(_guidellm_request(each, status, number))
                    lines.append(table.lines[index])
    return _rows(table, rows, lines, "guidellm", {})


def _guidellm_request(request: Row, status: str, benchmark: int) -> Row:
    start = _first(request, ("request_start_time", "start_time"))
    end = _first(request, ("request_end_time", "end_time"))
    first_ms = _float(request.get("time_to_first_token_ms"))
    started, ended = _float(start), _float(end)
    return {
        "start_time": start,
        "input_tokens": _first(request, ("prompt_tokens", "input_tokens")),
        "output_tokens": _first(request, ("output_tokens", "completion_tokens")) or 0,
        "ttft_s": None if first_ms is None else first_ms / 1000,
        "e2e_s": None if started is None or ended is None or ended < started else ended - started,
        "status": status,
        "benchmark": f"benchmark {benchmark}",
    }


def _inference_perf(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Per-request reports of inference-perf: start, end and token counts, on a clock of no known origin."""
    rows = []
    for number in range(len(table.lines)):
        start, end = (_cell(table, name, number) for name in ("start_time", "end_time"))
        started, ended = _float(start), _float(end)
        row = {"start_time": start, "input_tokens": _cell(table, "info.input_tokens", number)}
        out = _cell(table, "info.output_tokens", number)
        row["output_tokens"] = 0 if out is None else out
        row["e2e_s"] = None if started is None or ended is None or ended < started else ended - started
        times = _cell(table, "info.output_token_times", number)
        if isinstance(times, list) and times and started is not None and (first := _float(times[0])) is not None:
            row["ttft_s"] = max(first - started, 0.0)
        error = any(
            column[number] is not None for name, column in table.columns.items() if name.split(".")[0] == "error"
        )
        row["status"] = "failed" if error else "ok"
        rows.append(row)
    return _rows(table, rows, table.lines, "inference_perf", {})


def _aiperf(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Per-request exports of AIPerf: metadata and metrics with units."""
    rows = []
    for number in range(len(table.lines)):
        cell = lambda name: _cell(table, name, number)  # noqa: E731, B023
        row = {
            "start_ns": cell("metadata.request_start_ns"),
            "input_tokens": cell("metrics.input_sequence_length.value"),
            "output_tokens": cell("metrics.output_sequence_length.value") or 0,
            "reasoning_tokens": cell("metrics.reasoning_token_count.value"),
            "session_id": cell("metadata.conversation_id") or cell("metadata.x_correlation_id"),
            "turn": cell("metadata.turn_index"),
            "ttft_ms": _float(cell("metrics.time_to_first_token.value")),
            "e2e_ms": _float(cell("metrics.request_latency.value")),
        }
        error = any(
            column[number] is not None for name, column in table.columns.items() if name.split(".")[0] == "error"
        )
        cancelled = cell("metadata.was_cancelled") is True
        row["status"] = "cancelled" if cancelled else "failed" if error else "ok"
        rows.append(row)
    return _rows(table, rows, table.lines, "aiperf", {})


def _rows(table: Table, rows: list[Row], lines: Sequence[int], form: str, about: Row) -> Table:
    if not rows:
        raise BadTrace(table.file, table.lines[0], 1, f"no requests in this {form} file; a trace needs at least one")
    made = object_table(table.file, rows, list(lines), table.problems, table.text_lines)
    made.form, made.about = form, about
    return made


def _objects(table: Table, index: int, name: str, value: Any) -> list[Row]:
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return value
    raise BadTrace(table.file, table.lines[index], 1, f"{name} is {shown(value)}; expected a list of objects")


def _cell(table: Table, name: str, row: int) -> Any:
    column = table.columns.get(name)
    return None if column is None else column[row]


def _item(values: Any, place: int) -> Any:
    return values[place] if isinstance(values, list) and place < len(values) else None


def _first(row: Row, names: Iterable[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _lower(span: Row) -> Row:
    return {name.lower(): value for name, value in span.items()}


def _float(value: Any) -> float | None:
    """A finite number, or None for whatever is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and abs(found) < 1e18 else None


def _plus(start: Any, more: int) -> Any:
    if isinstance(start, bool) or not isinstance(start, int | float):
        return start
    return start + more


def _seconds_between(start: Any, end: Any) -> float | None:
    times = [_instant_ns(each) for each in (start, end)]
    if times[0] is None or times[1] is None or times[1] < times[0]:
        return None
    return (times[1] - times[0]) / UNIT_NS["s"]


def _instant_ns(stamp: Any) -> int | None:
    try:
        if isinstance(stamp, str) and not stamp.strip().isdecimal():
            return date_time_ns(stamp.strip(), {})
        return number_ns(str(stamp).strip(), 1) if isinstance(stamp, str | int | float) else None
    except ValueError:
        return None


def _words(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


NESTS: tuple[tuple[frozenset[str], Callable[[Table, CountTokens | None, str | None], Table]], ...] = (
    (frozenset({"timing_events", "input_tokens_total"}), _tracelab),
    (frozenset({"resourcespans"}), _otlp),
    (frozenset({"spans"}), _spans),
    (frozenset({"attributes.gen_ai.operation.name"}), _spans),
    (frozenset({"attributes", "spanid"}), _spans),
    (frozenset({"attributes", "span_id"}), _spans),
    (frozenset({"benchmarks"}), _guidellm),
    (frozenset({"metadata.request_start_ns"}), _aiperf),
    (frozenset({"start_time", "end_time", "info.input_tokens"}), _inference_perf),
    (frozenset({"input_lens", "output_lens"}), _vllm_bench),
    (frozenset({"conversations"}), _sharegpt),
    (frozenset({"requests"}), _weka),
    (frozenset({"sub_requests"}), _llmservingsim),
    (frozenset({"session_id", "request_arrival_delta_s"}), _weka_rows),
    (frozenset({"session_id", "pre_gap_s"}), _gaps),
    (frozenset({"input_chars", "output_chars", "timestamp_us"}), _chains),
    (frozenset({"session_id", "delay", "input_length", "output_length"}), _turns),
)
