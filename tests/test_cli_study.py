"""plan.yaml: written down once, found by itself, wrong in as many places as are told at once."""

import json

import pytest
import yaml
from click.testing import CliRunner

from planners import study
from planners.cli import main
from planners.study import Study, usd_per_hour

SMALLEST = 'trace: chat.csv\nmodel: llama-3.1-8b\nslo: ["ttft:p99<=2s"]\n'
ROWS = "".join(f"{number / 4},{100 + 10 * (number % 7)},{20 + number % 5}\n" for number in range(80))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "chat.csv").write_text("arrival_s,input_tokens,output_tokens\n" + ROWS)
    (tmp_path / "plan.yaml").write_text(SMALLEST)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, exit_code: int = 0):
    outcome = CliRunner().invoke(main, list(arguments))
    assert outcome.exit_code == exit_code, outcome.output
    return outcome


def test_the_study_in_the_working_folder_is_planned(folder):
    told = json.loads(run("fleet", "--devices", "l40s", "--json").stdout)
    assert told["inputs"]["model"] == "llama-3.1-8b"
    assert told["inputs"]["slo"] == ["ttft:p99<=2s"]
    assert told["inputs"]["trace"]["requests"] == 80


def test_prices_of_ones_own_are_planned_with_and_kept_in_the_plan(folder):
    (folder / "plan.yaml").write_text(SMALLEST + 'devices: [l40s]\nprices: {l40s: "$0.25/h"}\n')
    told = json.loads(run("fleet", "--json").stdout)
    devices = sum(pool["replicas"] * pool["tp"] * pool["pp"] for pool in told["result"]["pools"])
    assert told["result"]["usd_per_hour"] == pytest.approx(0.25 * devices)
    assert told["inputs"]["prices"] == {"l40s": 0.25}
    run("lock", "plan.json")
    assert "clean" in run("check").stdout


def test_flags_and_settings_win_over_the_file(folder):
    told = json.loads(run("fleet", "--set", "seed=3", "--set", "devices=[l4]", "--analytic", "--json").stdout)
    assert told["inputs"]["seed"] == 3
    assert {pool["device"] for pool in told["result"]["pools"]} == {"l4"}


def test_without_a_model_and_a_file_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "plan init writes one" in run("fleet", exit_code=2).stderr


def test_what_init_writes_is_read_and_follows_the_schema(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("init")
    text = (tmp_path / "plan.yaml").read_text()
    assert "# yaml-language-server: $schema=plan.schema.json" in text
    assert study.read("plan.yaml") == Study("llama-3.1-8b", ("ttft:p99<=2s", "tpot:p99<=80ms"))
    found = json.loads((tmp_path / "plan.schema.json").read_text())
    assert set(yaml.safe_load(text)) <= set(found["properties"])
    assert found == json.loads(run("schema").stdout)
    assert "plan.yaml is there already" in run("init", exit_code=2).stderr


def test_the_schema_names_every_key():
    found = study.schema()
    assert set(found["properties"]) == set(Study.__slots__)
    assert found["required"] == ["model", "slo"]
    assert found["additionalProperties"] is False


MISTAKES = [
    ("model: llama-3.1-8b\n", "1:1: slo: missing"),
    ("modle: x\nslo: []\n", "1:1: modle: unknown key; did you mean model?"),
    ("model: lama\nslo: [ttft:p99<=2s]\n", "1:8: model: unknown model 'lama'"),
    ("model: llama-3.1-8b\nslo: [ttft]\n", "2:6: slo: cannot read the promise 'ttft'"),
    ("model: llama-3.1-8b\nslo: [ttft:p99<=2s]\ndevices: [h1]\n", "3:10: devices: unknown device 'h1'"),
    ("model: llama-3.1-8b\nslo: [ttft:p99<=2s]\nprices: {l4: cheap}\n", "3:9: prices: cannot read the price 'cheap'"),
    ("model: llama-3.1-8b\nslo: [ttft:p99<=2s]\nseed: no\n", "3:7: seed: input should be a valid integer; got False"),
]


@pytest.mark.parametrize(("text", "words"), MISTAKES, ids=[words[:30] for _, words in MISTAKES])
def test_a_mistake_is_told_with_its_place(folder, text, words):
    (folder / "plan.yaml").write_text(text)
    outcome = run("fleet", exit_code=2)
    assert f"plan.yaml:{words}" in outcome.stderr


def test_all_mistakes_are_told_at_once(folder):
    (folder / "plan.yaml").write_text("model: lama\nslo: [ttft]\ndevices: [h1]\n")
    words = run("fleet", exit_code=2).stderr
    assert [f"plan.yaml:{line}:" in words for line in (1, 2, 3)] == [True] * 3


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("colour=red", "unknown key 'colour'; known: model, slo"),
        ("seed", "expected KEY=VALUE"),
        ("seed.x=1", "seed has no parts"),
        ("seed=many", "input should be a valid integer; got 'many'"),
        ("devices=[h1]", "unknown device 'h1'"),
    ],
)
def test_a_setting_must_exist_and_fit(folder, setting, words):
    assert words in run("fleet", "--set", setting, exit_code=2).stderr


@pytest.mark.parametrize(("written", "usd"), [(2, 2.0), ("2.5", 2.5), ("$2.99/h", 2.99), ("3 USD/hour", 3.0)])
def test_prices_are_read_as_people_write_them(written, usd):
    assert usd_per_hour(written) == usd


def test_limits_are_kept_and_one_that_cannot_be_kept_is_named(folder):
    told = json.loads(run("fleet", "--devices", "l40s,l4", "--limit", "devices.l40s=0", "--json").stdout)
    assert {pool["device"] for pool in told["result"]["pools"]} == {"l4"}
    assert told["inputs"]["limits"] == {"devices.l40s": 0}
    outcome = run("fleet", "--devices", "l4", "--limit", "usd_per_hour=0.01", exit_code=1)
    assert "no fleet keeps these promises" in outcome.stderr


def test_an_unknown_limit_is_answered_with_the_known_ones(folder):
    assert "unknown limit 'colour'; known: usd_per_hour" in run("fleet", "--limit", "colour=1", exit_code=2).stderr
    assert "unknown kind of price 'free'" in run("fleet", "--kinds", "free", exit_code=2).stderr
