"""The gate: every class of drift, produced on purpose, is caught under its name and with its exit code."""

import json
import subprocess
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from planners.cli import main
from planners.gate import drift, lock
from planners.gate.drift import Today, findings
from planners.gate.lock import Scenario
from planners.plan import Plan, PlannedPool
from planners.report import findings as reports

PROMISE = "ttft:p99<=2s"
HASHES = {"trace": "aa", "model": "bb", "devices": "cc", "step times": "dd"}
FACTS = {"usd_per_hour": 4.0, "usd_per_hour_bound": 3.0, PROMISE: 1.0, "attainment": 0.995, "rejected": 0.0}
ROWS = [f"{number / 4},{100 + 10 * (number % 7)},{20 + number % 5}\n" for number in range(80)]


def pools(*names: str, usd: float = 4.0) -> tuple[PlannedPool, ...]:
    return tuple(PlannedPool(name, name, 2, usd / len(names)) for name in names)


def plan_of(*names: str, usd: float = 4.0, attainment: float = 0.995) -> Plan:
    return Plan(pools(*names, usd=usd), usd, 3.0, "planned", (0,), ((1.0,),), attainment=attainment)


def locked(**facts: float) -> Scenario:
    inputs = {"slo": [PROMISE], "prices": {"l4": 2.0}, "seed": 0, "trace": None, "model": "m", "devices": None}
    fleet = {"pools": plan_of("l4").result()["pools"], "routing": {}}
    return Scenario(inputs, HASHES, fleet, FACTS | facts)


def today(**changes) -> Today:
    held = {name: value for name, value in FACTS.items() if not name.startswith("usd")}
    same = Today(HASHES, {"l4": 2.0}, held, 4.0, plan_of("l4"))
    return replace(same, **changes)


def kinds(now: Today, was: Scenario | None = None) -> list[str]:
    return [each.kind for each in findings(was or locked(), now)]


def facts(**changes: float) -> dict[str, float]:
    return {name: value for name, value in (FACTS | changes).items() if not name.startswith("usd")}


def test_nothing_changed_is_clean():
    assert kinds(today()) == []


def test_a_changed_trace_is_an_input_and_told_first():
    now = today(hashes=HASHES | {"trace": "xx"}, facts=facts(**{PROMISE: 3.0}))
    assert kinds(now) == ["INPUT", "SLO"]


def test_a_changed_price_is_an_input():
    assert kinds(today(prices={"l4": 1.5})) == ["INPUT"]


def test_no_fleet_any_more_is_broken():
    found = findings(locked(), today(plan=None, reasons=("ttft cannot be kept",)))
    assert [each.kind for each in found] == ["BROKEN"]
    assert found[0].words == "ttft cannot be kept"


def test_a_promise_that_was_kept_and_is_broken_is_an_slo_finding():
    assert kinds(today(facts=facts(**{PROMISE: 2.5}))) == ["SLO"]


def test_a_figure_out_of_its_tolerance_is_drift_and_one_within_is_not():
    assert kinds(today(facts=facts(**{PROMISE: 1.019}))) == []
    assert kinds(today(facts=facts(**{PROMISE: 1.021}))) == ["DRIFT"]
    assert kinds(today(facts=facts(rejected=1.0))) == ["DRIFT"]


def test_another_fleet_at_another_cost_is_a_decision_and_a_cost():
    assert kinds(today(plan=plan_of("l40s", usd=5.0))) == ["DECISION", "COST"]


def test_another_fleet_at_the_same_cost_and_attainment_is_equivalent():
    assert kinds(today(plan=plan_of("l40s"))) == ["EQUIVALENT"]
    assert kinds(today(plan=plan_of("l40s", attainment=0.9))) == ["DECISION"]


def test_a_lower_cost_is_an_improvement():
    assert kinds(today(plan=plan_of("l4", usd=3.0))) == ["IMPROVED"]


def test_only_what_matters_fails():
    for kind in drift.CLASSES:
        found = [drift.Finding(kind, "x", 1, 2, "words")]
        assert drift.fails(found) == (kind in {"BROKEN", "SLO", "DECISION", "COST"})


