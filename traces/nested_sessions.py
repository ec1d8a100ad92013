"""Sessions taken apart: turns of conversations, calls of agents and their subagents, each waiting for those before."""

from collections.abc import Callable
from typing import Any

from traces.errors import BadTrace, shown
from traces.nested_cells import (
    CHARACTERS_PER_TOKEN,
    ESTIMATED,
    CountTokens,
    Row,
    cell_of,
    estimate_tokens,
    finite,
    first_of,
    made_of,
    objects,
    plus,
    seconds_between,
)
from traces.table import Table

NO_COMMON_CLOCK = "sessions have no common clock: each starts at zero; transform.spread_sessions spreads their starts"


def weka(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Sessions of calls, calls of subagents inside: a call waits for the call before it and the subagents it joins."""
    rows: list[Row] = []
    lines: list[int] = []
    sizes = set()
    for index, calls in enumerate(table.columns["requests"]):
        session = cell_of(table, "id", index) or f"session {index}"
        size = cell_of(table, "block_size", index)
        sizes.add(size if isinstance(size, int) else shown(size) if size is not None else None)
        start = len(rows)
        _weka_calls(table, index, calls, str(session), 0.0, [], rows)
        lines += [table.lines[index]] * (len(rows) - start)
    sizes.discard(None)
    if len(sizes) > 1:
        raise BadTrace(table.file, 1, 1, f"sessions with blocks of different sizes: {sorted(map(str, sizes))}")
    about: Row = {"notes": [NO_COMMON_CLOCK] if len(table.lines) > 1 else []}
    if sizes and isinstance(size := sizes.pop(), int) and size > 0:
        about["block_tokens"] = size
    return made_of(table, rows, lines, "weka", about)


def _weka_calls(
    table: Table, index: int, calls: Any, session: str, base_s: float, parents: list[int], rows: list[Row]
) -> list[int]:
    """Append the calls of one agent; return the rows that end it, for whoever waits for it."""
    last, last_end_s, joined, ends = parents, base_s, [], []  # type: ignore[var-annotated]
    for call in objects(table, index, "requests", calls):
        start_s = finite(call.get("t"))
        start_s = None if start_s is None else base_s + start_s
        if call.get("type") == "subagent" or "requests" in call:
            inner = objects(table, index, "requests of a subagent", call.get("requests") or [])
            first_s = min((found for each in inner if (found := finite(each.get("t"))) is not None), default=0.0)
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
    start_s, length_s = finite(row.get("t")), finite(row.get("api_time"))
    return None if start_s is None else start_s + (length_s or 0.0)


def weka_rows(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Calls of sessions one a line; despite its name, the "arrival delta" counts from the session's start."""
    rows = _chained(table, "api_time_s", lambda row, before_s: finite(row.get("request_arrival_delta_s")))
    return made_of(table, rows, table.lines, "weka_rows", {"notes": [NO_COMMON_CLOCK]})


def gaps(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Calls of sessions one a line, each with the gap before it; how long calls took is not known."""
    rows = _chained(table, None, lambda row, before_s: _later(before_s, finite(row.get("pre_gap_s"))))
    notes = [NO_COMMON_CLOCK, "how long calls took is not in the file: a call is put a gap after the arrival before"]
    return made_of(table, rows, table.lines, "lmcache_gaps", {"notes": notes})


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
            last[session] = (row["t"], number, (finite(row.get(length)) if length else None) or 0.0)
        rows.append(row)
    return rows


def chains(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Calls whose lengths are in characters, with ids of pieces of 256 characters."""
    rows = []
    for number in range(len(table.lines)):
        row = {name: table.columns[name][number] for name in table.columns}
        for kind in ("input", "output"):
            characters = row.get(f"{kind}_chars")
            whole = isinstance(characters, int) and not isinstance(characters, bool)
            row[f"{kind}_tokens"] = -(-characters // CHARACTERS_PER_TOKEN) if whole else characters  # type: ignore[operator]
        rows.append(row)
    return made_of(table, rows, table.lines, "lmcache_chains", {"notes": [ESTIMATED]})


def llmservingsim(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Sessions of calls, each released a tool call after the one before; flat requests may stand between them."""
    rows: list[Row] = []
    lines: list[int] = []
    for index, calls in enumerate(table.columns["sub_requests"]):
        start, session = cell_of(table, "arrival_time_ns", index), cell_of(table, "session_id", index)
        whole = {name: table.columns[name][index] for name in table.columns if name != "sub_requests"}
        parts = objects(table, index, "sub_requests", calls) if calls is not None else [whole]
        tools_ns, delay_ns, parent = 0, 0, None
        for part in parts:
            number = len(rows)
            row = {**part, "request_id": number, "parent_ids": [] if parent is None else [parent]}
            row["session_id"] = session if calls is not None else None
            row["arrival_time_ns"] = plus(start, tools_ns)
            if parent is not None:
                row["release_delay_ns"] = delay_ns
            delay_ns = part.get("tool_duration_ns") or 0
            tools_ns = tools_ns + delay_ns if isinstance(delay_ns, int) else tools_ns
            parent = number
            rows.append(row)
            lines.append(table.lines[index])
    note = "calls after the first are put a tool call after the one before: how long calls take is up to the fleet"
    return made_of(table, rows, lines, "llmservingsim", {"notes": [note]})


def turns(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Mooncake rows of sessions: later turns come a delay after the one before and carry, by default, new tokens."""
    delta = (context or "delta") == "delta"
    clock: dict[str, tuple[float, int, int]] = {}
    rows = []
    for number in range(len(table.lines)):
        row = {name: table.columns[name][number] for name in table.columns}
        key = row.get("session_id")
        before = None if key is None else clock.get(str(key))
        stamp, delay = finite(row.get("timestamp")), finite(row.get("delay"))
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
    return made_of(table, rows, table.lines, "mooncake_turns", about)


def tracelab(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Rounds of coding agents: a request leaves at the last event of its input."""
    rows = []
    for number, events in enumerate(table.columns["timing_events"]):
        row = {name: table.columns[name][number] for name in table.columns if name not in ("timing_events", "tools")}
        stamps = {kind: [] for kind in ("input", "output")}  # type: ignore[var-annotated]
        for event in objects(table, number, "timing_events", events):
            kind = "input" if event.get("event_type") in ("user_message", "tool_result") else "output"
            stamps[kind].append(str(event.get("timestamp")))
        row["sent_at"] = max(stamps["input"], default=min(stamps["output"], default=None))
        if stamps["input"] and stamps["output"]:
            row["first_s"] = seconds_between(row["sent_at"], min(stamps["output"]))
            row["last_s"] = seconds_between(row["sent_at"], max(stamps["output"]))
        rows.append(row)
    return made_of(table, rows, table.lines, "tracelab", {})


def sharegpt(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Conversations: every answer is a request, its input all that was said before."""
    count = count_tokens or estimate_tokens
    rows: list[Row] = []
    lines: list[int] = []
    for index, said in enumerate(table.columns["conversations"]):
        total, turn, parents = 0, 0, list[int]()
        for message in objects(table, index, "conversations", said):
            text = first_of(message, ("value", "content"))
            tokens = count(text) if isinstance(text, str) else 0
            if first_of(message, ("from", "role")) in ("gpt", "chatgpt", "assistant", "bing", "bard") and total:
                name = cell_of(table, "id", index) or f"conversation {index}"
                row = {"input_tokens": total, "output_tokens": tokens, "session_id": str(name), "turn": turn}
                rows.append(row | {"request_id": len(rows), "parent_ids": parents})
                lines.append(table.lines[index])
                parents, turn = [len(rows) - 1], turn + 1
            total += tokens
    return made_of(table, rows, lines, "sharegpt", {"notes": [] if count_tokens else [ESTIMATED]})
