"""The control plane in fleet.yaml: what it says is played, and what is wrong is named by line and column."""

import json

import pytest
from click.testing import CliRunner

from planners.cli import main

FLEET = """
model: llama-3.1-8b
pools:
  - {{device: l40s, replicas: 3}}
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
