"""Importing in blocks: the same trace as reading the whole, whatever the block, and the same complaints."""

import gzip
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_traces_formats import LENGTHS_ONLY, ROWS, mutated

import traces
from traces import BadTrace, streaming
from traces.parquet import read_window
from traces.streaming import import_to_parquet
from traces.trace import content_sha256
from traces.transform import slice_time

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
NOT_COMPARED = {"unknown_columns", "warnings"}  # told of the first block


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 20_000)


def both(path: Path, tmp_path: Path, **options: Any) -> tuple[traces.Trace, traces.Trace]:
    report = import_to_parquet(path, tmp_path / "made.parquet", **options)
    assert report.rows_read == report.rows_kept + sum(report.dropped.values())
    made = traces.read(tmp_path / "made.parquet")
    assert len(made) == report.rows_kept
    return traces.read(path, **options), made


def assert_same(whole: traces.Trace, made: traces.Trace) -> None:
    assert content_sha256(whole) == content_sha256(made)
    assert whole.identity == made.identity
    assert set(whole.metadata) == set(made.metadata)
    different = {name for name in whole.metadata if whole.metadata[name] != made.metadata[name]}
    assert different <= NOT_COMPARED


@pytest.mark.parametrize("file", [file for file in ROWS if "agents/" not in file])
@pytest.mark.usefixtures("small_blocks")
def test_every_real_file_is_the_same_in_blocks(shared: Path, tmp_path: Path, file: str) -> None:
    whole, made = both(shared / "traces" / file, tmp_path, **ROWS[file][2])
    assert_same(whole, made)
    about_rows = [each for each in whole.metadata["warnings"] if "columns not used" not in each]  # type: ignore[attr-defined]
    assert set(about_rows) <= set(made.metadata["warnings"])  # type: ignore[call-overload]


@example(b"arrival_s,input_tokens,output_tokens\n0,5,5\n1,5,5\n2,5\x00,5\n", False, 40)
@given(mutated(), st.booleans(), st.sampled_from([40, 200, 10_000]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_reading_takes_or_refuses_importing_does_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, strict: bool, block: int
) -> None:
    monkeypatch.setattr(streaming, "BLOCK_BYTES", block)
    path = tmp_path / "trace"
    path.write_bytes(content)
    (tmp_path / "made.parquet").unlink(missing_ok=True)
    options: dict[str, Any] = {"strict": strict, "max_bad_fraction": 1.0}
    try:
        whole = traces.read(path, **options)
    except BadTrace:
        with pytest.raises(BadTrace):
            import_to_parquet(path, tmp_path / "made.parquet", **options)
        assert not (tmp_path / "made.parquet").exists()
        return
    report = import_to_parquet(path, tmp_path / "made.parquet", **options)
    made = traces.read(tmp_path / "made.parquet")
    (tmp_path / "made.parquet").unlink()
    assert report.rows_read == whole.metadata["rows_read"]
    assert content_sha256(made) == content_sha256(whole)


def rows(count: int, **changed: str) -> str:
    lines = [f"2024-05-12 00:{row // 60:02d}:{row % 60:02d}+00:00,{row + 1},1\n" for row in range(count)]
    for number, line in changed.items():
        lines[int(number[1:])] = line
    return HEADER + "".join(lines)


def write(tmp_path: Path, text: str, pack: Any = bytes) -> Path:
    path = tmp_path / "trace.csv"
    path.write_bytes(pack(text.encode()))
    return path


FOUND_BY_FUZZING = (
    b'{"id": "s", "block_size": [], "requests": [{"t": 0, "in": 5, "out": 5}]}',
    b'num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n5,5,10,"',
    b'\n\n{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [1]}\n',
)


@pytest.mark.parametrize("content", FOUND_BY_FUZZING)
@pytest.mark.parametrize("block", [20, 10_000])
def test_what_a_fuzzer_found_ends_alike_read_and_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, block: int
) -> None:
    monkeypatch.setattr(streaming, "BLOCK_BYTES", block)
    path = tmp_path / "trace"
    path.write_bytes(content)
    ends = []
    for reader in (traces.read, lambda each: import_to_parquet(each, tmp_path / "made.parquet")):
        try:
            reader(path)
            ends.append("read")
        except BadTrace as reason:
            ends.append(reason.problem)
    assert ends[0] == ends[1]


@pytest.mark.usefixtures("small_blocks")
def test_a_bad_cell_deep_in_a_file_is_named_by_its_line_and_column(tmp_path: Path) -> None:
    path = write(tmp_path, rows(3000, r2500="2024-05-12 00:41:40+00:00,abc,1\n"))
    for reader in (traces.read, lambda each: import_to_parquet(each, tmp_path / "made.parquet")):
        with pytest.raises(BadTrace) as caught:
            reader(path)
        assert (caught.value.line, caught.value.column) == (2502, 27)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("small_blocks")
def test_bad_rows_are_dropped_and_counted_across_blocks(tmp_path: Path) -> None:
    bad = {"r100": "2024-05-12 00:01:40+00:00,abc,1\n", "r2900": "2024-05-12 00:48:20+00:00,,1\n"}
    whole, made = both(write(tmp_path, rows(3000, **bad)), tmp_path, strict=False)
    assert_same(whole, made)
    assert made.metadata["rows_dropped"] == {"ContextTokens: not a number": 1, "ContextTokens: missing": 1}
    with pytest.raises(BadTrace, match="2 of 3000 rows are bad"):
        import_to_parquet(tmp_path / "trace.csv", tmp_path / "x", strict=False, max_bad_fraction=0.0005)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_compressed_files_stream_too(tmp_path: Path, pack: Any) -> None:
    assert_same(*both(write(tmp_path, rows(3000), pack), tmp_path))
    if pack is not bytes:
        cut = pack(rows(3000).encode())[:-30]
        (tmp_path / "trace.csv").write_bytes(cut)
        with pytest.raises(BadTrace, match="damaged"):
            import_to_parquet(tmp_path / "trace.csv", tmp_path / "x")


