"""semi-PD's lanes: two on one device, one memory, steps that slow down beside a busy neighbour, shares that follow."""

import numpy as np
import pytest
import toys
from test_control import outcome

from models.step import slowed
from simulator.control.actions import SetVariant
from simulator.control.plane import operate
from simulator.fleet import Fleet, Pool
from simulator.systems import semi_pd

MS = 1e-3


def device(bounds=None, **costs):
    return toys.engine(bounds or toys.limits(caching=False, total_blocks=32), **costs)


def busy(seed, count=60):
    rng = np.random.default_rng(seed)
    return toys.trace(np.cumsum(rng.exponential(4 * MS, count)), rng.integers(1, 40, count), rng.integers(1, 40, count))


def test_a_step_on_half_the_device_takes_twice_as_long():
    table = slowed(toys.table(toys.limits()), 2.0)
    assert table.token_ps[0, 1] == 2 * toys.PS_PER_MS


def test_prefill_goes_at_its_cap_alone_and_at_its_share_beside_decoding():
    fleet = semi_pd.fleet(device())  # one step a millisecond
    alone = operate(toys.trace([0], 8, 1), fleet).run
    assert alone.ttft_s[0] == pytest.approx(1 * MS)
    beside = operate(toys.trace([0, 5.5 * MS], 8, [30, 1]), fleet).run
    assert beside.ttft_s[1] == pytest.approx(2 * MS)


def test_decoding_slows_down_while_its_neighbour_prefills_and_only_then():
    fleet = semi_pd.fleet(device(token_ps=toys.PS_PER_MS // 2))  # long prefills
    quiet = operate(toys.trace([0], 8, 40), fleet).run
    disturbed = operate(toys.trace([0, 10 * MS], [8, 40], [40, 1]), fleet).run
    assert disturbed.e2e_s[0] > quiet.e2e_s[0]
    assert disturbed.e2e_s[0] < quiet.e2e_s[0] * semi_pd.decode_factor(0.5)


def test_both_lanes_use_one_memory_and_give_all_of_it_back():
    for seed in range(40):
        run = operate(busy(seed), semi_pd.fleet(device())).run
        assert run.counts()["finished"] == 60, seed
        assert (run.lanes["free_blocks"] == run.lanes["total_blocks"]).all(), seed
        assert (run.lanes["outstanding"] == 0).all(), seed


def test_what_is_handed_over_takes_no_second_copy():
    """A prompt that fills more than half the memory could not be held twice."""
    fleet = semi_pd.fleet(device(toys.limits(caching=False, total_blocks=16)))
    run = operate(toys.trace([0], 44, 8), fleet).run
    assert run.is_finished.all()
    assert run.outcome.preemptions[0] == 0


def test_fast_forward_and_single_steps_agree_with_shares_that_change():
    def changing(plane):
        for variant in (4, 10, 0, 16):
            yield plane.wait(37 * MS)
            for lane in (0, 1):
                plane.do(SetVariant(lane, variant))

    for seed in range(30):
        runs = [
            operate(
                busy(seed), semi_pd.fleet(device(context_ps=1_000_000)), controllers=[changing], fast_forward=fast
            ).run
            for fast in (True, False)
        ]
        assert (outcome(runs[0]) == outcome(runs[1])).all(), seed


def test_shares_follow_what_misses_its_promise():
    more_for_prefill, more_for_decode = semi_pd._moved(4, 2.0, 0.5, 2), semi_pd._moved(4, 0.5, 2.0, 2)
    assert more_for_prefill > 4 > more_for_decode
    assert semi_pd._moved(4, 0.9, 0.9, 2) == semi_pd._moved(4, 2.0, 2.0, 2) == 4
    assert semi_pd._moved(8, 5.0, 0.9, 2) == 8


def test_one_long_prompt_of_many_moves_no_share_and_long_ones_throughout_do():
    # a token a millisecond: prompts of 2 ms, one in five of 30 ms; the mean of 7.6 ms keeps 20 ms, the 90th does not
    fleet = semi_pd.fleet(device(toys.limits(caching=False, total_blocks=64), step_ps=0, token_ps=toys.PS_PER_MS))
    for lengths, moves in ((np.tile([2, 2, 2, 2, 30], 6), False), (np.full(30, 30), True)):
        trace = toys.trace(np.arange(30) * 100 * MS, lengths, 1)
        following = semi_pd.follow(20 * MS, 1.0, every_s=1.0)
        assert ("SetVariant" in operate(trace, fleet, controllers=[following]).ledger.actions) == moves


def test_twins_must_be_prefill_and_decode_of_equal_number():
    engine = device()
    pool = Pool(engine, 1, role="prefill", variants=(engine.table,))
    with pytest.raises(ValueError, match="as many replicas"):
        Fleet((pool, Pool(engine, 2, role="decode", variants=(engine.table,), twin_of=0)))
    with pytest.raises(ValueError, match="in pairs"):
        Fleet((pool, Pool(engine, 1, role="decode", twin_of=0)))
