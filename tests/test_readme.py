"""The README does what it says: its commands and examples run, and its table of the sample is the sample's.

`python tests/test_readme.py` writes that table anew.
"""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

import traces
from planners.cli import COMMANDS, main
from traces.generate import sample_beside_source

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TABLE_HEAD = "| Statistic | Azure conversation 2023 | bundled sample |\n|---|--:|--:|\n"
NAMES = {
    "rows": "requests",
    "span_s": "span [s]",
    "rate_per_s": "rate [1/s]",
    "iat_cv": "gaps between arrivals, CV",
    "idc_1_s": "dispersion of counts, 1 s (Poisson: 1)",
    "idc_10_s": "dispersion of counts, 10 s",
    "idc_60_s": "dispersion of counts, 60 s",
    "input_tokens_mean": "prompt tokens, mean",
    "input_tokens_p50": "prompt tokens, p50",
    "input_tokens_p90": "prompt tokens, p90",
    "input_tokens_p99": "prompt tokens, p99",
    "output_tokens_mean": "answer tokens, mean",
    "output_tokens_p50": "answer tokens, p50",
    "output_tokens_p90": "answer tokens, p90",
    "output_tokens_p99": "answer tokens, p99",
    "rank_correlation": "rank correlation of prompt and answer",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def sample_table() -> str:
    rows = [
        f"| {NAMES[name]} | {number(source)} | {number(sample)} |\n"
        for name, source, sample in sample_beside_source(traces.sample())
        if name in NAMES
    ]
    return TABLE_HEAD + "".join(rows)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def test_its_commands_run_one_after_the_other(tmp_path, monkeypatch):
    rows = "".join(f"{index / 4},{100 + 10 * (index % 7)},{20 + index % 5}\n" for index in range(80))
    (tmp_path / "chat.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines() if line.startswith("plan ")]
    assert len(commands) >= 4
    for command in commands:
        outcome = CliRunner().invoke(main, command[1:])
        assert outcome.exit_code == 0, f"{shlex.join(command)}\n{outcome.output}"
    assert (tmp_path / "deploy" / "routing.yaml").exists()


def test_its_examples_run_one_after_the_other():
    names: dict[str, object] = {}
    assert len(blocks("python")) == 3
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)


@pytest.mark.parametrize("block", blocks("python")[1:])
def test_adding_a_router_takes_at_most_ten_lines(block):
    assert "def " in block
    assert len([line for line in block.splitlines() if line.strip()]) <= 10


def test_its_table_of_the_sample_is_the_samples():
    assert sample_table() in README.read_text(encoding="utf-8")


def test_every_command_it_names_is_there():
    named = set(re.findall(r"(?:^|`)plan ([a-z]+)", README.read_text(encoding="utf-8"), re.M))
    assert {"fleet", "simulate", "export", "whatif"} <= named
    assert named <= set(COMMANDS)


OTHERS = (*(ROOT / "notebooks").glob("*.py"), *(ROOT / ".github").rglob("*.yml"), ROOT / ".ci" / "newcomer")


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name)
def test_commands_named_elsewhere_are_there_and_take_the_flags_they_are_given(path):
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"(?:`|^\s*run: |\" )plan ([a-z]+)([^`\n|]*)", text, re.M)
    for name, rest in named:
        assert name in COMMANDS
        known = CliRunner().invoke(main, [name, "--help"]).stdout
        assert [flag for flag in re.findall(r"--[a-z][a-z-]+", rest) if flag not in known] == []


def test_ci_runs_what_it_tells_developers():
    (block,) = blocks("sh ci")
    assert "pip install" in block
    assert "pytest" in block


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8")))
def test_its_links_lead_somewhere(link):
    assert (ROOT / link).exists()


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    start = text.index(TABLE_HEAD)
    end = text.index("\n\n", start) + 1
    README.write_text(text[:start] + sample_table() + text[end:], encoding="utf-8")
