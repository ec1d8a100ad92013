"""Scalars fitted to a request log: those that made it are found again, and requests that were not fitted are nearer."""

import json
from dataclasses import replace

import numpy as np
import pandas
import pytest
from click.testing import CliRunner

from models import device
from models.framework import SCALARS, load
from planners.cli import main
from simulator import log_fit
from simulator.request_log import replay_run, runs_of

L40S = device.load("l40s")


def log(on=L40S):
    """Return a log of 60 requests, as an engine on `on` would have written it: twice as many as fit at once."""
    rng = np.random.default_rng(3)
    frame = pandas.DataFrame({"arrival_s": np.sort(rng.random(60)) * 6.0})
    frame["input_toks"], frame["output_toks"] = rng.integers(200, 900, 60), rng.integers(40, 90, 60)
    told = {"run": "mine", "device": "l40s", "model": "meta-llama/Llama-3.1-8B", "vllm_version": "0.19.0"}
    frame = frame.assign(**told, tensor_parallel_size=1, max_num_seqs=16, max_num_batched_tokens=2048)
    ((name, rows),) = runs_of(frame)
    one = replay_run(name, rows, on)
    for metric, seconds in one.seconds().items():
        frame.loc[one.rows, f"{metric}_ms"] = seconds * 1e3
    return frame


def slower(**factors):
    host = load("vllm", L40S.calibration, "0.19.0")
    scalars = {name: getattr(host, name) * factors.get(name, 1.0) for name in SCALARS}
    return replace(L40S, serving=({"framework": "vllm", "versions": "0.19.0", **scalars},))


@pytest.fixture
def one_descent(monkeypatch):
    """Descend from the best start alone, where which scalars are found is not what is asked."""
    monkeypatch.setattr(log_fit, "DESCENTS", 1)


def test_the_scalars_that_made_a_log_are_found_again():
    own = slower(decode_factor=1.15, prefill_factor=0.9)
    found = log_fit.fit(log(own))
    made = dict(own.serving[0])
    assert found.requests == {"fitted": 20, "held_out": 40}
    assert found.scalars["decode_factor"] == pytest.approx(made["decode_factor"], rel=0.01)
    assert found.scalars["prefill_factor"] == pytest.approx(made["prefill_factor"], rel=0.01)
    before, after = (found.errors["held_out"][when]["tpot"] for when in ("before", "after"))
    assert before > 0.05
    assert after < 0.005


@pytest.mark.usefixtures("one_descent")
def test_requests_beyond_the_share_are_not_looked_at():
    frame = log(slower(decode_factor=1.1))
    wrong = frame.copy()
    wrong.loc[30:, ["ttft_ms", "tpot_ms", "e2e_ms"]] *= 5.0
    assert log_fit.fit(frame, share=0.5).scalars == log_fit.fit(wrong, share=0.5).scalars


@pytest.mark.usefixtures("one_descent")
def test_the_command_writes_a_device_file_that_stands_for_the_device(tmp_path):
    path, out = tmp_path / "log.csv", tmp_path / "mine.toml"
    log(slower(layer_s=3.0)).to_csv(path, index=False)
    found = CliRunner().invoke(main, ["calibrate", str(path), "-o", str(out), "--json"], catch_exceptions=False)
    result = json.loads(found.stdout)["result"]
    assert (result["device"], result["framework_version"], result["models"]) == ("l40s", "0.19.0", ["llama-3.1-8b"])
    (row,) = device.load(str(out)).serving
    assert row["layer_s"] == pytest.approx(result["scalars"]["layer_s"], rel=1e-3)
    assert row["source"] == "plan calibrate: 20 requests of llama-3.1-8b"


@pytest.mark.usefixtures("one_descent")
def test_a_log_of_several_devices_needs_one_to_be_chosen():
    both = pandas.concat([log(), log().assign(run="theirs", device="h100_sxm")], ignore_index=True)
    with pytest.raises(ValueError, match="no device is given: the log has runs on l40s, h100-sxm"):
        log_fit.fit(both)
    with pytest.raises(ValueError, match="no run on 'a100-sxm-80gb': the log has runs on l40s, h100-sxm"):
        log_fit.fit(both, device.load("a100-sxm-80gb"))
    assert log_fit.fit(both, L40S).requests == {"fitted": 20, "held_out": 40}


def test_a_log_without_times_is_refused_with_the_columns(tmp_path):
    path = tmp_path / "log.parquet"
    log().drop(columns=["ttft_ms"]).to_parquet(path)
    with pytest.raises(ValueError, match=r"log.parquet: no column ttft_ms; a request log needs them"):
        log_fit.read(path)


# Whether the usual scalars leave anything to gain.
@pytest.mark.parametrize(("name", "is_off"), [("rtx-4090", False), ("rtx-pro-6000", True)])
def test_a_real_log_is_told_within_three_percent_beyond_the_third_that_was_fitted(shared, name, is_off):
    found = log_fit.fit(log_fit.read(shared / "data" / "request_logs.parquet"), device.load(name))
    before, after = found.errors["held_out"]["before"], found.errors["held_out"]["after"]
    assert max(after.values()) < 0.03
    assert not is_off or all(after[metric] < before[metric] for metric in ("ttft", "tpot", "e2e"))
