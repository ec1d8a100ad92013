"""A device file that plan calibrate wrote stands for the catalogue's device, in every command that names one."""

import json

import pytest
from click.testing import CliRunner

from models import device, framework, llm, price
from models.calibration import device_file
from models.engine import Engine
from planners.cli import main

BENCH = {
    "backend": "vllm",
    "completed": 200,
    "total_input_tokens": 200 * 512,
    "total_output_tokens": 200 * 64,
    "max_concurrency": 4,
    "duration": 40.0,
    "median_ttft_ms": 120.0,
    "median_tpot_ms": 31.0,
}
SCALARS = {"layer_s": 4e-5, "decode_factor": 1.0, "prefill_factor": 1.0, "first_token_s": 0.02}


def run(*arguments):
    found = CliRunner().invoke(main, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.stderr
    return json.loads(found.stdout)["result"]


def replayed_s():
    return run("simulate", "few.csv", "--fleet", "plan.json")["slo"]["tpot"]["p50"]


@pytest.fixture
def mine(tmp_path):
    """Write the file of an L40S under which a layer takes its host 40 us more."""
    path = tmp_path / "mine.toml"
    path.write_text(device_file.with_scalars(device.load("l40s"), "vllm", "", SCALARS, "three runs"))
    return path


def test_the_file_is_the_catalogues_device_but_for_its_scalars(mine):
    catalogue, own = device.load("l40s"), device.load(str(mine))
    assert (own.name, own.flops_per_s, own.file) == ("l40s", catalogue.flops_per_s, str(mine))
    model = llm.load("llama-3.1-8b")
    host = framework.of_engine(Engine(model, own))
    assert (host.layer_s, host.provenance) == (4e-5, "calibrated")
    assert framework.of_engine(Engine(model, catalogue)).layer_s != 4e-5
    assert framework.of_engine(Engine(model, own, framework="sglang")).layer_s != 4e-5


def test_scalars_of_another_release_stand_beside_earlier_ones(mine):
    text = device_file.with_scalars(device.load(str(mine)), "vllm", "0.12.0", {**SCALARS, "layer_s": 9e-5}, "one run")
    mine.write_text(text)
    own = device.load(str(mine))
    layers_s = [
        framework.of_engine(Engine(llm.load("llama-3.1-8b"), own, framework_version=v)).layer_s
        for v in ("0.13.0", None)
    ]
    assert layers_s == [9e-5, 4e-5]


def test_what_calibrate_writes_estimate_reads(tmp_path):
    out, bench = tmp_path / "mine.toml", tmp_path / "bench.json"
    bench.write_text(json.dumps(BENCH))
    fitted = run("calibrate", bench, "--model", "llama-3.1-8b", "--device", "l40s", "-o", out)
    host = framework.of_engine(Engine(llm.load("llama-3.1-8b"), device.load(str(out))))
    assert host.layer_s == pytest.approx(fitted["scalars"]["layer_s"], rel=1e-3)
    asked = ("--model", "llama-3.1-8b", "--isl", 512, "--osl", 64, "--concurrency", 4)
    before, after = (run("estimate", "--device", name, *asked)["tpot_s"] for name in ("l40s", out))
    assert before != after


def test_a_plan_remembers_the_file_and_replays_on_it(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{0.5 * i},{200 + 10 * (i % 7)},{20 + i % 5}" for i in range(40)]
    (tmp_path / "few.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows]))
    asked = ("few.csv", "--model", "llama-3.1-8b", "--slo", "tpot:p99<=80ms", "--analytic")
    (pool,) = run("fleet", *asked, "--devices", mine)["pools"]
    assert (pool["device"], pool["device_file"]) == ("l40s", str(mine))
    assert pool["usd_per_hour"] == pool["replicas"] * price.load("l40s").usd_per_hour * pool["tp"]
    by_file, by_name = (replayed_s() for _ in range(2))
    assert by_file == by_name
    plan = json.loads((tmp_path / "plan.json").read_text())
    del plan["result"]["pools"][0]["device_file"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    assert replayed_s() < by_file


def test_a_scalar_that_is_no_time_is_refused_with_the_place(mine):
    mine.write_text(mine.read_text().replace("layer_s = 4e-05", 'layer_s = "fast"'))
    with pytest.raises(ValueError, match=r"mine.toml: \[\[serving\]\]: layer_s must be a positive number, not 'fast'"):
        device.load(str(mine))
