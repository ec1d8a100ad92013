"""What if: each change does to the plan what it must do in any world, and nothing else."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from toys import engine

from models import llm
from planners import whatif
from planners.cli import main
from planners.slo import parse_all
from planners.whatif import Case, Question, parse_axis
from traces.statistics import prefix_reuse
from traces.trace import Trace
from traces.transform import common_prefix

ROWS = [(number / 4, 100 + 10 * (number % 7), 20 + number % 5) for number in range(80)]


@pytest.fixture(scope="module")
def question():
    arrivals, inputs, outputs = (np.array(column) for column in zip(*ROWS, strict=True))
    trace = Trace("few", (arrivals * 1e9).astype(np.int64), inputs, outputs, np.zeros(80, np.int8))
    return Question(trace, llm.load("llama-3.1-8b"), parse_all(["ttft:p99<=2s", "tpot:p99<=80ms"]), ("l40s",))


@pytest.fixture(scope="module")
def as_it_is(question):
    return whatif.answer(question, {})


def test_a_price_twice_as_high_doubles_the_cost_of_the_only_device(question, as_it_is):
    dearer = whatif.answer(question, {"price": "2x"})
    assert dearer.usd_per_hour == pytest.approx(2 * as_it_is.usd_per_hour)
    assert dearer.plan.latency_s == as_it_is.plan.latency_s


def test_a_price_per_device_hour_replaces_the_listed_one(question):
    found = whatif.answer(question, {"price.l40s": "3.5"})
    devices = sum(pool.replicas * pool.engine.devices for pool in found.plan.pools)
    assert found.usd_per_hour == pytest.approx(3.5 * devices)


def test_the_price_of_a_device_that_is_not_offered_changes_nothing(question, as_it_is):
    assert whatif.answer(question, {"price.h100-sxm": "9x"}).usd_per_hour == as_it_is.usd_per_hour


def test_a_promise_nobody_can_keep_is_an_answer_with_reasons(question):
    found = whatif.answer(question, {"slo.ttft:p99": "1us"})
    assert found.plan is None
    assert found.usd_per_hour == float("inf")
    assert found.reasons


def test_the_tornado_changes_one_thing_at_a_time(question, monkeypatch):
    monkeypatch.setattr(whatif, "answer", lambda _, changes: Case(changes, None))
    axes = [parse_axis("price=0.5x,1x,2x"), parse_axis("slo=1x,2x")]
    changes = [dict(case.changes) for case in whatif.tornado(question, axes)]
    assert changes == [{}, {"price": "0.5x"}, {"price": "2x"}, {"slo": "2x"}]


def test_the_grid_has_every_combination(question, monkeypatch):
    monkeypatch.setattr(whatif, "answer", lambda _, changes: Case(changes, None))
    cases = whatif.grid(question, [parse_axis("price=1x,2x"), parse_axis("rate=1x,2x")])
    assert [tuple(case.changes.values()) for case in cases] == [("1x", "1x"), ("1x", "2x"), ("2x", "1x"), ("2x", "2x")]


def test_changes_together_multiply(question, as_it_is):
    both = whatif.answer(question, {"price": "2x", "price.l40s": "1.5x"})
    assert both.usd_per_hour == pytest.approx(3 * as_it_is.usd_per_hour)


def test_an_engine_twice_as_fast_takes_half_of_every_time():
    toy = engine(token_ps=1000, sequence_ps=400, context_ps=8)
    fast = whatif.faster(toy, 2.0)
    assert (fast.table.token_ps * 2 == toy.table.token_ps).all()
    assert (fast.table.decode_slope_ps * 2 == toy.table.decode_slope_ps).all()
    assert (fast.table.cell_shift == toy.table.cell_shift).all()
    assert whatif.faster(toy, 1.0) is toy


def test_step_times_at_the_slow_end_of_their_interval_are_later_and_at_the_fast_end_sooner(question, as_it_is):
    engine = as_it_is.plan.pools[0].engine
    low, high = whatif.step_time_factors(engine)
    assert low < 1 < high
    found = {end: whatif.answer(question, {"calibration": end}) for end in ("low", "fitted", "high")}
    assert found["fitted"].plan.result() == as_it_is.plan.result()
    late_s = [found[end].plan.latency_s["tpot"]["p50"] for end in ("low", "fitted", "high")]
    assert late_s == sorted(late_s)
    one = whatif.answer(question, {"calibration.l40s": "high"})
    assert one.plan.latency_s == found["high"].plan.latency_s


def test_what_a_prefix_cache_finds_is_not_computed_again(question, as_it_is):
    trace = common_prefix(question.trace, 0.75)
    reuse = prefix_reuse(trace)["token_hit_infinite"]
    assert 0.6 < reuse <= 0.75
    cached = whatif.answer(question, {"hit": "0.75"})
    assert cached.plan.latency_s["ttft"]["p99"] < as_it_is.plan.latency_s["ttft"]["p99"]
    assert whatif.answer(question, {"hit": "0"}).plan.latency_s == as_it_is.plan.latency_s


def test_a_fleet_that_may_lose_a_replica_keeps_its_promises_without_it(question, as_it_is):
    spared = whatif.answer(question, {"failures": "1"})
    assert spared.usd_per_hour > as_it_is.usd_per_hour
    assert all(loss.holds for loss in whatif.losses(spared.plan, question.trace, question.slos))


def test_the_tornado_leaves_out_what_changes_nothing(question, monkeypatch):
    monkeypatch.setattr(whatif, "answer", lambda _, changes: Case(changes, None))
    changes = [dict(case.changes) for case in whatif.tornado(question, [parse_axis("calibration=low,fitted,high")])]
    assert changes == [{}, {"calibration": "low"}, {"calibration": "high"}]


def test_losing_the_only_replica_breaks_every_promise(question, as_it_is):
    lost = list(whatif.losses(as_it_is.plan, question.trace, question.slos))
    replicas = sum(pool.replicas for pool in as_it_is.plan.pools)
    assert len(lost) == len(as_it_is.plan.pools)
    assert replicas > 1 or not lost[0].holds


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("rate", "expected NAME=VALUE"),
        ("colour=red", "unknown axis 'colour'; known: rate, prompts"),
        ("rate=2", "rate=2: expected a factor, as 0.5x"),
        ("rate=0x", "expected a number above 0"),
        ("slo.e2e:p99=1s", "no promise on 'e2e:p99' to vary; promised: ttft:p99, tpot:p99"),
        ("calibration=bad", "expected low, fitted or high"),
        ("hit=1", "the fraction of prompt tokens that a prefix cache finds, below 1"),
        ("hit=some", "hit=some: expected a number from 0 on"),
        ("failures=one", "expected how many replicas may fail together"),
        ("price.h100-smx=1x", "unknown device 'h100-smx'; did you mean h100-sxm"),
    ],
)
def test_an_axis_that_cannot_be_read_is_told_what_would_do(question, axis, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        list(whatif.grid(question, [parse_axis(axis)]))


def test_the_command_answers_with_a_row_per_case(tmp_path):
    path = tmp_path / "few.csv"
    path.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{a},{i},{o}\n" for a, i, o in ROWS))
    arguments = ["whatif", str(path), "--model", "llama-3.1-8b", "--slo", "ttft:p99<=2s", "--devices", "l40s"]
    outcome = CliRunner().invoke(main, [*arguments, "--vary", "price=1x,2x", "--losses", "--json"])
    assert outcome.exit_code == 0, outcome.stderr
    cases = json.loads(outcome.stdout)["result"]["cases"]
    assert [case["changes"] for case in cases] == [{"price": "1x"}, {"price": "2x"}]
    assert cases[1]["usd_per_hour"] == pytest.approx(2 * cases[0]["usd_per_hour"])
