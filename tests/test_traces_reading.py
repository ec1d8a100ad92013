"""Reading traces: every trap seen in a real file, and no bytes that end in anything but a trace or a reason."""

import gzip
import json
import lzma
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import traces
from traces import BadTrace, Labels, Ragged, Status

FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,10,1\n2023-11-16 18:17:04.03,20,2\n"
OWN = "arrival_s,input_tokens,output_tokens\n"


def written(tmp_path: Path, text: str | bytes, name: str = "trace.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def problem(path: Path, **options: object) -> BadTrace:
    with pytest.raises(BadTrace) as caught:
        traces.read(path, **options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{path}:{caught.value.line}:{caught.value.column}: ")
    return caught.value


EDGE_ERRORS = {
    "az_placeholder_ts.csv": (2, ("TIMESTAMP", "not a time", "'XXX'", "lengths_only")),
    "az_bad_token.csv": (3, ("ContextTokens", "'abc'")),
    "az_negative.csv": (2, ("ContextTokens", "negative", "'-1'")),
    "az_missing_col.csv": (1, ("missing column GeneratedTokens", "azure")),
    "mc_bad_json.jsonl": (2, ("invalid JSON (truncated file?)",)),
    "lfs_pointer.csv": (1, ("Git LFS pointer, not data (52283111 bytes): download the real file",)),
    "empty.csv": (1, ("empty file",)),
    "header_only.csv": (2, ("no data rows",)),
    "wrong_format_as_azure.csv": (1, ("columns look like vidur; asked for azure",)),
}


def edgecases() -> list[str]:
    return [
        *EDGE_ERRORS,
        *("az_mixed_fraction.csv", "az_7digit.csv", "az_lmm_z.csv", "az_offset_mix.csv", "az_epoch_ms.csv"),
        *("az_bom_quoted.csv", "az_out_of_order.csv", "bg6.csv", "bg8.csv", "mc_ok.jsonl", "mc_block_mismatch.jsonl"),
        *("mc_16_block.jsonl", "vidur_ok.csv", "splitwise_ok.csv", "servegen_trace.csv", "servegen_dataset.json"),
    ]


@pytest.mark.parametrize("file", edgecases())
def test_every_edge_case_is_read_or_refused_as_expected(shared: Path, file: str) -> None:
    folder = shared / "traces" / "edgecases"
    case = next(each for each in json.loads((folder / "EXPECTED.json").read_text()) if each["file"] == file)
    path, expected = folder / file, case["expect"]
    if "error" in expected:
        line, words = EDGE_ERRORS[file]
        found = problem(path, format=case["format"])
        assert found.line == line
        assert all(word in found.problem for word in words)
        return
    if case["format"] == "servegen":
        assert "ServeGen" in problem(path).problem
        return
    trace = traces.read(path, format=case["format"])
    guessed = traces.read(path)
    assert guessed.metadata["format"] == trace.metadata["format"] == case["format"]
    if "rows_ok" in expected:
        assert len(trace) == expected["rows_all"]
        assert np.count_nonzero(trace.status == Status.FAILED) == expected["failed"]
        trace = traces.transform.filter_rows(trace, lambda each: each.status == Status.OK, "finished")
        assert len(trace) == expected["rows_ok"]
    assert len(trace) == expected.get("rows", len(trace))
    assert (trace.arrival_ns / 1e9).tolist() == pytest.approx(expected.get("arrivals_s", trace.arrival_ns / 1e9))
    assert trace.input_tokens.tolist() == expected.get("sorted_input", trace.input_tokens.tolist())
    assert trace.metadata["inversions"] == expected.get("inversions", 0)
    if "num_images" in expected:
        assert trace.columns["images"].tolist() == expected["num_images"]
    if "sessions" in expected:
        assert traces.statistics.session_turns(trace)["count"] == expected["sessions"]
    if "warning" in expected:
        words = "line 1: 2 ids x 512 < 2000 tokens (expected 4"
        assert any(words in warning for warning in trace.metadata["warnings"])


def test_every_edge_case_of_the_list_is_in_the_tests(shared: Path) -> None:
    listed = json.loads((shared / "traces" / "edgecases" / "EXPECTED.json").read_text())
    assert {each["file"] for each in listed} == set(edgecases())


def test_bailian_reads_seconds_and_follows_parents_to_the_root(shared: Path) -> None:
    trace = traces.read(shared / "traces" / "edgecases" / "mc_16_block.jsonl")
    assert trace.metadata["block_tokens"] == 16
    assert trace.arrival_ns.tolist() == [0, 1_386_000_000]
    assert [trace.columns["session_id"][row] for row in range(2)] == ["159", "159"]


def test_lengths_alone_are_read_only_on_request(shared: Path) -> None:
    path = shared / "traces" / "edgecases" / "az_placeholder_ts.csv"
    trace = traces.read(path, lengths_only=True)
    assert trace.input_tokens.tolist() == [107, 396]
    assert any("no arrival times" in warning for warning in trace.metadata["warnings"])


def test_a_bad_row_is_dropped_and_counted_only_when_asked(tmp_path: Path) -> None:
    good = "".join(f"{row},5,5\n" for row in range(1999))
    path = written(tmp_path, OWN + good + "7,abc,5\n")
    assert (problem(path).line, problem(path).column) == (2001, 3)
    trace = traces.read(path, strict=False)
    assert trace.metadata["rows_dropped"] == {"input_tokens: not a number": 1}
    assert trace.metadata["rows_read"] == 2000 == len(trace) + 1


def test_too_many_bad_rows_are_refused_even_when_lenient(tmp_path: Path) -> None:
    path = written(tmp_path, OWN + "0,1,1\n1,x,1\n")
    assert "1 of 2 rows are bad" in problem(path, strict=False).problem
    assert len(traces.read(path, strict=False, max_bad_fraction=0.5)) == 1


@pytest.mark.parametrize(
    ("cell", "says"),
    [("-1", "negative"), ("13.7", "not whole"), ("", "missing"), ("nan", "not a number"), ("inf", "too large"),
     ("1_000", "not a number"), ("3000000000", "too large"), ("１２", "not a number")],
)  # fmt: skip
def test_a_token_count_that_is_none_is_named(tmp_path: Path, cell: str, says: str) -> None:
    found = problem(written(tmp_path, OWN + f"0,7,7\n0,{cell},7\n"))
    assert (found.line, found.column) == (3, 3)
    assert says in found.problem


def test_a_whole_number_written_with_a_point_is_whole(tmp_path: Path) -> None:
    assert traces.read(written(tmp_path, OWN + "0,18.0,7\n")).input_tokens.tolist() == [18]


def test_nanoseconds_survive_text(tmp_path: Path) -> None:
    trace = traces.read(written(tmp_path, OWN + "0.000000001,1,1\n1209600.123456789,1,1\n"))
    assert trace.arrival_ns.tolist() == [1, 1_209_600_123_456_789]


@pytest.mark.parametrize(
    "stamp", ["2023-02-30 00:00:00", "2023-01-01 25:00:00", "yesterday", "2023-01-01", "12.5", "1e400"]
)
def test_what_is_no_time_is_refused(tmp_path: Path, stamp: str) -> None:
    found = problem(written(tmp_path, f"TIMESTAMP,ContextTokens,GeneratedTokens\n{stamp},1,1\n"))
    assert "not a time" in found.problem
    assert found.line == 2


def test_epoch_numbers_of_mixed_units_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens\n1700158546680,1,1\n1700158550,1,1\n")
    assert problem(path).line == 3


def test_seconds_read_as_milliseconds_are_refused_unless_insisted_on(tmp_path: Path) -> None:
    lines = "".join(f'{{"timestamp": {row / 1000}, "input_length": 5, "output_length": 5}}\n' for row in range(200))
    path = written(tmp_path, lines, "trace.jsonl")
    assert "wrong unit" in problem(path).problem
    assert traces.read(path, time_unit="s").rate_per_s == pytest.approx(1000, rel=0.01)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_compression_is_told_by_content(tmp_path: Path, pack: object) -> None:
    trace = traces.read(written(tmp_path, pack(AZURE.encode()), "anything"))  # type: ignore[operator]
    assert trace.arrival_ns.tolist() == [0, 60_000_000]


def test_zstd_is_read_too(tmp_path: Path) -> None:
    import pyarrow as pa

    assert len(traces.read(written(tmp_path, pa.compress(AZURE.encode(), codec="zstd", asbytes=True), "anything"))) == 2


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_a_cut_archive_says_so(tmp_path: Path, pack: object) -> None:
    cut = pack(AZURE.encode() * 50)[:-20]  # type: ignore[operator]
    assert "damaged" in problem(written(tmp_path, cut, "trace.csv.gz")).problem


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"   \n\n", "empty file"),
        (AZURE.encode("utf-16"), "UTF-16"),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n\xff,1,1\n", "not UTF-8"),
        (b"a,b\n1,2\n", "no known trace format"),
        (b"1,2,3\n4,5,6\n", "no header"),
        (b"timestamp,timestamp\n1,2\n", "twice"),
        (b"[]", "without objects"),
        (b"{}", "no known trace format"),
        (b"PAR1garbage", "damaged Parquet"),
    ],
)
def test_what_is_no_trace_is_refused_with_a_reason(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in problem(written(tmp_path, content)).problem


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip(),
        lambda text: text + "\n\n",
        lambda text: "\ufeff" + text,
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
    ],
)
def test_line_ends_marks_and_delimiters_change_nothing(tmp_path: Path, change: object) -> None:
    trace = traces.read(written(tmp_path, change(AZURE)))  # type: ignore[operator]
    assert trace.arrival_ns.tolist() == [0, 60_000_000]
    assert trace.input_tokens.tolist() == [10, 20]


