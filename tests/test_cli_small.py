"""The small commands: each does the one thing that its help says."""

import json
import subprocess

import pytest
from click.testing import CliRunner

from models import price
from planners import drift
from planners.cli import main
from planners.commands.explain import glossary


def run(*arguments: str, exit_code: int = 0):
    outcome = CliRunner().invoke(main, list(arguments))
    assert outcome.exit_code == exit_code, outcome.output
    return outcome


def test_prices_are_listed_cheapest_first_and_the_plan_takes_the_first_on_demand():
    offers = json.loads(run("prices", "h100-sxm", "--json").stdout)["result"]
    on_demand = [offer["usd_per_hour"] for offer in offers if offer["kind"] == "on-demand"]
    assert on_demand == sorted(on_demand)
    assert on_demand[0] == price.load("h100-sxm").usd_per_hour
    assert all(offer["date"] for offer in offers)


def test_a_price_list_of_ones_own_is_checked(tmp_path):
    (tmp_path / "own.csv").write_text("device,usd_per_hour\nl4,0.5\nl4,cheap\n")
    outcome = run("prices", "--file", str(tmp_path / "own.csv"), exit_code=2)
    assert "own.csv:3:2: usd_per_hour must be a positive number, not 'cheap'" in outcome.stderr


def test_every_class_of_drift_and_every_metric_is_explained():
    words = glossary()
    assert {"ttft", "tpot", "e2e", "attainment", "gap", "bound", *drift.CLASSES} <= set(words)
    assert "queueing included" in run("explain", "TTFT").stdout


def test_an_unknown_word_is_answered_with_the_nearest():
    assert "did you mean tpot" in run("explain", "tpto", exit_code=2).stderr


def test_the_schema_of_a_fleet_file_knows_its_pools():
    found = json.loads(run("schema", "fleet").stdout)
    assert "pools" in found["required"]
    assert "device" in found["$defs"]["PoolLine"]["required"]


def test_the_doctor_finds_this_environment_well():
    found = json.loads(run("doctor", "--json").stdout)["result"]["checks"]
    assert {each["check"]: each["ok"] for each in found} == dict.fromkeys([each["check"] for each in found], True)


def test_the_doctor_says_what_is_wrong(monkeypatch):
    monkeypatch.setattr("models.compiled.cache_directory", lambda: None)
    outcome = run("doctor", exit_code=1)
    assert "WRONG" in outcome.stdout
    assert "set FLEETPLAN_CACHE_DIR" in outcome.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell, tmp_path):
    script = run("completion", shell).stdout
    assert "_PLAN_COMPLETE" in script
    if shell == "bash":
        (tmp_path / "c.sh").write_text(script)
        assert subprocess.run(["bash", "-n", str(tmp_path / "c.sh")]).returncode == 0
