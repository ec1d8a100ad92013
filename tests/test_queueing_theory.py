"""The simulator against closed forms of queueing theory, within the confidence interval of replications."""

from math import factorial

import numpy as np
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from models import device, llm
from models.engine import Engine, Settings
from models.step import decode_ps, pack, prefill_ps
from simulator.fleet import Fleet, Pool, priced
from simulator.replay import replay

STEP_S = 1e-3
RATES = (10, 30, 100, 300, 1_000)


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


def test_waits_of_a_server_that_decodes_meanwhile_follow_m_g_1_with_vacations():
    """One endless answer is decoded in steps of V = 1 ms; a prompt has a step to itself, S = 1 ms + 20 us a token.

    No two prompts fit into one step, so an idle server takes vacations of V: W = lambda E[S^2] / (2 (1 - rho)) + V / 2.
    """
    bounds = toys.limits(max_sequences=1_000, total_blocks=1 << 20, max_context_tokens=1 << 22, chunked_prefill=False)
    fleet = Fleet((Pool(toys.engine(bounds, cell_shift=16, token_ps=20_000_000), 1),))
    decode_s, services_s = 20e-6 + STEP_S, np.array([1e-3 + 41 * 20e-6, 1e-3 + 61 * 20e-6])
    load = 0.7
    rate = load / services_s.mean()

    def poisson(rng):
        arrivals_s = np.concatenate([[0.0], 0.01 + np.cumsum(rng.exponential(1 / rate, 10_000))])
        inputs = np.concatenate([[1], rng.choice([40, 60], 10_000)])
        return toys.trace(arrivals_s, inputs, np.concatenate([[40_000], np.ones(10_000, int)]))

    low, high = mean_wait_interval(poisson, fleet, replications=20, warm_up=1_000)
    expected_s = rate * (services_s**2).mean() / (2 * (1 - load)) + decode_s / 2
    assert low < expected_s < high
    assert high - low < 0.15 * expected_s


def test_the_saturation_rate_of_a_real_engine_is_what_its_step_table_predicts():
    """Of B sequences with answers of n tokens, B / n end and begin a step: the step's price says how many a second."""
    sequences, inputs, outputs = 64, 200, 256
    served = Settings(sequences, async_scheduling=False, prefix_caching=False)
    engine = priced(Engine(llm.load("llama-3.1-8b"), device.load("h100-sxm"), settings=served))
    places, prices = pack([engine.table])
    begun = sequences / outputs
    step_ps = 0.0
    for prefills in range(5):
        chance = np.exp(-begun) * begun**prefills / factorial(prefills)
        decodes = sequences - prefills
        context = int(decodes * (inputs + outputs / 2))
        attention_ps = decode_ps(prices, places[0], 1 if prefills else 0, decodes, context)
        attention_ps += prefills * prefill_ps(prices, places[0], inputs, 0)
        step_ps += chance * (engine.table.token_ps[0, decodes + prefills * inputs] + attention_ps)
    step_ps += engine.table.sequence_ps[0, sequences]
    predicted_per_s = begun / (step_ps * 1e-12)

    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 2 * outputs, 6_000)  # so that ends are spread over the steps
    run = replay(toys.trace(np.zeros(lengths.size), inputs, lengths), Fleet((Pool(engine, 1),)))
    ends_s = np.sort(run.e2e_s)
    measured_per_s = 4_000 / (ends_s[5_000] - ends_s[1_000])
    assert np.isclose(measured_per_s, predicted_per_s, rtol=0.02)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_waiting_grows_with_load_for_every_single_replica(seed):
    """The same requests, sent faster: with one queue in order of arrival nobody's work begins earlier than before."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(20, 200))
    gaps_s, inputs, outputs = rng.exponential(1.0, count), rng.integers(1, 60, count), rng.integers(1, 60, count)
    bounds = toys.limits(max_sequences=int(rng.integers(1, 9)), total_blocks=1_000, max_context_tokens=4_000)
    fleet = Fleet((Pool(toys.engine(bounds, cell_shift=6, token_ps=int(rng.integers(0, 10**7))), 1),))
    waits = [replay(toys.trace(np.cumsum(gaps_s) / rate, inputs, outputs), fleet).queue_s.mean() for rate in RATES]
    assert waits == sorted(waits)
