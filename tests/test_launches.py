"""Launches: what a benchmark's scripts set is found by engine and model; the last entry that fits holds."""

from dataclasses import replace

import pytest

from models.calibration import end_to_end, launches
from models.calibration.launches import Asked, Launch
from models.closed_loop import Load, Scheduler

SCHEDULER = Scheduler(8192, 1 << 20, False)

ROW = {
    "device": "b200_sxm",
    "engine": "sglang",
    "engine_version": "0.5.9",
    "model": "Qwen/Qwen3.5-397B-A17B",
    "weight_dtype": "fp8",
    "tp": 8.0,
    "ep": 1.0,
    "attn_dp": 1.0,
    "isl": 1024.0,
    "osl": 1024.0,
    "concurrency": 16.0,
    "len_note": "InferenceX: lengths",
}


def test_an_engine_nobody_wrote_of_comes_as_it_comes():
    assert launches.find(Asked("tgi", "llama-3.1-8b", "h100_sxm", "bf16", (1, 1))) == Launch()


def test_the_last_entry_that_fits_holds():
    plain = launches.find(Asked("sglang", "llama-3.1-8b", "h200_sxm", "fp8", (8, 1)))
    qwen = launches.find(Asked("sglang", "qwen3.5-397b-a17b", "h200_sxm", "fp8_block", (8, 8)))
    assert (plain.budget_tokens, qwen.budget_tokens) == (32768, 16384)
    assert [plain.schedule(SCHEDULER, Load(8, 8, clients)).poll_steps for clients in (4, 16)] == [10, 30]
    assert qwen.schedule(SCHEDULER, Load(8, 8, 16)).poll_steps == 1


def test_prompts_of_one_length_wait_for_company_where_a_script_says_so():
    asked = Asked("trtllm", "llama-3.1-70b", "b200_sxm", "fp8", (4, 1), lengths=(1024, 1024))
    waiting = launches.find(asked).schedule(SCHEDULER, Load(1024, 1024, 16))
    assert (waiting.wait_steps, waiting.wait_tokens) == (20, 0.9 * SCHEDULER.budget_tokens)
    for other in (replace(asked, cut=(8, 1)), replace(asked, lengths=(1024, 8192))):
        assert launches.find(other).wait_steps == 0


def test_a_server_set_up_for_a_load_takes_one_whole_prompt_a_step():
    one = launches.generated("trtllm").schedule(SCHEDULER, Load(1000, 100, 8))
    assert (one.budget_tokens, one.cuts_prompts) == (1008, False)
    assert launches.generated("sglang") == Launch()


def test_rows_of_the_benchmark_run_as_its_scripts_say():
    engine = end_to_end.engine_of(ROW)
    assert (engine.settings.max_num_batched_tokens, engine.kv_dtype) == (32768, "fp8")
    other = end_to_end.engine_of(ROW | {"len_note": "vendor", "isl": 2048.0})
    assert other.settings.max_num_batched_tokens == end_to_end.BUDGET_TOKENS
    wide = end_to_end.engine_of(ROW | {"engine": "vllm", "model": "MiniMaxAI/MiniMax-M2.5"})
    assert wide.kv_dtype == "bf16"


def test_a_launch_that_drafts_by_an_unknown_acceptance_is_not_predicted():
    with pytest.raises(ValueError, match="drafts 3 tokens a step; how many were accepted is not told"):
        end_to_end.engine_of(ROW | {"tp": 4.0})


def test_ranks_that_split_attention_alone_share_the_experts():
    assert end_to_end.engine_of(ROW | {"tp": 1.0, "attn_dp": 8.0}).ep == 8


def test_a_script_without_ranks_of_their_own_tokens_has_none_whatever_a_table_says():
    row = ROW | {"engine": "vllm", "model": "moonshotai/Kimi-K2.5", "tp": 1.0, "ep": 4.0, "attn_dp": 4.0}
    engine = end_to_end.engine_of(row | {"weight_dtype": "fp4"})
    assert (engine.tp, engine.ep, engine.dp) == (4, 4, 1)


def test_a_step_holds_so_many_prompts_of_its_load_where_a_script_says_so():
    asked = Asked("vllm", "minimax-m2.5", "b200_sxm", "fp8_block", (4, 1), "0.19.0")
    found = launches.find(asked).schedule(replace(SCHEDULER, budget_tokens=16384), Load(1024, 1024, 64))
    assert found.budget_tokens == 2048
