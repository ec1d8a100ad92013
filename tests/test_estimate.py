"""Estimates: a closed loop does what its arithmetic says, benchmark files are read in our units."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from models import device, forward, framework, llm
from models.calibration import benchmarks, end_to_end, load, observed, predict, profiles
from models.calibration.this_machine import Block, Cpu, attention_needs, gemm_needs
from models.closed_loop import Load, Scheduler, replay
from models.engine import Engine, Settings
from models.estimate import StepCosts, at_rate, estimate
from models.operators import GEMM_PARAMETERS, Machine
from planners.cli import main

TOGETHER = Scheduler(budget_tokens=1000, capacity_tokens=1_000_000, prefill_first=False)
ALONE = Scheduler(budget_tokens=1000, capacity_tokens=1_000_000, prefill_first=True)
DEVICE_ONLY = (0.0, 0.0, 1.0, 1.0)


def seen(load_, scheduler=TOGETHER, scalars=DEVICE_ONLY):
    """Replay with decodes of 10 ms a step and prompts of 1 ms a token."""
    rng = np.random.default_rng(1)
    return replay(load_, scheduler, lambda n, ctx: 0.010, lambda n, chunk, past: 0.001 * chunk, scalars, rng)


def test_a_lone_client_waits_for_its_prompt_then_a_step_a_token():
    found = seen(Load(100, 50, 1))
    assert found.ttft_s == pytest.approx(0.100)
    assert found.tpot_s == pytest.approx(0.010)
    assert found.requests_per_s == pytest.approx(1 / (0.100 + 49 * 0.010))


def test_others_prompts_stretch_the_time_per_token():
    found = seen(Load(100, 50, 4, shortest=0.5))
    assert 0.010 < found.tpot_s < 0.010 + 4 * 0.100 / 25
    assert found.tpot_parts.weighted(DEVICE_ONLY) == pytest.approx(found.tpot_s, rel=0.1)


def test_a_prompt_longer_than_the_budget_takes_several_steps():
    assert seen(Load(2500, 50, 1)).ttft_s == pytest.approx(2.5)
    assert seen(Load(2500, 50, 1), scalars=(0.1, 0.0, 1.0, 1.0)).ttft_s == pytest.approx(2.5 + 3 * 0.1)


def test_a_cold_benchmark_waits_in_its_first_wave():
    cold = seen(Load(1000, 50, 4, cold_waves=1), ALONE)
    assert cold.ttft_s == pytest.approx(np.mean([1.0, 2.0, 3.0, 4.0]))


def test_prompts_that_go_first_stop_the_decodes():
    together, alone = (seen(Load(900, 100, 8, shortest=0.5), scheduler) for scheduler in (TOGETHER, ALONE))
    assert alone.tpot_s > together.tpot_s


def test_no_more_sequences_run_than_the_cache_holds():
    tight = Scheduler(1000, capacity_tokens=330, prefill_first=False)
    assert seen(Load(100, 50, 8), tight).mean_batch <= 3.0


def test_the_host_is_paid_once_a_step_and_once_a_sequence():
    assert seen(Load(100, 50, 1), scalars=(0.002, 0.003, 1.0, 1.0)).tpot_s == pytest.approx(0.010 + 0.005)


def test_a_request_waits_for_the_front_end_and_for_the_steps_scheduled_already():
    front = replace(TOGETHER, front_request_s=0.050, front_token_s=0.0001)
    assert seen(Load(100, 50, 1), front).ttft_s == pytest.approx(0.060 + 0.100)
    prompt, ahead = seen(Load(100, 50, 8, 0.5)), seen(Load(100, 50, 8, 0.5), replace(TOGETHER, steps_ahead=3))
    polled = seen(Load(100, 50, 8, 0.5), replace(TOGETHER, poll_steps=20))
    assert ahead.ttft_s >= prompt.ttft_s + 3 * 0.010
    assert polled.ttft_s > prompt.ttft_s + 5 * 0.010


def test_every_request_is_seen_at_the_next_look_though_others_wait_for_it_already():
    # Requests come at any of the 30 steps between two looks: half of them are waited for, and 3 beside those.
    rare = replace(TOGETHER, steps_ahead=1, poll_steps=30, front_request_s=0.003)
    assert seen(Load(1, 1000, 16, 0.8), rare).ttft_parts.steps == pytest.approx(15 + 3, abs=3)


def test_no_more_sequences_run_than_the_scheduler_allows():
    assert seen(Load(10, 50, 8), replace(TOGETHER, most_sequences=3)).mean_batch <= 3.0


def test_a_prompt_that_is_not_cut_goes_whole_in_a_step_of_its_own():
    whole = replace(TOGETHER, cuts_prompts=False)
    assert seen(Load(600, 2, 2, cold_waves=1), whole).ttft_s == pytest.approx((0.6 + 1.2) / 2, rel=0.02)
    assert seen(Load(600, 2, 2, cold_waves=1)).ttft_s == pytest.approx((1.0 + 1.2) / 2, rel=0.02)


def test_prompts_wait_for_company_until_a_step_is_full_or_their_patience_ends():
    load_ = Load(100, 200, 16, 0.5)
    patient = replace(TOGETHER, wait_steps=20, wait_tokens=900.0)
    steps = [seen(load_, scheduler).ttft_parts.steps for scheduler in (TOGETHER, patient)]
    assert steps[1] - steps[0] == pytest.approx(10, abs=6)  # the first of a company waits for 20, the last for none
    easy = replace(patient, wait_tokens=1.0)
    assert seen(load_, easy) == seen(load_)


def test_waves_left_out_of_a_cold_benchmark_are_weighed_in():
    # The first wave's four prompts wait for each other, later ones do not.
    few, many = (seen(Load(1000, 50, 4, 0.5, cold_waves=waves), ALONE).ttft_s for waves in (20, 200))
    assert few > many


def test_scalars_left_alone_by_the_rows_stay_where_scalars_lie():
    times = ("d", "vllm", "1.0.0", "m")
    rows = [
        profiles.Measured(*times, steps * 32 * 1e-5 + 0.01, 0.1, (32.0 * steps, 0, 0), (0,) * 3, 0.01, 0.1 - 0.02)
        for steps in (10, 20, 40)
    ]
    usual = np.array([7e-6, 0.95, 1.0, 0.02])
    layer_s, decode_factor, prefill_factor, first_token_s = profiles.fit(rows, (), usual)
    assert layer_s == pytest.approx(1e-5, rel=0.1)
    assert (decode_factor, prefill_factor) == pytest.approx(usual[1:3], rel=1e-3)
    assert first_token_s == pytest.approx(0.02, rel=0.05)
    assert profiles.fit(rows[:1], rows, usual)[0] == pytest.approx(layer_s, rel=0.05)
    assert profiles.fit((), (), usual) == pytest.approx(usual)
    assert profiles.fit_usual(rows)[0] == pytest.approx(1e-5, rel=0.2)


@pytest.fixture(scope="module")
def costs():
    return StepCosts(Engine(llm.load("llama-3.1-8b"), device.load("h100-sxm")))


def test_more_clients_mean_more_throughput_and_longer_waits(costs):
    few, many = (estimate(costs.engine, Load(1024, 256, clients, 0.8), costs) for clients in (4, 64))
    assert many.output_tokens_per_s > 4 * few.output_tokens_per_s
    assert many.tpot_s > few.tpot_s
    assert few.interval[0] < 1 < few.interval[1]
    assert sum(few.decode_parts.values()) < few.tpot_s * 1.2


def test_a_prompt_without_a_graph_waits_for_the_host_to_launch_its_kernels(costs):
    slow = StepCosts(costs.engine)
    slow.host = replace(costs.host, eager_layer_s=0.01)
    assert slow.prefill(0, 512, 0.0) == costs.prefill(0, 512, 0.0)
    assert slow.prefill(0, 513, 0.0) == pytest.approx(0.01 * 32)
    assert slow.prefill(8, 513, 0.0) < 0.01 * 32 < slow.prefill(8, 513, 0.0) + slow.decode(8, 8.0)


def test_a_rate_is_carried_by_the_least_concurrency_that_can(costs):
    found = at_rate(costs.engine, 512, 64, 2.0, costs)
    assert found.requests_per_s >= 2.0
    with pytest.raises(ValueError, match="carries at most"):
        at_rate(costs.engine, 8000, 64, 1e4, costs)


def test_a_model_that_does_not_fit_is_refused_with_what_would_do():
    large = Engine(llm.load("llama-3.1-70b"), device.load("h100-sxm"))
    with pytest.raises(ValueError, match=r"does not fit.*use more tp"):
        estimate(large, Load(1024, 256, 1))


def test_experts_spread_over_data_parallel_ranks_fit():
    spread = Engine(llm.load("deepseek-v3"), device.load("h200-sxm"), tp=1, ep=8, dp=8, dtype="native")
    assert spread.kv_tokens > 100_000


def test_kernels_timed_with_their_host_do_not_price_a_graph():
    launched = load("b200-sxm").find("gemm", "fp8_block")
    replayed = load("b200-sxm").find("gemm", "fp8_block", in_graph=True)
    host = GEMM_PARAMETERS.index("host_s")
    assert launched.parameters[host] > 1e-4
    assert replayed.parameters[host] < 3e-5


def test_four_bit_mixtures_of_experts_keep_attention_wide():
    tokens = np.ones(1)
    for name, wide in (("minimax-m2.5", True), ("llama-3.1-70b", False)):
        engine = Engine(llm.load(name), device.load("b200-sxm"), tp=4, dtype="nvfp4")
        dtypes = {call.label: predict.table_dtype(engine, call) for call in forward.token_calls(engine, tokens)}
        assert dtypes["qkv"] == ("bf16" if wide else "nvfp4")
        assert dtypes.get("experts", "nvfp4") == "nvfp4"


def test_scales_that_come_with_the_checkpoint_are_not_sought_again():
    engine = Engine(llm.load("llama-3.1-70b"), device.load("b200-sxm"), tp=8, dtype="fp8", framework="tensorrt-llm")
    (out,) = [call for call in forward.token_calls(engine, np.full(1, 4.0)) if call.label == "attention out"]
    measured = load("b200-sxm", "trtllm")
    shape = {"m": 4.0, "n": 8192.0, "k": 1024.0}
    whole = float(predict.operator_s(measured, "gemm", "fp8", shape))
    sought, written = (float(predict.operator_s(measured, op, "fp8", shape)) for op in predict.QUANTISATIONS)
    assert predict.call_s(engine, out)[0] == pytest.approx(whole - sought - written)
    streamed = 8192 * 1024 / engine.device.bandwidth_bytes_per_s
    assert predict.call_s(engine, out)[0] >= streamed
    vllm = replace(engine, framework="vllm")
    whole, sought = (
        float(predict.operator_s(load("b200-sxm", "vllm"), op, "fp8", shape))
        for op in ("gemm", predict.QUANTISATIONS[0])
    )
    assert predict.call_s(vllm, out)[0] == pytest.approx(whole - sought)


def test_a_library_takes_no_longer_under_one_engine_than_under_another():
    shape = {"m": 4.0, "n": 4096.0, "k": 7168.0}
    priced = forward.Call("gemm", "qkv", "fp8_block", 1, {name: np.full(1, value) for name, value in shape.items()})
    b200 = device.load("b200-sxm")
    sglang = Engine(llm.load("deepseek-v3"), b200, tp=8, dtype="fp8_block", framework="sglang")
    own, other = (
        float(predict.operator_s(load("b200-sxm", name), "gemm", "fp8_block", shape, in_graph=True))
        for name in ("sglang", "trtllm")
    )
    assert predict.call_s(sglang, priced)[0] == pytest.approx(min(own, other))
    assert other < 0.8 * own  # whose table times the weights' scales with every call
    wide = replace(priced, dtype="bf16")
    assert predict.call_s(sglang, wide)[0] == predict.operator_s(load(b200, "sglang"), "gemm", "bf16", shape)


def test_prompts_beside_a_narrow_cache_multiply_in_it_where_the_engine_was_measured_so():
    engine = Engine(llm.load("llama-3.1-8b"), device.load("h200-sxm"), kv_dtype="fp8", framework="sglang")
    (attention,) = forward.prefill_calls(engine, np.full(1, 8192.0), np.zeros(1))
    assert predict.fit_of_call(engine, attention).kernel == "fa3"
    assert predict.table_dtype(engine, attention) == "fp8"
    wide = replace(engine, kv_dtype="bf16")
    assert predict.table_dtype(wide, attention) == "bf16"
    assert predict.call_s(engine, attention)[0] < 1.2 * predict.call_s(wide, attention)[0]


def test_models_that_normalise_every_head_run_one_kernel_more_a_layer():
    norms = [
        sum(
            call.times
            for call in forward.token_calls(Engine(llm.load(name), device.load("h100-sxm")), np.ones(1))
            if call.op == "norm"
        )
        for name in ("qwen3-8b", "llama-3.1-8b")
    ]
    assert norms == [3 * 36 + 1, 2 * 32 + 1]


def test_tokens_alike_choose_fewer_experts_while_they_are_few():
    model = llm.load("gpt-oss-120b")
    engines = [
        Engine(replace(model, alike_tokens=share), device.load("h200-sxm"), dtype="native") for share in (0.0, 0.35)
    ]
    chance, alike = (
        next(
            call.shape["m"]
            for call in forward.token_calls(engine, np.array([1.0, 9.0, 65.0, 8192.0]))
            if call.op == "moe"
        )
        for engine in engines
    )
    assert chance.tolist() == [1.0, 9.0, 65.0, 8192.0]
    # 0.35 of the others, of 128 experts / 4 a token * 2 = 64 at the most.
    assert alike.tolist() == pytest.approx([1.0, 9.0 - 0.35 * 8, 65.0 - 0.35 * 64, 8192.0 - 0.35 * 64])


def test_experts_run_on_the_back_end_that_is_set():
    model, b200 = llm.load("deepseek-v3"), device.load("b200-sxm")
    kernels = []
    for backend in ("TRTLLM", "CUTLASS"):
        settings = Settings(moe_backend=backend)
        engine = Engine(model, b200, 8, dtype="nvfp4", framework="tensorrt-llm", settings=settings)
        (experts,) = [call for call in forward.token_calls(engine, np.full(1, 16.0)) if call.op == "moe"]
        kernels.append(predict.fit_of_call(engine, experts).kernel)
    assert kernels == ["moe_torch_flow_min_latency", "moe_torch_flow_cutlass"]


def test_frameworks_say_on_which_device_their_scalars_were_fitted():
    assert framework.load("vllm", "h100_sxm").provenance == "calibrated"
    assert framework.load("vllm", "no_such_device").provenance == "modelled"
    assert framework.load("trtllm").name == "tensorrt-llm"


ROW = {
    "device": "h100_sxm",
    "engine": "vllm",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "mode": "agg",
    "quality": "ok",
    "weight_dtype": "bf16",
    "tp": 1.0,
    "ep": 1.0,
    "attn_dp": 1.0,
    "isl": 512.0,
    "osl": 64.0,
    "concurrency": 4.0,
    "len_note": "",
}


def test_a_measured_row_is_predicted_without_its_times():
    import pandas

    rows = [ROW, {**ROW, "mode": "unheard of"}, {**ROW, "quality": "mislabelled_agg"}, {**ROW, "model": "no/such"}]
    found = end_to_end.predict(pandas.DataFrame(rows))
    assert 0.003 < found.value["tpot"][0] < 0.02
    assert [bool(reason) for reason in found.reason] == [False, True, True, True]


def test_serving_results_are_predicted_within_a_fifth(shared, tmp_path):
    import pandas

    frame = pandas.read_parquet(shared / "data" / "end_to_end.parquet")
    frame = frame[(frame["source"] == "aic_silicon") & (frame["mode"] == "agg") & (frame["isl"] < 2000)]
    frame.iloc[::40].to_parquet(tmp_path / "few.parquet")
    _, _, result = end_to_end.validate_end_to_end(tmp_path / "few.parquet")
    assert result["predicted"] >= 0.9 * result["n"]
    assert result["overall"]["tpot"]["median"] < 0.2
    of_pairs = [pair["n"] for pair in result["pairs"] if pair["metric"] == "tpot"]
    assert sum(of_pairs) == result["predicted"]


VLLM = {
    "completed": 10,
    "duration": 20.0,
    "total_input_tokens": 10240,
    "total_output_tokens": 1000,
    "max_concurrency": 4,
    "mean_ttft_ms": 50.0,
    "mean_tpot_ms": 9.0,
    "request_rate": "inf",
}
GUIDELLM = {
    "metadata": {},
    "benchmarks": [
        {
            "metrics": {
                name: {"successful": {"mean": value}}
                for name, value in {
                    "prompt_token_count": 1024,
                    "output_token_count": 100,
                    "request_concurrency": 4,
                    "time_to_first_token_ms": 50.0,
                    "inter_token_latency_ms": 9.0,
                }.items()
            }
        }
    ],
}
AIPERF = {
    "request_throughput": {"avg": 4.0, "unit": "requests/sec"},
    "request_latency": {"avg": 1000.0, "unit": "ms"},
    "input_sequence_length": {"avg": 1024, "unit": "tokens"},
    "output_sequence_length": {"avg": 100, "unit": "tokens"},
    "time_to_first_token": {"avg": 50.0, "unit": "ms"},
    "inter_token_latency": {"avg": 9.0, "unit": "ms"},
}
LLM_D = {
    "scenario": {"load": {"standardized": {"concurrency": 4}}},
    "results": {
        "request_performance": {
            "aggregate": {
                "requests": {"input_length": {"mean": 1024}, "output_length": {"mean": 100}},
                "latency": {
                    "time_to_first_token": {"mean": 0.05, "units": "s"},
                    "time_per_output_token": {"mean": 0.009, "units": "s/token"},
                },
            }
        }
    },
}
SCRAPE = "\n".join(
    f'vllm:{name}{{model="m"}} {value}'
    for name, value in {
        "time_to_first_token_seconds_sum": 0.5,
        "time_to_first_token_seconds_count": 10,
        "request_time_per_output_token_seconds_sum": 0.09,
        "request_time_per_output_token_seconds_count": 10,
        "request_prompt_tokens_sum": 10240,
        "request_prompt_tokens_count": 10,
        "request_generation_tokens_sum": 1000,
        "request_generation_tokens_count": 10,
        "num_requests_running": 4,
    }.items()
)


@pytest.mark.parametrize(
    "text",
    [json.dumps(VLLM), json.dumps(GUIDELLM), json.dumps(AIPERF), json.dumps(LLM_D), SCRAPE],
    ids=["vllm", "guidellm", "aiperf", "llm-d", "prometheus"],
)
def test_every_tool_tells_the_same_run(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    (run,) = benchmarks.read(path)
    assert (run.input_tokens, run.output_tokens, run.concurrency) == (1024, 100, 4)
    assert run.ttft_s == pytest.approx(0.050)
    assert run.tpot_s == pytest.approx(0.009)


def test_appended_results_are_several_runs(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(VLLM) + "\n" + json.dumps(VLLM))
    assert len(benchmarks.read(path)) == 2


def test_llama_bench_tells_prompts_and_generation_apart(tmp_path):
    path = tmp_path / "bench.json"
    rows = [{"n_prompt": 512, "n_gen": 0, "avg_ts": 1024.0}, {"n_prompt": 0, "n_gen": 128, "avg_ts": 50.0}]
    path.write_text(json.dumps(rows))
    prompt, generation = benchmarks.read(path)
    assert (prompt.ttft_s, prompt.tpot_s) == (0.5, None)
    assert (generation.ttft_s, generation.tpot_s) == (None, 0.02)


@pytest.mark.parametrize(("text", "words"), [("{", ":1:2: no JSON"), ('{"a": 1}', "no known benchmark result")])
def test_what_is_no_result_is_refused_with_the_place(tmp_path, text, words):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        benchmarks.read(path)


def test_a_fit_to_ones_own_runs_brings_predictions_nearer(costs):
    runs = [
        benchmarks.Run(f"run {clients}", 512, 128, clients, None, 1.3 * estimate_s)
        for clients, estimate_s in (
            (clients, estimate(costs.engine, Load(512, 128, clients), costs).tpot_s) for clients in (1, 8, 32)
        )
    ]
    fitted = observed.fit(costs.engine, runs)
    assert fitted["median_error_before"] == pytest.approx(1 - 1 / 1.3, rel=0.01)
    assert fitted["median_error_after"] < 0.6 * fitted["median_error_before"]


def test_a_block_is_predicted_as_the_sum_of_its_operators():
    ideal = np.array([1e-12, 1.0, 1.0, 1e-9, 1e-9, 1e-15, 1.0, 12.0])
    machine = Machine(1e11, 1e10, 1.0, 0.0)
    cpu = Cpu(
        "toy",
        1,
        machine,
        dict.fromkeys(("gemm", "gemv", "attention", "attention of one", "pass", "exponential"), ideal),
        0.0,
    )
    block = Block()
    flops = sum(gemm_needs(256, n, k)[0] for k, n in block.matrices) + attention_needs(256, 256, 12, 64)[0]
    assert block.predicted_s(cpu, 256, 0) > flops / 1e11
    assert block.predicted_s(cpu, 256, 0) < 2 * flops / 1e11


def test_the_command_answers_in_json():
    arguments = ["estimate", "--model", "llama-3.1-8b", "--device", "l4", "--isl", "512", "--osl", "32"]
    outcome = CliRunner().invoke(main, [*arguments, "--concurrency", "2", "--json"])
    assert outcome.exit_code == 0, outcome.output
    result = json.loads(outcome.stdout)["result"]
    assert result["provenance"] in ("modelled", "assumed")
    assert result["ttft_s"] > 0
    assert CliRunner().invoke(main, arguments).exit_code == 2


def test_a_release_is_priced_by_its_own_collectives():
    arguments = ["estimate", "--model", "qwen3-32b", "--device", "rtx-pro-6000", "--isl", "512", "--osl", "32"]
    arguments += ["--tp", "2", "--concurrency", "2", "--json"]
    newest, older = (
        json.loads(CliRunner().invoke(main, [*arguments, *more]).stdout)["result"]
        for more in ([], ["--engine-version", "0.19.0"])
    )
    assert older["decode_parts"]["all-reduce"] > 2 * newest["decode_parts"]["all-reduce"]


def test_errors_are_those_of_models_left_out():
    times = ("d", "vllm", "1.0.0")
    rows = [
        profiles.Measured(*times, model, slow * 0.02, 0.1, (32.0 * 30, 0, 0), (0,) * 3, 0.01, 0.08)
        for model, slow in (("quick", 1.0), ("slow", 1.2))
        for _ in range(3)
    ]
    told = profiles.held_out(rows)
    assert told["tpot with four scalars"]["rows"] == 6
    assert 0.1 < told["tpot with four scalars"]["median"] < 0.25
    assert set(told) == {f"{m} with {s}" for m in ("tpot", "ttft") for s in ("four scalars", "none")}
    assert profiles.held_out(rows, {("slow", "d")})["tpot with none"]["rows"] == 3


def test_fifths_of_the_pairs_are_left_out_together_and_each_once_a_draw():
    seconds = {"quick": 0.010, "slow": 0.030}
    rows = [
        profiles.Measured(device_, "vllm", "1.0.0", model, step_s, 0.1, (32.0 * 30, 0, 0), (0,) * 3, 0.0, 0.08)
        for device_ in "abcde"
        for model, step_s in seconds.items()
    ]
    told = profiles.in_folds(rows)
    assert told["tpot with none"]["rows"] == len(rows)
    assert 0.0 < told["tpot with none"]["spread"] < told["tpot with none"]["median"]
    assert profiles.in_folds(rows) == told


def test_an_unknown_device_is_told_with_the_nearest_name():
    arguments = ["estimate", "--model", "llama-3.1-8b", "--device", "h100-sx", "--isl", "512", "--osl", "32"]
    outcome = CliRunner().invoke(main, [*arguments, "--concurrency", "1"])
    assert outcome.exit_code == 2
    assert "h100-sxm" in outcome.output
