"""Lanes that change between prefill and decode: they help where prompts queue, go back, and lose nothing."""

import numpy as np
import toys

from simulator.control.migration import handing_over, link
from simulator.control.plane import operate
from simulator.control.roles import flipping
from simulator.control.routers import ROUTERS
from simulator.fleet import Fleet, Pool
from simulator.layout import DECODE, PREFILL

MS = 1e-3


def served(trace, *controllers):
    """Serve a trace on one lane that prefills and three that decode, all with control over who does what."""
    engine = toys.engine(toys.limits(total_blocks=1000, max_sequences=60), kv_bytes=1e6)
    fleet = Fleet((Pool(engine, 1, role="prefill"), Pool(engine, 3, role="decode")))
    routing = ROUTERS["least-pending-tokens"]()
    return operate(
        trace, fleet, routing=routing, controllers=[handing_over(link(1e12)), *controllers], hands_over=False
    )


def test_a_burst_of_prompts_turns_decode_lanes_around_and_they_turn_back():
    trace = toys.trace(np.append(np.arange(200) * 0.25 * MS, 1.0), 40, 4)
    fixed, flipped = served(trace), served(trace, flipping(100, 10, every_s=2 * MS))
    roles = [event.split(" is to ")[1] for _, event in flipped.ledger.events]
    assert roles == ["prefill"] * (len(roles) // 2) + ["decode"] * (len(roles) // 2) != []
    assert flipped.run.lanes["role"].tolist() == [PREFILL, DECODE, DECODE, DECODE]
    assert np.median(flipped.run.ttft_s) < 0.5 * np.median(fixed.run.ttft_s)
    for run in (fixed.run, flipped.run):
        assert run.is_finished.all()
        assert (run.lanes["free_blocks"] == run.lanes["total_blocks"]).all()


def test_where_prompts_do_not_queue_no_lane_is_turned_around():
    operation = served(toys.trace(np.arange(50) * 0.02, 40, 4), flipping(100, 10, every_s=2 * MS))
    assert not operation.ledger.events
