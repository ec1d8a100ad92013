"""Choosing rows while reading: what is left out is counted, and blocks choose as the whole does."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import traces
from planners.cli import main
from traces import BadTrace, streaming
from traces.selection import condition, time_range
from traces.streaming import import_to_parquet
from traces.trace import content_sha256

LOG = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """One request a second for 400 s: every fourth by GPT-4, prompts of 0 to 399 tokens, every tenth without answer."""
    rows = [
        f"{5 + second},{'ChatGPT' if second % 4 else 'GPT-4'},{second},{second % 10},{second + second % 10},API log\n"
        for second in range(400)
    ]
    path = tmp_path / "log.csv"
    path.write_text(LOG + "".join(rows))
    return path


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        (("model=GPT-4",), 100),
        (("model!=GPT-4",), 300),
        (("input_tokens<100",), 100),
        (("input_tokens<=100",), 101),
        (("input_tokens > 100", "input_tokens >= 300"), 100),
        (("model=GPT-4", "input_tokens<100"), 25),
        (("status=failed",), 40),
        (("status!=failed",), 360),
    ],
)
def test_rows_are_kept_where_every_condition_holds(log: Path, where: tuple[str, ...], kept: int) -> None:
    trace = traces.read(log, where=where)
    assert len(trace) == kept
    assert trace.metadata["rows_dropped"] == {"left out by where": 400 - kept}
    assert trace.metadata["rows_read"] == 400


def test_a_stretch_of_time_counts_from_the_first_row(log: Path) -> None:
    trace = traces.read(log, time_range=(100.0, 150.0))
    assert trace.input_tokens.tolist() == list(range(100, 150))
    assert trace.arrival_ns[0] == 0
    assert trace.metadata["t0_ns"] == 105 * 10**9
    assert trace.metadata["rows_dropped"] == {"left out by time_range": 350}
    assert len(traces.read(log, time_range=(390.0, None))) == 10


def test_conditions_come_before_the_limit(log: Path) -> None:
    trace = traces.read(log, where=["model=GPT-4"], time_range=(100.0, None), limit=3)
    assert trace.input_tokens.tolist() == [100, 104, 108]
    assert trace.metadata["rows_dropped"] == {
        "left out by where": 300, "left out by time_range": 25, "beyond limit": 72
    }  # fmt: skip


OPTIONS = ({"where": ["model=GPT-4"]}, {"time_range": (50.0, 333.0)}, {"where": ["output_tokens>0"], "limit": 77})


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_blocks_choose_as_the_whole_does(log: Path, tmp_path: Path, monkeypatch, options: dict[str, object]) -> None:
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 500)
    whole = traces.read(log, **options)  # type: ignore[arg-type]
    report = import_to_parquet(log, tmp_path / "made.parquet", **options)
    made = traces.read(tmp_path / "made.parquet")
    assert content_sha256(whole) == content_sha256(made)
    assert whole.identity == made.identity
    assert report.rows_read == report.rows_kept + sum(report.dropped.values())
    assert sum(report.dropped.values()) == 400 - len(whole)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_trace_of_ours_is_chosen_from_alike(log: Path, tmp_path: Path, options: dict[str, object]) -> None:
    import_to_parquet(log, tmp_path / "made.parquet")
    again, direct = traces.read(tmp_path / "made.parquet", **options), traces.read(log, **options)  # type: ignore[arg-type]
    assert np.array_equal(again.input_tokens, direct.input_tokens)
    assert again.metadata["rows_dropped"] == direct.metadata["rows_dropped"]
    assert again.identity != traces.read(tmp_path / "made.parquet").identity


def test_bad_rows_are_bad_whether_wanted_or_not(log: Path) -> None:
    log.write_text(log.read_text() + "405,ChatGPT,many,1,1,API log\n")
    with pytest.raises(BadTrace, match="'many'"):
        traces.read(log, where=["model=GPT-4"])
    trace = traces.read(log, strict=False, max_bad_fraction=0.01, where=["model=GPT-4"])
    assert len(trace) == 100
    assert sum(trace.metadata["rows_dropped"].values()) == 301  # type: ignore[attr-defined]


def test_nothing_left_is_an_error_that_says_what_left_it_out(log: Path, tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match=r"no row is kept \(left out by where: 400"):
        traces.read(log, where=["model=o9"])
    with pytest.raises(BadTrace, match=r"no row is kept \(left out by where: 400"):
        import_to_parquet(log, tmp_path / "made.parquet", where=["model=o9"])


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("colour=red", "no column 'colour' to choose rows by; this trace has input_tokens, model"),
        ("model>GPT", "names are compared by = or != only"),
        ("input_tokens=few", "'few' is no number"),
        ("model", "cannot read the condition 'model'; expected COLUMN=VALUE"),
    ],
)
def test_a_condition_that_cannot_be_is_told_what_would_do(log: Path, where: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        traces.read(log, where=[where])


def test_conditions_and_stretches_are_read_as_people_write_them() -> None:
    assert condition("model = GPT 4 ").value == "GPT 4"
    assert condition("a!=b=c").value == "b=c"
    assert time_range("60,120") == (60.0, 120.0)
    for text in ("a,b", "5,5", "-1,3", "nan,3"):
        with pytest.raises(ValueError, match="time range"):
            time_range(text)


def test_the_command_takes_both(log: Path, tmp_path: Path) -> None:
    flags = ["--where", "model=GPT-4", "--time-range", "0,100", "--json"]
    outcome = CliRunner().invoke(main, ["traces", "import", str(log), "-o", str(tmp_path / "m.parquet"), *flags])
    assert outcome.exit_code == 0, outcome.output
    told = json.loads(outcome.stdout)["result"]
    assert (told["rows_read"], told["rows_kept"]) == (400, 25)
    outcome = CliRunner().invoke(main, ["traces", "stats", str(log), "--time-range", "soon"])
    assert outcome.exit_code == 2
