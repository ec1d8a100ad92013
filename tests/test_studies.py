"""Studies: the rule that compares a claim with a finding, the registry that runs them, and `plan study`."""

import json
from math import inf, nan

import pytest
from click.testing import CliRunner

from planners.cli import main
from simulator.studies import registry
from simulator.studies.card import (
    Card,
    Claim,
    Finding,
    Measured,
    control_verdict,
    is_in_band,
    judge,
    over_seeds,
    verdict,
)

RATIO = Claim("goodput ratio", 5.6, "x", "R", low=2.5)
DROP = Claim("drop", 0.055, "fraction", "Q", high=0.08, neutral=None)
CARD = Card("toy", "paper", "sentence", (RATIO, DROP), "pass", "low load", 0.05, "quantum")


def exactly(value: float) -> Measured:
    return Measured(value, value, value)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (Measured(4.0, 3.0, 6.0), "reproduced"),  # 5.6 lies in the interval
        (exactly(5.1), "reproduced"),  # within 10 % of 5.6
        (exactly(5.0), "ratio holds"),
        (exactly(30.0), "ratio holds"),
        (exactly(2.4), "direction holds"),
        (Measured(2.0, 1.1, 6.0), "direction holds"),  # an interval that holds 5.6 does not make up for the band
        (Measured(3.0, 0.9, 6.0), "not reproduced"),  # nor one that holds everything
        (exactly(1.0), "not reproduced"),
        (exactly(0.4), "not reproduced"),
        (exactly(nan), "not testable"),
        (exactly(inf), "not testable"),
        (None, "not testable"),
    ],
)
def test_a_ratio_is_judged_by_its_number_its_band_and_its_side(measured, expected):
    assert verdict(RATIO, measured) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.02, "reproduced"), (0.08, "reproduced"), (0.0801, "not reproduced")]
)
def test_a_quantity_is_reproduced_in_its_band_and_only_there(value, expected):
    assert verdict(DROP, exactly(value)) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(1.6, "direction holds"), (1.01, "direction holds"), (0.99, "not reproduced")]
)
def test_direction_is_the_most_that_a_direction_can_be(value, expected):
    assert verdict(Claim("gain", 1.6, "x", "D", low=1.3), exactly(value)) == expected


def test_less_is_on_the_claimed_side_where_less_is_claimed():
    fewer = Claim("preemption loss", -0.704, "fraction", "R", high=-0.5, neutral=0.0)
    assert verdict(fewer, exactly(-0.7)) == "reproduced"
    assert verdict(fewer, exactly(-0.55)) == "ratio holds"
    assert verdict(fewer, exactly(-0.1)) == "direction holds"
    assert verdict(fewer, exactly(0.1)) == "not reproduced"


def test_the_headline_speaks_for_a_study_only_while_every_other_band_holds():
    def whole(ratio, drop):
        figures = {"goodput ratio": ratio, "drop": drop}
        return judge(CARD, Finding({name: exactly(value) for name, value in figures.items() if value}, {})).verdict

    assert whole(5.5, 0.05) == "reproduced"
    assert whole(5.5, None) == "reproduced"
    assert whole(3.0, 0.05) == "ratio holds"
    assert whole(5.5, 0.2) == "not reproduced"
    assert whole(None, 0.2) == "not reproduced"
    assert whole(None, None) == "not testable"


def test_a_figure_that_no_claim_names_is_refused():
    with pytest.raises(ValueError, match="'godput ratio' is not one of its card's claims"):
        judge(CARD, Finding({"godput ratio": exactly(1.0)}, {}))


def test_a_control_is_neutral_within_the_margin_stated_before():
    assert control_verdict(CARD, {"low load": exactly(1.04)}) == "neutral"
    assert control_verdict(CARD, {"low load": exactly(0.9)}) == "low load is 0.9, not within 1 +- 0.05"
    assert control_verdict(CARD, {"low load": exactly(nan)}) != "neutral"
    assert control_verdict(CARD, {}) != "neutral"


def test_an_interval_over_seeds_is_students():
    found = over_seeds([1.0, 2.0, 3.0, 4.0, 5.0])  # t of 4 degrees 2.776, deviation sqrt(2.5), root of 5
    assert found.value == 3.0
    assert found.high - 3.0 == pytest.approx(2.776445 * (2.5 / 5) ** 0.5, rel=1e-6)
    assert 3.0 - found.low == pytest.approx(found.high - 3.0)
    assert over_seeds([2.0]) == Measured(2.0, 2.0, 2.0)


def test_every_study_has_a_card_under_its_own_name_with_bands_that_hold_its_claims():
    for name in registry.names():
        card = registry.find(name).CARD
        assert card.name == name
        assert card.control_margin > 0
        assert len({claim.figure for claim in card.claims}) == len(card.claims)
        for claim in card.claims:
            assert is_in_band(claim, exactly(claim.claimed)), claim
            assert claim.grade in "QRD"


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(registry, "STUDIES", {"toy": "toy_study", "toy_again": "toy_study"})


def plan(*arguments: str, exit_code: int = 0):
    outcome = CliRunner().invoke(main, ["study", *arguments])
    assert outcome.exit_code == exit_code, outcome.output
    return outcome


def test_a_study_run_gives_its_claims_and_its_verdict(toy):
    told = plan("run", "toy", "--quick", "--seeds", "3", "--json")
    (study,) = json.loads(told.stdout)["result"]["studies"]
    assert {"name", "class", "claimed", "measured", "interval", "verdict", "control", "seconds"} <= set(study)
    assert {"curve", "ablation", "sweep", "note"} <= set(study)
    assert (study["verdict"], study["control"], study["note"]) == ("ratio holds", "neutral", "quick")
    assert study["interval"][0] < study["measured"] < study["interval"][1]
    assert len(study["curve"]) == 3
    assert [claim["verdict"] for claim in study["claims"]] == ["ratio holds", "not testable"]
    assert "toy: ratio holds" in told.stderr


