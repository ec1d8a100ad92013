"""The control plane in fleet.yaml: what it says is played, and what is wrong is named by line and column."""

import json
import re

import numpy as np
import pytest
import toys
from click.testing import CliRunner

import traces
from planners.cli import main
from traces.sessions import Agents, generate_agents

FLEET = """
model: llama-3.1-8b
pools:
  - {{device: l40s, replicas: 3, variants: [2.0]}}
control:
{control}
"""


def simulate(folder, control, *options):
    path = folder / "fleet.yaml"
    path.write_text(FLEET.format(control=control))
    return CliRunner().invoke(main, ["simulate", "--fleet", str(path), "--json", *options])


def test_routing_scaling_migration_and_failures_are_played(tmp_path):
    found = simulate(
        tmp_path,
        """
  routing: {name: power-of-two}
  autoscale:
    - {policy: kpa, settings: {target: 20.0}, initial: 2, startup_s: 30}
  migration: {low: 100, high: 200, every_s: 1}
  failures:
    - {up_s: 900, down_s: 60}
  sight: {age_s: 0.25}
  fabric: {nic_bytes_per_s: 25e9, operation_s: 1e-5, up_s: 600, down_s: 20}
  stragglers: [{lane: 1, from_s: 100, until_s: 900}]
""",
    )
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)["result"]
    assert result["requests"]["in_flight"] == 0
    assert result["requests"]["finished"] > 19_000


