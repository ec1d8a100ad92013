"""Prices by kind and by list, devices that are bought, and carbon, as a cost and as a limit."""

import json
import math

import numpy as np
import planner_toys
import pytest
import toys
from click.testing import CliRunner

from models import device, llm, price
from models.price import Ownership
from planners.cli import main
from planners.demand import survey
from planners.offers.engines import offers_for
from planners.offers.limits import Limits, keeps
from planners.offers.tariffs import Carbon, Tariff

H100, L4, L40S = (device.load(name) for name in ("h100-sxm", "l4", "l40s"))
LIST = "device,usd_per_hour,kind\nl4,0.7,on-demand\nl4,0.5,reserved-1y\nl4,0.3,reserved-3y\nl40s,1.2,on-demand\n"


@pytest.fixture
def own_list(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(LIST)
    return str(path)


def test_a_list_of_ones_own_has_reserved_prices(own_list):
    tariff = Tariff(("on-demand", "reserved-1y", "reserved-3y", "spot"), own_list)
    assert {kind: one.usd_per_hour for kind, one in tariff.prices(L4).items()} == {
        "on-demand": 0.7,
        "reserved-1y": 0.5,
        "reserved-3y": 0.3,
    }
    assert list(tariff.prices(L40S)) == ["on-demand"]
    names = {one.name: one for one in offers_for(llm.load("llama-3.1-8b"), [L4], tariff=tariff)}
    plain, reserved = (names[f"llama-3.1-8b/l4/tp2pp1ep1dp1/bf16{end}"] for end in ("", "/reserved-3y"))
    assert (plain.usd_per_hour, reserved.usd_per_hour) == pytest.approx((2 * 0.7, 2 * 0.3))


def test_a_bought_device_is_an_annuity_and_electricity_with_the_overhead():
    # 20,000 USD over 4 years without interest are 20,000 / 4 / 8760 an hour; 700 W x 1.5 at 10 cents.
    terms = Ownership(4, 0.0, 0.1, 1.5, {"h100-sxm": 20_000})
    assert price.owned_usd_per_hour(H100, terms) == pytest.approx(20_000 / 4 / 8760 + 0.7 * 1.5 * 0.1)
    assert Tariff(("owned",), ownership=terms).price(H100, "owned").usd_per_hour == pytest.approx(0.675776, rel=1e-4)
    interest = Ownership(2, 0.1, 0.0, 1.0, {"h100-sxm": 8760})
    assert price.owned_usd_per_hour(H100, interest) == pytest.approx(0.1 / (1 - 1.1**-2))


def test_carbon_costs_by_the_power_that_devices_draw():
    # 0.4 kg a kWh, 25 % overhead: 700 W emit 0.35 kg an hour.
    carbon = Carbon(0.4, 1.25, 0.2)
    assert carbon.kg_per_hour(H100) == pytest.approx(0.35)
    dear, free = (
        offers_for(llm.load("llama-3.1-8b"), [H100], tariff=Tariff(carbon=each)) for each in (carbon, Carbon(0.4, 1.25))
    )
    for one, other in zip(dear, free, strict=True):
        assert one.usd_per_hour - other.usd_per_hour == pytest.approx(one.priced.engine.devices * 0.35 * 0.2)


def test_a_limit_on_carbon_is_counted():
    offers = offers_for(llm.load("llama-3.1-8b"), [H100])
    market = survey(toys.trace(np.arange(50) * 0.1, 500, 50), planner_toys.promises("ttft:p99<=2s"), offers)
    replicas = np.zeros(len(market.offers))
    replicas[[one.name for one in market.offers].index("llama-3.1-8b/h100-sxm/tp2pp1ep1dp1/bf16")] = 1
    carbon = Carbon(0.5)  # 2 x 700 W emit 0.7 kg
    assert keeps(Limits(carbon_kg_per_hour_at_most=0.7, carbon=carbon).rows(market), replicas)
    assert not keeps(Limits(carbon_kg_per_hour_at_most=0.69, carbon=carbon).rows(market), replicas)
    with pytest.raises(ValueError, match="needs catalogue devices, and what the grid emits"):
        Limits(carbon_kg_per_hour_at_most=1.0).rows(market)
    assert Limits().carbon_kg_per_hour_at_most == math.inf


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rows = "".join(f"{number / 4},{100 + 10 * (number % 7)},{20 + number % 5}\n" for number in range(80))
    (tmp_path / "chat.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    (tmp_path / "own.csv").write_text(LIST)
    monkeypatch.chdir(tmp_path)
    return tmp_path


BASE = "trace: chat.csv\nmodel: llama-3.1-8b\nslo: ['ttft:p99<=2s']\ndevices: [l4, l40s]\n"


def run(*arguments: str, exit_code: int = 0):
    outcome = CliRunner().invoke(main, [*arguments, "--json"])
    assert outcome.exit_code == exit_code, outcome.output
    return json.loads(outcome.stdout)["result"]


def test_a_plan_takes_the_cheapest_kind_and_is_locked_with_it(folder):
    (folder / "plan.yaml").write_text(BASE + "price_list: own.csv\nkinds: [on-demand, reserved-3y]\n")
    result = run("fleet")
    assert result["pools"][0]["name"].endswith("/reserved-3y")
    assert result["usd_per_hour"] == pytest.approx(sum(p["replicas"] * p["tp"] * 0.3 for p in result["pools"]))
    run("lock")
    assert run("check")["drift"] is False


def test_a_tight_limit_on_carbon_is_infeasible_and_names_itself(folder):
    (folder / "plan.yaml").write_text(BASE + "carbon: {kg_per_kwh: 0.4}\nlimits: {carbon_kg_per_hour: 0.001}\n")
    reasons = run("fleet", exit_code=1)["infeasible"]["reasons"]
    assert any("at most 0.001 kg/h of carbon dioxide would have to be" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("limits: {carbon_kg_per_hour: 1}", "5:9: limits: a limit on carbon_kg_per_hour needs carbon.kg_per_kwh"),
        ("owned: {pue: 0.5}", "5:8: owned: expected years above 0"),
        ("owned: {capex_usd: {h10: 1}}", "5:8: owned: unknown device 'h10'"),
        ("carbon: {kg_per_kwh: -1}", "5:9: carbon: expected kg_per_kwh"),
        ("kinds: [rented]", "5:8: kinds: unknown kind of price 'rented'"),
    ],
)
def test_mistakes_in_prices_are_told_with_their_place(folder, line, words):
    (folder / "plan.yaml").write_text(BASE + line + "\n")
    outcome = CliRunner().invoke(main, ["fleet"])
    assert outcome.exit_code == 2
    assert words in outcome.stderr