def test_a_row_too_short_is_named(tmp_path: Path) -> None:
    found = problem(written(tmp_path, AZURE + "2023-11-16 18:17:05\n"))
    assert found.line == 4
    assert "1 fields, the header has 3" in found.problem


def test_two_files_glued_together_are_found_and_joined_on_request(tmp_path: Path) -> None:
    rows = "".join(f"{1000 * row},5,5\n" for row in range(20)) * 2
    path = written(tmp_path, OWN + rows)
    assert problem(path).line == 22
    assert traces.read(path, restarts="append").span_s == 38_000
    assert traces.read(path, restarts="sort").span_s == 19_000


def test_other_names_are_mapped_on_request(tmp_path: Path) -> None:
    path = written(tmp_path, "when,prompt,answer\n0,5,6\n1,7,8\n")
    trace = traces.read(path, rename={"when": "arrival_s", "prompt": "input_tokens", "answer": "output_tokens"})
    assert trace.output_tokens.tolist() == [6, 8]
    assert "no column 'who'" in problem(path, rename={"who": "arrival_s"}).problem


def test_an_unknown_option_names_the_known_ones(tmp_path: Path) -> None:
    path = written(tmp_path, AZURE)
    for option in ({"format": "excel"}, {"time_unit": "h"}, {"restarts": "guess"}):
        with pytest.raises(ValueError, match="known: "):
            traces.read(path, **option)  # type: ignore[arg-type]