@pytest.mark.parametrize(
    ("control", "words"),
    [
        ("  routing: {name: power-of-too}", "unknown router 'power-of-too'"),
        ("  routing: {name: prefix-aware, settings: {guard: 3}}", "no setting 'guard'"),
        ("  autoscale: [{policy: kpb}]", "unknown autoscaler 'kpb'"),
        ("  autoscale: [{policy: kpa, pool: 3, settings: {target: 1.0}}]", "no pool 3"),
        ("  autoscale: [{policy: kpa, settings: {target: 1.0}, initial: 9}]", "expected 0 <= least"),
        ("  autoscale: [{policy: kpa}]", "needs settings: target"),
        ("  failures: [{up_s: 0, down_s: 1}]", "must be positive"),
        ("  routeing: {name: random}", "routeing"),
        ("  stragglers: [{lane: 3, from_s: 0, until_s: 1}]", "no lane 3; the fleet has 0 to 2"),
        ("  stragglers: [{lane: 0, from_s: 0, until_s: 1, variant: 2}]", "1 variants, not a variant 2"),
        ("  fabric: {nic_bytes_per_s: 1e9, up_s: 5}", "control.fabric.up_s: up_s and down_s belong together"),
        ("  fabric: {nic_bytes_per_s: 1e9, replicas_per_node: 2}", "belong together"),
        ("  fabric: {nic_bytes_per_s: 1e9, store_bytes_per_s: 1e9}", "no pool fetches outside the batch from a shared"),
        (
            "  fabric: {nic_bytes_per_s: 1e9, far: [{pools: [4], bytes_per_s: 1e9}]}",
            "control.fabric.far.0.pools: no pool",
        ),
        ("  routing: {name: random, retries: {attempts: 0}}", "control.routing.retries.attempts: must be positive"),
        ("  time_outs: {wait_s: 0}", "control.time_outs.wait_s: must be positive"),
        ("  rebalance: {least_gap: 1}", "least_gap >= 2"),
        ("  flip_roles: {high_tokens: 100, low_tokens: 1}", "needs hand_over and routing"),
        ("  scheduler: {name: edff}", "control.scheduler.name: unknown scheduler 'edff'; known: fcfs, priority, edf"),
        ("  scheduler: {name: windowed}", "scheduler windowed needs settings: window_s"),
        ("  scheduler: {name: edf, settings: {window: 1}}", "control.scheduler.settings: scheduler edf has no setting"),
        ("  {scheduler: {name: edf}, closed_loop: true}", "leave out closed_loop"),
        (
            "  autoscale: [{policy: kpa, settings: {target: 4}, drain: drop}]",
            "unknown way to drain 'drop'; known: wait",
        ),
        ("  autoscale: [{policy: kpa, settings: {target: 4}, drain: move}]", "there is neither"),
        ("  autoscale: [{policy: kpa, settings: {target: 4}, spot: {evictions_per_hour: -1}}]", "must not be negative"),
        ("  hand_over: {grain: whole}", "needs a fabric"),
        ("  shares: {ttft_s: 1, tpot_s: 1}", "needs pools that share their devices"),
        ("  tools: {workers: 2}", "closed_loop is off"),
        ("  {closed_loop: true, tools: {rule: keeep}}", "unknown rule 'keeep'; known: keep, leave"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, control, words):
    found = simulate(tmp_path, control)
    assert found.exit_code == 2
    assert words in found.stderr
    assert "fleet.yaml:6:" in found.stderr


def test_a_closed_loop_needs_a_trace_that_says_what_follows_from_what(tmp_path):
    found = simulate(tmp_path, "  closed_loop: true")
    assert found.exit_code == 2
    assert "parent_ids" in found.stderr


def played(folder, text, trace=None):
    (folder / "fleet.yaml").write_text(text)
    arguments = [] if trace is None else [str(folder / "asked.parquet")]
    if trace is not None:
        traces.write(trace, folder / "asked.parquet")
    found = CliRunner().invoke(main, ["simulate", *arguments, "--fleet", str(folder / "fleet.yaml"), "--json"])
    return found, json.loads(found.stdout)["result"] if found.exit_code == 0 else None


def long_prompts(again=True, **columns):
    """Sixty prompts of 16k tokens, more than a replica holds, and the same again."""
    names = [*range(60), *(range(60) if again else range(60, 120))]
    contents = [[100 * name + block for block in range(32)] for name in names]
    return toys.trace(np.arange(120) * 4.0, 512 * 32 + 8, 4, contents, content_tokens=512, **columns)


TIERED = """
model: llama-3.1-8b
pools:
  - device: l40s
    replicas: 2
    tiers:
      - {name: dram, capacity_bytes: 20e9, bytes_per_s: 25e9, operation_s: 1e-5, operation_blocks: 9, eviction: s3-fifo}
      - {name: pool, capacity_bytes: 500e9, bytes_per_s: 10e9, is_shared: true, total_bytes_per_s: 20e9}
    fetches: FETCHES
    eviction: s3-fifo
    swap_preempted: true
    swap_operation_s: 1e-5
    swap_operation_blocks: 20
    swap_keeps_copies: true
"""


@pytest.mark.parametrize("fetches", ["layer-wise", "outside"])
def test_tiers_of_a_fleet_file_are_played_and_told(tmp_path, fetches):
    found, result = played(tmp_path, TIERED.replace("FETCHES", fetches), long_prompts())
    assert found.exit_code == 0, found.output
    assert [each["tier"] for each in result["tiers"]] == ["dram", "pool"]
    assert sum(each["read_tokens"] for each in result["tiers"]) > 20 * 512 * 32
    assert result["tiers"][0]["held_tokens"] * 131_072 <= 20e9


TWINS = """
model: llama-3.1-8b
pools:
  - {device: a100-sxm-80gb, role: prefill, prefix_caching: false}
  - {device: a100-sxm-80gb, role: decode, prefix_caching: false, twin_of: 0}
control:
  shares: {ttft_s: 0.5, tpot_s: 0.05}
"""


def test_two_pools_of_a_fleet_file_share_their_devices_by_shares_that_follow(tmp_path):
    found, result = played(tmp_path, TWINS, toys.trace(np.arange(300) * 0.2, 2000, 100))
    assert found.exit_code == 0, found.output
    assert result["requests"] == {"arrived": 300, "finished": 300, "rejected": 0, "failed": 0, "in_flight": 0}


HANDED_OVER = """
model: llama-3.1-8b
pools:
  - {device: l40s, role: prefill}
  - {device: l40s, replicas: 2, role: decode}
control:
  fabric: {nic_bytes_per_s: 12e9, operation_s: 1e-6, up_s: 20, down_s: 2}
  hand_over: {grain: layer-wise, hides_bytes_per_s: 10e9, patience_s: 1}
"""


def test_prompts_of_a_fleet_file_are_handed_over_on_a_fabric_whose_links_fail(tmp_path):
    found, result = played(tmp_path, HANDED_OVER, toys.trace(np.arange(300) * 0.2, 2000, 50))
    assert found.exit_code == 0, found.output
    assert result["requests"]["finished"] == 300


FLIPPED = (
    HANDED_OVER.replace("  hand_over", "  routing: {name: least-pending-tokens}\n  hand_over")
    + """
  flip_roles: {high_tokens: 8000, low_tokens: 100, every_s: 0.5}
  rebalance: {every_s: 0.5}
  time_outs: {wait_s: 5, attempts: 2}
"""
)


def test_a_burst_of_prompts_turns_a_decode_replica_of_a_fleet_file_around_and_back(tmp_path):
    trace = toys.trace(np.append(np.zeros(40), np.arange(50) * 1.0), 4000, 50)
    found, result = played(tmp_path, FLIPPED, trace)
    _, fixed = played(tmp_path, FLIPPED.replace("high_tokens: 8000", "high_tokens: 1e9"), trace)
    assert found.exit_code == 0, found.output
    assert result["requests"]["finished"] == fixed["requests"]["finished"] == 90
    assert result["slo"]["ttft"]["p90"] < 0.9 * fixed["slo"]["ttft"]["p90"]


REMOTE = """
model: llama-3.1-8b
pools:
  - device: l40s
    replicas: 4
    tiers: [{name: pool, capacity_bytes: 500e9, bytes_per_s: 10e9, is_shared: true, writes_through: true}]
    fetches: outside
control:
  routing: {name: round-robin, retries: {attempts: 2}}
  fabric: {nic_bytes_per_s: 12e9, replicas_per_node: 2, scale_up_bytes_per_s: 300e9, store_bytes_per_s: STORE}
"""


def test_a_shared_tier_of_a_fleet_file_hangs_on_the_fabric(tmp_path):
    trace = long_prompts()
    waits_s = []
    for store in ("12e9", "1e9"):
        found, result = played(tmp_path, REMOTE.replace("STORE", store), trace)
        assert found.exit_code == 0, found.output
        assert result["requests"]["finished"] == 120
        assert result["tiers"][0]["read_tokens"] >= 59 * 512 * 32
        waits_s.append(result["slo"]["ttft"]["p50"])
    # 16,384 tokens of 131,072 bytes: 0.18 s at 12 GB/s, 2.1 s at 1 GB/s, and half of the prompts fetch theirs
    assert waits_s[1] > waits_s[0]


SCHEDULED = """
model: llama-3.1-8b
slo: ["ttft:p90<=1s"]
pools: [{device: l40s, replicas: 2, max_num_batched_tokens: 16384}]
control:
  scheduler: {name: NAME, settings: SETTINGS}
"""


@pytest.mark.parametrize(
    ("name", "settings"),
    [("s-edf", "{preempt: op, spread: 0.1}"), ("windowed", "{window_s: 0.05}"), ("no-preempt", "{wait_steps: 5}")],
)
def test_lanes_of_a_fleet_file_ask_a_scheduler_by_name(tmp_path, name, settings):
    text = SCHEDULED.replace("NAME", name).replace("SETTINGS", settings)
    found, result = played(tmp_path, text, toys.trace(np.arange(60) * 0.2, 2000, 20))
    assert found.exit_code == 0, found.output
    assert result["requests"]["finished"] == 60
    assert result["slo"]["ttft"]["p50"] < 1.0


SPOT = """
model: llama-3.1-8b
pools: [{device: l40s, replicas: 3}]
control:
  autoscale:
    - {policy: kpa, settings: {target: 8}, initial: 2, startup_s: 5, every_s: 5, drain: move,
       spot: {evictions_per_hour: 60, notice_s: 2}}
  fabric: {nic_bytes_per_s: 12e9, far: [{pools: [0], bytes_per_s: [[0, 5e9], [60, 1e9]], latency_s: 0.01}]}
"""


def test_spot_replicas_of_a_fleet_file_are_taken_away_and_what_they_run_moves(tmp_path):
    found, result = played(tmp_path, SPOT, toys.trace(np.arange(600) * 0.5, 1000, 100))
    assert found.exit_code == 0, found.output
    assert result["requests"]["finished"] == 600


def test_agents_of_a_fleet_file_call_tools_with_workers(tmp_path):
    trace = generate_agents(Agents(steps_mean=5.0, start_tokens=2000), 60.0, seed=1, parameters={"rate_per_s": 0.5})
    text = (
        "model: llama-3.1-8b\npools: [{device: l40s}]\ncontrol: {closed_loop: true, tools: {workers: 1, rule: keep}}\n"
    )
    found, result = played(tmp_path, text, trace)
    assert found.exit_code == 0, found.output
    assert result["requests"]["finished"] == len(trace)


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ("tiers: [{name: dram, capacity_bytes: 0, bytes_per_s: 1e9}]", "pools.0.tiers.0: capacity_bytes of tier dram"),
        (
            "tiers: [{name: d, capacity_bytes: 1e9, bytes_per_s: 1e9, eviction: arc}]",
            "unknown eviction 'arc' of tier d",
        ),
        ("tiers: [{name: d, capacity: 1e9, bytes_per_s: 1e9}]", "capacity"),
        ("fetches: beside", "pools.0.fetches: unknown way 'beside'; known: before, layer-wise, outside"),
        ("eviction: fifo", "pools.0.eviction: unknown eviction 'fifo' of the pool; known: lru, s3-fifo"),
        ("quotas: {a: 0.7, b: 0.7}", "pools.0.quotas: quotas of the pool must be shares"),
        ("swap_preempted: true, swap_operation_s: -1", "pools.0.swap_operation_s: must not be negative"),
        ("swap_preempted: true, swap_operation_blocks: 0", "pools.0.swap_operation_blocks: must be at least 1"),
        ("variants: [2.0, 0.0]", "pools.0.variants.1: must be positive"),
        ("twin_of: 0", "pools.0.twin_of: no pool 0 before this one"),
        ("prefix_caching: false, tiers: [{name: d, capacity_bytes: 1e9, bytes_per_s: 1e9}]", "no prefix cache"),
    ],
)
def test_a_mistake_in_a_part_of_a_pool_is_named_with_its_place(tmp_path, pool, words):
    found, _ = played(tmp_path, f"model: llama-3.1-8b\npools:\n  - {{device: l40s, {pool}}}\n")
    assert found.exit_code == 2
    assert words in found.stderr
    assert re.search(r"fleet.yaml:[23]:\d+", found.stderr)