def test_a_miss_is_a_finding_and_no_failure(toy, monkeypatch):
    import toy_study

    monkeypatch.setattr(toy_study, "run", lambda seeds, quick: Finding({"wait ratio": exactly(0.5)}, {}))
    words = plan("run", "toy").stdout
    assert "toy: not reproduced; control no control was run" in words


def test_processes_change_nothing_but_the_time(toy):
    def answer(*arguments):
        studies = json.loads(plan("run", "all", "--json", *arguments).stdout)["result"]["studies"]
        return [study | {"seconds": 0} for study in studies]

    alone = answer()
    assert len(alone) == 2
    assert answer("--processes", "2") == alone


def test_studies_are_listed_by_group(toy):
    (first, _) = json.loads(plan("list", "--json").stdout)["result"]["studies"]
    assert (first["name"], first["class"], first["claimed"], first["group"]) == ("toy", "R", 10, "toys")
    assert "wait ratio" in plan("list", "--group", "toys").stdout
    assert "known: toys" in plan("list", "--group", "boats", exit_code=2).stderr


def test_all_is_short_for_run_all(toy):
    told = [json.loads(plan(*words, "--json", "--seeds", "3").stdout) for words in (["run", "all"], ["all"])]
    verdicts = [[(each["name"], each["verdict"]) for each in one["result"]["studies"]] for one in told]
    assert verdicts[0] == verdicts[1]


def test_an_unknown_study_is_bad_input_and_answered_with_the_nearest(toy):
    assert "unknown study 'toy-agian'; did you mean toy_again?" in plan("run", "toy-agian", exit_code=2).stderr
    assert "known: toy, toy_again" in plan("run", "xyzzy", exit_code=2).stderr


def test_a_name_may_be_written_with_hyphens(toy):
    assert registry.names("Toy-Again") == ["toy_again"]


def test_flow_prefill_runs_small_and_again_the_same(monkeypatch):
    from simulator.studies import flow_prefill

    monkeypatch.setattr(flow_prefill, "SIZES", {True: (80, 2)})
    first, second = (flow_prefill.run(range(2), quick=True) for _ in range(2))
    assert first == second
    outcome = judge(flow_prefill.CARD, first)
    assert {each.claim.figure for each in outcome.judgements} == set(first.figures)
    assert [row["system"] for row in first.ablation][:3] == ["flow", "fcfs", "chunks of 512"]
    low = [row for row in first.curve if row["requests_per_s"] == 1.0]
    assert all(0.9 <= row["search"] <= 1.0 for row in low)


def test_no_ratio_is_given_over_a_baseline_that_never_keeps_its_promises():
    from simulator.studies import flow_prefill

    never = flow_prefill.RATES_PER_S[0]
    assert flow_prefill._row("flow", [4.0, 4.0], [2.0, never])["over_fcfs"] is None
    assert flow_prefill._row("flow", [4.0, 4.0], [2.0, 2.0])["over_fcfs"] == 2.0


def test_s_lora_runs_small_and_again_the_same(monkeypatch):
    from simulator.studies import s_lora

    facts = s_lora._facts()
    facts["measured"] |= {"a10g_duration_s": 20.0, "a100_s1_duration_s": 10.0}
    monkeypatch.setattr(s_lora, "_facts", lambda: facts)
    first, second = (s_lora.run(range(2), quick=True) for _ in range(2))
    assert first == second
    assert first.figures["merged models that fit an A100 80GB"].value == 5
    assert [row["published"] for row in first.curve] == [1.804, 1.804]
    assert first.sweep[0]["loads"] < first.sweep[1]["loads"]


def test_s_loras_time_on_the_host_is_told_by_its_latency_far_below_the_knee():
    from simulator.studies import s_lora

    facts = s_lora._facts()
    low_load, step_host_s = facts["low_load"], s_lora._step_host_s(facts)
    assert low_load["rate_per_s"] <= 0.6 * facts["measured"]["a10g_s1_by_rate"]["2.5"]
    assert step_host_s > 0
    found_s = s_lora._low_load_latency_s(facts, step_host_s)
    assert found_s == pytest.approx(low_load["a10g_s1_latency_s"], rel=0.01)


def test_the_claims_of_s_lora_are_its_own_measurements():
    """The claimed numbers are arithmetic on the published logs."""
    from simulator.studies import s_lora

    measured = s_lora._facts()["measured"]
    claimed = {claim.figure: claim.claimed for claim in s_lora.CARD.claims}
    few, most = measured["a100_s1"]["5"], measured["a100_s1"]["2000"]
    assert claimed["throughput lost from 5 to 2,000 adapters"] == pytest.approx(1 - most / few, abs=5e-4)
    one, many = measured["a10g_s2_apart"]["1"], measured["a10g_s2_apart"]["200"]
    assert claimed["without unified memory, 200 adapters over 1"] == pytest.approx(many / one - 1, abs=5e-4)
    assert claimed["knee with 200 adapters on an A10G"] == pytest.approx(measured["a10g_s1_by_rate"]["2.5"], abs=5e-3)


def test_the_classes_of_flow_prefill_are_whole_and_their_quantiles_in_order():
    from simulator.studies import flow_prefill

    classes = flow_prefill._facts()["classes"]
    assert sum(each["share"] for each in classes) == pytest.approx(1.0)
    for each in classes:
        assert each["tokens"] == sorted(each["tokens"])
        assert each["fractions"] == sorted(each["fractions"])
        assert len(each["tokens"]) == len(each["fractions"])