def test_every_class_has_a_meaning():
    assert set(drift.MEANINGS) == set(drift.CLASSES)


def test_a_lock_comes_back_as_it_was_written():
    scenarios = {"b": locked(), "a": locked(attainment=1.0)}
    text = lock.text_of(scenarios)
    assert lock.parse("x", text) == {"a": scenarios["a"], "b": scenarios["b"]}
    assert text.index('"a"') < text.index('"b"')
    with pytest.raises(ValueError, match="format_version 2; this version reads 1"):
        lock.parse("x", text.replace('"format_version": 1', '"format_version": 2'))


def test_junit_has_a_failure_for_what_fails_and_a_case_for_what_is_clean():
    found = {"one": findings(locked(), today(plan=plan_of("l40s", usd=5.0), prices={"l4": 1.0})), "two": []}
    (suite,) = ElementTree.fromstring(reports.junit(found, "plan.lock.json"))
    assert (suite.get("tests"), suite.get("failures")) == ("4", "2")
    assert [each.get("type") for each in suite.iter("failure")] == ["DECISION", "COST"]


def test_markdown_says_the_verdict_and_explains_the_classes():
    text = reports.markdown({"one": findings(locked(), today(plan=plan_of("l4", usd=3.0))), "two": []})
    assert text.startswith("### Plan check: clean")
    assert "| IMPROVED | usd_per_hour |" in text
    assert "- IMPROVED: keeping the promises costs less" in text


def test_annotations_point_at_the_figure_in_the_lock(tmp_path):
    file = tmp_path / "plan.lock.json"
    file.write_text(lock.text_of({"one": locked()}))
    found = {"one": findings(locked(), today(facts=facts(**{PROMISE: 2.5})))}
    (line,) = reports.annotations(found, str(file))
    number = int(line.split("line=")[1].split(",")[0])
    assert PROMISE in file.read_text().splitlines()[number - 1]
    assert line.startswith("::error file=")


