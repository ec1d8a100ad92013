"""Transformations: the law that each promises, first on toys, then on real bursty traces within sampling error."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import traces
from traces import Labels, Ragged, Trace
from traces.statistics import iat_cv, idc, peak_to_mean, prefix_reuse, session_turns
from traces.trace import MISSING, content_sha256
from traces.transform import (
    amplify,
    clamp,
    dequantise,
    filter_rows,
    inject_burst,
    jitter,
    map_lengths,
    mix,
    relabel,
    repeat,
    resample,
    restamp_poisson,
    scale_lengths,
    scale_rate,
    sessionise,
    shift,
    slice_time,
    spread_sessions,
    superpose,
    thin,
    time_scale,
    without,
)

WINDOWS_S = (1.0, 10.0, 60.0)


def toy(seconds: int = 600, per_s: int = 4) -> Trace:
    """Sessions of two turns a second apart, each session with its own block behind a shared system block."""
    rng = np.random.default_rng(7)
    starts = np.sort(rng.uniform(0, seconds, seconds * per_s // 2))
    sessions = np.tile(np.arange(len(starts)), 2)
    times = np.concatenate([starts, starts + 1.0])
    order = np.argsort(times, kind="stable")
    sessions, turns = sessions[order], np.repeat([0, 1], len(starts))[order]
    blocks = np.stack([np.zeros(len(order), np.int64), sessions + 1], axis=1).reshape(-1)
    tokens = rng.integers(20, 32, len(order))
    return Trace(
        "toy",
        (times[order] * 1e9).astype(np.int64),
        tokens,
        tokens // 2,
        np.zeros(len(order), np.int8),
        {
            "session_id": Labels(sessions.astype(np.int32), tuple(f"s{each}" for each in range(len(starts)))),
            "turn": turns,
            "prefix_blocks": Ragged(np.arange(0, 2 * len(order) + 1, 2), blocks),
        },
        {"block_tokens": 16, "sha256": "toy"},
    )


SEEDED: dict[str, Callable[[Trace, int], Trace]] = {
    "thin": lambda trace, seed: thin(trace, 0.5, seed),
    "amplify": lambda trace, seed: amplify(trace, 2.5, seed),
    "superpose": lambda trace, seed: superpose(trace, 3, seed),
    "restamp_poisson": restamp_poisson,
    "resample": lambda trace, seed: resample(trace, seed, 60.0),
    "dequantise": lambda trace, seed: dequantise(trace, seed, 0.5),
    "mix": lambda trace, seed: mix([trace, trace], seed, [1.0, 0.5]),
}


@pytest.mark.parametrize("name", SEEDED)
def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(name: str) -> None:
    trace = toy()
    first, again, other = (SEEDED[name](trace, seed) for seed in (1, 1, 2))
    assert content_sha256(first) == content_sha256(again)
    assert content_sha256(first) != content_sha256(other)
    assert first.identity == again.identity != other.identity != trace.identity


@pytest.mark.parametrize("name", SEEDED)
def test_the_source_is_left_as_it_was(name: str) -> None:
    trace = toy()
    before = content_sha256(trace), trace.identity
    SEEDED[name](trace, 3)
    assert (content_sha256(trace), trace.identity) == before


@given(st.sampled_from(sorted(SEEDED)), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_every_operation_keeps_a_trace_in_order_and_inside_its_time(name: str, seed: int) -> None:
    trace = toy(200)
    made = SEEDED[name](trace, seed)
    assert np.all(np.diff(made.arrival_ns) >= 0)
    assert made.arrival_ns[0] >= 0
    assert made.span_s <= trace.span_s * 1.01 + 1
    assert all(len(column) == len(made) for column in made.columns.values())


def test_whole_sessions_are_kept_or_dropped() -> None:
    turns = session_turns(thin(toy(), 0.3, seed=4))
    assert turns is not None
    assert turns["turns_mean"] == 2 == turns["turns_max"]


def test_copies_of_sessions_and_blocks_are_not_confused_with_the_originals() -> None:
    trace = toy()
    reuse = prefix_reuse(trace)
    for made in (superpose(trace, 3, seed=0), mix([trace, trace], seed=0), repeat(trace, 3)):
        turns = session_turns(made)
        assert turns is not None
        assert turns["turns_max"] == 2
        assert prefix_reuse(made)["token_hit_infinite"] == pytest.approx(reuse["token_hit_infinite"], rel=0.01)


def test_the_shared_system_prompt_stays_shared_between_copies() -> None:
    blocks = superpose(toy(), 3, seed=0).columns["prefix_blocks"]
    assert isinstance(blocks, Ragged)
    assert len(np.unique(blocks.values[::2])) == 1
    assert len(np.unique(blocks.values[1::2])) == 3 * 1200


def test_slicing_and_repeating_are_exact() -> None:
    trace = toy()
    part = slice_time(trace, 100, 200)
    inside = (trace.arrival_ns >= 100e9) & (trace.arrival_ns < 200e9)
    assert np.array_equal(part.arrival_ns, trace.arrival_ns[inside] - 100_000_000_000)
    twice = repeat(trace, 2)
    assert len(twice) == 2 * len(trace)
    assert np.array_equal(twice.input_tokens, np.tile(trace.input_tokens, 2))
    assert twice.metadata["seam_rate_ratio"] == pytest.approx(1, abs=0.5)


def test_slicing_marks_sessions_cut_at_the_start_and_how_warm_the_cache_would_be() -> None:
    trace = toy()
    part = slice_time(trace, 100, 200)
    began_before = {name for name in names(slice_time(trace, 0, 100))}
    cut = part.metadata["left_censored_sessions"]
    assert cut == len(began_before & set(names(part))) > 0
    assert part.metadata["warm_from_s"] == 100


def names(trace: Trace) -> list[str | None]:
    sessions = trace.columns["session_id"]
    assert isinstance(sessions, Labels)
    return [sessions[row] for row in range(len(trace))]


def test_lengths_scale_with_their_ranks_and_a_cap_caps() -> None:
    trace = toy()
    longer = scale_lengths(trace, input_factor=2, output_factor=0.5, most_output_tokens=6)
    assert np.array_equal(longer.input_tokens, 2 * trace.input_tokens)
    assert longer.output_tokens.max() == 6
    assert "prefix_blocks" not in longer.columns


def test_clamping_moves_only_what_is_too_long() -> None:
    trace = toy()
    short = clamp(trace, most_input_tokens=25, most_output_tokens=12)
    assert np.array_equal(short.input_tokens, np.minimum(trace.input_tokens, 25))
    assert np.array_equal(short.output_tokens, np.minimum(trace.output_tokens, 12))


def test_a_burst_is_put_where_it_is_wanted() -> None:
    trace = toy()
    made = inject_burst(trace, 100, 50, 4, seed=1)
    counts = [np.histogram(each.arrival_ns / 1e9, [0, 100, 150, 601])[0] for each in (trace, made)]
    assert counts[1][1] == pytest.approx(4 * counts[0][1], rel=0.1)
    assert counts[1][0] == counts[0][0]
    assert counts[1][2] == counts[0][2]


def test_sessions_without_a_common_clock_are_spread() -> None:
    trace = toy(100)
    made = spread_sessions(trace, 5000, seed=1)
    assert made.span_s > 4000
    for name in names(trace)[:5]:
        before, after = (each.arrival_ns[[row for row, other in enumerate(names(each)) if other == name]]
                         for each in (trace, made))  # fmt: skip
        assert np.array_equal(np.diff(before), np.diff(after))


def test_a_shift_moves_all() -> None:
    assert np.array_equal(shift(toy(), 2.0).arrival_ns, toy().arrival_ns + 2_000_000_000)


def test_filters_name_their_rule_and_refuse_to_keep_nothing() -> None:
    trace = toy()
    first = filter_rows(trace, lambda each: each.columns["turn"] == 0, "first turns")
    assert len(first) == len(trace) // 2
    assert first.chain[-1]["parameters"] == {"because": "first turns"}
    with pytest.raises(ValueError, match="keeps none"):
        filter_rows(trace, lambda each: each.input_tokens > 99, "huge")


def test_sessions_are_inferred_from_gaps_of_one_client() -> None:
    tokens = np.ones(5, np.int32)
    client = Labels(np.array([0, 1, 0, 0, MISSING], np.int32), ("a", "b"))
    trace = Trace("t", np.array([0, 1, 2, 100, 101]) * 10**9, tokens, tokens, tokens * 0, {"client": client}, {})
    made = sessionise(trace, gap_s=10, by="client")
    sessions = made.columns["session_id"]
    assert isinstance(sessions, Labels)
    assert sessions.codes.tolist() == [0, 1, 0, 2, MISSING]
    assert made.columns["turn"].tolist() == [0, 0, 1, 0, MISSING]
    assert made.metadata["sessions"] == "inferred"


def dated(trace: Trace, date: str) -> Trace:
    t0_ns = int(np.datetime64(date, "ns").astype(np.int64))
    return replace(trace, metadata={**trace.metadata, "t0_ns": t0_ns})


def test_traces_are_mixed_by_start_date_or_hour_of_the_week() -> None:
    monday, wednesday = dated(toy(60), "2026-01-05T10:00"), dated(toy(60), "2026-01-14T12:00")
    first = int(monday.arrival_ns[0])
    for align, later_h in (("start", 0), ("date", 9 * 24 + 2), ("week", 2 * 24 + 2)):
        made = mix([monday, wednesday], 0, align=align)
        second = made.arrival_ns[np.flatnonzero(np.isin(names(made), names(wednesday)))]
        offset = 10 * 3600 * 10**9 if align == "week" else 0
        assert made.arrival_ns[0] == first + offset
        assert later_h == 0 or made.arrival_ns[-1] - made.arrival_ns[0] > later_h * 3600 * 10**9 - 1
        assert len(second) <= len(made)
    with pytest.raises(ValueError, match="needs the date of every trace; 1 have none"):
        mix([monday, toy(60)], 0, align="date")


def test_jitter_moves_every_arrival_a_little() -> None:
    trace = toy()
    moved = jitter(trace, 0.5, 1)
    assert len(moved) == len(trace)
    assert idc(moved, 10.0) == pytest.approx(idc(trace, 10.0), rel=0.1)
    assert content_sha256(moved) != content_sha256(trace)


def test_clients_are_taken_out_and_models_replaced() -> None:
    trace = toy()
    who = Labels((np.arange(len(trace)) % 3).astype(np.int32), ("a", "b", "c"))
    trace = replace(trace, columns={**trace.columns, "client": who})
    less = without(trace, "client", ["b"])
    assert set(less.columns["client"].codes.tolist()) == {0, 2}
    one = relabel(trace, "client", {"a": "x", "c": "x"})
    assert one.columns["client"].names == ("x", "b")
    assert np.bincount(one.columns["client"].codes).tolist() == [2 * len(trace) // 3, len(trace) // 3]
    with pytest.raises(ValueError, match="no client 'd'; known: a, b, c"):
        without(trace, "client", ["d"])


def test_lengths_are_mapped_by_quantile_so_that_ranks_stay() -> None:
    trace, other = toy(), toy(300)
    longer = map_lengths(trace, scale_lengths(other, input_factor=10))
    assert longer.input_tokens.min() >= 200
    assert np.all(np.diff(longer.input_tokens[np.argsort(trace.input_tokens, kind="stable")]) >= 0)


@pytest.mark.parametrize(
    "call",
    [
        lambda trace: thin(trace, 0, 1),
        lambda trace: thin(trace, 1.5, 1),
        lambda trace: thin(trace, 0.5, 1, by="colour"),
        lambda trace: amplify(trace, 0, 1),
        lambda trace: time_scale(trace, -1),
        lambda trace: superpose(trace, 0, 1),
        lambda trace: slice_time(trace, 5000, 6000),
        lambda trace: repeat(trace, 0),
        lambda trace: mix([], 1),
        lambda trace: mix([trace], 1, [1, 2]),
        lambda trace: resample(trace, 1, 1e6),
    ],
)
def test_impossible_wishes_are_refused(call: Callable[[Trace], Trace]) -> None:
    with pytest.raises(ValueError, match=r"\d|nothing|colour"):
        call(toy())


@pytest.fixture(scope="module", params=["code", "conv"])
def azure(request: pytest.FixtureRequest, shared: Path) -> Trace:
    return traces.read(shared / "traces" / "azure2023" / f"AzureLLMInferenceTrace_{request.param}.csv.gz")


@pytest.fixture(scope="module")
def mooncake(shared: Path) -> Trace:
    return traces.read(shared / "traces" / "mooncake" / "conversation_trace.jsonl.gz")


def mean_idc(made: list[Trace], window_s: float) -> tuple[float, float]:
    """Return the mean over seeds and the standard deviation of one seed."""
    found = [idc(each, window_s) or 0.0 for each in made]
    return float(np.mean(found)), float(np.std(found, ddof=1))


def test_thinning_pulls_the_dispersion_towards_one(azure: Trace) -> None:
    made = [thin(azure, 0.25, seed) for seed in range(12)]
    for window_s in WINDOWS_S:
        mean, deviation = mean_idc(made, window_s)
        expected = 1 + 0.25 * (idc(azure, window_s) - 1)  # type: ignore[operator]
        assert abs(mean - expected) < 4 * deviation / np.sqrt(12) + 0.01 * expected
    assert np.mean([len(each) for each in made]) == pytest.approx(len(azure) / 4, rel=0.02)
    assert np.mean([iat_cv(each) for each in made]) < (iat_cv(azure) or 0)


def test_time_scaling_reads_the_dispersion_at_a_longer_window(azure: Trace) -> None:
    made = time_scale(azure, 4)
    assert iat_cv(made) == pytest.approx(iat_cv(azure), rel=1e-9)
    assert made.rate_per_s == pytest.approx(4 * azure.rate_per_s)
    for window_s in WINDOWS_S:
        assert idc(made, window_s) == pytest.approx(idc(azure, 4 * window_s), rel=1e-4)


def test_independent_copies_keep_the_dispersion_and_lose_the_peaks(azure: Trace) -> None:
    made = [superpose(azure, 4, seed) for seed in range(12)]
    for window_s in (1.0, 10.0):
        mean, deviation = mean_idc(made, window_s)
        assert abs(mean - idc(azure, window_s)) < 4 * deviation / np.sqrt(12) + 0.05 * mean  # type: ignore[operator]
    excess = (peak_to_mean(azure, 60.0) or 0) - 1
    assert np.mean([(peak_to_mean(each, 60.0) or 0) - 1 for each in made]) == pytest.approx(excess / 2, rel=0.35)
    assert np.mean([iat_cv(each) for each in made]) < (iat_cv(azure) or 0)


def test_amplifying_keeps_the_bursts_in_proportion(azure: Trace) -> None:
    """Each count N becomes Poisson(4 N), so at windows far above the jitter IDC' = 1 + 4 IDC."""
    made = [amplify(azure, 4, seed) for seed in range(12)]
    mean, deviation = mean_idc(made, 60.0)
    expected = 1 + 4 * (idc(azure, 60.0) or 0)
    assert abs(mean - expected) < 4 * deviation / np.sqrt(12) + 0.03 * expected
    assert np.mean([each.rate_per_s for each in made]) == pytest.approx(4 * azure.rate_per_s, rel=0.02)
    peak = np.mean([peak_to_mean(each, 60.0) for each in made])
    assert peak == pytest.approx(peak_to_mean(azure, 60.0), rel=0.05)