def test_a_limit_keeps_the_first_rows_and_counts_the_rest(tmp_path: Path) -> None:
    trace = traces.read(written(tmp_path, AZURE), limit=1)
    assert (len(trace), trace.metadata["rows_dropped"]) == (1, {"beyond limit": 1})


def test_the_error_survives_pickling(tmp_path: Path) -> None:
    found = problem(written(tmp_path, b""))
    assert str(pickle.loads(pickle.dumps(found))) == str(found)


def full_trace() -> traces.Trace:
    return traces.Trace(
        "full",
        np.array([5, 5, 1_000_000_001]),
        np.array([100, 200, 0]),
        np.array([7, 0, 3]),
        np.array([Status.OK, Status.FAILED, Status.UNKNOWN]),
        {
            "session_id": Labels(np.array([0, -1, 0], np.int32), ("a,b",)),
            "turn": np.array([0, -1, 1]),
            "prefix_blocks": Ragged(np.array([0, 2, 2, 5]), np.array([1, 2, 1, 2, 2**40])),
        },
        {"sha256": "00", "block_tokens": 64, "warnings": [], "chain": [{"operation": "made", "parameters": {}}]},
    )


@pytest.mark.parametrize("name", ["trace.csv", "trace.csv.gz", "trace.csv.xz", "trace.parquet"])
def test_a_trace_written_is_the_trace_read(tmp_path: Path, name: str) -> None:
    trace = full_trace()
    traces.write(trace, tmp_path / name)
    again = traces.read(tmp_path / name)
    assert (again.name, again.metadata, again.identity) == (trace.name, trace.metadata, trace.identity)
    assert traces.trace.content_sha256(again) == traces.trace.content_sha256(trace)
    assert {each: type(column) for each, column in again.columns.items()} == {
        each: type(column) for each, column in trace.columns.items()
    }


