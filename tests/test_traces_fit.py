"""Fitting: known laws are found again with their parameters, and real bursts are matched on time not fitted to."""

from math import sqrt
from pathlib import Path

import numpy as np
import pytest

import traces
from traces import Trace
from traces.fit import expected_idc, fit_idc
from traces.generate import generate
from traces.length_laws import fixed_lengths
from traces.likeness import Likeness, fit_trace, ks_distance, poisson_test, wasserstein_distance
from traces.statistics import idc
from traces.transform import dequantise

FIXED = fixed_lengths(100, 10)
PUBLISHED_IDC = {"code": (13.2, 71.9, 167.0), "conv": (1.39, 3.87, 16.4)}


def made(law: str, duration_s: float, seed: int, **parameters: object) -> Trace:
    return generate(law, parameters, FIXED, duration_s, seed)


@pytest.fixture(scope="module", params=PUBLISHED_IDC)
def azure(request: pytest.FixtureRequest, shared: Path) -> tuple[str, Trace, Likeness]:
    trace = traces.read(shared / "traces" / "azure2023" / f"AzureLLMInferenceTrace_{request.param}.csv.gz")
    return request.param, trace, fit_trace(trace)


def test_a_poisson_stream_is_accepted_and_its_rate_is_inside_the_interval() -> None:
    accepted = 0
    for seed in range(20):
        trace = made("poisson", 1022.0, seed, rate_per_s=3.91)
        accepted += not poisson_test(trace)["rejected"]
    assert accepted >= 19
    found = fit_trace(made("poisson", 3000.0, 1, rate_per_s=3.91))
    assert found.law == "poisson"
    low, high = found.intervals["rate_per_s"]
    assert low < 3.91 < high


def test_a_coarse_clock_does_not_hide_a_poisson_stream() -> None:
    """As Mooncake's: arrivals written in steps of 3 s, which alone give gaps a CV of 3."""
    trace = made("poisson", 3000.0, 3, rate_per_s=4.0)
    step_ns = 3_000_000_000
    coarse = Trace("coarse", trace.arrival_ns // step_ns * step_ns, trace.input_tokens, trace.output_tokens,
                   trace.status, {}, trace.metadata)  # fmt: skip
    found = fit_trace(coarse)
    assert found.fitted_on["dequantised_s"] == 3.0
    assert not found.poisson["rejected"]


def test_a_clockwork_is_neither_poisson_nor_bursty() -> None:
    found = fit_trace(made("deterministic", 100.0, 1, rate_per_s=4.0))
    assert (found.law, found.poisson["rejected"]) == ("deterministic", True)
    assert "rejected" in found.words()


@pytest.mark.parametrize("law", ["mmpp", "cox", "hawkes"])
def test_bursts_are_never_taken_for_poisson_or_renewal(law: str) -> None:
    parameters = {
        "mmpp": {"rates_per_s": (15.0, 0.5), "mean_stays_s": (8.0, 40.0)},
        "cox": {"rate_per_s": 4.0, "amplitudes": (40.0,), "decays_per_s": (0.1,)},
        "hawkes": {"rate_per_s": 4.0, "branching": 0.85, "decay_per_s": 1.0},
    }[law]
    found = fit_trace(made(law, 5000.0, 2, **parameters))
    assert found.poisson["rejected"]
    assert found.law in ("mmpp", "cox", "hawkes", "bursts")


def test_the_memory_of_a_cox_process_is_recovered() -> None:
    """Amplitude 40 and decay 0.1/s: the mean of five fits is within a fifth of both."""
    fits = [fit_idc(made("cox", 20_000.0, seed, rate_per_s=4.0, amplitudes=(40.0,), decays_per_s=(0.1,)))
            for seed in range(5)]  # fmt: skip
    assert np.mean([fit.amplitudes[0] for fit in fits]) == pytest.approx(40, rel=0.2)
    assert np.mean([fit.decays_per_s[0] for fit in fits]) == pytest.approx(0.1, rel=0.2)


def test_a_short_stretch_shows_less_dispersion_by_as_much_as_theory_says() -> None:
    """Slow memory of 50 s seen for 300 s: the mean finding at 10 s over many traces is the expected one."""
    law = {"rate_per_s": 5.0, "amplitudes": (100.0,), "decays_per_s": (0.02,)}
    found = [idc(made("cox", 300.0, seed, **law), 10.0) for seed in range(300)]
    weights = [len(made("cox", 300.0, seed, **law)) for seed in range(300)]
    expected = float(expected_idc(np.array([10.0]), 300.0, (100.0,), (0.02,))[0])
    error = np.std(found, ddof=1) / sqrt(300)
    assert abs(np.average(found, weights=weights) - expected) < 4 * error
    assert expected < 0.95 * (1 + 100 * (1 + np.expm1(-0.2) / 0.2))


