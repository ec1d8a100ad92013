"""Clients that come again: later each time, so many times, and whatever they do nothing is lost."""

import numpy as np
import toys

from simulator.control.plane import Reject, operate
from simulator.control.retries import back_off_s, retrying, timing_out
from simulator.control.routers import ROUTERS
from simulator.fleet import Fleet, Pool

MS = 1e-3


def closed_until(seconds, asked):
    """A routing that turns all away until a time, and notes when it was asked."""

    def routing(plane):
        def route(request, view):
            asked.append(plane.now_s)
            return Reject() if plane.now_s < seconds else 0

        return route

    return routing


def one_lane(**bounds):
    return Fleet((Pool(toys.engine(toys.limits(**bounds)), 1),))


def test_a_client_turned_away_comes_again_after_twice_as_long_each_time():
    asked = []
    run = operate(toys.trace([0], 8, 2), one_lane(), routing=retrying(closed_until(0.6, asked), 5, 0.1, spread=0.0)).run
    assert run.is_finished.all()
    assert np.diff([0.0, *asked[1:]]).round(6).tolist() == [0.1, 0.2, 0.4]


def test_after_so_many_attempts_a_client_stays_away():
    asked = []
    run = operate(toys.trace([0], 8, 2), one_lane(), routing=retrying(closed_until(9.0, asked), 2, 0.1)).run
    assert run.counts()["rejected"] == 1
    assert len(asked) == 3


def test_the_spread_of_a_back_off_keeps_clients_apart():
    drawn = [back_off_s(1, 1.0, spread=0.5, drawn=each) for each in (0.0, 0.5)]
    assert drawn == [1.0, 1.25]


def test_who_has_waited_too_long_in_a_queue_leaves_it_and_comes_again():
    """One seat, and each request takes 60 ms: the last of four would wait 180 ms in the queue."""
    trace = toys.trace([0, 0, 0, 0], 8, 60)
    operation = operate(
        trace,
        one_lane(max_sequences=1),
        routing=ROUTERS["least-requests"](),
        controllers=[timing_out(100 * MS, attempts=1, first_s=30 * MS, spread=0.0)],
    )
    assert operation.run.is_finished.all()
    assert operation.ledger.actions["Timed out in a queue"] == 2
    assert (operation.run.lanes["free_blocks"] == operation.run.lanes["total_blocks"]).all()
