"""Generated traces: each arrival law has the rate, gap CV and dispersion that its theory says; nothing is forced."""

from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traces
from traces import Trace, arrival_laws
from traces.arrival_laws import ARRIVAL_LAWS
from traces.fit import idc_of_memories
from traces.generate import from_pool, generate, generate_sample, read_profile
from traces.length_laws import LengthLaw, fit_lengths, fixed_lengths
from traces.servegen import Client, LengthTables, Window, read_lengths, read_pool, read_windows
from traces.statistics import idc, rank_correlation
from traces.trace import content_sha256

FIXED = fixed_lengths(100, 10)
LAWS: dict[str, tuple[dict[str, Any], float]] = {  # parameters, mean rate per second
    "deterministic": ({"rate_per_s": 5.0}, 5.0),
    "poisson": ({"rate_per_s": 5.0}, 5.0),
    "renewal": ({"rate_per_s": 5.0, "cv": 3.0}, 5.0),
    "nhpp": ({"times_s": [0.0, 400.0], "rates_per_s": [0.0, 10.0]}, 5.0),
    "mmpp": ({"rates_per_s": (12.0, 2.0), "mean_stays_s": (3.0, 7.0)}, 5.0),
    "on_off": ({"rate_per_s": 10.0, "mean_on_s": 4.0, "mean_off_s": 4.0}, 5.0),
    "cox": ({"rate_per_s": 5.0, "amplitudes": (10.0,), "decays_per_s": (0.5,)}, 5.0),
    "hawkes": ({"rate_per_s": 5.0, "branching": 0.6, "decay_per_s": 2.0}, 5.0),
    "bursts": ({"bursts_s": ((0.0, 1.0, 2.0, 3.0, 4.0) * 4, (0.0,) * 10), "silences_s": (2.0, 0.0, 1.0)}, 5.0),
    "batch": ({"rate_per_s": 5.0, "mean_size": 4.0, "spread_s": 1.0}, 5.0),
}


def arrivals(law: str, duration_s: float, seed: int, **parameters: Any) -> np.ndarray:
    return ARRIVAL_LAWS[law](duration_s=duration_s, rng=np.random.default_rng(seed), **parameters)


def test_every_law_is_tested() -> None:
    assert set(LAWS) == set(ARRIVAL_LAWS)


@pytest.mark.parametrize("law", LAWS)
def test_a_law_keeps_its_rate_order_and_span(law: str) -> None:
    parameters, rate_per_s = LAWS[law]
    counts = []
    for seed in range(60):
        times = arrivals(law, 400.0, seed, **parameters)
        assert np.all(np.diff(times) >= 0)
        assert times[0] >= 0
        assert times[-1] <= 400e9
        counts.append(len(times))
    error = np.std(counts, ddof=1) / np.sqrt(len(counts))
    assert abs(np.mean(counts) - 400 * rate_per_s) < 4 * error + 1


def test_bursts_come_whole_and_as_often_as_theory_says() -> None:
    """Bursts of 3 requests in 2 s and of 1, silences of 5 and 3 s: three gaps, a cycle of 5 s, half of them of 3."""
    times = arrivals("bursts", 20_000.0, 1, bursts_s=((0.0, 1.0, 2.0), (0.0,)), silences_s=(5.0, 3.0))
    gaps = np.round(np.diff(times) / 1e9)
    assert set(gaps.tolist()) == {1.0, 3.0, 5.0}
    assert np.count_nonzero(gaps == 1) == pytest.approx(20_000 / 5, rel=0.05)
    assert np.count_nonzero(gaps == 5) == pytest.approx(20_000 / 10, rel=0.1)


@pytest.mark.parametrize("law", [law for law in LAWS if law != "deterministic"])
def test_no_law_forces_its_count(law: str) -> None:
    parameters, _ = LAWS[law]
    counts = [len(arrivals(law, 400.0, seed, **parameters)) for seed in range(30)]
    assert np.var(counts, ddof=1) > 0.4 * np.mean(counts)


@pytest.mark.parametrize("family", arrival_laws.RENEWAL_FAMILIES)
@pytest.mark.parametrize("cv", [0.5, 2.0])
def test_renewal_gaps_have_the_cv_asked_for_and_no_start_of_their_own(family: str, cv: float) -> None:
    gaps = np.diff(arrivals("renewal", 40_000.0, 1, rate_per_s=5.0, cv=cv, family=family))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)
    short = [len(arrivals("renewal", 1.0, seed, rate_per_s=5.0, cv=cv, family=family)) for seed in range(4000)]
    assert np.mean(short) == pytest.approx(5.0, abs=4 * np.std(short) / np.sqrt(4000))


