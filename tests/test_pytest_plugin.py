"""The pytest plugin: a study is locked once, checked ever after, and locked anew only when asked."""

import json
from importlib.metadata import entry_points

import pytest

from planners.plan import Plan
from planners.pytest_plugin import assert_meets

pytest_plugins = ["pytester"]

ROWS = "".join(f"{number / 4},{100 + 10 * (number % 7)},{20 + number % 5}\n" for number in range(40))
TEST = 'def test_the_decision_stands(plan_check):\n    plan_check("study.yaml", lock="plan.lock.json")\n'


@pytest.fixture
def folder(pytester):
    (pytester.path / "chat.csv").write_text("arrival_s,input_tokens,output_tokens\n" + ROWS)
    study = 'trace: chat.csv\nmodel: llama-3.1-8b\nslo: ["ttft:p99<=2s"]\ndevices: [l40s]\n'
    (pytester.path / "study.yaml").write_text(study)
    pytester.makepyfile(TEST)
    return pytester


def run(folder, *arguments: str):
    is_installed = any(entry.name == "fleetplan" for entry in entry_points(group="pytest11"))
    plugin = () if is_installed else ("-p", "planners.pytest_plugin")
    return folder.runpytest_inprocess(*plugin, "-p", "no:cacheprovider", *arguments)


def test_a_decision_is_locked_then_checked_and_drift_fails_with_its_class(folder):
    run(folder).assert_outcomes(passed=1)
    lock = folder.path / "plan.lock.json"
    content = json.loads(lock.read_text())
    content["scenarios"]["study"]["facts"]["usd_per_hour"]["value"] = 0.1
    lock.write_text(json.dumps(content))
    failed = run(folder)
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(["*plan.lock.json drifted*", "*COST usd_per_hour*"])
    run(folder, "--plan-update").assert_outcomes(passed=1)
    assert json.loads(lock.read_text())["scenarios"]["study"]["facts"]["usd_per_hour"]["value"] > 0.1


def test_a_promise_that_a_plan_breaks_is_told_with_its_figure():
    plan = Plan((), 1.0, 1.0, "planned", (0,), (), latency_s={"ttft": {"p50": 0.1, "p90": 0.2, "p99": 0.6}})
    assert_meets(plan, "ttft:p50<=200ms", "ttft:p99<=1s")
    with pytest.raises(AssertionError, match=r"ttft:p99<=500ms: 0\.6 s is late"):
        assert_meets(plan, "ttft:p50<=200ms", "ttft:p99<=500ms")
    with pytest.raises(ValueError, match="does not carry ttft:p95; it has: p50, p90, p99"):
        assert_meets(plan, "ttft:p95<=1s")