def test_metadata_of_other_rows_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    traces.write(full_trace(), path)
    path.write_text(path.read_text().replace("200", "201"))
    again = traces.read(path)
    assert again.metadata["sha256"] != "00"
    assert any("belongs to other rows" in warning for warning in again.metadata["warnings"])


def test_anyones_parquet_with_our_columns_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"arrival_s": [0.5, 1.5], "input_tokens": [1, 2], "output_tokens": [3, 4]}), tmp_path / "x")
    assert traces.read(tmp_path / "x").arrival_ns.tolist() == [500_000_000, 1_500_000_000]


def test_a_trace_checks_its_columns() -> None:
    ones = np.ones(2, np.int32)
    with pytest.raises(ValueError, match="not sorted"):
        traces.Trace("t", np.array([1, 0]), ones, ones, ones)
    with pytest.raises(ValueError, match="has 1 rows"):
        traces.Trace("t", np.array([0, 1]), ones[:1], ones, ones)
    with pytest.raises(ValueError, match="negative"):
        traces.Trace("t", np.array([0, 1]), -ones, ones, ones)


def test_azure_needs_neither_pandas_nor_pyarrow(tmp_path: Path) -> None:
    heavy = "{'pandas', 'pyarrow', 'scipy', 'numba'}"
    code = f"import sys, traces; traces.read(sys.argv[1]); print(*{heavy} & set(sys.modules))"
    path = str(written(tmp_path, AZURE))
    root = Path(traces.__file__).parents[1]
    assert subprocess.check_output([sys.executable, "-c", code, path], cwd=root, text=True).strip() == ""


PIECES = st.sampled_from(
    [
        *("TIMESTAMP", "ContextTokens", "GeneratedTokens", "arrival_s", "input_tokens", "output_tokens", "Timestamp"),
        *("2023-11-16 18:17:03.97", "2024-10-15T12:00:00Z", "1700158546680", "0", "-1", "5", "1e9", "nan", "XXX", '"'),
        *(
            ",",
            ";",
            "\t",
            "\n",
            "\r\n",
            "\ufeff",
            "{",
            "}",
            "[",
            "]",
            ":",
            '"timestamp"',
            '"input_length"',
            '"hash_ids"',
        ),
        *('"output_length"', '{"timestamp": 0, "input_length": 655, "output_length": 52, "hash_ids": [0, 1]}\n'),
        *('{"timestamp": "0", "input_length": 1e999, "output_length": [], "session_id": {}}\n', "null", "true", "NaN"),
        *('{"chat_id": 1, "parent_chat_id": 1, "timestamp": 1, "input_length": 3, "output_length": 1}\n', "\x00", "é"),
        *(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n",
            "arrival_s,input_tokens,output_tokens,prefix_blocks\n",
            "0,1,1\n",
        ),
    ]
)


def trace_or_reason(path: Path, **options: object) -> None:
    try:
        trace = traces.read(path, **options)  # type: ignore[arg-type]
    except BadTrace as reason:
        assert str(reason).startswith(f"{path}:{reason.line}:{reason.column}: ")  # noqa: PT017
        return
    assert trace.metadata["rows_read"] == len(trace) + sum(trace.metadata["rows_dropped"].values())


@FUZZ
@given(st.binary(max_size=200))
def test_random_bytes_give_a_trace_or_a_reason(tmp_path: Path, content: bytes) -> None:
    trace_or_reason(written(tmp_path, content))


@FUZZ
@given(st.lists(PIECES, max_size=40), st.booleans())
def test_random_pieces_of_traces_give_a_trace_or_a_reason(tmp_path: Path, pieces: list[str], strict: bool) -> None:
    trace_or_reason(written(tmp_path, "".join(pieces)), strict=strict, max_bad_fraction=1.0)


@FUZZ
@given(
    st.lists(st.lists(st.sampled_from(["0", "1.5", "-3", "", "x", "9" * 30, "1e-9", '"7"']), min_size=3, max_size=3))
)
def test_rows_read_are_rows_kept_and_rows_dropped(tmp_path: Path, rows: list[list[str]]) -> None:
    text = OWN + "0,1,1\n" + "".join(",".join(row) + "\n" for row in rows)
    trace_or_reason(written(tmp_path, text), strict=False, max_bad_fraction=1.0)
