"""Statistics of traces: toys whose answers one can see, and the published traces as others measured them."""

from pathlib import Path

import numpy as np
import pytest

import traces
from traces.statistics import counts, describe, iat_cv, idc, prefix_hit_tokens, rank_correlation


def toy(arrivals_s: list[float], blocks: list[list[int]] | None = None, **metadata: object) -> traces.Trace:
    ones = np.full(len(arrivals_s), 20, np.int32)
    columns = {}
    if blocks is not None:
        offsets = np.cumsum([0, *map(len, blocks)])
        columns = {
            "prefix_blocks": traces.Ragged(offsets, np.array([each for row in blocks for each in row], np.int64))
        }
    return traces.Trace("toy", np.array(arrivals_s) * 1e9, ones, ones, ones * 0, columns, metadata)


def test_equal_gaps_have_no_dispersion() -> None:
    trace = toy([float(second) for second in range(101)])
    assert iat_cv(trace) == 0
    assert idc(trace, 10) == 0
    assert counts(trace, 10).tolist() == [10] * 10


def test_pairs_at_once_have_twice_the_dispersion_of_singles() -> None:
    rng = np.random.default_rng(0)
    singles = np.sort(rng.uniform(0, 10_000, 20_000))
    single, double = toy(singles.tolist()), toy(np.repeat(singles, 2).tolist())
    assert idc(double, 1) == pytest.approx(2 * idc(single, 1))  # type: ignore[operator]
    assert idc(single, 1) == pytest.approx(1, abs=0.05)


def test_only_the_leading_run_of_known_blocks_hits() -> None:
    trace = toy([0, 1, 2, 3], [[1, 2], [1, 3], [9, 2], [1, 3]], block_tokens=12)
    assert prefix_hit_tokens(trace).tolist() == [0, 12, 0, 20]


def test_ids_local_to_a_session_are_not_shared_between_sessions() -> None:
    trace = toy([0, 1, 2], [[1], [1], [1]], block_tokens=20, block_scope="session")
    session = traces.Labels(np.array([0, 1, 0], np.int32), ("a", "b"))
    trace = traces.Trace(trace.name, trace.arrival_ns, trace.input_tokens, trace.output_tokens, trace.status,
                         {**trace.columns, "session_id": session}, trace.metadata)  # fmt: skip
    assert prefix_hit_tokens(trace).tolist() == [0, 0, 20]


def test_rank_correlation_knows_ties_and_constants() -> None:
    assert rank_correlation(np.array([1, 2, 2, 3]), np.array([10, 20, 20, 90])) == pytest.approx(1)
    assert rank_correlation(np.array([1, 1]), np.array([1, 2])) is None


def test_one_request_has_statistics_without_numbers_it_cannot_have() -> None:
    found = describe(toy([3])).as_dict()
    assert (found["rows"], found["rate_per_s"], found["iat_cv"]) == (1, None, None)


PUBLISHED = {  # rows, span s, rate /s, gap CV, IDC at 1/10/60 s, input and output mean/p50/p90/p99/max
    "azure2023/AzureLLMInferenceTrace_code.csv.gz": (
        (8819, 3436, 2.57, 13.2, 13.2, 71.9, 167), (2048, 1469, 5188, 7436, 7437), (27.9, 13, 55, 251, 1899)),
    "azure2023/AzureLLMInferenceTrace_conv.csv.gz": (
        (19366, 3502, 5.53, 1.09, 1.39, 3.87, 16.4), (1155, 1020, 2734, 4142, 14050), (211, 129, 424, 601, 1000)),
    "mooncake/conversation_trace.jsonl.gz": (
        (12031, 3537, 3.4, 3.03, 7.9, 2.1, 2.95), (12035, 6909, 27367, 85400, 126195), (343, 350, 597, 1118, 2000)),
}  # fmt: skip


@pytest.mark.parametrize("file", PUBLISHED)
def test_published_traces_have_their_published_statistics(shared: Path, file: str) -> None:
    found = describe(traces.read(shared / "traces" / file))
    arrivals, inputs, outputs = PUBLISHED[file]
    measured = (found.rows, found.span_s, found.rate_per_s, found.iat_cv, *found.idc.values())
    assert measured == pytest.approx(arrivals, rel=0.005)
    for lengths, expected in ((found.input_tokens, inputs), (found.output_tokens, outputs)):
        assert (lengths.mean, lengths.p50, lengths.p90, lengths.p99, lengths.max) == pytest.approx(expected, rel=0.005)


def test_mooncake_reuses_what_others_measured_and_moves_in_steps_of_three_seconds(shared: Path) -> None:
    trace = traces.read(shared / "traces" / "mooncake" / "conversation_trace.jsonl.gz")
    found = describe(trace)
    assert found.prefix is not None
    assert found.prefix["token_hit_infinite"] == pytest.approx(0.374, abs=0.0005)
    assert (found.prefix["block_refs"], found.prefix["unique_blocks"]) == (288_500, 182_790)
    assert found.quantum_s == 3
    assert any("steps of 3 s" in warning for warning in found.warnings)
    blocks = trace.columns["prefix_blocks"]
    assert np.array_equal(blocks.lengths, -(-trace.input_tokens // 512))  # type: ignore[union-attr]


def test_vidur_and_integer_copies_of_azure_agree_with_the_original(shared: Path) -> None:
    original = traces.read(shared / "traces" / "azure2023" / "AzureLLMInferenceTrace_conv.csv.gz")
    vidur = traces.read(shared / "traces" / "vidur" / "splitwise_conv.csv.gz")
    whole_ms = traces.read(shared / "traces" / "timestamps" / "AzureLLMInferenceTrace_conv_int.csv.gz")
    for copy, within_ns in ((vidur, 1_000), (whole_ms, 1_000_000)):
        assert np.array_equal(copy.input_tokens, original.input_tokens)
        assert np.abs(copy.arrival_ns - original.arrival_ns).max() <= within_ns
