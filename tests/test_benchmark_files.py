"""Benchmark files of every tool: the same run of ten requests of 1024 and 100 tokens, told in each one's own way."""

import json

import pytest

from models.calibration import benchmarks, scrapes

# Four in flight, 50 ms to the first token, 9 ms a token; ten requests of 0.941 s each within 2.3525 s.
E2E_S, SPAN_S = 0.050 + 99 * 0.009, 2.3525
SCRAPED = {
    "vllm:time_to_first_token_seconds_sum": 0.5,
    "vllm:time_to_first_token_seconds_count": 10,
    "vllm:request_time_per_output_token_seconds_sum": 0.09,
    "vllm:request_time_per_output_token_seconds_count": 10,
    "vllm:request_prompt_tokens_sum": 10240,
    "vllm:request_prompt_tokens_count": 10,
    "vllm:request_generation_tokens_sum": 1000,
    "vllm:request_generation_tokens_count": 10,
    "vllm:num_requests_running": 4,
}
SGLANG = {
    "sglang:time_to_first_token_seconds_sum": 0.5,
    "sglang:time_to_first_token_seconds_count": 10,
    "sglang:inter_token_latency_seconds_sum": 9 * 0.99,
    "sglang:inter_token_latency_seconds_count": 990,
    "sglang:prompt_tokens_total": 10240,
    "sglang:generation_tokens_total": 1000,
    "sglang:num_requests_total": 10,
    "sglang:num_running_reqs": 4,
}
TGI = {
    "tgi_request_input_length_sum": 10240,
    "tgi_request_input_length_count": 10,
    "tgi_request_generated_tokens_sum": 1000,
    "tgi_request_generated_tokens_count": 10,
    "tgi_request_mean_time_per_token_duration_sum": 0.09,
    "tgi_request_mean_time_per_token_duration_count": 10,
    "tgi_request_queue_duration_sum": 0.1,
    "tgi_request_queue_duration_count": 10,
    'tgi_batch_forward_duration_sum{method="prefill"}': 0.4,
    'tgi_batch_forward_duration_count{method="prefill"}': 10,
    'tgi_batch_forward_duration_sum{method="decode"}': 9.0,
    'tgi_batch_forward_duration_count{method="decode"}': 990,
    "tgi_batch_current_size": 4,
}


def scrape(values, times=1.0):
    return "\n".join(["# HELP of a metric", *(f"{name} {value * times}" for name, value in values.items())])


def starts():
    return [i * (SPAN_S - E2E_S) / 9 for i in range(10)]


AIPERF_RECORDS = "\n".join(
    json.dumps(
        {
            "metadata": {
                "request_start_ns": int(start * 1e9),
                "request_end_ns": int((start + E2E_S) * 1e9),
                "benchmark_phase": phase,
            },
            "metrics": {
                "input_sequence_length": {"value": 1024, "unit": "tokens"},
                "output_sequence_length": {"value": 100, "unit": "tokens"},
                "time_to_first_token": {"value": 50.0, "unit": "ms"},
            },
            "error": None,
        }
    )
    for start, phase in [(-5.0, "warmup"), *((start, "profiling") for start in starts())]
)
INFERENCE_PERF_REQUESTS = json.dumps(
    [
        {
            "scheduled_time": start,
            "start_time": start,
            "end_time": start + E2E_S,
            "error": None,
            "info": {
                "request_metrics": {"text": {"input_tokens": 1024}},
                "response_metrics": {"output_tokens": 100, "output_token_times": [start + 0.050, start + E2E_S]},
            },
        }
        for start in starts()
    ]
)
INFERENCE_PERF = json.dumps(
    {
        "load_summary": {"count": 10},
        "successes": {
            "count": 10,
            "latency": {
                "request_latency": {"mean": E2E_S},
                "time_to_first_token": {"mean": 0.050},
                "time_per_output_token": {"mean": 0.009},
            },
            "throughput": {"requests_per_sec": 4 / E2E_S, "output_tokens_per_sec": 400 / E2E_S},
            "prompt_len": {"mean": 1024},
        },
        "failures": {"count": 0},
    }
)
QUERY_RANGE = json.dumps(
    {
        "status": "success",
        "data": {
            "resultType": "matrix",
            "result": [
                {
                    "metric": {"__name__": name, "engine": "0"},
                    "values": [[0, str(7.0 if name.endswith("running") else 100.0)], [60, str(end)]],
                }
                for name, value in SCRAPED.items()
                for end in [1.0 if name.endswith("running") else 100.0 + value]
            ],
        },
    }
)
SGLANG_BENCH = json.dumps(
    {
        "backend": "sglang",
        "request_rate": float("inf"),
        "max_concurrency": None,
        "duration": SPAN_S,
        "completed": 10,
        "total_input_tokens": 10240,
        "total_output_tokens": 1000,
        "mean_ttft_ms": 50.0,
        "mean_tpot_ms": 9.0,
        "concurrency": 4.0,
    }
)


