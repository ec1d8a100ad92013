"""Launches: what a benchmark's scripts set is found by engine and model; the last entry that fits holds."""

import pytest

from models.calibration import end_to_end, launches
from models.calibration.launches import Launch

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
    assert launches.find("tgi", "llama-3.1-8b", "h100_sxm", "bf16", 1, 1) == Launch()


def test_the_last_entry_that_fits_holds():
    plain = launches.find("sglang", "llama-3.1-8b", "h200_sxm", "fp8", 8, 1)
    qwen = launches.find("sglang", "qwen3.5-397b-a17b", "h200_sxm", "fp8_block", 8, 8)
    assert (plain.budget_tokens, qwen.budget_tokens) == (32768, 16384)
    assert (plain.polls(4), plain.polls(16), qwen.polls(16)) == (10, 30, 1)


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
