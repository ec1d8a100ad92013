"""`plan traces`: every command on real and made files, JSON by its contract, errors with their place."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from test_traces_formats import POOLS, ROWS

import traces
from planners.cli import main

CONTRACT = {"rows", "span_s", "rate_per_s", "iat_cv", "idc", "dropped", "warnings", "prefix"}


def plan(*arguments: object, code: int = 0) -> Result:
    outcome = CliRunner().invoke(main, ["traces", *map(str, arguments)])
    assert outcome.exit_code == code, outcome.output
    return outcome


def result(*arguments: object) -> Any:
    answer = json.loads(plan(*arguments, "--json").stdout)
    assert (answer["schema"], answer["command"]) == ("plan/1", f"traces {arguments[0]}")
    return answer["result"]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.csv"
    traces.write(traces.transform.slice_time(traces.sample(), 0, 300), path)
    return path


@pytest.mark.parametrize("file", [*ROWS, next(iter(POOLS))])
def test_stats_of_every_real_file_keep_the_contract(shared: Path, file: str) -> None:
    flags = [f"--{name.replace('_', '-')}" for name in ROWS[file][2]] if file in ROWS else []
    found = result("stats", shared / "traces" / file, *flags)
    assert set(found) >= CONTRACT
    if file in ROWS:
        assert found["rows"] == ROWS[file][1] == found["rows_read"]
        assert set(found["idc"]) == {"1", "10", "60"}


def test_stats_have_the_published_numbers(shared: Path) -> None:
    found = result("stats", shared / "traces/azure2023/AzureLLMInferenceTrace_code.csv.gz")
    assert (found["rate_per_s"], found["iat_cv"]) == (pytest.approx(2.57, abs=0.005), pytest.approx(13.2, abs=0.05))
    assert [*found["idc"].values()] == pytest.approx([13.2, 71.9, 167], rel=0.005)
    found = result("stats", shared / "traces/mooncake/conversation_trace.jsonl.gz")
    assert found["prefix"]["token_hit_infinite"] == pytest.approx(0.374, abs=0.001)


def test_words_are_for_people_and_the_account_adds_up(sample: Path) -> None:
    words = plan("stats", sample).stdout
    assert "gaps: CV" in words
    assert "kept + 0 dropped" in words
    assert plan("stats", "sample").exit_code == 0


def test_bad_files_end_with_two_and_their_place(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("arrival_s,input_tokens,output_tokens\n0,1,1\n1,x,1\n")
    for command in (["stats"], ["import", "-o", tmp_path / "x.parquet"], ["fit"]):
        outcome = plan(command[0], tmp_path / "bad.csv", *command[1:], code=2)
        assert "bad.csv:3:3: input_tokens is 'x'" in outcome.stderr
        assert outcome.stdout == ""
    found = result("stats", tmp_path / "bad.csv", "--lenient", "--max-bad", "0.6")
    assert (found["rows"], found["dropped"]) == (1, {"input_tokens: not a number": 1})
    assert "No such file" in plan("stats", tmp_path / "none.csv", code=2).stderr


def test_import_reports_every_row_and_slice_cuts_it(shared: Path, tmp_path: Path) -> None:
    out = tmp_path / "conv.parquet"
    found = result("import", shared / "traces/azure2023/AzureLLMInferenceTrace_conv.csv.gz", "-o", out)
    assert (found["rows_read"], found["rows_kept"], found["dropped"]) == (19_366, 19_366, {})
    assert found["format"] == "azure"
    part = result("slice", out, "--start-s", 600, "--end-s", 660, "-o", tmp_path / "part.csv")
    whole = traces.transform.slice_time(traces.read(out), 600, 660)
    assert part["rows"] == len(whole)
    assert len(traces.read(tmp_path / "part.csv")) == len(whole)


def test_convert_goes_there_and_back(sample: Path, tmp_path: Path) -> None:
    for out in ("a.parquet", "b.csv.gz", "c.csv.xz"):
        assert result("convert", sample, tmp_path / out)["rows"] == len(traces.read(sample))
        assert traces.trace.content_sha256(traces.read(tmp_path / out)) == traces.trace.content_sha256(
            traces.read(sample)
        )
    assert "known endings" in plan("convert", sample, tmp_path / "a.xlsx", code=2).stderr


def test_scale_and_mix_change_the_rate(sample: Path, tmp_path: Path) -> None:
    rows = len(traces.read(sample))
    out = tmp_path / "made.parquet"
    assert result("scale", sample, 0.5, "-o", out)["rows"] == pytest.approx(rows / 2, rel=0.15)
    assert result("scale", sample, 3, "-o", out, "--by", "request")["rows"] == pytest.approx(3 * rows, rel=0.1)
    assert result("scale", sample, 2, "--how", "time", "-o", out)["rows"] == rows
    assert result("scale", sample, 2, "--how", "copies", "-o", out)["rows"] == 2 * rows
    mixed = result("mix", sample, sample, "-o", out, "--weight", 1, "--weight", 0.5)
    assert mixed["rows"] == pytest.approx(1.5 * rows, rel=0.1)
    chain = result("stats", out)["chain"]
    assert [step["operation"] for step in chain][-1] == "mix"
    assert "whole number" in plan("scale", sample, 1.5, "--how", "copies", "-o", out, code=2).stderr


def test_synth_makes_traces_by_law_pool_profile_and_likeness(shared: Path, sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.parquet"
    law = ["--law", "renewal", "--set", "rate_per_s=5", "--set", "cv=2", "--set", "family=weibull"]
    assert result("synth", *law, "--duration-s", 600, "-o", out)["rate_per_s"] == pytest.approx(5, rel=0.3)
    cox = ["--law", "cox", "--set", "rate_per_s=5", "--set", "amplitudes=2,3", "--set", "decays_per_s=1,0.1"]
    assert result("synth", *cox, "--duration-s", 600, "--lengths-from", sample, "-o", out)["rows"] > 1000
    pool = ["--pool", shared / "traces/servegen/deepseek-r1.tar.xz", "--start-s", 43_200]
    assert result("synth", *pool, "--duration-s", 600, "-o", out)["rows"] > 1000
    profile = ["--profile", shared / "traces/azure2024/azure2024_hourly_requests_digitised.csv", "--service", "code"]
    assert result("synth", *profile, "--factor", 0.01, "-o", out)["rate_per_s"] == pytest.approx(0.216, rel=0.2)
    assert result("synth", "--like", sample, "--duration-s", 300, "-o", out)["rows"] > 500
    assert "one of --law" in plan("synth", "-o", out, code=2).stderr
    assert "known: deterministic" in plan("synth", "--law", "x", "-o", out, code=2).stderr
    assert "NAME=NUMBER" in plan("synth", "--law", "poisson", "--set", "rate", "-o", out, code=2).stderr


def test_fit_finds_a_law_and_judges_it(tmp_path: Path) -> None:
    out = tmp_path / "made.csv"
    plan("synth", "--law", "poisson", "--set", "rate_per_s=4", "--duration-s", 900, "-o", out)
    found = result("fit", out)
    assert found["law"] == "poisson"
    assert not found["poisson"]["rejected"]
    assert "Poisson: accepted" in plan("fit", out).stdout


def test_anonymise_leaves_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("arrival_s,input_tokens,output_tokens,tenant\n0,5,5,acme\n1,5,5,acme\n")
    assert result("anonymise", tmp_path / "log.csv", "-o", tmp_path / "out.csv")["rows"] == 2
    assert "acme" not in (tmp_path / "out.csv").read_text() + (tmp_path / "out.csv.metadata.json").read_text()


def test_fetch_lists_asks_and_copies_from_a_mirror(shared: Path, tmp_path: Path) -> None:
    import gzip

    assert len(result("fetch")) == 50
    assert result("fetch", "azure2023-code", "--offline")[0]["bytes"] == 320_117
    held = shared / "traces/azure2023/AzureLLMInferenceTrace_code.csv.gz"
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "AzureLLMInferenceTrace_code.csv").write_bytes(gzip.decompress(held.read_bytes()))
    asked = plan("fetch", "azure2023-code", "-o", tmp_path / "here", "--mirror", mirror, code=2)
    assert "CC-BY-4.0" in asked.stderr
    found = result("fetch", "azure2023-code", "-o", tmp_path / "here", "--mirror", mirror, "--yes")
    assert result("stats", found[0]["path"])["rows"] == 8819
    assert "unknown public trace" in plan("fetch", "azure", "--yes", code=2).stderr


def test_formats_are_all_listed() -> None:
    assert {each["name"] for each in result("formats")} == set(traces.FORMATS)


def test_a_log_is_read_through_a_map(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"ts": 1, "u": {"i": 5, "o": 6}}\n{"ts": 2, "u": {"i": 7, "o": 8}}\n')
    (tmp_path / "map.toml").write_text('input_tokens = "u.i"\noutput_tokens = "u.o"\n[arrival_s]\ncolumn = "ts"\n')
    assert result("stats", tmp_path / "log.jsonl", "--map", tmp_path / "map.toml")["rows"] == 2
    (tmp_path / "log.csv").write_text("when,in,out\n0,5,5\n1,5,5\n")
    renames = ["--rename", "when=arrival_s", "--rename", "in=input_tokens", "--rename", "out=output_tokens"]
    assert result("stats", tmp_path / "log.csv", *renames)["rows"] == 2
    assert "FROM=TO" in plan("stats", tmp_path / "log.csv", "--rename", "when", code=2).stderr