@pytest.mark.parametrize(
    "text",
    [
        scrape(SCRAPED),
        scrape(SGLANG),
        scrape(TGI),
        QUERY_RANGE,
        AIPERF_RECORDS,
        INFERENCE_PERF_REQUESTS,
        INFERENCE_PERF,
        SGLANG_BENCH,
    ],
    ids=[
        *("vllm scrape", "sglang scrape", "tgi scrape", "query_range", "aiperf records"),
        *("inference-perf requests", "inference-perf", "sglang bench_serving"),
    ],
)
def test_every_tool_tells_the_same_run(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    (run,) = benchmarks.read(path)
    assert (run.input_tokens, run.output_tokens) == pytest.approx((1024, 100))
    assert run.concurrency == pytest.approx(4, rel=0.001)
    assert run.ttft_s == pytest.approx(0.050)
    assert run.tpot_s == pytest.approx(0.009)


def test_of_two_scrapes_what_was_between_them_is_told(tmp_path):
    before, after = tmp_path / "before.txt", tmp_path / "after.txt"
    slow = SCRAPED | {"vllm:time_to_first_token_seconds_sum": 2.5}
    before.write_text(scrape(slow))
    after.write_text("\n".join(f"{name} {value + slow[name]}" for name, value in SCRAPED.items()))
    (run,) = benchmarks.read_all([before, after])
    assert run.ttft_s == pytest.approx(0.050)
    assert run.place == str(after)


def test_buckets_are_not_sums_and_engines_are_added_up():
    text = 'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 1\nvllm:x_bucket{le="1"} 9\n'
    assert scrapes.samples(text) == {"num_requests_running": 4.0}


COLUMNS = ("model_type", "n_prompt", "n_gen", "n_depth", "avg_ts")
TESTS = (("llama 8B", "512", "0", "0", "1024.0"), ("llama 8B", "0", "128", "4096", "50.0"))
INSERT = f"INSERT INTO llama_bench ({', '.join(COLUMNS)}) VALUES "
LLAMA_BENCH = {
    "results.csv": "\n".join([",".join(COLUMNS), *(",".join(f'"{cell}"' for cell in row) for row in TESTS)]),
    "results.md": "| model | test | t/s |\n| ----- | ---: | --: |\n"
    "| llama 8B | pp512 | 1024.00 ± 3.1 |\n| llama 8B | tg128 @ d4096 | 50.00 ± 0.1 |\n",
    "results.sql": "CREATE TABLE IF NOT EXISTS llama_bench (x INTEGER);\n"
    + "".join(f"{INSERT}({', '.join(repr(cell) for cell in row)});\n" for row in TESTS),
}


@pytest.mark.parametrize("name", LLAMA_BENCH)
def test_llama_bench_tables_tell_prompts_and_generation_apart(tmp_path, name):
    path = tmp_path / name
    path.write_text(LLAMA_BENCH[name])
    prompt, generation = benchmarks.read(path)
    assert (prompt.input_tokens, prompt.ttft_s, prompt.tpot_s) == (512, 0.5, None)
    assert (generation.input_tokens, generation.ttft_s, generation.tpot_s) == (4096, None, 0.02)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("profile_export.json", json.dumps({"experiments": [{"requests": []}]}), "no prompt lengths"),
        ("other.csv", "a,b\n1,2\n", "no table of llama-bench"),
        ("scrape.txt", "vllm:num_requests_running 3\n", "lengths are missing"),
        (
            "rates.json",
            json.dumps({"data": {"resultType": "matrix", "result": [{"metric": {}, "values": []}]}}),
            "rates",
        ),
        ("none.jsonl", AIPERF_RECORDS.splitlines()[0], "no answered request"),
    ],
)
def test_what_tells_too_little_is_refused_with_what_would_do(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        benchmarks.read(path)
