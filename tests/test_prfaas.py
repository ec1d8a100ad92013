"""Prefill as a service: the closed form against arithmetic, and the replay against the closed form."""

import numpy as np
import pytest

from simulator.studies import prfaas as study
from simulator.systems.prfaas import Service, Split, best_split, rates


def service(**changes) -> Service:
    given = dict(
        far_s=lambda tokens: tokens / 1000,
        near_s=lambda tokens: tokens / 500,
        kv_bytes=lambda tokens: tokens * 1.0,
        decoded_per_s=10.0,
        link_bytes_per_s=1e9,
    )
    return Service(**(given | changes))


def test_each_part_carries_what_its_own_instances_do():
    prompts = np.array([1000.0, 3000.0])
    found = rates(service(), Split(far=3, prefill=1, decode=2, longest_near=2000), prompts)
    assert (found.far, found.prefill, found.decode) == (1.0, 0.5, 20.0)
    assert found.far_share == 0.5
    assert found.whole == 1.0  # the near part has half of the prompts


def test_a_thin_link_bounds_what_the_far_part_carries():
    found = rates(service(link_bytes_per_s=300.0), Split(3, 1, 2, 2000), np.array([1000.0, 3000.0]))
    assert found.far == pytest.approx(0.1)
    assert found.egress_bytes_per_s == pytest.approx(300.0)


def test_the_best_split_carries_at_least_what_any_other_does():
    prompts, lengths = np.random.default_rng(0).uniform(100, 5000, 500), np.linspace(0, 6000, 30)
    best = best_split(service(decoded_per_s=0.8), 2, 6, prompts, lengths)[1]
    for length in lengths:
        for prefill in range(1, 6):
            other = rates(service(decoded_per_s=0.8), Split(2, prefill, 6 - prefill, float(length)), prompts)
            assert other.whole <= best.whole + 1e-12


def test_the_law_of_lengths_has_the_published_mean_and_bounds():
    prompts = study._law()
    assert prompts.mean() == pytest.approx(27_000, rel=0.03)
    assert study.SHORTEST <= prompts.min() < prompts.max() <= study.LONGEST


def test_a_replay_uses_its_scarcest_part_as_the_closed_form_says():
    half_as_fast = study._service(study._slower(2.0))
    split = Split(4, 3, 5, 19_400.0)
    expected = rates(half_as_fast, split, study._law())
    found = study._replayed(half_as_fast, split, expected, seed=0, count=4000)
    assert found["per_s"] == pytest.approx(expected.whole, rel=0.06)


def test_an_h20_takes_the_published_time_and_what_its_own_steps_take_longer():
    prompts = np.array([8192.0])
    longer_s = study._own_prefill_s("h20")[3] - study._own_prefill_s("h200-sxm")[3]
    assert study._own_near()(prompts)[0] == pytest.approx(study._far_s(prompts)[0] + longer_s)
    assert longer_s > 0.0


def test_the_kin_of_the_published_model_keeps_what_the_published_caches_hold():
    from models import llm

    per_token = study.FULL_LAYERS / llm.load(study.KIN).layers * llm.load(study.KIN).kv_bytes_per_token()
    published = float(np.diff(study._kv_bytes(np.array([0.0, 1.0])))[0])
    assert per_token == pytest.approx(published, rel=0.02)
