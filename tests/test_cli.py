"""The command line as a newcomer meets it: quick to help, results alone on stdout, errors with what would do."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from planners import cli
from planners.answer import Answer, plain
from planners.cli import COMMANDS, LazyGroup, main

HEAVY = ("pandas", "numba", "ortools", "matplotlib", "scipy", "numpy", "pyarrow", "rich", "pydantic", "yaml")


def plan(*arguments: str):
    return CliRunner().invoke(main, arguments, prog_name="plan")


def answer(*arguments: str) -> dict:
    outcome = plan(*arguments, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    return json.loads(outcome.stdout)


def modules_after(*arguments: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded once a command is done."""
    script = (
        "import sys\nfrom planners.cli import main\n"
        f"try: main({list(arguments)!r}, prog_name='plan')\nexcept SystemExit: pass\n"
        "print('\\n'.join(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)])
def test_help_loads_no_heavy_library(arguments):
    assert not modules_after(*arguments) & set(HEAVY)


def test_listing_devices_loads_no_numerical_library():
    assert not modules_after("devices") & {"pandas", "numba", "ortools", "matplotlib", "scipy"}


def test_help_names_every_installed_command_with_its_one_sentence():
    words = plan("--help").stdout
    for name in LazyGroup("plan").list_commands(None):
        assert f"  {name} " in words
    assert all(sentence.endswith(".") for _, sentence in COMMANDS.values())


@pytest.mark.parametrize("name", LazyGroup("plan").list_commands(None))
def test_every_command_has_help(name):
    outcome = plan(name, "--help")
    assert outcome.exit_code == 0
    assert outcome.stdout.startswith(f"Usage: plan {name}")


def test_a_command_whose_module_is_missing_is_not_listed(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "ghost", ("planners.commands.ghost:ghost", "Not there."))
    assert "ghost" not in plan("--help").stdout


def test_an_unknown_command_is_answered_with_the_nearest():
    outcome = plan("devcies")
    assert outcome.exit_code == 2
    assert "did you mean devices?" in outcome.stderr


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [(("devices", "show", "h100_smx"), "h100-sxm"), (("models", "show", "llama-3.1-8B-instruct"), "llama-3.1-8b")],
)
def test_an_unknown_name_is_bad_input_and_answered_with_the_nearest(arguments, nearest):
    outcome = plan(*arguments)
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert f"did you mean {nearest}" in outcome.stderr


def test_devices_are_listed_with_memory_and_price():
    listed = {row["name"]: row for row in answer("devices", "list")["result"]}
    assert listed["h100-sxm"]["memory_bytes"] == pytest.approx(80e9, rel=0.1)
    assert listed["h100-sxm"]["usd_per_hour"] > 0
    assert "h100-sxm" in plan("devices").stdout


def test_a_device_is_shown_with_its_source():
    assert answer("devices", "show", "l4")["result"]["source"]
    assert "bf16 FLOP/s" in plan("devices", "show", "l4").stdout


def test_a_model_is_shown_with_its_parameters_and_kv_bytes():
    facts = answer("models", "show", "llama-3.1-8b")["result"]
    assert facts["parameters"] == pytest.approx(8.03e9, rel=0.001)
    assert facts["kv_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    assert "llama-3.1-70b" in {row["name"] for row in answer("models", "list")["result"]}


def test_a_model_is_read_from_a_config_json(tmp_path):
    shapes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    shapes |= {"intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 512, "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(shapes))
    facts = answer("models", "show", str(tmp_path / "config.json"))["result"]
    assert facts["kv_bytes_per_token"] == 2 * 2 * 2 * 16 * 2


def test_an_answer_is_one_object_with_the_same_keys_for_every_command():
    content = json.loads(Answer("demo", {"a": 1}, {"b": (1, 2)}, ("careful",), {"t_s": 1.0}).to_json())
    assert list(content) == ["schema", "command", "inputs", "result", "warnings", "timings"]
    assert content["schema"] == "plan/1"
    assert content["result"] == {"b": [1, 2]}


def test_numbers_keep_six_digits_and_what_is_no_number_is_null():
    assert plain([1 / 3, 1234567.8, float("inf"), float("nan"), 12345678]) == [
        0.333333,
        1234570.0,
        None,
        None,
        12345678,
    ]


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ValueError("bad"), 2),
        (FileNotFoundError(2, "No such file", "x.csv"), 2),
        (RuntimeError("broken"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_words_and_exit_codes(monkeypatch, error, exit_code):
    def fail(*_):
        raise error

    monkeypatch.setattr("models.device.names", fail)
    outcome = plan("devices", "list")
    assert outcome.exit_code == exit_code
    assert outcome.stdout == ""
    assert outcome.stderr.startswith("Error: ")


def test_names_are_completed():
    from click.shell_completion import ShellComplete

    complete = ShellComplete(main, {}, "plan", "_PLAN_COMPLETE")
    assert "h100-sxm" in [item.value for item in complete.get_completions(["devices", "show"], "h1")]
