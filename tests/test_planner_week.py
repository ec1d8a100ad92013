"""From a profile to a rehearsed week, and the command that prints it."""

import json

import planner_toys
import pytest
from click.testing import CliRunner

from planners.cli import main
from planners.schedules import profile
from planners.schedules.week import Terms, plan_week
from planners.slo import parse_all


def test_a_profile_is_read_and_mistakes_are_placed(tmp_path):
    one = tmp_path / "one.csv"
    one.write_text("hour,requests\n0,10\n1,20\n")
    assert profile.read(one) == (10.0, 20.0)
    two = tmp_path / "two.csv"
    two.write_text("service,requests_est\na,1\nb,2\na,3\n")
    assert profile.read(two, "a") == (1.0, 3.0)
    with pytest.raises(ValueError, match="name the service, one of a, b, not None"):
        profile.read(two)
    one.write_text("hour,requests\n0,many\n")
    with pytest.raises(ValueError, match=r"one.csv:2: 'many' is no count of requests"):
        profile.read(one)
    one.write_text("hour,count\n")
    with pytest.raises(ValueError, match="no column requests or requests_est; found: hour, count"):
        profile.read(one)


def test_every_hour_is_replayed_and_the_base_is_reserved():
    trace = planner_toys.bursty_trace(0, 2000, 10.0)
    slos = parse_all(["ttft:p90<=60ms", "tpot:p90<=6ms"])
    requests = [36_000.0 * (4 if hour % 6 == 3 else 1) for hour in range(12)]
    week = plan_week(trace, requests, slos, planner_toys.two_offers(), Terms(0.5))
    assert not week.broken
    assert week.usd >= week.schedule.usd_bound
    assert sum(week.schedule.reserved) >= 1
    assert all(0 < part <= 1 for part in week.carries)
    peak, usual = week.hours[3], week.hours[0]
    assert sum(peak.on_demand) > sum(usual.on_demand)
    assert week.simulated_requests > 0


def test_the_command_prints_one_object(tmp_path):
    file = tmp_path / "profile.csv"
    file.write_text("requests\n" + "\n".join(["4000"] * 4 + ["9000"] * 2))
    arguments = ["schedule", "--model", "llama-3.1-8b", "--slo", "ttft:p99<=2s", "--devices", "l40s", "--json"]
    found = CliRunner().invoke(main, [*arguments, "--profile", str(file)])
    assert found.exit_code == 0, found.output
    result = json.loads(found.stdout)["result"]
    assert len(result["hours"]) == 6
    assert result["usd_bound"] <= result["usd"]
    assert not result["broken_hours"]
    bad = CliRunner().invoke(main, [*arguments, "--profile", str(file), "--reserved", "2"])
    assert bad.exit_code == 2
