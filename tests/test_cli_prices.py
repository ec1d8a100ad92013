"""Prices: lists of others are read to their last row, and pinned prices stay whatever the list says."""

import json

import pytest
from click.testing import CliRunner

from models import price
from planners import study
from planners.cli import main
from planners.offers import price_lists

SKY = """\
InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Price,Region,GpuInfo,SpotPrice
p5.48xlarge,H100,8.0,192,2048,40.0,us-east-1,"{'Gpus': []}",16.0
g6.xlarge,L4,1.0,4,16,0.8,us-east-1,,
g6.tiny,L4,0.5,4,16,0.4,us-east-1,,
m5.large,,,2,8,0.1,us-east-1,,0.04
x1.huge,TPU-v99,4.0,2,8,9.9,us-east-1,,
"""
FOCUS = """\
SkuId,RegionId,ListUnitPrice,ContractedUnitPrice,PricingUnit,BillingCurrency,PricingCategory
SKU-H100x8,eu-1,50.0,32.0,Hours,USD,Standard
SKU-L4,eu-1,0.9,,Hours,USD,Dynamic
SKU-DISK,eu-1,0.1,0.1,GB,USD,Standard
"""


def run(*arguments: object, exit_code: int = 0):
    outcome = CliRunner().invoke(main, [str(each) for each in arguments])
    assert outcome.exit_code == exit_code, outcome.output
    return outcome


def told(*arguments: object) -> dict:
    return json.loads(run(*arguments, "--json").stdout)["result"]


def test_a_machine_of_eight_costs_an_eighth_of_its_price_each(tmp_path):
    (tmp_path / "vms.csv").write_text(SKY)
    flags = ["--provider", "aws", "--date", "2026-11-22", "-o", tmp_path / "own.csv"]
    found = told("prices", "import", tmp_path / "vms.csv", *flags)
    assert found["rows_read"] == 5
    assert found["left_out"] == {"a part of an accelerator": 1, "no accelerator": 1, "unknown accelerator TPU-v99": 1}
    offers = price.read(tmp_path / "own.csv")
    assert {(each.device, each.kind): each.usd_per_hour for each in offers} == {
        ("h100-sxm", "on-demand"): 5.0,
        ("h100-sxm", "spot"): 2.0,
        ("l4", "on-demand"): 0.8,
    }
    assert {each.date for each in offers} == {"2026-11-22"}
    assert told("prices", "show", "h100-sxm", "--file", tmp_path / "own.csv")[0]["instance"] == "p5.48xlarge"


def test_contracts_are_read_once_their_skus_are_named(tmp_path):
    (tmp_path / "focus.csv").write_text(FOCUS)
    flags = ["-o", tmp_path / "own.csv", "--map", "SKU-H100x8=h100-sxm:8", "--map", "SKU-L4=l4"]
    found = told("prices", "import", tmp_path / "focus.csv", *flags)
    assert found["left_out"] == {"SKU that --map does not name": 1}
    offers = price.read(tmp_path / "own.csv")
    assert [(each.device, each.kind, each.usd_per_hour) for each in offers] == [
        ("h100-sxm", "on-demand", 4.0),
        ("l4", "spot", 0.9),
    ]
    outcome = run("prices", "import", tmp_path / "focus.csv", "-o", tmp_path / "x.csv", exit_code=2)
    assert "--map names them" in outcome.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "vms.csv:1:1: no known price list; expected the columns"),
        (SKY.replace("40.0", "dear"), "vms.csv:2:1: price is 'dear'; expected a number from 0 on"),
        (FOCUS.replace("USD,Standard", "EUR,Standard"), "vms.csv:2:1: BillingCurrency is 'EUR'; expected USD"),
    ],
)
def test_a_list_that_cannot_be_read_is_told_where(tmp_path, text, words):
    (tmp_path / "vms.csv").write_text(text)
    named = ["--map", "SKU-H100x8=h100-sxm"]
    outcome = run("prices", "import", tmp_path / "vms.csv", "-o", tmp_path / "x.csv", *named, exit_code=2)
    assert words in outcome.stderr


def test_a_name_that_says_nothing_is_told_what_would_do(tmp_path):
    (tmp_path / "vms.csv").write_text(SKY)
    outcome = run("prices", "import", tmp_path / "vms.csv", "-o", tmp_path / "x.csv", "--map", "H100", exit_code=2)
    assert "expected THEIRS=DEVICE" in outcome.stderr
    bad = run("prices", "import", tmp_path / "vms.csv", "-o", tmp_path / "x.csv", "--map", "H100=h1", exit_code=2)
    assert "unknown device 'h1'" in bad.stderr


def test_pinned_prices_are_those_planned_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("init")
    (tmp_path / "own.csv").write_text("device,usd_per_hour\nl4,0.5\nl4,0.25\nh100-sxm,9\n")
    comments = [line for line in (tmp_path / "plan.yaml").read_text().splitlines() if line.startswith("#")]
    assert told("prices", "pin", "l4", "--list", "own.csv") == {"l4": 0.25}
    assert study.read("plan.yaml").usd_per_device_hour == {"l4": 0.25}
    assert told("prices", "pin", "h100-sxm") == {"h100-sxm": price.load("h100-sxm").usd_per_hour}
    text = (tmp_path / "plan.yaml").read_text()
    assert list(study.read("plan.yaml").prices) == ["h100-sxm"]
    assert [line for line in text.splitlines() if line.startswith("#")] == comments
    assert len(told("prices", "pin")) == 10


def test_a_pin_replaces_its_block_and_nothing_else():
    text = "model: m\nprices:\n  l4: 1\n  a10g: 2\nseed: 3\n"
    assert price_lists.pinned(text, {"l4": 0.5}, "now") == "model: m\nprices:  # now\n  l4: 0.5\nseed: 3\n"
    assert price_lists.pinned("model: m", {"l4": 0.5}, "now") == "model: m\n\nprices:  # now\n  l4: 0.5\n"