def trace_of(law: str, duration_s: float, seed: int, **parameters: Any) -> Trace:
    return generate(law, parameters, FIXED, duration_s, seed)


def mean_idc(law: str, window_s: float, seeds: int = 8, duration_s: float = 20_000.0, **parameters: Any) -> float:
    return float(np.mean([idc(trace_of(law, duration_s, seed, **parameters), window_s) for seed in range(seeds)]))


@pytest.mark.parametrize("window_s", [0.5, 5.0, 50.0])
def test_a_cox_stream_has_the_dispersion_of_its_memories(window_s: float) -> None:
    amplitudes, decays = (4.0, 30.0), (2.0, 0.05)
    expected = float(idc_of_memories(np.array([window_s]), amplitudes, decays)[0])
    found = mean_idc("cox", window_s, rate_per_s=5.0, amplitudes=amplitudes, decays_per_s=decays)
    assert found == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("window_s", [0.5, 5.0, 50.0])
def test_an_mmpp_of_two_states_has_its_dispersion_in_closed_form(window_s: float) -> None:
    """Rates 12 and 2 for 3 and 7 s: mean 5, variance 21, decay 1/3 + 1/7; A = 2 variance / (mean decay)."""
    decay = 1 / 3 + 1 / 7
    amplitude = 2 * 21 / (5 * decay)
    expected = 1 + amplitude * (1 - (1 - exp(-decay * window_s)) / (decay * window_s))
    found = mean_idc("mmpp", window_s, rates_per_s=(12.0, 2.0), mean_stays_s=(3.0, 7.0))
    assert found == pytest.approx(expected, rel=0.08)


def test_a_hawkes_stream_tends_to_its_dispersion() -> None:
    """One over (1 - branching) squared: 6.25 at long windows."""
    assert mean_idc("hawkes", 60.0, rate_per_s=5.0, branching=0.6, decay_per_s=2.0) == pytest.approx(6.25, rel=0.1)


def test_batches_have_the_dispersion_of_their_sizes() -> None:
    """Geometric sizes of mean 4: E[size squared] / E[size] = 7."""
    found = mean_idc("batch", 60.0, rate_per_s=5.0, mean_size=4.0, spread_s=0.5)
    assert found == pytest.approx(7.0, rel=0.1)


def test_poisson_is_poisson_at_every_window() -> None:
    for window_s in (0.1, 1.0, 60.0):
        assert mean_idc("poisson", window_s, rate_per_s=5.0) == pytest.approx(1.0, rel=0.08)


def test_lengths_are_drawn_in_pairs_so_that_ranks_stay(shared: Path) -> None:
    source = traces.read(shared / "traces" / "router" / "generic_chat_mix.jsonl")
    expected = rank_correlation(source.input_tokens, source.output_tokens)
    for lengths in (source, fit_lengths(source)):
        made = generate("poisson", {"rate_per_s": 50.0}, lengths, 200.0, 1)
        assert rank_correlation(made.input_tokens, made.output_tokens) == pytest.approx(expected, abs=0.06)
        edges = np.sort(source.input_tokens)
        shares = [np.searchsorted(np.sort(each.input_tokens), edges) / len(each) for each in (source, made)]
        assert np.abs(shares[0] - shares[1]).max() < 0.03


def test_a_length_law_keeps_its_quantiles_and_its_rank_correlation() -> None:
    law = LengthLaw((0.0, 0.5, 1.0), (10, 20, 110), (1, 2, 3), 0.5)
    first, second = law.sample(20_000, np.random.default_rng(0))
    assert np.quantile(first, [0, 0.25, 0.5, 0.75, 1]).tolist() == pytest.approx([10, 15, 20, 65, 110], abs=1.5)
    assert law.sample(0, np.random.default_rng(0))[0].tolist() == []
    wide = LengthLaw((0.0, 1.0), (0, 10**6), (0, 10**6), 0.5)
    assert rank_correlation(*wide.sample(20_000, np.random.default_rng(0))) == pytest.approx(0.5, abs=0.02)
    assert second.max() == 3


def test_the_bundled_sample_is_what_its_laws_make() -> None:
    assert content_sha256(generate_sample()) == content_sha256(traces.sample())


def test_generation_is_seeded_and_names_unknown_laws() -> None:
    first, again, other = (trace_of("poisson", 100.0, seed, rate_per_s=5.0) for seed in (1, 1, 2))
    assert first.identity == again.identity != other.identity
    assert content_sha256(first) == content_sha256(again) != content_sha256(other)
    with pytest.raises(ValueError, match="known: deterministic"):
        trace_of("magic", 1.0, 1)
    with pytest.raises(ValueError, match="no arrival"):
        trace_of("poisson", 1e-9, 1, rate_per_s=1e-9)


