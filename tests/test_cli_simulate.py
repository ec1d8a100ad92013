"""`plan simulate`: a fleet that someone wrote down is run on a trace, and every mistake in the file is told at once."""

import json

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from planners.cli import main
from planners.fleet_yaml import fleet_file

SMALLEST = "model: llama-3.1-8b\nrouter: join-shortest-queue\npools: [{device: h100-sxm, replicas: 8, tp: 1}]\n"
TWO_REQUESTS = "arrival_s,input_tokens,output_tokens\n0,100,1\n1.5,200,20\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "fleet.yaml").write_text(SMALLEST)
    (tmp_path / "trace.csv").write_text(TWO_REQUESTS)
    return tmp_path


def simulate(folder, *arguments: str):
    files = [str(folder / "trace.csv"), "--fleet", str(folder / "fleet.yaml")]
    return CliRunner().invoke(main, ["simulate", *files, *arguments])


def test_the_smallest_fleet_file_runs(folder):
    outcome = simulate(folder, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    answer = json.loads(outcome.stdout)
    result = answer["result"]
    assert result["requests"] == {"arrived": 2, "finished": 2, "rejected": 0, "failed": 0, "in_flight": 0}
    assert set(result["slo"]) == {"ttft", "tpot", "e2e"}
    assert set(result["slo"]["ttft"]) == {"p50", "p90", "p99"}
    assert result["attainment"] == 1.0  # nothing is promised, all finish
    assert result["usd"] == pytest.approx(result["usd_per_hour"] * result["span_s"] / 3600, rel=1e-5)
    assert answer["timings"]["simulate_cpu_s"] >= 0


def test_the_answer_says_what_the_fleet_was_used_for_and_whether_it_kept_up(folder):
    result = json.loads(simulate(folder, "--slo", "ttft:p99<=10s", "--json").stdout)["result"]
    assert result["saturation"] == "stable"
    assert result["goodput_per_s"] == pytest.approx(2 / result["span_s"], rel=1e-5)
    assert result["energy"]["provenance"] == "modelled"
    assert result["energy"]["joules"] > 0
    (pool,) = result["pools"]
    for name in ("busy", "compute", "bandwidth", "kv"):
        assert 0 < pool[name] < 1
    assert pool["idle_usd"] == pytest.approx((1 - pool["busy"]) * result["usd"], rel=1e-3)


def test_siblings_give_every_figure_an_interval(folder):
    rows = "".join(f"{second},100,{5 + second % 7}\n" for second in range(60))
    (folder / "trace.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    answer = json.loads(simulate(folder, "--siblings", "3", "--seed", "7", "--json").stdout)
    assert answer["inputs"]["siblings"] == 3
    found = answer["result"]["intervals"]["e2e.p50"]
    assert found["low"] <= found["mean"] <= found["high"]
    assert (found["replications"], found["confidence"]) == (3, 0.95)
    again = json.loads(simulate(folder, "--siblings", "3", "--seed", "7", "--json").stdout)
    assert again["result"] == answer["result"]


def test_the_same_run_is_told_in_words(folder):
    outcome = simulate(folder, "--slo", "ttft:p99<=10s")
    assert outcome.exit_code == 0
    assert "2 finished, 0 rejected" in outcome.stdout
    assert "every promise holds" in outcome.stdout
    assert len(outcome.stdout.splitlines()) <= 25


def test_a_broken_promise_is_told_and_ends_with_1_where_it_is_enforced(folder):
    outcome = simulate(folder, "--slo", "ttft:p99<=1us", "--json")
    assert outcome.exit_code == 0
    assert json.loads(outcome.stdout)["result"]["attainment"] == 0.0
    assert json.loads(outcome.stdout)["warnings"] == ["ttft:p99<=0.001ms is broken"]
    assert simulate(folder, "--slo", "ttft:p99<=1us", "--enforce").exit_code == 1


def test_promises_in_the_file_are_held_against_the_run(folder):
    (folder / "fleet.yaml").write_text(SMALLEST + 'slo: ["ttft:p50<=1us"]\n')
    outcome = simulate(folder)
    assert outcome.exit_code == 0
    assert "breaks ttft:p50<=0.001ms" in outcome.stdout


def test_requests_are_written_one_row_each(folder):
    assert simulate(folder, "-o", str(folder / "out")).exit_code == 0
    table = pq.read_table(folder / "out" / "requests.parquet")
    assert table.column("arrival_s").to_pylist() == [0.0, 1.5]
    assert table.column("output_tokens").to_pylist() == [1, 20]
    assert table.column("tpot_s").to_pylist()[0] is None  # an answer of one token has no time between tokens
    assert table.column("is_finished").to_pylist() == [True, True]
    assert table.schema.metadata[b"schema"] == b"requests/1"


def test_json_may_stand_in_for_yaml(folder):
    (folder / "fleet.yaml").write_text(
        json.dumps({"model": "llama-3.1-8b", "pools": [{"device": "h100-sxm", "usd_per_device_hour": 2.0, "tp": 2}]})
    )
    read = fleet_file.read(folder / "fleet.yaml")
    assert read.fleet.usd_per_hour == 4.0
    assert read.fleet.replicas == 1


WHOLE = """
model: llama-3.1-8b
router: round-robin
patience_s: 60
link: {bytes_per_s: 25e9, latency_s: 0.002, layerwise: true}
pools:
- {device: h100-sxm, role: prefill, replicas: 2, prefill_first: true, chunked_prefill: false, prefix_caching: false}
- device: l40s
  role: decode
  kv_dtype: fp8
  scheduling_policy: priority
  async_scheduling: false
  swap_preempted: true
  no_evict: true
  reserve_ratio: 0.7
  speculative: "3:0.7"
  max_num_seqs: 64
  long_prefill_tokens: 512
  watermark_fraction: 0.01
  max_model_tokens: 8192
  framework: vllm
"""


def test_a_fleet_file_can_say_all_that_the_data_plane_knows(folder):
    (folder / "fleet.yaml").write_text(WHOLE)
    fleet = fleet_file.read(folder / "fleet.yaml").fleet
    assert (fleet.patience_s, fleet.router) == (60.0, "round-robin")
    assert (fleet.link.bytes_per_s, fleet.link.latency_s, fleet.link.is_layerwise) == (25e9, 0.002, True)
    prefill, decode = fleet.pools
    assert (prefill.role, decode.role) == ("prefill", "decode")
    limits = prefill.engine.limits
    assert (limits.prefill_first, limits.chunked_prefill, limits.caching) == (True, False, False)
    limits = decode.engine.limits
    assert (limits.by_priority, limits.asynchronous, limits.reserves) == (True, False, True)
    assert limits.swap_ps_per_token > 0
    assert limits.reserve == round(0.7 * 2**20)
    assert (limits.verified_tokens, limits.max_sequences, limits.long_prefill_tokens) == (4, 64, 512)
    assert limits.watermark_blocks == limits.total_blocks // 100
    assert limits.max_context_tokens == 8192
    assert decode.engine.engine.kv_dtype == "fp8"
    result = json.loads(simulate(folder, "--json").stdout)["result"]
    assert result["requests"]["finished"] == 2


def test_a_fleet_file_can_say_how_a_server_is_launched(folder):
    usual, launched = "", ", memory_fraction: 0.8, max_cudagraph_capture_size: 0, fuse_allreduce_rms: true"
    pools = []
    for flags in (usual, launched + ", moe_backend: CUTLASS"):
        line = f"{{device: b200-sxm, tp: 2, framework: tensorrt-llm{flags}}}"
        (folder / "fleet.yaml").write_text(f"model: llama-3.1-70b\npools: [{line}]\n")
        pools += fleet_file.read(folder / "fleet.yaml").fleet.pools
    plain, told = (pool.engine.engine.settings for pool in pools)
    assert (told.memory_fraction, told.max_cudagraph_capture_size) == (0.8, 0)
    assert (told.fuse_allreduce_rms, told.moe_backend) == (True, "CUTLASS")
    assert (plain.memory_fraction, plain.max_cudagraph_capture_size, plain.moe_backend) == (0.9, None, "")
    few, many = (pool.engine.limits.total_blocks for pool in reversed(pools))
    assert few < many


def test_engines_of_a_fleet_can_be_let_draft(folder):
    plain, drafting = (
        json.loads(simulate(folder, *more, "--json").stdout) for more in ([], ["--speculative", "3:0.7"])
    )
    assert drafting["inputs"]["speculative"] == "3:0.7"
    assert drafting["result"]["slo"]["tpot"]["p50"] < 0.7 * plain["result"]["slo"]["tpot"]["p50"]
    assert simulate(folder, "--speculative", "x").exit_code == 2


def test_data_parallel_ranks_are_lanes_with_their_own_memory(folder):
    (folder / "fleet.yaml").write_text("model: qwen3-30b-a3b\npools: [{device: h100-sxm, dp: 2, ep: 2}]\n")
    (pool,) = fleet_file.read(folder / "fleet.yaml").fleet.pools
    assert (pool.engine.lanes, pool.engine.ranks) == (2, 2)
    engine = pool.engine.engine
    assert pool.engine.limits.total_blocks == engine.kv_tokens // 16
    assert json.loads(simulate(folder, "--json").stdout)["result"]["requests"]["finished"] == 2


MISTAKES = [
    ("model: llama-3.1-8b\npools: [{device: l4, role: x}]\n", "2:28: pools.0.role: unknown role 'x'; known: both"),
    ("model: llama-3.1-8b\npools: [{device: l4, role: decode}]\n", "2:8: pools: pools that only prefill need pools"),
    ("model: llama-3.1-8b\npools: [{device: l4, speculative: '3'}]\n", "pools.0.speculative: cannot read the spec"),
    ("model: llama-3.1-8b\npools: [{device: l4, scheduling_policy: lifo}]\n", "unknown policy 'lifo'; known: fcfs, pr"),
    ("model: llama-3.1-8b\npools: [{device: l4, framework: x}]\n", "framework: unknown serving framework 'x'; known:"),
    ("model: llama-3.1-8b\npools: [{device: l4, reserve_ratio: 2}]\n", "reserve_ratio: must be from 0 to 1, got 2"),
    ("model: llama-3.1-8b\npools: [{device: l4, memory_fraction: 2}]\n", "memory_fraction: must be above 0 and at mo"),
    ("model: llama-3.1-8b\npools: [{device: l4, moe_backend: x}]\n", "unknown back end 'x'; known: TRTLLM, CUTLASS"),
    ("model: llama-3.1-8b\npools: [{device: l4, max_cudagraph_capture_size: -1}]\n", "size: must be at least 0, of"),
    ("model: llama-3.1-8b\npools: [{device: l4, block_tokens: 3}]\n", "block_tokens: must be a power of two, got 3"),
    ("model: llama-3.1-8b\npools: [{device: l4, kv_dtype: x}]\n", "pools.0.kv_dtype: unknown dtype 'x'"),
    ("model: llama-3.1-8b\npatience_s: 0\npools: [{device: l4}]\n", "2:13: patience_s: patience_s must be positive"),
    ("model: llama-3.1-8b\nlink: {latency_s: -1}\npools: [{device: l4}]\n", "link: latency_s must not be negative"),
    ("model: llama-3.1-8b\npools: [{device: h100-smx}]\n", "2:18: pools.0.device: unknown device 'h100-smx'; did you"),
    ("model: lama-3.1-8b\npools: [{device: l4}]\n", "pools.0.model: unknown model 'lama-3.1-8b'; did you mean llama"),
    ("pools: [{device: l4}]\n", "pools.0.model: no model named"),
    ("model: llama-3.1-8b\nrouter: random\npools: [{device: l4}]\n", "2:9: router: unknown router 'random'; known:"),
    ("model: llama-3.1-8b\nrooter: x\npools: []\n", "2:1: rooter: unknown key; did you mean router?"),
    ("model: llama-3.1-8b\n", "1:1: pools: missing"),
    ("model: llama-3.1-8b\npools: []\n", "2:8: pools: expected at least one"),
    ("model: llama-3.1-8b\npools: [{device: l4, replicas: yes}]\n", "2:32: pools.0.replicas: input should be a valid"),
    ("model: llama-3.1-8b\npools: [{device: l4, replicas: 0}]\n", "2:32: pools.0.replicas: must be at least 1, not 0"),
    ("model: llama-3.1-8b\npools: [{device: l4, tp: 3}]\n", "2:26: pools.0.tp: tp 3 does not divide the 32 heads"),
    ("model: llama-3.1-70b\npools: [{device: l4}]\n", "2:18: pools.0.device: llama-3.1-70b in bf16 does not fit"),
    ("model: llama-3.1-8b\npools: [{device: l4, dtype: bf61}]\n", "2:29: pools.0.dtype: unknown dtype 'bf61'"),
    ("model: llama-3.1-8b\npools: [{device: l4}]\nslo: [ttft<2]\n", "3:6: slo: cannot read the promise 'ttft<2'"),
    ("model: llama-3.1-8b\npools: [{device: l4\n", "not YAML: "),
    ("", "1:1: empty file"),
]


@pytest.mark.parametrize(("text", "words"), MISTAKES, ids=[words[:40] for _, words in MISTAKES])
def test_a_mistake_in_a_fleet_file_is_told_with_its_place(folder, text, words):
    (folder / "fleet.yaml").write_text(text)
    outcome = simulate(folder)
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert f"fleet.yaml:{words}" in outcome.stderr or words in outcome.stderr


def test_all_mistakes_of_a_fleet_file_are_told_at_once(folder):
    (folder / "fleet.yaml").write_text("model: x\nrouter: y\npools:\n- {device: z}\n- {device: l4, tp: 0}\nslo: [q]\n")
    words = simulate(folder).stderr
    for line in (":4:3: ", ":5:3: ", ":2:9: ", ":6:6: "):
        assert f"fleet.yaml{line}" in words


def test_a_missing_file_is_bad_input(folder):
    outcome = CliRunner().invoke(main, ["simulate", "--fleet", str(folder / "none.yaml")])
    assert outcome.exit_code == 2
    assert "none.yaml: No such file or directory" in outcome.stderr
