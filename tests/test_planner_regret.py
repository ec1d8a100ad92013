"""Robustness: every plan tried in every future, and the one of least worst regret chosen."""

import json
import math

import planner_toys
import pytest
from click.testing import CliRunner

from models import llm
from planners.cli import main
from planners.regret import parse_scenario, regrets
from planners.slo import parse_all
from planners.whatif import Question


@pytest.fixture(scope="module")
def found():
    trace = planner_toys.bursty_trace(0, 200, 30.0)
    question = Question(
        trace, llm.load("llama-3.1-8b"), parse_all(["ttft:p99<=150ms", "tpot:p99<=30ms"]), ("l4", "l40s")
    )
    return regrets(question, [{"rate": "3x"}, {"calibration": "high"}])


def test_each_future_is_served_best_by_its_own_plan_or_as_well_by_another(found):
    assert found.scenarios == ("as it is", "rate 3x", "calibration high")
    assert found.names[-1] == "all at once"
    for column in range(len(found.scenarios)):
        own = found.usd_per_hour[column][column]
        assert math.isfinite(own), "a plan survives the future that it was made for"
        assert found.best_usd_per_hour[column] <= own + 1e-9


def test_the_chosen_plan_holds_in_every_future_and_has_the_least_worst_regret(found):
    worst = [found.worst_regret(row) for row in range(len(found.plans))]
    assert worst[found.chosen] == min(worst)
    assert math.isfinite(worst[found.chosen])
    assert all(math.isfinite(usd) for usd in found.usd_per_hour[found.chosen])


def test_scenarios_are_read_and_unknown_ones_named():
    assert parse_scenario("rate=1.2x,price.l4=2x") == {"rate": "1.2x", "price.l4": "2x"}
    with pytest.raises(ValueError, match="unknown axis 'weather'"):
        parse_scenario("weather=2x")


def test_the_command_prints_the_table(tmp_path):
    path = tmp_path / "few.csv"
    rows = "".join(f"{number / 4},{100 + 10 * (number % 7)},{20 + number % 5}\n" for number in range(80))
    path.write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    arguments = ["regret", str(path), "--model", "llama-3.1-8b", "--slo", "ttft:p99<=2s", "--devices", "l40s", "--json"]
    answer = CliRunner().invoke(main, [*arguments, "--scenario", "rate=2x"])
    assert answer.exit_code == 0, answer.output
    result = json.loads(answer.stdout)["result"]
    assert result["scenarios"] == ["as it is", "rate 2x"]
    assert result["chosen"] in [plan["for"] for plan in result["plans"]]
