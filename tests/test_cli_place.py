"""`plan place`: answers in words and in JSON, exit codes, and mistakes told with their place."""

import json

import pytest
from click.testing import CliRunner

from planners.cli import main

AGENTS = """\
stages:
  prefill:
    runs_on: {hp: {ms: 80, usd: 0.08}, co: {ms: 130, usd: 0.05}}
    passes_on_mb: {decode: 1}
  decode:
    runs_on: {hp: {ms: 25, usd: 0.03}, co: {ms: 30, usd: 0.01}}
classes: {hp: {}, co: {}}
latency_ms: 10
usd_per_gb: 5
limit_ms: 120
"""
LAYERS = """\
model: llama-3.1-8b
groups:
  fast: {device: l40s, island: a}
  slow: {device: l4, count: 3, island: b}
gbit_per_s: 100
between_gbit_per_s: 10
"""
EXPERTS = """\
queries: {code: 3, chat: 1}
experts:
  small: {quality: {code: 0.5, chat: 0.7}, energy_j: {code: 1, chat: 1}, delay_ms: {code: 40, chat: 40}}
  large: {quality: {code: 0.9, chat: 0.8}, energy_j: {code: 6, chat: 6}, delay_ms: {code: 90, chat: 90}}
energy_j: 5
delay_ms: 100
"""
TENANTS = """\
tenants: {a: {memory_gb: 6, compute: 1, count: 3}}
replicas: {l4: {usd_per_hour: 2, memory_gb: 10, compute: 10}}
"""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def ask(question: str, text: str, *flags: str):
        (tmp_path / "file.yaml").write_text(text)
        return CliRunner().invoke(main, ["place", question, "file.yaml", *flags])

    return ask


def result_of(outcome):
    assert outcome.exit_code == 0, outcome.output
    return json.loads(outcome.stdout)["result"]


def test_stages_go_where_the_published_example_has_them(asked):
    found = result_of(asked("stages", AGENTS, "--json"))
    assert found["classes"] == {"prefill": "hp", "decode": "co"}
    assert found["usd_per_request"] == pytest.approx(0.095)
    late = asked("stages", AGENTS.replace("limit_ms: 120", "limit_ms: 90"))
    assert late.exit_code == 1
    assert "cannot end within 0.09 s: each on its fastest class they take 0.105 s" in late.stderr
    wrong = asked("stages", AGENTS.replace("decode: 1}", "decod: 1}"))
    assert wrong.exit_code == 2
    assert "file.yaml: stage 'prefill' passes on to 'decod', which is not there" in wrong.stderr


def test_layers_on_unlike_groups_flow_at_least_as_fast_as_in_simpler_placements(asked):
    found = result_of(asked("layers", LAYERS, "--trials", "200", "--json"))
    assert max(found["others"].values()) <= found["tokens_per_s"] <= found["tokens_per_s_bound"]
    assert found["layers"] == 32
    assert "no placement more than" in asked("layers", LAYERS, "--trials", "20").stdout
    few = asked("layers", "model: llama-3.1-70b\ngroups: {one: {device: l4}}\n")
    assert few.exit_code == 2
    assert "the model has 80" in few.stderr


def test_experts_share_the_queries_within_the_energy(asked):
    # Sending code to the large one costs 0.75 * 6 + 0.25 * 1 = 4.75 J of 5; all to it 6 J.
    found = result_of(asked("experts", EXPERTS, "--json"))
    assert found["answers"] == {"code": ["large"], "chat": ["small"]}
    assert found["energy_j"] == pytest.approx(4.75)
    silent = asked("experts", EXPERTS.replace("quality: {code: 0.5, chat: 0.7}", "quality: {code: 0.5}"))
    assert silent.exit_code == 2
    assert "experts.small.quality: nothing said of 'chat'" in silent.stderr


def test_tenants_are_packed_with_a_bound(asked):
    found = result_of(asked("tenants", TENANTS, "--json"))
    assert found["usd_per_hour"] == pytest.approx(6.0)
    assert found["replicas"] == [{"replica": "l4", "count": 3, "tenants": {"a": 1}}]
    large = asked("tenants", TENANTS.replace("memory_gb: 6", "memory_gb: 60"))
    assert large.exit_code == 2
    assert "file.yaml: tenant 0 (60 GB, compute 1) fits on no kind of replica" in large.stderr


def test_a_key_that_is_unknown_is_told_with_its_place(asked):
    outcome = asked("stages", AGENTS.replace("limit_ms", "limitms"))
    assert outcome.exit_code == 2
    assert "10:1: limitms: unknown key; did you mean limit_ms?" in outcome.stderr


def test_the_cost_model_tells_what_stages_take_where_nobody_measured(asked):
    agents = (
        "stages:\n"
        "  prefill: {model: llama-3.1-8b, prefill_tokens: 4000, runs_on: {h: {}, l: {}}, passes_on_mb: {decode: 524}}\n"
        "  decode: {model: llama-3.1-8b, decode_tokens: 200, context_tokens: 4000, runs_on: {h: {}, l: {}}}\n"
        "classes: {h: {device: h100-sxm}, l: {device: l40s}}\n"
        "gb_per_s: 50\nlimit_ms: LIMIT\nrequests_per_s: 0.2\n"
    )
    loose = result_of(asked("stages", agents.replace("LIMIT", "60000"), "--json"))
    assert set(loose["classes"].values()) == {"l"}  # the cheaper one is fast enough
    tight = asked("stages", agents.replace("LIMIT", str(loose["seconds"] * 1e3 / 2)), "--json")
    assert "h" in result_of(tight)["classes"].values()
    assert result_of(tight)["usd_per_hour"] > loose["usd_per_hour"]
    unknown = asked("stages", AGENTS.replace("{ms: 80, usd: 0.08}", "{usd: 0.08}"))
    assert unknown.exit_code == 2
    assert "stages.prefill: nothing tells what it takes on 'hp': expected ms, or a model" in unknown.stderr
