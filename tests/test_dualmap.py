"""DualMap on toys: who gets which lane, in what order a queue goes, and who moves out of it."""

from dataclasses import replace

import numpy as np
import pytest
import toys

from simulator.control.actions import Fail
from simulator.control.plane import operate
from simulator.fleet import Fleet, Pool
from simulator.systems.dualmap import WHOLE, dual_map

MS = 1e-3
BOUNDS = toys.limits(caching=True, total_blocks=4000, max_sequences=16, max_context_tokens=1000)
SETTING = WHOLE._replace(slo_s=0.5, longest_wait_s=0.3, every_s=0.02)


def fleet(replicas):
    return Fleet((Pool(toys.engine(BOUNDS, step_ps=0, token_ps=toys.PS_PER_MS), replicas),))


def served(trace, replicas, setting=SETTING, controllers=()):
    routing, rebalance = dual_map(setting)
    return operate(trace, fleet(replicas), routing=routing, controllers=[rebalance, *controllers])


def prompts(arrivals_s, beginnings, tokens=64):
    contents = [[100 * beginning, 100 * beginning + 1, 100 * beginning + 2, 10**6 + row]
                for row, beginning in enumerate(beginnings)]  # fmt: skip
    return toys.trace(arrivals_s, tokens, 1, contents)


def test_of_a_queue_what_has_most_cached_goes_first():
    # the first prompt takes 64 ms; of those that wait then, the third shares 48 of its tokens with it
    trace = prompts(np.arange(3) * MS, [1, 2, 1])
    assert np.argsort(served(trace, 1).run.ttft_s).tolist() == [0, 2, 1]
    assert np.argsort(served(trace, 1, SETTING._replace(orders=False)).run.ttft_s).tolist() == [0, 1, 2]


def test_an_engine_has_one_prompt_without_a_token_and_the_rest_wait_at_the_gateway():
    run = served(prompts(np.arange(6) * MS, range(6)), 1).run
    waiting_s = (run.outcome.scheduled_ps - run.outcome.queued_ps) / 1e12
    assert waiting_s.max() == 0.0
    assert np.diff(np.sort(run.outcome.scheduled_ps)).tolist() == pytest.approx([64e9] * 5)


def test_a_prefix_keeps_to_its_two_lanes_while_neither_is_late():
    trace = prompts(np.arange(40) * 40 * MS, [1] * 40)
    lanes = served(trace, 8, SETTING._replace(splits=False)).run.outcome.lane
    assert len(set(lanes.tolist())) <= 2


def test_what_would_be_late_moves_out_of_its_queue_to_a_neighbour_where_the_other_lane_is_late_too():
    # 16 ms each where the beginning is cached, 80 of them on two lanes of four
    trace = prompts(np.arange(80) * MS, [1] * 80)
    moving, staying = (served(trace, 4, SETTING._replace(moves=each, splits=False)) for each in (True, False))
    assert len(set(staying.run.outcome.lane.tolist())) == 2
    assert len(set(moving.run.outcome.lane.tolist())) == 4
    assert moving.ledger.actions["Moved in queue"] > 0
    assert moving.run.percentile_s("ttft", 99) < staying.run.percentile_s("ttft", 99)
    for operation in (moving, staying):
        assert operation.run.counts()["finished"] == 80


def test_nothing_is_lost_when_a_lane_fails_and_all_queues_end_empty():
    def failing(plane):
        yield plane.wait(100 * MS)
        plane.do(Fail(1))

    trace = prompts(np.arange(40) * 5 * MS, np.arange(40) % 7)
    run = served(trace, 3, controllers=[failing]).run
    assert run.counts()["finished"] == 40
    late = trace.arrival_ns > 100e6
    assert not (run.outcome.lane[late] == 1).any()
    assert (run.lanes["free_blocks"] == run.lanes["total_blocks"]).all()


def test_clients_that_give_up_in_a_queue_do_not_stop_it():
    trace, on = prompts(np.arange(20) * MS, range(20)), replace(fleet(1), patience_s=0.3)
    routing, rebalance = dual_map(SETTING)
    counts = operate(trace, on, routing=routing, controllers=[rebalance]).run.counts()
    assert counts["in_flight"] == 0
    assert counts["finished"] == 5  # of 64 ms each, four within 300 and one whose only step was under way
    assert counts["failed"] == 15


