"""Anonymous traces: nothing of the source can be read in them, and every statistic stays."""

from pathlib import Path

import numpy as np
import pytest

import traces
from traces import Labels, Ragged, Trace
from traces.anonymise import anonymise
from traces.statistics import describe

SECRET = "acme-corp"


def named() -> Trace:
    tokens = np.array([10, 20, 30, 40], np.int32)
    who = Labels(np.array([1, 0, 1, -1], np.int32), (f"{SECRET}-b", f"{SECRET}-a"))
    columns = {
        "session_id": who,
        "tenant": who,
        "model": Labels(np.zeros(4, np.int32), ("llama",)),
        "request_id": np.array([907, 905, 911, 920]),
        "parent_ids": Ragged(np.array([0, 0, 1, 2, 3]), np.array([907, 905, 4])),
        "prefix_blocks": Ragged(np.array([0, 2, 3, 5, 5]), np.array([77777, 5, 77777, 77777, 5])),
        "source_line": np.array([2, 3, 4, 5]),
    }
    metadata = {"sha256": "ab", "source": f"{SECRET}.csv", "t0_ns": 17 * 10**17, "tz": "UTC", "block_tokens": 10,
                "unknown_columns": [SECRET], "warnings": [SECRET],
                "chain": [{"operation": "read", "parameters": {"file": SECRET}}]}  # fmt: skip
    return Trace(SECRET, np.array([5, 6, 7, 8]) * 10**9, tokens, tokens, tokens * 0, columns, metadata)


def test_no_name_date_or_line_of_the_source_is_left(tmp_path: Path) -> None:
    made = anonymise(named())
    traces.write(made, tmp_path / "made.csv")
    written = "".join(each.read_text() for each in tmp_path.iterdir())
    for secret in (SECRET, "llama", "907", "77777", str(17 * 10**17), "source_line"):
        assert secret not in written
    assert made.metadata["t0_ns"] is None


def test_who_shares_what_with_whom_stays() -> None:
    made = anonymise(named(), keep=["model"])
    sessions, blocks, parents = (made.columns[name] for name in ("session_id", "prefix_blocks", "parent_ids"))
    assert isinstance(sessions, Labels)
    assert isinstance(blocks, Ragged)
    assert isinstance(parents, Ragged)
    assert [sessions[row] for row in range(4)] == ["session_id-0", "session_id-1", "session_id-0", None]
    assert blocks.values.tolist() == [0, 1, 0, 0, 1]
    assert made.columns["request_id"].tolist() == [0, 1, 2, 3]
    assert [parents[row].tolist() for row in range(4)] == [[], [0], [1], []]
    assert made.columns["model"].names == ("llama",)
    assert made.arrival_ns.tolist() == [0, 10**9, 2 * 10**9, 3 * 10**9]


def test_real_traces_keep_their_statistics(shared: Path) -> None:
    for file in ("mooncake/conversation_trace.jsonl.gz", "azure2023/AzureLLMInferenceTrace_code.csv.gz"):
        trace = traces.read(shared / "traces" / file)
        before, after = describe(trace).as_dict(), describe(anonymise(trace)).as_dict()
        assert {name for name in before if before[name] != after[name]} <= {"warnings"}


def test_rare_lengths_are_hidden_in_steps_on_request() -> None:
    made = anonymise(named(), token_step=16)
    assert made.input_tokens.tolist() == [16, 32, 32, 48]
    assert "prefix_blocks" not in made.columns
    with pytest.raises(ValueError, match="below 1"):
        anonymise(named(), token_step=0)
    with pytest.raises(ValueError, match="no column 'colour'"):
        anonymise(named(), keep=["colour"])