def test_restamping_kills_the_bursts(azure: Trace) -> None:
    made = [restamp_poisson(azure, seed) for seed in range(12)]
    for window_s in WINDOWS_S:
        mean, deviation = mean_idc(made, window_s)
        assert abs(mean - 1) < 4 * deviation / np.sqrt(12) + 0.02
    assert np.array_equal(made[0].input_tokens, azure.input_tokens)


def test_a_block_bootstrap_keeps_the_dispersion_up_to_its_block(azure: Trace) -> None:
    made = [resample(azure, seed, block_s=120.0) for seed in range(20)]
    for window_s in (1.0, 10.0):
        mean, deviation = mean_idc(made, window_s)
        assert abs(mean - idc(azure, window_s)) < 4 * deviation / np.sqrt(20) + 0.08 * mean  # type: ignore[operator]


def test_scaling_the_rate_down_and_up_is_thinning_and_amplifying(azure: Trace) -> None:
    assert scale_rate(azure, 1, 5) is azure
    assert scale_rate(azure, 0.5, 5).chain[-1]["operation"] == "thin"
    assert scale_rate(azure, 2, 5).chain[-1]["operation"] == "amplify"


def test_thinning_by_family_keeps_prefix_reuse_that_thinning_by_request_halves(mooncake: Trace) -> None:
    """Published for this trace at a quarter: 36 % of tokens by family, 19 % by request, 37 % whole."""
    by_family = [hit(thin(mooncake, 0.25, seed)) for seed in range(16)]
    by_request = [hit(thin(mooncake, 0.25, seed, by=None)) for seed in range(16)]
    assert hit(mooncake) == pytest.approx(0.374, abs=0.001)
    assert np.mean(by_family) == pytest.approx(0.364, abs=0.02)
    assert np.mean(by_request) == pytest.approx(0.19, abs=0.01)


