"""A few measured calls of a device's kernels bring a kin's fit near, and a device file keeps them."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from click.testing import CliRunner

from models import device
from models.calibration import load, measured, predict, remeasured, this_device
from planners.cli import main


def run(*arguments):
    return CliRunner().invoke(main, ["calibrate", *map(str, arguments), "--json"], catch_exceptions=False)


def calls(slow=1.0, count=40, on="l4"):
    """Return products that take `slow` times what a device is thought to take."""
    rng = np.random.default_rng(1)
    shape = {name: 2.0 ** rng.integers(low, 14, count) for name, low in (("m", 4), ("n", 10), ("k", 10))}
    seconds = predict.operator_s(load(on), "gemm", "bf16", shape)
    return pandas.DataFrame({"op": "gemm", "dtype": "bf16", **shape, "time_us": seconds * 1e6 * slow})


def test_a_device_that_is_slower_than_thought_is_fitted_so():
    (found,) = remeasured.fit(device.load("l4"), "vllm", calls(slow=1.4))
    assert (found.fitted, found.judged, found.refused) == (32, 8, 0)
    assert found.error_before == pytest.approx(1 - 1 / 1.4)
    assert found.error_after < 0.08


def test_a_processor_without_tiles_is_fitted_too():
    (found,) = remeasured.fit(device.load("xeon-8592"), "vllm", calls(slow=1.4, on="xeon-8592"))
    assert found.error_before == pytest.approx(1 - 1 / 1.4)
    assert found.error_after < 0.02


def test_a_device_that_is_as_thought_stays_as_it_is():
    (found,) = remeasured.fit(device.load("l4"), "vllm", calls())
    assert found.error_after < 0.005


@pytest.mark.parametrize(("lender", "label", "engine"), [("b200_sxm", "b300_sxm", "vllm"), ("l40s", "rtx4090", "vllm")])
def test_thirty_rows_of_a_device_take_a_third_off_the_error_of_its_kin(shared, monkeypatch, lender, label, engine):
    frame = measured.read_operators(shared / "data" / "operators.parquet", "gemm", label)
    frame = frame[(frame["engine"] == engine) & (frame["dtype"] == "bf16")].sample(150, random_state=3)
    heir = device.find(label)
    lent = load(lender, engine).find("gemm", "bf16")
    monkeypatch.setattr(remeasured.Calibration, "find", lambda *_: lent)
    (found,) = remeasured.fit(heir, engine, frame, judged_share=0.8)
    assert (found.fitted, found.judged) == (30, 120)
    assert found.error_after <= 0.67 * found.error_before


def test_the_command_writes_a_device_file_that_prices_products_so(tmp_path):
    table, out = tmp_path / "calls.csv", tmp_path / "mine.toml"
    calls(slow=1.4).to_csv(table, index=False)
    told = run(table, "--device", "l4", "-o", out)
    (one,) = json.loads(told.stdout)["result"]["operators"]
    assert one["error_after"] < one["error_before"]
    shape = {"m": 4096.0, "n": 4096.0, "k": 4096.0}
    before, after = (
        float(predict.operator_s(load(device.load(name)), "gemm", "bf16", shape)) for name in ("l4", str(out))
    )
    assert after / before == pytest.approx(1.4, rel=0.1)
    again = device.load(str(out))
    assert [row["op"] for row in again.operators] == ["gemm"]
    assert load(again).find("gemm", "bf16").provenance == "calibrated"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("op,dtype,time_us,m,n\ngemm,bf16,1,1,1", "no column k; gemm needs m, n, k"),
        ("op,dtype,time_us,m,n,k\ngemm,bf16,1,1,1,1", "1 of 1 rows are possible on l4, and a fit takes 6"),
        ("op,dtype,time_us,m,n,k\ngemm,bf16,0,1,1,1", "calls.csv:2: time_us must be positive, not 0"),
        ("op,dtype,time_us,m,n,k\nconv,bf16,1,1,1,1", "calls.csv:2: op 'conv' cannot be fitted to a few calls; known:"),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused_with_the_reason(tmp_path, rows, words):
    (tmp_path / "calls.csv").write_text(rows)
    told = run(tmp_path / "calls.csv", "--device", "l4")
    assert told.exit_code == 2
    assert words in told.stderr


class Clock:
    """An event of a device on which a product takes what an L4 is thought to take, half as long again."""

    now_ms = 0.0

    def __init__(self, enable_timing):
        self.at_ms = None

    def record(self):
        self.at_ms = Clock.now_ms

    def elapsed_time(self, later):
        return later.at_ms - self.at_ms


def linear(tokens, weight):
    shape = {"m": tokens[0], "n": weight[0], "k": weight[1]}
    Clock.now_ms += 1.5e3 * float(predict.operator_s(load("l4"), "gemm", "bf16", shape))


TORCH = SimpleNamespace(
    bfloat16="bf16",
    randn=lambda rows, columns, **_: (float(rows), float(columns)),
    cuda=SimpleNamespace(Event=Clock, synchronize=lambda: None),
    nn=SimpleNamespace(functional=SimpleNamespace(linear=linear)),
)


def test_a_cuda_device_is_timed_call_by_call():
    rows = pandas.DataFrame(this_device.measure(TORCH))
    assert len(rows) == len(this_device.TOKENS) * len(this_device.MATRICES)
    (found,) = remeasured.fit(device.load("l4"), "vllm", rows)
    assert found.error_before == pytest.approx(1 - 1 / 1.5)
    assert found.error_after < 0.1


def test_a_machine_without_torch_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    told = run("--this-machine", "--device", "l4")
    assert told.exit_code == 2
    assert "needs torch, which is not installed" in told.stderr
