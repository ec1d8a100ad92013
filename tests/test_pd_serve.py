"""P/D-Serve: prefill instances that refuse, operations that cost, ratios that fit, and the study of it in small."""

import numpy as np
import pytest
import toys

from simulator.fleet import Link
from simulator.studies import pd_serve as study
from simulator.studies.card import judge
from simulator.systems.pd_serve import balanced, fleet, forwarded, handed_over, prompts_per_s, queued

MS = 1e-3


def toy_engine(**costs):
    return toys.engine(toys.limits(max_batched_tokens=64), kv_bytes=1e6, **({"token_ps": toys.PS_PER_MS} | costs))


def on(prefill=2, decode=1, **costs):
    return fleet(toy_engine(**costs), prefill, decode, Link(1e12, 0.0))


def test_a_refused_prompt_waits_at_the_gateway_and_goes_where_a_prompt_ends_first():
    trace = toys.trace([0, 0, 1 * MS], [40, 10, 10], 2)  # a token a millisecond and one a step
    run = forwarded(trace, on(), budget_s=1.0)
    assert run.outcome.scheduled_ps[2] == pytest.approx(11e9)  # when the second is done
    assert run.counts()["finished"] == 3


def test_a_prompt_whose_budget_is_over_is_turned_away_and_not_computed():
    trace = toys.trace([0, 0, 1 * MS], [40, 40, 10], 2)
    run = forwarded(trace, on(), budget_s=20 * MS)
    assert run.counts()["rejected"] == 1
    assert queued(trace, on()).counts()["finished"] == 3


def test_hand_overs_take_their_operations_and_their_bytes():
    trace = toys.trace([0, 100 * MS], 16, 5)
    times_s = {
        grain: [sent.seconds for sent in handed_over(trace, on(1), grain, 1e9, 2 * MS)]
        for grain in ("whole", "block-wise")
    }
    assert times_s["whole"] == pytest.approx([18 * MS] * 2)  # 16 tokens of a millisecond each, and one operation
    assert times_s["block-wise"] == pytest.approx([24 * MS] * 2)  # 4 blocks of the one layer


def test_the_rule_gives_more_instances_to_the_side_with_more_work():
    engine = toy_engine()
    assert prompts_per_s(engine, [9]) == pytest.approx(100.0)  # 9 ms and 1 a step
    shares = [balanced(engine, 16, [tokens], [20]) for tokens in (5, 20, 60)]
    assert shares == sorted(shares)
    assert shares[0] < shares[-1]
    assert all(1 <= each <= 15 for each in shares)


def test_the_study_runs_small_and_again_the_same(monkeypatch):
    monkeypatch.setattr(study, "SIZES", {True: (40, 10)})
    monkeypatch.setattr(study, "LOADS", (0.8, 1.0))
    first, second = (study.run(range(2), quick=True) for _ in range(2))
    assert first == second
    assert {each.claim.figure for each in judge(study.CARD, first).judgements} == set(first.figures)
    assert not any(np.isnan(row["attainment"]) for row in first.ablation)