# From here on: real plans, real replays, one small trace.


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A folder with a trace, its plan and its lock."""
    folder = tmp_path_factory.mktemp("planned")
    write_trace(folder, ROWS)
    run(
        "fleet",
        str(folder / "chat.csv"),
        "--model",
        "llama-3.1-8b",
        "--devices",
        "l40s",
        "--slo",
        PROMISE,
        "-o",
        folder,
    )
    run("lock", folder / "plan.json", "-f", folder / "plan.lock.json", "--name", "chat", "--reason", "first")
    return folder


@pytest.fixture
def folder(planned, tmp_path):
    for name in ("chat.csv", "plan.json", "plan.lock.json"):
        text = (planned / name).read_text().replace(str(planned), str(tmp_path))
        (tmp_path / name).write_text(text)
    return tmp_path


def write_trace(folder, rows: list[str]) -> None:
    (folder / "chat.csv").write_text("arrival_s,input_tokens,output_tokens\n" + "".join(rows))


def run(*arguments: object, exit_code: int = 0) -> dict:
    outcome = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    assert outcome.exit_code == exit_code, outcome.output
    return json.loads(outcome.stdout)


def check(folder, *arguments: object, exit_code: int = 0) -> list[str]:
    told = run("check", folder / "plan.lock.json", *arguments, exit_code=exit_code)
    return [each["kind"] for each in told["result"]["scenarios"]["chat"]]


def edit(folder, change) -> None:
    content = json.loads((folder / "plan.lock.json").read_text())
    change(content["scenarios"]["chat"])
    (folder / "plan.lock.json").write_text(json.dumps(content, indent=1))


def test_a_fresh_lock_is_clean_and_says_why_it_is_so(folder):
    assert check(folder) == []
    assert json.loads((folder / "plan.lock.json").read_text())["scenarios"]["chat"]["reason"] == "first"
    assert len((folder / "plan.lock.json").read_text()) < 6000


def test_a_plan_can_be_checked_without_a_lock(folder):
    told = run("check", folder / "plan.json")
    assert told["result"]["drift"] is False


def test_forty_times_the_traffic_breaks_the_promise_and_the_decision(folder):
    rows = [f"{number / 160},{2000 + number % 7},{200 + number % 5}\n" for number in range(800)]
    write_trace(folder, rows)
    found = check(folder, exit_code=3)
    assert found[0] == "INPUT"
    assert {"SLO", "DECISION", "COST"} <= set(found)


def test_a_trace_that_is_gone_is_broken(folder):
    (folder / "chat.csv").unlink()
    assert check(folder, exit_code=3) == ["BROKEN"]


def test_costs_are_held_against_the_lock_both_ways(folder):
    edit(folder, lambda scenario: scenario["facts"]["usd_per_hour"].update(value=0.5))
    assert "COST" in check(folder, exit_code=3)
    edit(folder, lambda scenario: scenario["facts"]["usd_per_hour"].update(value=50.0))
    assert "IMPROVED" in check(folder)


def test_locked_prices_hold_unless_fresh_ones_are_asked_for(folder):
    def halve(scenario):
        scenario["inputs"]["prices"]["l40s"] /= 2
        scenario["facts"]["usd_per_hour"]["value"] /= 2
        scenario["facts"]["usd_per_hour_bound"]["value"] /= 2

    edit(folder, halve)
    assert check(folder) == ["INPUT"]
    assert {"INPUT", "COST"} <= set(check(folder, "--fresh-prices", exit_code=3))


def _other_name(scenario):
    scenario["fleet"]["pools"][0]["name"] = "llama-3.1-8b/l40s/another"


def _other_name_and_share(scenario):
    _other_name(scenario)
    scenario["facts"]["attainment"]["value"] = 0.9


PRODUCED = {
    "INPUT": (lambda scenario: scenario["hashes"].update(model="0"), 0, {"INPUT"}),
    "BROKEN": (lambda scenario: scenario["inputs"].update(limits={"usd_per_hour": 1e-3}), 3, {"BROKEN"}),
    "DECISION": (_other_name_and_share, 3, {"DECISION", "DRIFT"}),
    "COST": (lambda scenario: scenario["facts"]["usd_per_hour"].update(value=0.5), 3, {"COST", "DRIFT"}),
    "DRIFT": (lambda scenario: scenario["facts"][PROMISE].update(value=1.5), 0, {"DRIFT"}),
    "EQUIVALENT": (_other_name, 0, {"EQUIVALENT"}),
    "IMPROVED": (lambda scenario: scenario["facts"]["usd_per_hour"].update(value=50.0), 0, {"IMPROVED", "DRIFT"}),
}


@pytest.mark.parametrize("kind", drift.CLASSES)
def test_each_class_produced_on_purpose_is_caught_with_its_exit_code(folder, kind):
    if kind == "SLO":  # only other traffic breaks a promise that was kept
        write_trace(folder, [f"{number / 160},{2000 + number % 7},{200 + number % 5}\n" for number in range(800)])
        assert "SLO" in check(folder, exit_code=3)
        return
    change, exit_code, found = PRODUCED[kind]
    edit(folder, change)
    assert set(check(folder, exit_code=exit_code)) == found


def split(content: dict) -> None:
    """Let the plan be of a prefill pool beside a decode pool of the same engines, as if found with --split."""
    result = content["result"]
    (pool,) = result["pools"]
    roles = ("prefill", "decode")
    result["pools"] = [pool | {"name": f"{pool['name']}/{role}", "role": role} for role in roles]
    result["usd_per_hour"] *= 2
    result["routing"] |= {"router": "join-shortest-queue", "shares": [[1.0, 0.0]], "input_edges": [0]}
    content["inputs"]["split"] = True


def test_a_split_plan_is_replayed_locked_checked_and_exported(folder):
    content = json.loads((folder / "plan.json").read_text())
    split(content)
    (folder / "plan.json").write_text(json.dumps(content))
    replayed = run("simulate", folder / "chat.csv", "--fleet", folder / "plan.json")["result"]
    assert replayed["requests"]["finished"] == len(ROWS)
    for key in ("slo", "attainment", "requests"):
        content["result"][key] = replayed[key]
    content["result"]["promises"][0]["value_s"] = replayed["slo"]["ttft"]["p99"]
    (folder / "plan.json").write_text(json.dumps(content))
    run("lock", folder / "plan.json", "-f", folder / "plan.lock.json", "--name", "chat", "--update", "--force")
    scenario = lock.read(folder / "plan.lock.json")["chat"]
    assert scenario.inputs["split"] is True
    assert [pool["role"] for pool in scenario.fleet["pools"]] == ["prefill", "decode"]
    found = check(folder, exit_code=3)  # one pool of both is cheaper for so few requests; the lock's own figures hold
    assert set(found) == {"DECISION", "IMPROVED"}
    for target in ("k8s", "llm-d", "dynamo"):
        assert run("export", target, folder / "plan.json")["result"]["files"]


def test_a_plan_for_a_scaled_trace_is_checked_against_the_scaled_trace(folder):
    arguments = ("--model", "llama-3.1-8b", "--devices", "l40s", "--slo", PROMISE, "--scale", "2x", "-o", folder)
    run("fleet", folder / "chat.csv", *arguments)
    run("lock", folder / "plan.json", "-f", folder / "plan.lock.json", "--name", "chat", "--update", "--force")
    assert check(folder) == []
    edit(folder, lambda scenario: scenario["inputs"].update(scale="3x"))
    assert check(folder)[0] == "INPUT"


def test_which_classes_fail_can_be_chosen(folder):
    edit(folder, lambda scenario: scenario["facts"]["usd_per_hour"].update(value=0.5))
    assert check(folder, "--fail-on", "broken") == ["COST", "DRIFT"]
    assert check(folder, "--exit-zero") == ["COST", "DRIFT"]
    outcome = CliRunner().invoke(main, ["check", str(folder / "plan.lock.json"), "--fail-on", "worse"])
    assert outcome.exit_code == 2
    assert "unknown class 'WORSE'" in outcome.stderr


def test_reports_are_written_for_machines_and_people(folder, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(folder / "summary.md"))
    edit(folder, lambda scenario: scenario["facts"]["usd_per_hour"].update(value=0.5))
    arguments = [
        "check",
        str(folder / "plan.lock.json"),
        "--junit",
        str(folder / "j.xml"),
        "--markdown",
        str(folder / "m.md"),
    ]
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code == 3
    assert ElementTree.parse(folder / "j.xml").find(".//failure").get("type") == "COST"
    assert "Plan check: drift" in (folder / "m.md").read_text()
    assert (folder / "summary.md").read_text() == (folder / "m.md").read_text()
    assert "::error file=" in outcome.stderr


def test_a_lock_is_held_against_a_git_revision(folder):
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)

    git("init", "-q")
    git("add", "plan.lock.json")
    git("commit", "-qm", "lock")
    edit(folder, lambda scenario: scenario["facts"]["usd_per_hour"].update(value=0.5))
    assert "COST" in check(folder, exit_code=3)
    assert check(folder, "--against", "HEAD") == []
    outcome = CliRunner().invoke(main, ["check", str(folder / "plan.lock.json"), "--against", "nowhere"])
    assert outcome.exit_code == 2


def test_a_lock_is_not_replaced_by_accident(folder, monkeypatch):
    arguments = ["lock", str(folder / "plan.json"), "-f", str(folder / "plan.lock.json"), "--name", "chat"]
    edit(folder, lambda scenario: scenario["facts"]["usd_per_hour"].update(value=50.0))
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code == 2
    assert "--update replaces it" in outcome.stderr
    monkeypatch.setenv("CI", "true")
    assert CliRunner().invoke(main, [*arguments, "--update"]).exit_code == 2
    assert CliRunner().invoke(main, [*arguments, "--update", "--force"]).exit_code == 0
    monkeypatch.delenv("CI")
    assert check(folder) == []
