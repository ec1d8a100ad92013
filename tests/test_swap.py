"""Swapping preempted requests to host memory: operations and bytes, and only what has come since where copies stay."""

import numpy as np
import pytest
import toys

from simulator.control.plane import operate
from simulator.fleet import Fleet, Pool
from simulator.layout import TELL_PREEMPTED

US = toys.PS_PER_MS // 1000
TOKEN_PS = 10 * US


def swapped(trace, **about):
    """Serve a trace on a lane of 16 blocks of 4 tokens; return the run and the KV tokens of each swap to the host."""
    bounds = toys.limits(total_blocks=16, swap_ps_per_token=TOKEN_PS, **about)
    tokens = []

    def watch(plane):
        plane.listen(TELL_PREEMPTED, lambda number: tokens.append(int(plane.requests["swapped_tokens"][number])))
        yield plane.wait(0)

    run = operate(trace, Fleet((Pool(toys.engine(bounds), 1),)), controllers=[watch]).run
    assert run.is_finished.all()
    return run, tokens


def two():
    """Two requests that take 23 blocks of 16 at their ends: the second has to wait for the first."""
    return toys.trace([0, 0], 8, 36)


@pytest.mark.parametrize(("group", "operations"), [(1, 8), (3, 3), (100, 1)])
def test_a_swap_takes_its_operations_and_its_bytes_each_way(group, operations):
    plain, tokens = swapped(two())
    run, _ = swapped(two(), swap_operation_ps=50 * US, swap_operation_blocks=group)
    assert tokens == [31]  # eight blocks but for a token, when one of them needs a ninth
    assert run.outcome.finish_ps[1] - plain.outcome.finish_ps[1] == 2 * operations * 50 * US


def test_without_operations_a_swap_is_bytes_over_bandwidth():
    free, _ = swapped(two(), swap_operation_ps=0)
    bounds = toys.limits(total_blocks=16, swap_ps_per_token=2 * TOKEN_PS)
    slower = operate(two(), Fleet((Pool(toys.engine(bounds), 1),))).run
    assert slower.outcome.finish_ps[1] - free.outcome.finish_ps[1] == 2 * 31 * TOKEN_PS


def test_where_copies_stay_only_what_has_come_since_is_written_again():
    """Four requests crowd each other out again and again."""
    trace = toys.trace(np.zeros(4), 8, 40)
    (run, tokens), (kept, of_kept) = swapped(trace), swapped(trace, swap_keeps_copies=True)
    assert tokens == of_kept  # the same requests leave with as much
    assert len(tokens) > run.outcome.preemptions.astype(bool).sum()  # and some more than once
    saved_ps = run.lanes["busy_ps"][0] - kept.lanes["busy_ps"][0]
    assert 0 < saved_ps < sum(tokens) * TOKEN_PS
    assert saved_ps % TOKEN_PS == 0
