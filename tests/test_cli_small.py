"""The small commands: each does the one thing that its help says."""

import json
import subprocess
from itertools import pairwise

import pytest
from click.testing import CliRunner

from models import price
from planners.cli import main
from planners.commands.explain import glossary
from planners.gate import drift


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
    monkeypatch.setenv("COLUMNS", "60")
    outcome = run("doctor", exit_code=1)
    assert "WRONG" in outcome.stdout
    assert "set FLEETPLAN_CACHE_DIR" in " ".join(outcome.stdout.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell, tmp_path):
    script = run("completion", shell).stdout
    assert "_PLAN_COMPLETE" in script
    if shell == "bash":
        (tmp_path / "c.sh").write_text(script)
        assert subprocess.run(["bash", "-n", str(tmp_path / "c.sh")]).returncode == 0


@pytest.fixture
def plans(tmp_path, monkeypatch):
    """A small trace, and two plans for it whose promises differ."""
    rows = "".join(f"{number / 4},{100 + 10 * (number % 7)},{20 + number % 5}\n" for number in range(40))
    (tmp_path / "chat.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    monkeypatch.chdir(tmp_path)
    for limit in ("1s", "2s"):
        arguments = ["chat.csv", "--model", "llama-3.1-8b", "--devices", "l40s", "--slo", f"ttft:p99<={limit}"]
        run("fleet", *arguments, "-o", limit)
    return tmp_path


def test_plans_are_compared_with_the_reason_for_each_difference(plans):
    benchmark = {"completed": 38, "failed": 2, "duration": 10.0, "median_ttft_ms": 100.0, "p99_ttft_ms": 250.0}
    (plans / "bench.json").write_text(json.dumps(benchmark))
    files = ["1s/plan.json", "2s/plan.json", "bench.json"]
    result = json.loads(run("compare", *files, "--json").stdout)["result"]
    assert result["reasons"]["2s/plan.json"][0] == 'slo: ["ttft:p99<=1s"] became ["ttft:p99<=2s"]'
    figures = {row["figure"]: row for row in result["figures"]}
    assert figures["slo.ttft.p99"]["values"][2] == 0.25
    assert figures["requests.arrived"]["values"] == [40, 40, 40]
    assert figures["requests.finished"]["changes"][2] == pytest.approx(-0.05)
    assert "differs because" in run("compare", *files).stdout


def test_what_is_no_answer_is_not_compared(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    outcome = run("compare", str(tmp_path / "a.json"), str(tmp_path / "a.json"), exit_code=2)
    assert "neither a plan, a run" in outcome.stderr
    assert "expected at least 2" in run("compare", "x", exit_code=2).stderr


def test_the_timeline_has_a_span_for_every_part_of_every_request(plans):
    run("trace", "1s/plan.json", "-o", "t.json")
    events = json.loads((plans / "t.json").read_text())["traceEvents"]
    begun = [event for event in events if event["ph"] == "b"]
    ended = [event for event in events if event["ph"] == "e"]
    assert len(begun) == len(ended) == 40 * 4
    assert {event["name"] for event in begun} >= {"wait", "prefill", "decode", "request 0"}
    ends = {(event["id"], event["name"]): event["ts"] for event in ended}
    assert all(ends[event["id"], event["name"]] >= event["ts"] for event in begun)
    assert min(event["args"]["waiting"] for event in events if event["ph"] == "C") >= 0
    steps = [event for event in events if event["ph"] == "X"]
    by_lane = sorted(steps, key=lambda event: (event["tid"], event["ts"]))
    overlaps = (one["ts"] + one["dur"] - other["ts"] for one, other in pairwise(by_lane) if one["tid"] == other["tid"])
    assert max(overlaps) < 1e-3, "steps of a lane follow each other"
    assert {event["name"].split()[0] for event in steps} == {"prefill", "decode"}
    assert "expected FROM,TO in seconds" in run("trace", "1s/plan.json", "--window", "1m", exit_code=2).stderr
