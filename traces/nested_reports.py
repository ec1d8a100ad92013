"""Results of benchmark tools taken apart: their requests as they were sent, with the latencies measured."""

from traces.errors import BadTrace
from traces.nested_cells import CountTokens, Row, cell_of, finite, first_of, item_of, made_of, objects
from traces.table import Table


def vllm_bench(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Results of `vllm bench serve --save-detailed`: lists with one item a request."""
    rows: list[Row] = []
    lines: list[int] = []
    for index, inputs in enumerate(table.columns["input_lens"]):
        names = ("input_lens", "output_lens", "start_times", "ttfts", "itls", "errors")
        lists = {name: cell_of(table, name, index) for name in names}
        if not isinstance(inputs, list) or not isinstance(lists["output_lens"], list):
            raise BadTrace(table.file, table.lines[index], 1, "input_lens and output_lens must be lists")
        for number in range(len(inputs)):
            items = {name: item_of(each, number) for name, each in lists.items()}
            row = {"input_tokens": items["input_lens"], "output_tokens": items["output_lens"]}
            row |= {"start_s": items["start_times"], "model": cell_of(table, "model_id", index)}
            row["ttft_s"] = finite(items["ttfts"]) or None
            gaps = items["itls"]
            if row["ttft_s"] and isinstance(gaps, list) and all(finite(gap) is not None for gap in gaps):
                row["e2e_s"] = row["ttft_s"] + sum(map(float, gaps))
            row["status"] = "failed" if items["errors"] else "ok"
            rows.append(row)
            lines.append(table.lines[index])
    timed = any(row["start_s"] is not None for row in rows)
    if not timed:
        rows = [{name: value for name, value in row.items() if name != "start_s"} for row in rows]
    return made_of(table, rows, lines, "vllm_bench" if timed else "vllm_bench_lengths", {})


def guidellm(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Reports of GuideLLM: benchmarks of requests that succeeded, failed or were cut short."""
    rows: list[Row] = []
    lines: list[int] = []
    for index, benchmarks in enumerate(table.columns["benchmarks"]):
        for number, benchmark in enumerate(objects(table, index, "benchmarks", benchmarks)):
            groups = benchmark.get("requests")
            groups = groups if isinstance(groups, dict) else {}
            for group, status in (("successful", "ok"), ("errored", "failed"), ("incomplete", "cancelled")):
                for each in objects(table, index, f"requests.{group}", groups.get(group) or []):
                    rows.append(_guidellm_request(each, status, number))
                    lines.append(table.lines[index])
    return made_of(table, rows, lines, "guidellm", {})


def _guidellm_request(request: Row, status: str, benchmark: int) -> Row:
    start = first_of(request, ("request_start_time", "start_time"))
    end = first_of(request, ("request_end_time", "end_time"))
    first_ms = finite(request.get("time_to_first_token_ms"))
    started, ended = finite(start), finite(end)
    return {
        "start_time": start,
        "input_tokens": first_of(request, ("prompt_tokens", "input_tokens")),
        "output_tokens": first_of(request, ("output_tokens", "completion_tokens")) or 0,
        "ttft_s": None if first_ms is None else first_ms / 1000,
        "e2e_s": None if started is None or ended is None or ended < started else ended - started,
        "status": status,
        "benchmark": f"benchmark {benchmark}",
    }


def inference_perf(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Per-request reports of inference-perf: start, end and token counts, on a clock of no known origin."""
    rows = []
    for number in range(len(table.lines)):
        start, end = (cell_of(table, name, number) for name in ("start_time", "end_time"))
        started, ended = finite(start), finite(end)
        row = {"start_time": start, "input_tokens": cell_of(table, "info.input_tokens", number)}
        out = cell_of(table, "info.output_tokens", number)
        row["output_tokens"] = 0 if out is None else out
        row["e2e_s"] = None if started is None or ended is None or ended < started else ended - started
        times = cell_of(table, "info.output_token_times", number)
        if isinstance(times, list) and times and started is not None and (first := finite(times[0])) is not None:
            row["ttft_s"] = max(first - started, 0.0)
        error = any(
            column[number] is not None for name, column in table.columns.items() if name.split(".")[0] == "error"
        )
        row["status"] = "failed" if error else "ok"
        rows.append(row)
    return made_of(table, rows, table.lines, "inference_perf", {})


def aiperf(table: Table, count_tokens: CountTokens | None, context: str | None) -> Table:
    """Per-request exports of AIPerf: metadata and metrics with units."""
    rows = []
    for number in range(len(table.lines)):
        cell = lambda name: cell_of(table, name, number)  # noqa: E731, B023
        row = {
            "start_ns": cell("metadata.request_start_ns"),
            "input_tokens": cell("metrics.input_sequence_length.value"),
            "output_tokens": cell("metrics.output_sequence_length.value") or 0,
            "reasoning_tokens": cell("metrics.reasoning_token_count.value"),
            "session_id": cell("metadata.conversation_id") or cell("metadata.x_correlation_id"),
            "turn": cell("metadata.turn_index"),
            "ttft_ms": finite(cell("metrics.time_to_first_token.value")),
            "e2e_ms": finite(cell("metrics.request_latency.value")),
        }
        error = any(
            column[number] is not None for name, column in table.columns.items() if name.split(".")[0] == "error"
        )
        cancelled = cell("metadata.was_cancelled") is True
        row["status"] = "cancelled" if cancelled else "failed" if error else "ok"
        rows.append(row)
    return made_of(table, rows, table.lines, "aiperf", {})
