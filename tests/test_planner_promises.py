"""Promises: read from words, held against runs."""

import numpy as np
import pytest
import toys

from planners import slo
from simulator.replay import replay

MS = 1e-3


def test_a_promise_is_read_from_words_and_written_back():
    assert slo.parse("ttft:p99<=2s") == slo.Slo("ttft", 99.0, 2.0)
    assert slo.parse(" TPOT:p99.9 < 80 ms ") == slo.Slo("tpot", 99.9, 0.08)
    assert str(slo.parse("e2e:p50<=1min")) == "e2e:p50<=60s"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ttft<=2s", "expected METRIC:pPERCENT<=LIMIT"),
        ("speed:p99<=2s", "unknown metric 'speed'; known: ttft, tpot, e2e"),
        ("ttft:p99<=2h", "unknown unit 'h'; known: s, ms, us, min"),
        ("ttft:p100<=2s", "percentile 100 is not between 0 and 100"),
        ("ttft:p99<=0s", "the limit must be positive"),
        ("ttft:p9.9.9<=2s", "'9.9.9' is not a number"),
    ],
)
def test_a_promise_that_cannot_be_read_says_why(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        slo.parse(text)


def test_no_promise_and_two_on_one_percentile_are_refused():
    with pytest.raises(ValueError, match="no promise given"):
        slo.parse_all([])
    with pytest.raises(ValueError, match="two promises on ttft:p99"):
        slo.parse_all(["ttft:p99<=2s", "ttft:p99<=3s"])


@pytest.mark.parametrize(("percent", "requests"), [(99.0, 100), (99.0, 101), (90.0, 11), (50.0, 7), (99.9, 12)])
def test_the_misses_allowed_are_the_most_that_keep_the_percentile(percent, requests):
    misses = slo.Slo("ttft", percent, 1.0).misses_allowed(requests)

    def percentile(late: int) -> float:
        return float(np.percentile([1.0] * (requests - late) + [1e9] * late, percent))

    # Interpolation counts one more as late as soon as the percentile touches it at all.
    assert percentile(misses - 1) == 1.0 or misses == 0
    assert percentile(misses + 1) > 1.0


def test_a_run_keeps_what_it_keeps():
    # Four requests of 1 ms each arrive at once on one lane of one sequence: TTFT 1, 2, 3, 4 ms.
    engine = toys.engine(toys.limits(max_sequences=1))
    run = replay(toys.trace(np.zeros(4), 1, 1), toys.Fleet((toys.Pool(engine, 1),)))
    assert slo.holds(run, [slo.parse("ttft:p50<=2.5ms")])
    assert slo.broken(run, [slo.parse("ttft:p50<=2.4ms")]) == (slo.parse("ttft:p50<=2.4ms"),)
    assert slo.strain(run, [slo.parse("ttft:p50<=5ms"), slo.parse("ttft:p90<=2ms")]) == pytest.approx(3.7 / 2)
    assert slo.strain(run, [slo.parse("tpot:p50<=1ms")]) == 0.0  # answers of one token have no TPOT
