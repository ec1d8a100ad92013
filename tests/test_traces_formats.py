"""Every trace format: all real files with their counts of rows, and one small file of each format made here."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import traces
from traces import BadTrace, Labels, Ragged, Status, Trace
from traces.statistics import describe

LENGTHS_ONLY = {"lengths_only": True}
ROWS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "agents/claude_code_weka_sample_14sessions.jsonl.gz": ("weka_rows", 3376, {}),
    "agents/lmcache_agent_trace_chains.jsonl.gz": ("lmcache_chains", 402 + 746 + 471, {}),
    "agents/lmcache_agentic_shard4_gaps.jsonl.gz": ("lmcache_gaps", 4976, {}),
    "agents/otel_genai/code_review_workflow.json": ("otel", 15, {}),
    "agents/otel_genai/customer_support_escalation.json": ("otel", 9, {}),
    "agents/otel_genai/fan_in_dependencies.json": ("otel", 4, {}),
    "agents/otel_genai/multi_agent_research.json": ("otel", 12, {}),
    "agents/otel_genai/parallel_requests.json": ("otel", 5, {}),
    "agents/otel_genai/prefix_sharing_example.json": ("otel", 7, {}),
    "agents/otel_genai/simple_chain.json": ("otel", 3, {}),
    "agents/otel_genai/simple_chain_alt.json": ("otel", 3, {}),
    "agents/otel_genai/software_architecture_review.json": ("otel", 15, {}),
    "agents/tracelab/round_trace.sanitized.jsonl": ("tracelab", 19, {}),
    "agents/weka_native/async_subagent_with_parallel_inner.json": ("weka", 9, {}),
    "agents/weka_native/multi_model.json": ("weka", 3, {}),
    "agents/weka_native/one_subagent.json": ("weka", 3, {}),
    "agents/weka_native/simple.json": ("weka", 2, {}),
    "agents/weka_native/terminal_subagent.json": ("weka", 2, {}),
    "azure2023/AzureLLMInferenceTrace_code.csv.gz": ("azure", 8819, {}),
    "azure2023/AzureLLMInferenceTrace_conv.csv.gz": ("azure", 19_366, {}),
    "azure2024/AzureLLMInferenceTrace_code_1week.headtail.csv": ("azure", 10, {}),
    "azure2024/AzureLLMInferenceTrace_conv_1week.headtail.csv": ("azure", 10, {}),
    "azure2025_lmm/AzureLMMInferenceTrace_multimodal.headtail.csv": ("azure_lmm", 10, {}),
    "burstgpt/BurstGPT_1.first30.csv": ("burstgpt", 30, {}),
    "burstgpt/BurstGPT_3.first4.csv": ("burstgpt", 4, {}),
    "lengths/nanoflow_sharegpt.csv.gz": ("azure", 58_787, LENGTHS_ONLY),
    "lengths/sharegpt_val_10k_llama2.csv.gz": ("lengths", 10_000, {}),
    "llmservingsim/example_trace.jsonl": ("llmservingsim", 10, {}),
    "llmservingsim/workload_me2_01_mixed.jsonl": ("llmservingsim", 608, {}),
    "mooncake/conversation_trace.jsonl.gz": ("mooncake", 12_031, {}),
    "ragpulse/0_trace.first500.jsonl.gz": ("ragpulse", 500, {}),
    "router/generic_chat_mix.jsonl": ("router", 240, {}),
    "router/router_decisions.semantic_router.jsonl": ("router", 240, {}),
    "splitwise/test_trace.csv": ("splitwise", 3, {}),
    "timestamps/AzureLLMInferenceTrace_conv_int.csv.gz": ("azure", 19_366, {}),
    "vidur/arxiv_summarization.csv.gz": ("lengths", 28_257, {}),
    "vidur/splitwise_code.csv.gz": ("vidur", 8819, {}),
    "vidur/splitwise_conv.csv.gz": ("vidur", 19_366, {}),
}
POOLS = {  # clients, days, mean requests per second
    "servegen/deepseek-r1.tar.xz": (73, 1, 16),
    "servegen/m-large-traces-only.tar.xz": (162, 14, 196),
    "servegen/m-small.tar.xz": (43, 14, 1174),
}
NO_REQUESTS = {
    "azure2024/azure2024_hourly_requests_digitised.csv": "requests per hour",
    "burstgpt/BurstGPT_1.daily.csv": "requests per day",
    "burstgpt/BurstGPT_1.week1_tokens_per_minute.csv.gz": "tokens per minute",
}


@pytest.mark.parametrize("file", ROWS)
def test_every_real_file_is_read_to_its_last_row(shared: Path, file: str) -> None:
    form, rows, options = ROWS[file]
    trace = traces.read(shared / "traces" / file, **options)
    assert (trace.metadata["format"], len(trace)) == (form, rows)
    assert trace.metadata["rows_read"] == rows
    assert trace.metadata["rows_dropped"] == {}
    assert describe(trace).as_dict()["rows"] == rows


@pytest.mark.parametrize("file", POOLS)
def test_every_client_pool_is_read_with_its_published_rate(shared: Path, file: str) -> None:
    from traces.servegen import read_pool, window_s

    clients, days, rate_per_s = POOLS[file]
    pool = read_pool(shared / "traces" / file)
    assert len(pool) == clients
    assert window_s(pool) == 600
    windows = days * 144
    assert max(len(client.windows) for client in pool) == windows
    total = sum(window.rate_per_s for client in pool for window in client.windows) / windows
    assert total == pytest.approx(rate_per_s, rel=0.005)


@pytest.mark.parametrize("file", NO_REQUESTS)
def test_what_counts_requests_but_holds_none_says_so(shared: Path, file: str) -> None:
    with pytest.raises(BadTrace, match=NO_REQUESTS[file]):
        traces.read(shared / "traces" / file)


def test_no_real_file_is_left_out(shared: Path) -> None:
    folder = shared / "traces"
    files = {str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()}
    no_data = {"README.md", "FETCH_CATALOG.json", "servegen_blobs.tsv"}
    edges = {each for each in files if each.startswith("edgecases/")}
    assert files - edges - no_data == {*ROWS, *POOLS, *NO_REQUESTS}


def test_agents_reuse_their_prefixes_as_others_measured(shared: Path) -> None:
    """Measured elsewhere in pieces of 64 characters: 0.936, 0.84, 0.854 of tokens; here in pieces of 256."""
    trace = traces.read(shared / "traces" / "agents" / "lmcache_agent_trace_chains.jsonl.gz")
    agents = trace.columns["tenant"]
    assert isinstance(agents, Labels)
    found = {}
    for code, name in enumerate(agents.names):
        part = traces.transform.filter_rows(trace, lambda each, code=code: each.columns["tenant"].codes == code, name)
        prefix = describe(part).prefix
        assert prefix is not None
        found[name] = prefix["token_hit_infinite"]
    assert found["miniswe"] == pytest.approx(0.936, abs=0.01)
    assert found["magagent"] == pytest.approx(0.84, abs=0.01)
    assert found["taubench"] == pytest.approx(0.854, abs=0.05)


def test_claude_code_sessions_have_their_published_latencies(shared: Path) -> None:
    """Published: API time p50 6.5 s, TTFT p50 2.8 s over all sessions; these fourteen are a sample of them."""
    trace = traces.read(shared / "traces" / "agents" / "claude_code_weka_sample_14sessions.jsonl.gz")
    ttft_ns, e2e_ns = (trace.columns[name] for name in ("source_ttft_ns", "source_e2e_ns"))
    assert np.median(ttft_ns[ttft_ns >= 0]) / 1e9 == pytest.approx(2.8, rel=0.3)
    assert np.median(e2e_ns[e2e_ns >= 0]) / 1e9 == pytest.approx(6.5, rel=0.3)


def test_a_call_waits_as_long_as_the_source_says_it_thought(shared: Path) -> None:
    path = shared / "traces" / "agents" / "claude_code_weka_sample_14sessions.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    thought_s = np.array([row.get("think_time_s", np.nan) for row in rows])
    trace = traces.read(path)
    delays_s = trace.columns["release_delay_ns"] / 1e9  # type: ignore[operator]
    same = np.abs(delays_s - thought_s[trace.columns["request_id"]]) < 0.002  # type: ignore[index]
    known = np.isfinite(thought_s[trace.columns["request_id"]]) & (delays_s >= 0)  # type: ignore[index]
    assert np.mean(same[known]) > 0.8  # type: ignore[operator, index]


def lines(*objects: object) -> str:
    return "".join(json.dumps(each) + "\n" for each in objects)


def read(tmp_path: Path, content: str | object, **options: Any) -> Trace:
    path = tmp_path / "trace"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    trace = traces.read(path, **options)
    assert trace.metadata["rows_read"] == len(trace) + sum(trace.metadata["rows_dropped"].values())  # type: ignore[attr-defined]
    return trace


def parents(trace: Trace) -> list[list[int]]:
    column = trace.columns["parent_ids"]
    assert isinstance(column, Ragged)
    return [column[row].tolist() for row in range(len(trace))]


def labels(trace: Trace, name: str) -> list[str | None]:
    column = trace.columns[name]
    assert isinstance(column, Labels)
    return [column[row] for row in range(len(trace))]


OTLP = {"resourceSpans": [{"scopeSpans": [{"spans": [
    {"traceId": "t", "spanId": "root", "name": "agent", "startTimeUnixNano": "1700000000000000000",
     "endTimeUnixNano": "1700000009000000000", "attributes": []},
    {"traceId": "t", "spanId": "a", "parentSpanId": "root", "startTimeUnixNano": "1700000001000000000",
     "endTimeUnixNano": "1700000003000000000", "status": {"code": 1}, "attributes": [
        {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
        {"key": "gen_ai.request.model", "value": {"stringValue": "m"}},
        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "70"}},
        {"key": "gen_ai.usage.output_tokens", "value": {"intValue": "7"}}]},
    {"traceId": "t", "spanId": "tool", "parentSpanId": "a", "startTimeUnixNano": "1700000003000000000",
     "endTimeUnixNano": "1700000004000000000", "attributes": []},
    {"traceId": "t", "spanId": "b", "parentSpanId": "tool", "startTimeUnixNano": "1700000004000000000",
     "endTimeUnixNano": "1700000005000000000", "status": {"code": 2}, "attributes": [
        {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
        {"key": "gen_ai.usage.prompt_tokens", "value": {"intValue": 90}},
        {"key": "gen_ai.usage.completion_tokens", "value": {"intValue": 0}}]}]}]}]}  # fmt: skip


def test_spans_that_generate_are_requests_below_the_nearest_that_does(tmp_path: Path) -> None:
    trace = read(tmp_path, OTLP)
    assert trace.arrival_ns.tolist() == [0, 3_000_000_000]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([70, 90], [7, 0])
    assert trace.status.tolist() == [Status.OK, Status.FAILED]
    assert parents(trace) == [[], [0]]
    assert trace.columns["source_e2e_ns"].tolist() == [2_000_000_000, 1_000_000_000]


def test_spans_come_one_a_line_too(tmp_path: Path) -> None:
    span = {"span_id": "a", "trace_id": "t", "start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:00:01Z",
            "attributes": {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 5,
                           "gen_ai.usage.output_tokens": 6}}  # fmt: skip
    trace = read(tmp_path, lines(span, {**span, "span_id": "b", "parent_span_id": "a"}))
    assert trace.input_tokens.tolist() == [5, 5]
    assert parents(trace) == [[], [0]]


def test_texts_are_counted_by_the_given_tokenizer_or_estimated_and_said_so(tmp_path: Path) -> None:
    talk = {"id": "x", "conversations": [{"from": "human", "value": "one two"}, {"from": "gpt", "value": "three four"},
            {"from": "human", "value": "five"}, {"from": "gpt", "value": "six"}]}  # fmt: skip
    trace = read(tmp_path, [talk])
    assert trace.input_tokens.tolist() == [2, 2 + 3 + 1]
    assert any("estimated" in each for each in trace.metadata["warnings"])  # type: ignore[attr-defined]
    trace = read(tmp_path, [talk], count_tokens=lambda text: len(text.split()))
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([2, 5], [2, 1])
    assert parents(trace) == [[], [0]]
    assert not any("estimated" in each for each in trace.metadata["warnings"])  # type: ignore[attr-defined]


def test_a_subagent_is_joined_by_the_call_after_it(tmp_path: Path) -> None:
    call = {"type": "n", "model": "m", "out": 5, "api_time": 1.0}
    session = {"id": "s", "block_size": 10, "requests": [
        {**call, "t": 0.0, "in": 20, "hash_ids": [1, 2]},
        {"type": "subagent", "t": 2.0, "requests": [{**call, "t": 0.0, "in": 10, "hash_ids": [9]},
                                                     {**call, "t": 1.5, "in": 10, "hash_ids": [9]}]},
        {**call, "t": 6.0, "in": 30, "hash_ids": [1, 2, 3]}]}  # fmt: skip
    trace = read(tmp_path, session)
    assert (trace.arrival_ns // 10**8).tolist() == [0, 20, 35, 60]
    assert parents(trace) == [[], [0], [1], [0, 2]]
    assert trace.columns["release_delay_ns"].tolist() == [-1, 10**9, 5 * 10**8, 15 * 10**8]
    assert (trace.metadata["block_tokens"], trace.metadata["block_scope"]) == (10, "session")


def test_agentic_turns_carry_new_tokens_unless_said_otherwise(tmp_path: Path) -> None:
    turns = lines(
        {"timestamp": 1000, "session_id": "a", "input_length": 100, "output_length": 10, "delay": 0},
        {"session_id": "a", "input_length": 50, "output_length": 10, "delay": 500},
    )
    trace = read(tmp_path, turns)
    assert trace.metadata["format"] == "mooncake_turns"
    assert trace.input_tokens.tolist() == [100, 100 + 10 + 50]
    assert trace.arrival_ns.tolist() == [0, 500_000_000]
    assert trace.columns["release_delay_ns"].tolist()[1] == 500_000_000
    assert read(tmp_path, turns, context="cumulative").input_tokens.tolist() == [100, 50]


def test_a_tool_call_delays_the_call_after_it(tmp_path: Path) -> None:
    session = {"session_id": "s", "arrival_time_ns": 10_000_000, "sub_requests": [
        {"input_toks": 5, "output_toks": 1, "tool_duration_ns": 300_000_000},
        {"input_toks": 9, "output_toks": 2}]}  # fmt: skip
    trace = read(tmp_path, lines(session, {"arrival_time_ns": 20_000_000, "input_toks": 3, "output_toks": 3}))
    assert trace.arrival_ns.tolist() == [0, 10_000_000, 300_000_000]
    assert trace.input_tokens.tolist() == [5, 3, 9]
    assert parents(trace) == [[], [], [0]]
    assert labels(trace, "session_id") == ["s", None, "s"]


def test_benchmark_results_are_traces(tmp_path: Path) -> None:
    vllm = {"model_id": "m", "input_lens": [5, 6], "output_lens": [2, 0], "start_times": [10.0, 10.5],
            "ttfts": [0.1, 0.0], "itls": [[0.05], []], "errors": ["", "timeout"]}  # fmt: skip
    trace = read(tmp_path, vllm)
    assert trace.metadata["format"] == "vllm_bench"
    assert trace.arrival_ns.tolist() == [0, 500_000_000]
    assert trace.columns["source_ttft_ns"].tolist() == [100_000_000, -1]
    assert trace.columns["source_e2e_ns"].tolist() == [150_000_000, -1]
    assert trace.status.tolist() == [Status.OK, Status.FAILED]
    del vllm["start_times"]
    assert read(tmp_path, vllm).metadata["time_unit"] == "none"


def test_reports_of_load_generators_are_traces(tmp_path: Path) -> None:
    done = {"request_start_time": 1.7e9, "request_end_time": 1.7e9 + 2, "prompt_tokens": 9, "output_tokens": 4,
            "time_to_first_token_ms": 250.0}  # fmt: skip
    cut = {"request_start_time": 1.7e9 + 1, "prompt_tokens": 9, "output_tokens": None}
    trace = read(tmp_path, {"benchmarks": [{"requests": {"successful": [done], "incomplete": [cut], "errored": []}}]})
    assert (trace.metadata["format"], trace.span_s) == ("guidellm", 1.0)
    assert trace.status.tolist() == [Status.OK, Status.CANCELLED]
    assert trace.columns["source_ttft_ns"].tolist() == [250_000_000, -1]

    perf = [{"start_time": 5.0, "end_time": 6.0, "request": "...", "error": None,
             "info": {"input_tokens": 7, "output_tokens": 3, "output_token_times": [5.5, 5.7, 6.0]}}]  # fmt: skip
    trace = read(tmp_path, perf)
    assert (trace.metadata["format"], trace.output_tokens.tolist()) == ("inference_perf", [3])
    assert trace.columns["source_ttft_ns"].tolist() == [500_000_000]

    aiperf = {"metadata": {"request_start_ns": 1_700_000_000_000_000_000, "conversation_id": "c", "turn_index": 0},
              "metrics": {"input_sequence_length": {"value": 7, "unit": "tokens"},
                          "output_sequence_length": {"value": 3, "unit": "tokens"},
                          "time_to_first_token": {"value": 12.5, "unit": "ms"}}, "error": None}  # fmt: skip
    trace = read(tmp_path, lines(aiperf))
    assert (trace.metadata["format"], labels(trace, "session_id")) == ("aiperf", ["c"])
    assert trace.columns["source_ttft_ns"].tolist() == [12_500_000]


def test_recorded_simulations_and_gateways_are_traces(tmp_path: Path) -> None:
    blis = (
        "request_id,client_id,tenant_id,slo_class,session_id,round_index,input_tokens,output_tokens,arrival_time_us,"
        "send_time_us,first_chunk_time_us,last_chunk_time_us,status\n"
        "0,c,t,batch,,0,100,50,0,10,5010,10010,ok\n1,c,t,batch,,0,100,0,100000,100010,0,0,timeout\n"
    )
    trace = read(tmp_path, blis)
    assert trace.metadata["format"] == "blis"
    assert trace.columns["source_ttft_ns"].tolist() == [5_000_000, -1]
    assert trace.status.tolist() == [Status.OK, Status.CANCELLED]
    gateway = {"startTime": "2026-01-01T00:00:00Z", "endTime": "2026-01-01T00:00:01Z", "model": "m",
               "prompt_tokens": 4, "completion_tokens": 2, "status": "success"}  # fmt: skip
    assert read(tmp_path, lines(gateway)).status.tolist() == [Status.OK]


def test_any_log_is_read_through_a_declared_map(tmp_path: Path) -> None:
    log = lines(*({"ts": 1000 * row, "usage": {"in": 5 + row, "out": 1}, "took": 0.5, "who": "x"} for row in range(3)))
    trace = read(tmp_path, log, columns={
        "arrival_s": {"column": "ts", "unit": "ms"}, "input_tokens": "usage.in", "output_tokens": "usage.out",
        "source_e2e_s": "took", "tenant": "who", "model": {"constant": "m"}})  # fmt: skip
    assert (trace.metadata["format"], trace.span_s) == ("mapped", 2.0)
    assert trace.input_tokens.tolist() == [5, 6, 7]
    assert trace.columns["source_e2e_ns"].tolist() == [500_000_000] * 3
    assert (labels(trace, "tenant")[0], labels(trace, "model")[0]) == ("x", "m")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"arrival_s": "ts"}, "lacks input_tokens, output_tokens"),
        ({"arrival_s": "when", "input_tokens": "i", "output_tokens": "o"}, "no column 'when'"),
        ({"arrival_s": {"column": "ts", "unit": "h"}, "input_tokens": "i", "output_tokens": "o"}, "unknown unit 'h'"),
        ({"arrival_s": "ts", "input_tokens": "i", "output_tokens": "o", "colour": "c"}, "unknown field 'colour'"),
        ({"arrival_s": {"colum": "ts"}, "input_tokens": "i", "output_tokens": "o"}, "expected a column"),
    ],
)
def test_a_wrong_map_is_named(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read(tmp_path, "ts,i,o,c\n0,1,1,red\n", columns=columns)


def test_pieces_of_a_prompt_keep_their_order_and_their_kind(tmp_path: Path) -> None:
    row = {
        "timestamp": "0",
        "input_length": 9,
        "output_length": 1,
        "session_id": "s",
        "hash_ids": {"sys_prompt": [1, 2], "passages_ids": [], "history": [1], "web_search": [], "user_input": [4]},
    }
    trace = read(tmp_path, lines(row, {**row, "timestamp": "5"}))  # fmt: skip
    pieces = trace.columns["prefix_segments"]
    assert isinstance(pieces, Ragged)
    assert pieces[0].tolist() == [5, 10, 7, 24] == pieces[1].tolist()


def test_an_element_of_a_list_is_known_by_its_line(tmp_path: Path) -> None:
    good, bad = ('{"timestamp": 0,\n "input_length": ' + tokens + ', "output_length": 1}' for tokens in ("1", "-1"))
    text = f"[\n{good},\n{bad}]"
    with pytest.raises(BadTrace) as caught:
        read(tmp_path, text)
    assert caught.value.line == 4


SEEDS: list[tuple[str, str]] = [
    ("otel", json.dumps(OTLP)),
    ("weka", '{"id": "s", "block_size": 64, "requests": [{"t": 0, "in": 5, "out": 5, "hash_ids": [1], "api_time": 1},'
             ' {"t": 1, "type": "subagent", "requests": [{"t": 0, "in": 5, "out": 5}]}, {"t": 9, "in": 5, "out": 5}]}'),
    ("weka_rows", '{"session_id": "a", "request_arrival_delta_s": 1, "input_tokens": 5, "output_tokens": 5}\n'),
    ("lmcache_gaps", '{"session_id": "a", "pre_gap_s": 1, "input_len": 5, "output_tokens": 5}\n'),
    ("lmcache_chains", '{"session_id": "a", "timestamp_us": 1, "input_chars": 5, "output_chars": 5}\n'),
    ("tracelab", '{"session_id": "a", "input_tokens_total": 1, "output_tokens": 5, "timing_events": '
                 '[{"event_type": "user_message", "timestamp": "2026-01-01T00:00:00Z"}]}\n'),
    ("mooncake_turns", '{"session_id": "a", "timestamp": 1, "delay": 3, "input_length": 5, "output_length": 5}\n'),
    ("llmservingsim", '{"arrival_time_ns": 5, "sub_requests": [{"input_toks": 5, "output_toks": 5}]}\n'),
    ("sharegpt", '[{"id": "a", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}]'),
    ("vllm_bench", '{"input_lens": [5, 6], "output_lens": [2, 0], "start_times": [1.0, 1.5], "errors": ["", "x"]}'),
    ("guidellm", '{"benchmarks": [{"requests": {"successful": [{"start_time": 1.0, "prompt_tokens": 5, '
                 '"output_tokens": 5}]}}]}'),
    ("inference_perf", '[{"start_time": 1.0, "end_time": 2.0, "info": {"input_tokens": 5, "output_tokens": 5}}]'),
    ("aiperf", '{"metadata": {"request_start_ns": 5}, "metrics": {"input_sequence_length": {"value": 5}, '
               '"output_sequence_length": {"value": 5}}}\n'),
    ("ragpulse", '{"timestamp": "1", "input_length": 5, "output_length": 5, "hash_ids": {"sys_prompt": [1]}}\n'),
    ("bailian", '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 1, "input_length": 3, "output_length": 1}\n'),
    ("router", '{"timestamp": 0.5, "prompt_tokens": 5, "generated_tokens": 5, "model": "m"}\n'),
    ("litellm_json", '{"startTime": "2026-01-01T00:00:00Z", "endTime": "", "prompt_tokens": 5, '
                     '"completion_tokens": 5, "model": "m"}\n'),
    ("litellm", "startTime,endTime,prompt_tokens,completion_tokens,model\n2026-01-01T00:00:00Z,,5,5,m\n"),
    ("blis", "arrival_time_us,send_time_us,first_chunk_time_us,input_tokens,output_tokens,status\n5,5,9,5,5,ok\n"),
    ("lengths", "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n5,5,10,1\n"),
    ("splitwise", "request_id,application_id,arrival_timestamp,prompt_size,token_size\n0,0,1,5,5\n"),
    ("vidur", "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,5,5\n"),
    ("burstgpt", "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,m,5,5,10,API log\n"),
    ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,5,5\n"),
    ("azure_lmm", "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2024-10-15T12:00:00.269Z,1,5,5\n"),
    ("fleetplan", "arrival_s,input_tokens,output_tokens,prefix_blocks,session_id,parent_ids\n0,5,5,1 2,a,\n"),
    ("fleetplan_ns", "arrival_ns,input_tokens,output_tokens\n0,5,5\n"),
    ("mooncake", '{"timestamp": 0, "input_length": 655, "output_length": 52, "hash_ids": [0, 1]}\n'),
]  # fmt: skip
ODD = ["", "null", "-1", "1e999", "NaN", '"x"', "[]", "{}", "[{}]", "[1]", "true", "9" * 25, "1.5", '"\\ud800"', "é",
       "{", "]", ",", "\n", '"', "0.1", '{"value": 1}', "[[1]]", '"2026-13-01T00:00:00Z"', "\x00"]  # fmt: skip


def test_every_format_has_a_seed_for_the_fuzzer_and_is_recognised(tmp_path: Path) -> None:
    lengths_only_variants = {"vllm_bench_lengths"}
    assert {name for name, _ in SEEDS} | lengths_only_variants == set(traces.FORMATS)
    for name, text in SEEDS:
        assert read(tmp_path, text).metadata["format"] == name


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A small file of a known format with a few pieces replaced, doubled, cut or swapped for odd ones."""
    text = draw(st.sampled_from([text for _, text in SEEDS]))
    text *= draw(st.integers(1, 3))
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(text)))
        last = min(first + draw(st.integers(0, 12)), len(text))
        text = text[:first] + draw(st.sampled_from([*ODD, text[first:last] * 2])) + text[last:]
    content = text.encode("utf-8", "surrogatepass")
    return gzip.compress(content)[: draw(st.integers(20, 400))] if draw(st.integers(0, 20)) == 0 else content


@given(mutated(), st.booleans())
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_files_of_every_format_give_a_trace_or_a_reason(tmp_path: Path, content: bytes, strict: bool) -> None:
    path = tmp_path / "trace"
    path.write_bytes(content)
    try:
        trace = traces.read(path, strict=strict, max_bad_fraction=1.0)
    except BadTrace as reason:
        assert str(reason).startswith(f"{path}:{reason.line}:{reason.column}: ")  # noqa: PT017
        return
    assert trace.metadata["rows_read"] == len(trace) + sum(trace.metadata["rows_dropped"].values())  # type: ignore[attr-defined]
    describe(trace)
