"""Speculative decoding against closed forms: what a step emits, what it costs, and what that makes of a replay."""

import json
from dataclasses import replace

import numpy as np
import pytest
import toys
from click.testing import CliRunner

from models import device, llm
from models.closed_loop import Load
from models.engine import Engine, Settings
from models.estimate import estimate
from models.speculation import PARTS, Speculation, parse
from planners.cli import main
from simulator.fleet import Fleet, Pool, priced
from simulator.replay import replay

MS = 1e-3


def one_lane(chosen: Speculation | None = None, **costs) -> Fleet:
    bounds = costs.pop("bounds", toys.limits(max_context_tokens=250))
    return Fleet((Pool(toys.engine(bounds, speculation=chosen, **costs), 1),))


@pytest.mark.parametrize(("drafts", "acceptance"), [(1, 0.5), (3, 0.7), (5, 0.9), (2, 0.0), (4, 1.0)])
def test_a_step_emits_the_geometric_sum_of_the_acceptance(drafts, acceptance):
    expected = drafts + 1 if acceptance == 1.0 else (1 - acceptance ** (drafts + 1)) / (1 - acceptance)
    chosen = Speculation(drafts, acceptance)
    assert chosen.expected_tokens == pytest.approx(expected)
    assert abs(chosen.growth_parts / PARTS - expected) <= 0.5 / PARTS


def test_the_mean_of_real_draws_is_what_a_step_emits():
    rng, chosen = np.random.default_rng(1), Speculation(4, 0.7)
    accepted = rng.random((200_000, 4)) < 0.7
    emitted = 1 + np.cumprod(accepted, axis=1).sum(axis=1)
    assert emitted.mean() == pytest.approx(chosen.expected_tokens, rel=5e-3)


def test_time_per_token_is_the_step_over_what_it_emits():
    # Every draft of three is accepted: four tokens a step of 1 ms. 1 + 200 tokens: the prompt's step and fifty more.
    run = replay(toys.trace([0.0], 4, 201), one_lane(Speculation(3, 1.0, draft_share=0.0)))
    assert run.e2e_s[0] == pytest.approx(51 * MS, rel=1e-12)
    assert run.tpot_s[0] == pytest.approx(0.25 * MS, rel=1e-12)


def test_nothing_accepted_is_decoding_without_a_draft_that_costs_more():
    plain = replay(toys.trace([0.0], 4, 101), one_lane())
    wasted = replay(toys.trace([0.0], 4, 101), one_lane(Speculation(2, 0.0, draft_share=0.1)))
    # Two drafts of a tenth of a step each: steps of 1.2 ms.
    assert plain.e2e_s[0] == pytest.approx(101 * MS)
    assert wasted.e2e_s[0] == pytest.approx((1 + 100 * 1.2) * MS)


def test_steps_of_a_long_answer_are_those_of_real_draws_on_average():
    # Real draws: an answer of 400 tokens ends with the first step whose sum of accepted tokens reaches it.
    chosen, rng = Speculation(3, 0.7, draft_share=0.0), np.random.default_rng(2)
    emitted = 1 + np.cumprod(rng.random((500, 400, 3)) < 0.7, axis=2).sum(axis=2)
    steps = (np.cumsum(emitted, axis=1) < 400).sum(axis=1) + 1
    bounds = toys.limits(total_blocks=200, max_context_tokens=800)
    run = replay(toys.trace([0.0], 4, 401), one_lane(chosen, bounds=bounds))
    assert run.e2e_s[0] / MS - 1 == pytest.approx(steps.mean(), rel=0.01)


def test_saturated_throughput_is_batch_times_tokens_a_step_over_the_step():
    # Eight sequences, 1.75 tokens a step of 1 ms and two drafts of 0.1 ms: 8 * 1.75 / 1.2 ms.
    chosen = Speculation(2, 0.5, draft_share=0.1)
    bounds = toys.limits(total_blocks=4_000, max_context_tokens=400)
    run = replay(toys.trace(np.zeros(800), 1, 351), one_lane(chosen, bounds=bounds, cell_shift=12))
    assert 800 * 350 / run.span_s == pytest.approx(8 * 1.75 / (1.2 * MS), rel=0.02)


