"""Interludes: tools take workers, and the KV of the request before is kept, left or pushed out meanwhile."""

import numpy as np
import pytest
import toys
from test_tiers import PROMPT, dram, pool

from simulator.control.failures import failing
from simulator.control.interludes import RULES, keep, least_waste, leave, push_out, tools
from simulator.control.plane import operate
from simulator.control.sessions import families
from simulator.fleet import Fleet
from traces.sessions import Agents, generate_agents

MS = 1e-3


def agent(delay_s, others=6):
    """Return an agent's two steps with a tool call between, and others' prompts meanwhile."""
    contents = [[1], *([100 + each] for each in range(others)), [1, 2]]
    lengths = [PROMPT * len(each) for each in contents]
    parents = toys.ragged([*([] for _ in range(others + 1)), [0]])
    delays_ns = np.array([0] * (others + 1) + [int(delay_s * 1e9)])
    arrivals_s = np.arange(len(contents)) * 10 * MS
    return toys.trace(arrivals_s, lengths, 1, contents, parent_ids=parents, release_delay_ns=delays_ns)


def played(rule, *tiers, delay_s=0.5, workers=None):
    trace = agent(delay_s)
    fleet = Fleet((pool(*tiers, prompts=4),))
    return operate(trace, fleet, closed_loop=families(trace), interlude=tools(workers, rule)).run


@pytest.mark.parametrize(("rule", "found", "found_with_a_tier"), [(keep, 1, 1), (leave, 0, 1), (push_out, 0, 1)])
def test_kv_that_is_kept_is_found_again_and_what_is_pushed_out_is_found_below(rule, found, found_with_a_tier):
    for tiers, expected in (((), found), ((dram(),), found_with_a_tier)):
        run = played(rule, *tiers)
        assert run.outcome.cached_tokens[-1] == expected * PROMPT
        assert (run.lanes["free_blocks"] == run.lanes["total_blocks"]).all()
    assert run.traffic[0].read_tokens == (0 if rule is keep else PROMPT)


def test_least_waste_keeps_kv_over_short_pauses_and_not_over_long_ones():
    def steps(delay_s):
        """Return two agents' steps, one after the other, so that the second pause is foretold by the first."""
        contents = [[1], [1, 2], [1, 2, 3], *([100 + each] for each in range(12))]
        lengths = [PROMPT * len(each) for each in contents]
        columns = {"parent_ids": toys.ragged([[], [0], [1], *([] for _ in range(12))])}
        delays = np.array([0, int(delay_s * 1e9), int(delay_s * 1e9), *[0] * 12])
        arrivals_s = [0.0, 0.0, 0.0, *(1.0 + 0.001 * np.arange(12))]
        return toys.trace(arrivals_s, lengths, 1, contents, release_delay_ns=delays, **columns)

    for delay_s, is_kept in ((0.1 * MS, True), (1.2, False)):
        trace = steps(delay_s)
        operation = operate(trace, Fleet((pool(),)), closed_loop=families(trace), interlude=tools(rule=least_waste))
        assert operation.ledger.actions.get("Pin", 0) == (2 if is_kept else 1)  # the first pause is not foretold


def test_calls_wait_for_a_worker_first_come_first_served():
    columns = {"parent_ids": toys.ragged([[], [], [0], [1]]), "release_delay_ns": np.array([0, 0, 10**7, 10**7])}
    trace = toys.trace([0, 0, 0, 0], 4, [1, 1, 1, 1], **columns)
    for workers, gap_ms in ((None, 0), (2, 0), (1, 10)):
        run = operate(trace, toys.fleet(2), closed_loop=families(trace), interlude=tools(workers)).run
        assert (run.arrival_ps[3] - run.arrival_ps[2]) / toys.PS_PER_MS == gap_ms
        assert run.is_finished.all()


@pytest.mark.parametrize("name", list(RULES))
def test_whatever_the_rule_agents_on_lanes_that_fail_come_to_their_end_and_nothing_leaks(name):
    trace = generate_agents(Agents(steps_mean=6.0, start_tokens=2000), 60.0, seed=1, parameters={"rate_per_s": 0.5})
    bounds = toys.limits(max_sequences=16, total_blocks=2000, block_tokens=16, max_context_tokens=32_000,
                         max_batched_tokens=2048, caching=True)  # fmt: skip
    engine = toys.engine(bounds, kv_bytes=1e5)
    fleet = Fleet((toys.Pool(engine, 2, tiers=(dram(bytes_per_s=1e11),)),))
    control = dict(closed_loop=families(trace), interlude=tools(4, RULES[name]))
    run = operate(trace, fleet, controllers=[failing([[0], [1]], 5.0, 0.5)], **control).run
    counts = run.counts()
    assert counts["in_flight"] == 0
    assert counts["finished"] + counts["rejected"] == len(trace)
    assert (run.lanes["free_blocks"] == run.lanes["total_blocks"]).all()