def test_real_bursts_are_no_poisson_stream(azure: tuple[str, Trace, Likeness]) -> None:
    _, _, found = azure
    assert found.poisson["rejected"]
    assert found.law == {"code": "bursts", "conv": "mmpp"}[azure[0]]


def test_a_law_fitted_on_two_thirds_makes_the_published_dispersion(azure: tuple[str, Trace, Likeness]) -> None:
    name, trace, found = azure
    synthetic = [found.generate(trace.span_s, seed, trace) for seed in range(30)]
    for window_s, published in zip((1.0, 10.0, 60.0), PUBLISHED_IDC[name], strict=True):
        assert np.mean([idc(each, window_s) for each in synthetic]) == pytest.approx(published, rel=0.25)


def test_held_out_time_lies_where_the_law_says_it_may(azure: tuple[str, Trace, Likeness]) -> None:
    """Ninety per cent intervals of traces as long as the held-out third, widened by half for the law's own error."""
    _, _, found = azure
    for window, (low, high) in found.held_out["idc_interval"].items():
        assert 0.85 * low < found.held_out["idc"][window] < 1.15 * high


def test_the_report_says_what_is_not_good_and_is_plain_data(azure: tuple[str, Trace, Likeness]) -> None:
    import json

    _, _, found = azure
    assert found.verdict in ("good", "doubtful", "bad")
    assert (found.verdict == "good") == (not found.reasons)
    again = json.loads(json.dumps(found.as_dict()))
    assert again["law"] == found.law
    assert set(again["held_out"]) >= {"idc", "idc_predicted", "gap_ks", "iat_cv", "count_correlation_1_s"}
    assert found.law in found.words()


def test_bursts_drawn_whole_keep_gaps_that_no_formula_had(azure: tuple[str, Trace, Likeness]) -> None:
    """Seconds-long bursts of code completions: the library's gaps are twice as near as any law's."""
    name, _, found = azure
    if name == "code":
        nearest, *others = found.candidates
        assert nearest.law == "bursts"
        assert 2 * nearest.gap_ks < min(each.gap_ks for each in others if each.law != "bursts")
        assert found.as_dict()["parameters"]["requests_per_burst"] > 20


def test_a_stream_without_silences_has_no_bursts_to_draw() -> None:
    found = fit_trace(made("deterministic", 100.0, 1, rate_per_s=4.0))
    assert "bursts" not in [each.law for each in found.candidates]


def test_a_synthetic_trace_keeps_lengths_in_pairs(azure: tuple[str, Trace, Likeness]) -> None:
    _, trace, found = azure
    synthetic = found.generate(1000.0, 1, trace)
    pairs = set(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True))
    assert set(zip(synthetic.input_tokens.tolist(), synthetic.output_tokens.tolist(), strict=True)) <= pairs


def test_mooncake_is_nearly_poisson_once_its_clock_is_smoothed(shared: Path) -> None:
    trace = dequantise(traces.read(shared / "traces" / "mooncake" / "conversation_trace.jsonl.gz"), seed=0)
    tests = poisson_test(trace)["tests"]
    assert tests["idc_1_s"] > 0.01
    assert tests["idc_60_s"] < 0.01


def test_reuse_and_turns_of_held_out_time_stand_beside_the_fitted(shared: Path) -> None:
    """Mooncake: 37 % of tokens seen before in all, less in stretches that begin cold, a small cache finding less."""
    from traces.likeness import _reuse
    from traces.transform import slice_time

    trace = traces.read(shared / "traces" / "mooncake" / "conversation_trace.jsonl.gz")
    found = _reuse(slice_time(trace, 0, 2400), slice_time(trace, 2400))
    assert all(0.2 < hit < 0.374 for hit in found["token_hit_infinite"])
    for place in range(2):
        hits = [found["token_hit_lru"][size][place] for size in ("0.01", "0.1", "0.25")]
        assert hits == sorted(hits)
        assert hits[-1] <= found["token_hit_infinite"][place]
    assert "turns_ks" not in found


def test_distances_between_samples_are_known_on_toys() -> None:
    first, second = np.array([0.0, 1.0]), np.array([2.0, 3.0])
    assert ks_distance(first, second) == 1
    assert ks_distance(first, first) == 0
    assert wasserstein_distance(first, second) == pytest.approx(2)


def test_too_few_requests_are_not_fitted() -> None:
    with pytest.raises(ValueError, match="too few to fit"):
        fit_trace(made("poisson", 10.0, 1, rate_per_s=1.0))