def test_drafts_take_their_part_of_the_token_budget():
    # One decode puts four tokens into a step of 64: of a prompt of 64, 60 go with it and four more a step later.
    run = replay(
        toys.trace([0.0, 0.0015], [4, 64], [100, 1]), one_lane(Speculation(3, 0.5, draft_share=0.0), token_ps=0)
    )
    assert run.ttft_s[1] == pytest.approx(2.5 * MS, rel=1e-9)


def test_verifying_costs_the_new_tokens_of_whole_drafts():
    # 10 us a token: a step of one sequence of four tokens takes 40 us.
    run = replay(toys.trace([0.0], 4, 5), one_lane(Speculation(3, 1.0, draft_share=0.0), step_ps=0, token_ps=10**7))
    assert run.e2e_s[0] == pytest.approx((40 + 40) * 1e-6, rel=1e-9)


def test_context_grows_by_what_is_accepted():
    # A picosecond-free step but for 1 us a context token; two tokens a step: 4 + 2, + 4, + 6 tokens.
    run = replay(toys.trace([0.0], 4, 7), one_lane(Speculation(1, 1.0, draft_share=0.0), step_ps=0, context_ps=10**6))
    assert run.e2e_s[0] == pytest.approx((6 + 8 + 10) * 1e-6, rel=1e-9)


def test_a_real_engine_gains_at_small_batches_and_less_at_large_ones():
    plain = Engine(llm.load("llama-3.1-8b"), device.load("h100-sxm"))
    drafting = replace(plain, settings=Settings(speculation=Speculation(3, 0.7)))
    speedups = []
    for batch in (1, 256):
        trace = toys.trace(np.zeros(batch), 100, 201)
        spans = [replay(trace, Fleet((Pool(priced(engine), 1),))).span_s for engine in (plain, drafting)]
        speedups.append(spans[0] / spans[1])
    assert 1.5 < speedups[0] < Speculation(3, 0.7).expected_tokens
    assert speedups[1] < 0.8 * speedups[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("3", "expected DRAFT_TOKENS:ACCEPTANCE"),
        ("x:0.5", "as in '3:0.7'"),
        ("0:0.5", "at least one token a step, not 0"),
        ("3:1.5", "a chance from 0 to 1, not 1.5"),
        ("3:0.5:-1", "must not be negative, got -1"),
    ],
)
def test_a_speculation_that_cannot_be_is_told(text, words):
    with pytest.raises(ValueError, match=words):
        parse(text)


def test_drafts_that_do_not_fit_a_step_are_told():
    engine = Engine(llm.load("llama-3.1-8b"), device.load("h100-sxm"), settings=Settings(256, 512))
    with pytest.raises(ValueError, match="256 sequences of 4 tokens do not fit into steps of 512"):
        _ = replace(engine, settings=replace(engine.settings, speculation=Speculation(3, 0.7))).limits


@pytest.mark.parametrize("batch", [1, 16, 64])  # a prompt beside the drafts of 64 still fits a graph
def test_an_estimate_agrees_with_a_replay_of_the_same_drafts(batch):
    engine = Engine(
        llm.load("llama-3.1-8b"), device.load("h100-sxm"), settings=Settings(speculation=Speculation(3, 0.7))
    )
    found = estimate(engine, Load(50, 200, batch))  # prompts of all in one step, so that all go on in step
    run = replay(toys.trace(np.zeros(batch), 50, 200), Fleet((Pool(priced(engine), 1),)))
    assert found.tpot_s == pytest.approx(float(np.median(run.tpot_s)), rel=0.1)


def test_the_commands_take_a_draft():
    arguments = [
        "--model",
        "llama-3.1-8b",
        "--device",
        "h100-sxm",
        "--isl",
        "200",
        "--osl",
        "100",
        "--concurrency",
        "1",
    ]
    tpots_s = []
    for more in ([], ["--speculative", "3:0.7"]):
        outcome = CliRunner().invoke(main, ["estimate", *arguments, *more, "--json"])
        assert outcome.exit_code == 0, outcome.stderr
        tpots_s.append(json.loads(outcome.stdout)["result"]["tpot_s"])
    assert tpots_s[0] / 2.6 < tpots_s[1] < tpots_s[0] / 1.5
    assert CliRunner().invoke(main, ["estimate", *arguments, "--speculative", "3"]).exit_code == 2
