"""Made traces load a fleet as the real ones do, as far as a fit can know."""

from pathlib import Path

import numpy as np
import pytest
import toys

import traces
from planners.resemblance import resemblances, saturation_rate_per_s
from simulator.fleet import Fleet
from traces.likeness import fit_trace
from traces.transform import restamp_poisson


def reference(replicas: int = 1) -> Fleet:
    """A step of 8 ms and 40 us a new token, 256 sequences: the queue is made by prefill and by waiting for a seat."""
    bounds = toys.limits(
        max_sequences=256, max_batched_tokens=8192, block_tokens=16, total_blocks=40_000, max_context_tokens=32_768
    )
    return toys.fleet(
        replicas, bounds=bounds, step_ps=8 * toys.PS_PER_MS, token_ps=40_000_000, context_ps=3000, cell_shift=8
    )


def test_a_fleet_saturates_at_one_over_the_work_of_a_request() -> None:
    """Prompts of 100 tokens at 1 ms a token and nothing else: ten requests a second."""
    bounds = toys.limits(max_sequences=4, max_batched_tokens=128, total_blocks=1000, max_context_tokens=256)
    fleet = toys.fleet(bounds=bounds, step_ps=0, token_ps=toys.PS_PER_MS)
    trace = toys.trace(np.arange(200.0), 100, 1)
    assert saturation_rate_per_s(trace, fleet) == pytest.approx(10, rel=0.02)


def test_a_trace_resembles_itself_exactly() -> None:
    trace = traces.transform.slice_time(traces.sample(), 0, 300)
    (found,) = resemblances(trace, [trace, trace], reference(), loads=[0.5])
    assert (found.error, found.real_goodput) == (0, found.made_goodput)


@pytest.mark.parametrize("name", ["code", "conv"])
def test_made_traces_wait_as_long_as_real_ones_and_poisson_does_not(shared: Path, name: str) -> None:
    """The real hour is one draw: its p99 TTFT lies inside the 90 % interval of the made ones at every load, and their
    mean is within 15 % and two standard errors; a Poisson stream of the same requests misses by more than half on
    code."""
    trace = traces.read(shared / "traces" / "azure2023" / f"AzureLLMInferenceTrace_{name}.csv.gz")
    found = fit_trace(trace)
    made = [found.generate(trace.span_s, seed, trace) for seed in range(12)]
    for each in resemblances(trace, made, reference()):
        low_s, high_s = each.made_interval_s
        assert 0.85 * low_s < each.real_ttft_p99_s < 1.15 * high_s
        assert abs(each.error) < 0.15 + 2 * each.standard_error
    if name == "code":
        (poisson,) = resemblances(trace, [restamp_poisson(trace, 0)], reference(), loads=[0.7])
        assert poisson.error < -0.5
