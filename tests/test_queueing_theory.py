"""The simulator against closed forms of queueing theory, within the confidence interval of replications."""

from math import factorial

import numpy as np
import toys
from scipy import stats

from simulator.fleet import Fleet, Pool
from simulator.replay import replay

STEP_S = 1e-3


def mean_wait_interval(make_trace, fleet, replications: int, warm_up: int) -> tuple[float, float]:
    """Return the 99 % confidence interval of the mean wait over independent replications."""
    means = [
        replay(make_trace(np.random.default_rng(seed)), fleet).queue_s[warm_up:].mean() for seed in range(replications)
    ]
    half = stats.t.ppf(0.995, replications - 1) * np.std(means, ddof=1) / np.sqrt(replications)
    return np.mean(means) - half, np.mean(means) + half


def one_server(sequences: int) -> Fleet:
    bounds = toys.limits(max_sequences=sequences, total_blocks=100_000, max_context_tokens=400_000)
    return Fleet((Pool(toys.engine(bounds, cell_shift=12), 1),))


def test_waits_with_fixed_service_follow_the_m_d_1_formula():
    # Service is one step of 1 ms, load 0.8: W = rho / (2 (1 - rho)) * service = 2 ms.
    load = 0.8

    def poisson(rng):
        return toys.trace(np.cumsum(rng.exponential(STEP_S / load, 20_000)), 1, 1)

    low, high = mean_wait_interval(poisson, one_server(1), replications=20, warm_up=2_000)
    expected_s = load / (2 * (1 - load)) * STEP_S
    assert low < expected_s < high
    assert high - low < 0.15 * expected_s


def test_waits_with_exponential_service_follow_the_erlang_c_formula():
    # Four decode slots, answers of about 1,000 steps (exponential), load 0.8 each.
    servers, load, mean_tokens = 4, 0.8, 1_000

    def poisson(rng):
        outputs = np.maximum(1, np.rint(rng.exponential(mean_tokens, 10_000)))
        return toys.trace(np.cumsum(rng.exponential(mean_tokens * STEP_S / (servers * load), 10_000)), 1, outputs)

    offered = servers * load
    blocked = offered**servers / factorial(servers) / (1 - load)
    wait_probability = blocked / (sum(offered**n / factorial(n) for n in range(servers)) + blocked)
    expected_s = wait_probability * mean_tokens * STEP_S / (servers * (1 - load))
    low, high = mean_wait_interval(poisson, one_server(servers), replications=20, warm_up=1_000)
    assert low < expected_s < high
    assert high - low < 0.25 * expected_s


def test_littles_law_holds_on_the_sample_path():
    rng = np.random.default_rng(5)
    trace = toys.trace(np.cumsum(rng.exponential(2e-3, 500)), rng.integers(1, 40, 500), rng.integers(1, 40, 500))
    run = replay(trace, toys.fleet(2))
    arrivals_s = trace.arrival_ns / 1e9
    times = np.concatenate([arrivals_s, arrivals_s + run.e2e_s])
    change = np.concatenate([np.ones(500), -np.ones(500)])[np.argsort(times, kind="stable")]
    area = (np.cumsum(change)[:-1] * np.diff(np.sort(times))).sum()
    assert np.isclose(area, run.e2e_s.sum(), rtol=1e-9)


def test_more_load_never_shortens_the_mean_wait():
    rng = np.random.default_rng(6)
    gaps_s, inputs, outputs = rng.exponential(1.0, 2_000), rng.integers(1, 60, 2_000), rng.integers(1, 60, 2_000)
    waits = [
        replay(toys.trace(np.cumsum(gaps_s) / rate, inputs, outputs), toys.fleet(2)).queue_s.mean()
        for rate in (50, 100, 150, 200, 250)
    ]
    assert waits == sorted(waits)


def test_saturated_throughput_is_what_the_step_table_predicts():
    # Eight sequences decoding in steps of 1 ms: 8,000 tokens/s, less the steps that only prefill.
    trace = toys.trace(np.zeros(2_000), 1, 100)
    run = replay(trace, one_server(8))
    assert np.isclose(len(trace) * 100 / run.span_s, 8_000, rtol=0.02)