POOL = (
    Client("even", (Window(0.0, 5.0, 1.0, "Gamma"), Window(600.0, 0.0, 0.0, "")),
           (LengthTables(0.0, {"input_tokens": (np.array([7]), np.array([1.0])),
                               "output_tokens": (np.array([1, 3]), np.array([0.5, 0.5]))}),)),
    Client("bursty", (Window(0.0, 1.0, 6.0, "Weibull"), Window(600.0, 1.0, 6.0, "Weibull")),
           (LengthTables(0.0, {"input_tokens": (np.array([9]), np.array([1.0])),
                               "output_tokens": (np.array([9]), np.array([1.0]))}),)),
)  # fmt: skip


def test_a_pool_makes_each_client_by_its_windows() -> None:
    counts = {name: np.array([len(_of(from_pool(POOL, 1200.0, seed), name)) for seed in range(40)]) for name in
              ("even", "bursty")}  # fmt: skip
    assert counts["even"].mean() == pytest.approx(3000, abs=4 * 3000**0.5 / 40**0.5)
    assert counts["bursty"].mean() == pytest.approx(1200, abs=4 * counts["bursty"].std() / 40**0.5)
    assert counts["even"].std() > 30
    assert counts["bursty"].std() > 100


def _of(trace: Trace, client: str) -> np.ndarray:
    labels = trace.columns["client"]
    assert isinstance(labels, traces.Labels)
    return np.flatnonzero(labels.codes == labels.names.index(client))


def test_a_pool_needs_lengths_from_somewhere() -> None:
    bare = (Client("bare", POOL[0].windows, ()),)
    with pytest.raises(ValueError, match="no table of input_tokens"):
        from_pool(bare, 600.0, 1)
    assert set(from_pool(bare, 600.0, 1, lengths=FIXED).input_tokens.tolist()) == {100}


def test_a_real_pool_makes_its_rate_without_forcing_it(shared: Path) -> None:
    """Published: 16/s over a day; a forced sampler has a standard deviation of 4.5 in two hours, Poisson 340."""
    pool = read_pool(shared / "traces" / "servegen" / "deepseek-r1.tar.xz")
    hours = [from_pool(pool, 7200.0, seed, start_s=43_200.0) for seed in range(4)]
    inside = [
        window.rate_per_s * 600 for client in pool for window in client.windows if 43_200 <= window.start_s < 50_400
    ]
    assert np.mean([len(each) for each in hours]) == pytest.approx(sum(inside), rel=0.03)
    assert np.std([len(each) for each in hours], ddof=1) > 100
    correlation = rank_correlation(hours[0].input_tokens, hours[0].output_tokens)
    assert correlation is not None
    assert abs(correlation) < 0.6


def test_edge_cases_of_a_pool_are_read_as_expected(shared: Path) -> None:
    folder = shared / "traces" / "edgecases"
    windows = read_windows("w", (folder / "servegen_trace.csv").read_text())
    assert [window.pattern for window in windows] == ["", "Gamma", "Weibull"]
    tables = read_lengths("d", (folder / "servegen_dataset.json").read_text())
    assert len(tables) == 1
    assert tables[0].tokens["input_tokens"][0].tolist() == [9, 163]


@pytest.mark.parametrize("value", ["{1: __import__('os')}", "{1: 2", "[1]", "{'a': 1}", "{1: -1}", "{1: 0}"])
def test_lengths_are_read_by_a_grammar_not_evaluated(value: str) -> None:
    import json

    with pytest.raises(traces.BadTrace):
        read_lengths("d", json.dumps({"0": {"input_tokens": value}}))


def test_published_counts_per_hour_are_rates(shared: Path) -> None:
    path = shared / "traces" / "azure2024" / "azure2024_hourly_requests_digitised.csv"
    times_s, rates_per_s = read_profile(path, "code")
    assert len(times_s) == 168
    assert np.mean(rates_per_s) == pytest.approx(27.8, rel=0.01)
    made = arrivals("nhpp", 86_400.0, 1, times_s=times_s, rates_per_s=np.array(rates_per_s) / 20)
    assert len(made) == pytest.approx(sum(rates_per_s[:24]) * 3600 / 20, rel=0.03)
    days = read_profile(shared / "traces" / "burstgpt" / "BurstGPT_1.daily.csv")
    assert np.mean(days[1]) * 86_400 == pytest.approx(23_400, rel=0.01)
    with pytest.raises(ValueError, match="code, conv"):
        read_profile(path)