@pytest.mark.usefixtures("small_blocks")
def test_rows_a_little_out_of_order_are_sorted_and_those_far_out_are_refused(tmp_path: Path) -> None:
    late = {"r700": "2024-05-12 00:11:00+00:00,7,7\n"}
    whole, made = both(write(tmp_path, rows(3000, **late)), tmp_path)
    assert_same(whole, made)
    assert made.metadata["inversions"] == 1
    path = write(tmp_path, rows(3000, r2700="2024-05-12 00:00:00+00:00,7,7\n"))
    with pytest.raises(BadTrace, match="too far to put in order") as caught:
        import_to_parquet(path, tmp_path / "x")
    assert caught.value.line == 2702
    assert import_to_parquet(path, tmp_path / "x", restarts="sort").rows_kept == 3000


@pytest.mark.usefixtures("small_blocks")
def test_two_files_glued_together_are_named_at_their_seam(tmp_path: Path) -> None:
    text = rows(1500) + rows(1500).removeprefix(HEADER)
    with pytest.raises(BadTrace, match="time restarts here") as caught:
        import_to_parquet(write(tmp_path, text), tmp_path / "x")
    assert caught.value.line == 1502
    whole, made = both(tmp_path / "trace.csv", tmp_path, restarts="append")
    assert_same(whole, made)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("limit", [10, 600, 3000])
def test_a_limit_keeps_the_first_rows_of_a_stream(tmp_path: Path, limit: int) -> None:
    whole, made = both(write(tmp_path, rows(3000)), tmp_path, limit=limit)
    assert_same(whole, made)
    assert len(made) == limit


def test_a_window_of_a_parquet_is_the_slice_of_the_whole(shared: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("traces.parquet.ROW_GROUP_ROWS", 500)
    for file in ("azure2023/AzureLLMInferenceTrace_code.csv.gz", "ragpulse/0_trace.first500.jsonl.gz"):
        trace = traces.read(shared / "traces" / file)
        traces.write(trace, tmp_path / "made.parquet")
        for start_s, end_s in ((0, 10), (1000, 1500.5), (3000, None)):
            part, window = slice_time(trace, start_s, end_s), read_window(tmp_path / "made.parquet", start_s, end_s)
            assert content_sha256(part) == content_sha256(window)
            assert part.metadata == window.metadata
    with pytest.raises(ValueError, match="no request arrives"):
        read_window(tmp_path / "made.parquet", 1e9, 2e9)


def test_a_file_that_is_no_trace_of_ours_has_no_window(tmp_path: Path) -> None:
    path = write(tmp_path, rows(3))
    with pytest.raises(BadTrace, match="damaged Parquet"):
        read_window(path, 0, 1)


def test_fast_columns_are_the_slow_ones(tmp_path: Path) -> None:
    """BLIS has every kind of cell that the fast way knows: microseconds, counts, labels, statuses, durations."""
    header = "arrival_time_us,send_time_us,first_chunk_time_us,input_tokens,output_tokens,status,round_index,model\n"
    status = ("error", "ok", "timeout")
    lines = "".join(f"{row}000.5,{row + 7}000,{row}50000,5,5,{status[row % 3]},{row % 2 or ''},m{row % 4}\n"
                    for row in range(40))  # fmt: skip
    whole, made = both(write(tmp_path, header + lines), tmp_path)
    assert whole.metadata["format"] == "blis"
    assert_same(whole, made)
    assert np.array_equal(whole.arrival_ns[:2], [0, 1_000_000])


@pytest.mark.parametrize("between", ["x", "_", "\u00e9", ""])
def test_a_date_is_no_date_with_another_character_in_it(tmp_path: Path, between: str) -> None:
    path = write(tmp_path, rows(5, r3=f"2024-05-12{between}00:00:03+00:00,4,1\n"))
    for reader in (traces.read, lambda each: import_to_parquet(each, tmp_path / "made.parquet")):
        with pytest.raises(BadTrace, match="not a time") as caught:
            reader(path)
        assert caught.value.line == 5


def test_a_large_file_is_read_by_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, rows(3000))
    whole = traces.read(path)
    monkeypatch.setattr("traces.reading.LARGE_BYTES", 1000)
    assert_same(whole, traces.read(path))
    path.write_text('{"requests": [{"t": 0, "in": 5, "out": 5}]}' + " " * 2000)
    assert traces.read(path).metadata["format"] == "weka"


def test_examples_of_what_was_dropped_are_kept(tmp_path: Path) -> None:
    bad = {f"r{row}": "2024-05-12 00:01:40+00:00,abc,1\n" for row in range(100, 105)}
    whole, made = both(write(tmp_path, rows(3000, **bad)), tmp_path, strict=False, max_bad_fraction=0.01)
    examples = whole.metadata["dropped_examples"]["ContextTokens: not a number"]  # type: ignore[index]
    assert len(examples) == 3
    assert examples[0].startswith(f"{tmp_path / 'trace.csv'}:102:27: ContextTokens is 'abc'")
    assert made.metadata["dropped_examples"] == whole.metadata["dropped_examples"]


def test_lengths_alone_stream_too(shared: Path, tmp_path: Path) -> None:
    whole, made = both(shared / "traces" / "edgecases" / "az_placeholder_ts.csv", tmp_path, **LENGTHS_ONLY)
    assert_same(whole, made)
    assert whole.metadata["warnings"] == made.metadata["warnings"]