def test_what_waits_stays_where_both_its_other_lane_and_the_neighbour_would_be_late():
    # 64 ms each and nothing shared: some 30 wait at each of three lanes, far beyond 0.5 s
    trace = prompts(np.zeros(90), range(90))
    assert served(trace, 3).ledger.actions.get("Moved in queue", 0) <= 3  # when all are nearly done


def test_the_study_runs_small_and_again_the_same(monkeypatch):
    from simulator.studies import dualmap
    from simulator.studies.card import judge

    monkeypatch.setattr(dualmap, "SIZES", {True: (60, 2)})
    first, second = (dualmap.run(range(2), quick=True) for _ in range(2))
    assert repr(first) == repr(second)
    monkeypatch.setattr(dualmap, "SIZES", {False: (40, 1)})
    assert {row["system"] for row in dualmap.run(range(2)).sweep} > {row["system"] for row in first.sweep}
    outcome = judge(dualmap.CARD, first)
    assert {each.claim.figure for each in outcome.judgements} == set(first.figures)


def test_a_rate_that_is_too_much_already_is_the_least_tried():
    from simulator.studies import dualmap

    trials = dualmap.Trials(dualmap._facts(), dualmap.TALK, 0, most=20, halvings=2, slo_s=1e-6)
    assert trials.rate("least loaded", dualmap._systems(1.0)["least loaded"]) == dualmap.RATES_PER_S[0]


def test_a_prompt_token_takes_as_long_as_published():
    from simulator.studies import dualmap

    facts = dualmap._facts()
    found_s = dualmap._s_per_token(dualmap._of_peak(), facts["published_prompt_tokens"])
    assert found_s == pytest.approx(facts["published_s_per_token"], rel=0.02)


def test_a_replayed_trace_leaves_out_what_is_too_long_and_spreads_what_has_one_stamp():
    from simulator.studies import dualmap, tool_agent

    made = dualmap._made(dualmap._facts(), dualmap.TOOL, 0, 200)
    sent = tool_agent.as_replayed(made, 7000, 3.0, 100)
    assert len(sent) == 100
    assert sent.input_tokens.tolist() == made.input_tokens[made.input_tokens < 7000][:100].tolist()
    assert (sent.input_tokens + sent.output_tokens <= 7000).all()
    stamps = made.arrival_ns // 3_000_000_000
    of_first = made.arrival_ns[stamps == stamps[0]].size
    all_sent = tool_agent.as_replayed(made, 10**6, 3.0, 200)
    assert np.diff(all_sent.arrival_ns[:of_first]).tolist() == pytest.approx([3e9 / of_first] * (of_first - 1), abs=1)


def test_a_warm_up_comes_at_a_rate_of_its_own():
    from simulator.studies import dualmap, tool_agent

    made = dualmap._made(dualmap._facts(), dualmap.TOOL, 0, 200)
    arrival_s = tool_agent.after_warm_up(made, 50, 0.5, 10.0).arrival_ns / 1e9
    assert arrival_s[:51].tolist() == pytest.approx(np.arange(51) * 2.0)
    assert 149 / (arrival_s[-1] - arrival_s[50]) == pytest.approx(10.0)


def test_three_system_prompts_begin_all_requests_of_agents():
    from simulator.studies import dualmap

    facts = dualmap._facts()
    blocks = dualmap._made(facts, dualmap.TOOL, 0, 4000).columns["prefix_blocks"]
    first, counts = np.unique(blocks.values[blocks.offsets[:-1]], return_counts=True)
    assert first.size == 3
    shares = [kind["share"] for kind in facts[dualmap.TOOL]["kinds"]]
    assert sorted(counts / 4000) == pytest.approx(sorted(shares), abs=0.05)


def test_the_made_traces_have_about_the_published_statistics():
    from simulator.studies import dualmap
    from traces.statistics import prefix_hit_tokens

    facts = dualmap._facts()
    for kind, tolerance in ((dualmap.TALK, 0.12), (dualmap.TOOL, 0.15)):
        trace, published = dualmap._made(facts, kind, 0, 8000), facts[kind]["published"]
        found = {
            "input_tokens_mean": trace.input_tokens.mean(),
            "output_tokens_mean": trace.output_tokens.mean(),
            "cached_fraction": prefix_hit_tokens(trace).sum() / trace.input_tokens.sum(),
            **{f"input_tokens_p{each}": np.percentile(trace.input_tokens, each) for each in (50, 90)},
        }
        for name, value in published.items():
            if name in found:
                assert found[name] == pytest.approx(value, rel=tolerance), (kind, name)
