"""The best cut under two limits: kept, and no other concurrency or cut serves more."""

from dataclasses import replace

import pytest

from models import device, llm
from models.closed_loop import Load
from models.engine import Engine
from models.estimate import StepCosts, estimate
from planners.place.parallelism import best_point, ranking

LOAD = Load(1000, 100, 1)


def test_the_best_point_is_within_its_limits_and_more_clients_are_not():
    engine = Engine(llm.load("llama-3.1-8b"), device.load("l40s"))
    point = best_point(engine, LOAD, 2.0, 0.04)
    assert point.ttft_s <= 2.0
    assert point.tpot_s <= 0.04
    more = estimate(engine, replace(LOAD, concurrency=2 * point.concurrency), StepCosts(engine))
    assert more.tpot_s > 0.04 or more.ttft_s > 2.0


def test_cuts_are_ranked_by_what_they_serve_a_device_and_tighter_limits_serve_less():
    model, one = llm.load("llama-3.1-8b"), device.load("h100-sxm")
    loose, tight = (ranking(model, one, LOAD, 1.0, tpot_s) for tpot_s in (0.02, 0.01))
    served = [point.per_device for point in loose]
    assert served == sorted(served, reverse=True)
    assert tight[0].per_device < loose[0].per_device


def test_limits_that_nobody_keeps_leave_no_point():
    engine = Engine(llm.load("llama-3.1-8b"), device.load("l40s"))
    assert best_point(engine, LOAD, 1e-4, 0.04) is None


@pytest.mark.parametrize("name", ["qwen3-32b", "llama-3.1-70b"])
def test_larger_models_are_cut_where_steps_must_be_short(name):
    points = ranking(llm.load(name), device.load("h200-sxm"), Load(4000, 1000, 1), 1.0, 0.02)
    assert points[0].engine.tp > 1