def test_copies_have_blocks_of_their_own(mooncake: Trace) -> None:
    for made in (superpose(mooncake, 3, seed=0), amplify(mooncake, 3, seed=0)):
        assert hit(made) == pytest.approx(hit(mooncake), abs=0.02)


def test_jitter_inside_the_clock_step_removes_what_the_clock_made_up(mooncake: Trace) -> None:
    made = dequantise(mooncake, seed=0)
    assert (iat_cv(mooncake), idc(mooncake, 1.0)) == (pytest.approx(3.03, abs=0.01), pytest.approx(7.9, abs=0.1))
    assert iat_cv(made) == pytest.approx(1.0, abs=0.02)
    assert idc(made, 1.0) == pytest.approx(1.02, abs=0.06)
    assert idc(made, 60.0) == pytest.approx(idc(mooncake, 60.0), rel=0.05)


def test_counts_of_a_mix_add(azure: Trace) -> None:
    other = restamp_poisson(azure, seed=9)
    made = mix([azure, other], seed=0)
    assert len(made) == 2 * len(azure)
    minutes = [np.bincount(each.arrival_ns // 60_000_000_000, minlength=60) for each in (azure, other, made)]
    assert np.array_equal(minutes[0] + minutes[1], minutes[2])


def hit(trace: Trace) -> float:
    found = prefix_reuse(trace)
    assert found is not None
    return found["token_hit_infinite"]
