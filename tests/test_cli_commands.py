"""Every command, once for real: one after the other in one folder, as a person would, each answering in JSON too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pandas
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from planners.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
SLO = ("--slo", "ttft:p99<=2s", "--slo", "tpot:p99<=80ms")
CHAT = ("chat.csv", "--model", "llama-3.1-8b", "--devices", "l40s", *SLO)
OUT = ("-o", "made.parquet")

# One real invocation of every command, in an order in which each finds what it needs.
INVOCATIONS: tuple[tuple[str, ...], ...] = (
    ("init", "--trace", "chat.csv"),
    ("prices", "pin", "l40s"),
    ("prices", "show", "l40s"),
    ("prices", "import", "vms.csv", "-o", "own.csv"),
    ("devices", "list"),
    ("devices", "show", "l40s"),
    ("models", "list"),
    ("models", "show", "llama-3.1-8b"),
    ("traces", "formats"),
    ("traces", "stats", "chat.csv"),
    ("traces", "import", "chat.csv", *OUT),
    ("traces", "convert", "chat.csv", *("copy.csv.gz",)),
    ("traces", "slice", "chat.csv", "--end-s", "10", *OUT),
    ("traces", "scale", "chat.csv", "2", *OUT),
    ("traces", "mix", "chat.csv", "chat.csv", *OUT),
    ("traces", "anonymise", "chat.csv", *OUT),
    ("traces", "synth", "--law", "poisson", "--set", "rate_per_s=2", "--duration-s", "60", *OUT),
    ("traces", "fit", "chat.csv"),
    ("traces", "fetch", "azure2023-code", "--offline"),
    ("estimate", "--model", "llama-3.1-8b", "--device", "l40s", "--isl", "512", "--osl", "32", "--concurrency", "4"),
    ("fleet", *CHAT, "-o", "out"),
    ("simulate", "chat.csv", "--fleet", "out/plan.json"),
    ("whatif", *CHAT, "--vary", "price=1x,2x"),
    ("regret", *CHAT, "--scenario", "rate=2x"),
    ("schedule", *CHAT, "--profile", "hours.csv"),
    ("portfolio",),
    ("regions", "-o", "by-region"),
    ("place", "replicas", "out/plan.json", "racks.yaml"),
    ("place", "stages", "agents.yaml"),
    ("place", "layers", "layers.yaml", "--trials", "20"),
    ("place", "experts", "experts.yaml"),
    ("place", "tenants", "tenants.yaml"),
    ("compare", "out/plan.json", "out/plan.json"),
    ("export", "vllm-bench", "out/plan.json", "-o", "bench"),
    ("calibrate", "bench/vllm-bench.json", "--model", "llama-3.1-8b", "--device", "l40s"),
    ("validate", "collectives", "collectives.parquet"),
    ("lock", "out/plan.json"),
    ("check",),
    ("report", "out/plan.json", "-o", "page.html"),
    ("trace", "out/plan.json", "-o", "timeline.json"),
    ("explain", "gap"),
    ("schema",),
    ("doctor",),
    ("completion", "bash"),
    ("study", "list"),
)
PLACED = {
    "racks.yaml": "racks: {a: {nodes: {l40s: [4, 4]}, power_w: 2000, zone: east}}\n",
    "agents.yaml": "stages: {think: {runs_on: {gpu: {ms: 80}}}}\nclasses: {gpu: {usd_per_hour: 2}}\nlimit_ms: 100\n",
    "layers.yaml": "model: llama-3.1-8b\ngroups: {big: {device: l40s}, small: {device: l4, count: 2}}\n",
    "experts.yaml": (
        "queries: {code: 1}\nenergy_j: 5\ndelay_ms: 100\n"
        "experts: {one: {quality: {code: 0.8}, energy_j: {code: 2}, delay_ms: {code: 50}}}\n"
    ),
    "tenants.yaml": (
        "tenants: {a: {memory_gb: 16, compute: 1, count: 3}}\n"
        "replicas: {l40s: {usd_per_hour: 1, memory_gb: 44, compute: 4}}\n"
    ),
}
MINUTES_LONG = {("study", "run"), ("study", "all")}  # tested with the studies


def leaves(command: click.Command, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    if isinstance(command, click.Group):
        return [found for name, inner in command.commands.items() for found in leaves(inner, (*path, name))]
    return [path]


def every_command() -> list[tuple[str, ...]]:
    context = click.Context(main)
    found = [(name, main.get_command(context, name)) for name in main.list_commands(context)]
    return [path for name, command in found if command is not None for path in leaves(command, (name,))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    rows = "".join(f"{number / 4},{100 + 10 * (number % 7)},{20 + number % 5}\n" for number in range(80))
    (folder / "chat.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    (folder / "vms.csv").write_text("InstanceType,AcceleratorName,AcceleratorCount,Price,Region\nx,L4,1,0.7,eu\n")
    chat = "{trace: chat.csv, model: llama-3.1-8b, devices: [l40s], slo: ['ttft:p99<=2s']}"
    (folder / "portfolio.yaml").write_text(f"plans:\n  one: {chat}\n  two: {chat}\nlimits: {{power_w: 9000}}\n")
    europe, eu = "{trace: chat.csv, stays_in: [eu]}", "{devices: [l40s]}"
    regions = f"origins: {{europe: {europe}}}\nregions: {{eu: {eu}}}\nlatency_ms: {{europe: {{eu: 9}}}}\n"
    (folder / "regions.yaml").write_text(f"model: llama-3.1-8b\nslo: ['ttft:p99<=2s']\n{regions}")
    for name, text in PLACED.items():
        (folder / name).write_text(text)
    (folder / "hours.csv").write_text("requests\n400\n900\n600\n")
    row = {
        "device": "h100_sxm",
        "source": "ours",
        "lib": "nccl",
        "lib_version": "2.27.3",
        "op": "all_reduce",
        "kernel": "NCCL",
        "dtype": "half",
        "n_devices": 2.0,
        "n_nodes": 1.0,
        "bytes": 1048576.0,
        "time_us": 30.0,
        **dict.fromkeys(("num_tokens", "hidden", "topk", "experts", "reported_gbps", "sms", "notify_us")),
        "distribution": None,
        "devices_per_node": 2.0,
        "fabric": None,
        "time_min_us": None,
        "time_std_us": None,
    }
    table = pandas.DataFrame([row]).astype({name: float for name, value in row.items() if value is None})
    table.astype({"distribution": "string", "fabric": "string"}).to_parquet(folder / "collectives.parquet")
    return folder


def test_every_command_is_invoked():
    tried = {arguments[: len(path)] for arguments in INVOCATIONS for path in every_command()}
    assert [path for path in every_command() if path not in tried and path not in MINUTES_LONG] == []
    assert {arguments[0] for arguments in INVOCATIONS} == set(COMMANDS)


@pytest.mark.parametrize("arguments", INVOCATIONS, ids=lambda arguments: " ".join(arguments[:2]))
def test_a_command_does_its_work_and_answers_in_json(folder, monkeypatch, arguments):
    monkeypatch.chdir(folder)
    outcome = CliRunner().invoke(main, [*arguments, "--json"])
    assert outcome.exit_code == 0, outcome.output
    content = json.loads(outcome.stdout)
    if arguments[0] != "schema":
        assert content["schema"] == "plan/1"
        assert content["command"].split() == list(arguments[: len(content["command"].split())])
        assert content["result"]
    assert "\x1b" not in outcome.output


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_every_command_has_help_of_its_own(path):
    outcome = CliRunner().invoke(main, [*path, "--help"])
    assert outcome.exit_code == 0
    assert outcome.stdout.startswith("Usage: ")
    assert "--json" in outcome.stdout


def test_nothing_is_coloured_where_colour_is_not_wanted(folder):
    environment = {**os.environ, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    for arguments in (["fleet", "--help"], ["prices", "l4"], ["devices", "shwo"]):
        done = subprocess.run([sys.executable, "-m", "planners", *arguments], env=environment, capture_output=True)
        assert b"\x1b" not in done.stdout + done.stderr


def test_exit_codes_tell_what_happened(folder, monkeypatch):
    monkeypatch.chdir(folder)
    run = CliRunner().invoke
    assert run(main, ["devices"]).exit_code == 0
    assert run(main, ["fleet", *CHAT[:-4], "--slo", "ttft:p99<=1us"]).exit_code == 1
    assert run(main, ["fleet", "nothing.csv", *CHAT[1:]]).exit_code == 2
    lock = json.loads((folder / "plan.lock.json").read_text())
    (scenario,) = lock["scenarios"].values()
    scenario["facts"]["usd_per_hour"]["value"] = 0.01
    (folder / "other.lock.json").write_text(json.dumps(lock))
    assert run(main, ["check", "other.lock.json"]).exit_code == 3
    monkeypatch.setattr("models.device.names", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(main, ["devices", "list"]).exit_code == 130


@pytest.mark.parametrize(
    ("typed", "incomplete", "expected"),
    [
        ([], "fl", "fleet"),
        (["devices", "show"], "l4", "l40s"),
        (["models", "show"], "llama-3.1-8", "llama-3.1-8b"),
        (["fleet", "--devices"], "h100-sxm,l4", "h100-sxm,l40s"),
        (["fleet", "--model"], "qwen3-8", "qwen3-8b"),
        (["estimate", "--device"], "b2", "b200-sxm"),
        (["prices", "show"], "gaud", "gaudi3"),
    ],
)
def test_names_are_completed(typed, incomplete, expected):
    complete = ShellComplete(main, {}, "plan", "_PLAN_COMPLETE")
    assert expected in [item.value for item in complete.get_completions(typed, incomplete)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("flete",), "did you mean fleet?"),
        (("fleet", "--modle", "x"), "--model"),
        (("devices", "show", "h10-sxm"), "did you mean h100-sxm"),
        (("models", "show", "lama-3.1-8b"), "did you mean llama-3.1-8b"),
        (("fleet", "--set", "sed=1"), "did you mean seed"),
        (("export", "k9s", "out/plan.json"), "did you mean k8s"),
        (("traces", "stat", "chat.csv"), "stats"),
        (("whatif", *CHAT, "--vary", "prise=1x"), "did you mean price"),
        (("explain", "tpto"), "did you mean tpot"),
    ],
)
def test_what_is_misspelt_is_answered_with_the_nearest(folder, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    outcome = CliRunner().invoke(main, list(arguments))
    assert outcome.exit_code == 2
    assert words in outcome.stderr
