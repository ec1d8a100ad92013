"""`plan fleet`: the newcomer's first command, and every way in which its input can be wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from planners.cli import main

ROOT = Path(__file__).resolve().parent.parent
HEADER = "arrival_s,input_tokens,output_tokens\n"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 1029384\n"
PROMISES = ("--slo", "ttft:p99<=2s", "--slo", "tpot:p99<=80ms")


def fleet(*arguments: str, model: str = "llama-3.1-8b", slo: tuple[str, ...] = PROMISES):
    return CliRunner().invoke(main, ["fleet", *arguments, "--model", model, *slo])


BAD_TRACES = [
    ("empty.csv", "", "1:1: empty file"),
    ("header.csv", HEADER, "no data rows"),
    ("column.csv", "when,prompt,answer\n1,2,3\n", "column.csv:1:"),
    ("negative.csv", HEADER + "0,10,10\n1,-5,10\n", "negative.csv:3:3: input_tokens"),
    (
        "line.jsonl",
        '{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": []}\n{"timestamp": \n',
        "line.jsonl:2:",
    ),
    ("pointer.csv", LFS_POINTER, "Git LFS pointer, not data (1029384 bytes)"),
]


@pytest.mark.parametrize(("name", "content", "words"), BAD_TRACES, ids=[name for name, _, _ in BAD_TRACES])
def test_a_bad_trace_is_refused_with_its_place(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    outcome = fleet(str(tmp_path / name))
    assert outcome.exit_code == 2
    assert outcome.stdout == ""
    assert words in outcome.stderr
    assert f"{tmp_path / name}:" in outcome.stderr


def test_a_missing_trace_is_bad_input(tmp_path):
    outcome = fleet(str(tmp_path / "none.csv"))
    assert outcome.exit_code == 2
    assert "none.csv: No such file or directory" in outcome.stderr


def test_an_unknown_model_is_answered_with_the_nearest():
    outcome = fleet(model="llama-3.1-8B")
    assert outcome.exit_code == 2
    assert "unknown model 'llama-3.1-8B'; did you mean llama-3.1-8b" in outcome.stderr


@pytest.mark.parametrize(
    ("promise", "words"),
    [
        ("ttft<2s", "cannot read the promise 'ttft<2s'; expected METRIC:pPERCENT<=LIMIT"),
        ("tptf:p99<=2s", "unknown metric 'tptf'; known: ttft, tpot, e2e"),
        ("ttft:p99<=2h", "unknown unit 'h'; known: s, ms"),
        ("ttft:p100<=2s", "percentile 100 is not between 0 and 100"),
    ],
)
def test_a_promise_that_cannot_be_read_is_told_what_would_do(promise, words):
    outcome = fleet(slo=("--slo", promise))
    assert outcome.exit_code == 2
    assert words in outcome.stderr


def test_no_promise_is_bad_input():
    outcome = fleet(slo=())
    assert outcome.exit_code == 2
    assert "no promise given; expected at least one" in outcome.stderr


@pytest.fixture
def few_requests(tmp_path):
    path = tmp_path / "few.csv"
    path.write_text(
        HEADER + "".join(f"{number / 4},{100 + 10 * (number % 7)},{20 + number % 5}\n" for number in range(80))
    )
    return path


ONE_DEVICE = ("--devices", "l40s")


def test_an_unknown_device_is_answered_with_the_nearest(few_requests):
    outcome = fleet(str(few_requests), "--devices", "h100-smx")
    assert outcome.exit_code == 2
    assert "unknown device 'h100-smx'; did you mean h100-sxm" in outcome.stderr


def test_a_promise_that_no_device_can_keep_is_infeasible_with_what_can_be_reached(few_requests, tmp_path):
    arguments = [str(few_requests), *ONE_DEVICE, "-o", str(tmp_path)]
    outcome = fleet(*arguments, slo=("--slo", "ttft:p99<=1us"))
    assert outcome.exit_code == 1
    assert "no fleet keeps these promises" in outcome.stderr
    assert "ttft:p99" in outcome.stderr
    assert not (tmp_path / "plan.json").exists()
    told = json.loads(fleet(*arguments, "--json", slo=("--slo", "ttft:p99<=1us")).stdout)
    assert told["result"]["infeasible"]["reasons"]
    assert min(row["best_s"] for row in told["result"]["infeasible"]["reachable"]) > 1e-6


def test_a_model_that_fits_on_no_device_is_infeasible(few_requests):
    outcome = fleet(str(few_requests), "--devices", "t4", model="llama-3.1-405b")
    assert outcome.exit_code in (1, 2)
    assert "Traceback" not in outcome.output


def test_the_answer_is_a_plan_of_schema_1(few_requests, tmp_path):
    outcome = fleet(str(few_requests), *ONE_DEVICE, "--json", "-o", str(tmp_path))
    assert outcome.exit_code == 0, outcome.stderr
    told = json.loads(outcome.stdout)
    assert list(told) == ["schema", "command", "inputs", "result", "warnings", "timings"]
    result = told["result"]
    assert result["usd_per_hour"] >= result["usd_per_hour_bound"] > 0
    assert result["gap"] == pytest.approx(1 - result["usd_per_hour_bound"] / result["usd_per_hour"], abs=1e-5)
    cut = {"device", "replicas", "tp", "pp", "dp", "ep", "dtype", "role", "usd_per_hour"}
    assert all(cut <= set(pool) for pool in result["pools"])
    assert result["requests"] == {"arrived": 80, "finished": 80, "rejected": 0, "failed": 0, "in_flight": 0}
    assert result["slo"]["ttft"]["p99"] <= 2.0
    assert 0 <= result["attainment"] <= 1


def test_the_plan_is_told_in_at_most_25_lines_with_a_first_estimate_before(few_requests, tmp_path):
    outcome = fleet(str(few_requests), *ONE_DEVICE, "-o", str(tmp_path))
    assert outcome.exit_code == 0
    assert len(outcome.stdout.splitlines()) <= 25
    for words in ("Trace", "Model", "lower bound", "TTFT", "TPOT", "Bottleneck", "Next"):
        assert words in outcome.stdout
    assert "first estimate (analytic)" in outcome.stderr


def test_a_plan_replays_to_the_same_figures_and_is_the_same_bytes_twice(few_requests, tmp_path):
    folders = [tmp_path / "once", tmp_path / "twice"]
    told = [fleet(str(few_requests), *ONE_DEVICE, "--json", "-o", str(folder)) for folder in folders]
    plans = [(folder / "plan.json").read_bytes() for folder in folders]
    assert plans[0] == plans[1]
    assert (folders[0] / "requests.parquet").read_bytes() == (folders[1] / "requests.parquet").read_bytes()
    again = CliRunner().invoke(
        main, ["simulate", str(few_requests), "--fleet", str(folders[0] / "plan.json"), "--json"]
    )
    planned, replayed = json.loads(told[0].stdout)["result"], json.loads(again.stdout)["result"]
    assert replayed["slo"] == planned["slo"]
    assert replayed["attainment"] == planned["attainment"]
    assert replayed["requests"] == planned["requests"]


def test_a_fresh_process_on_one_core_gives_the_same_bytes(few_requests, tmp_path):
    assert fleet(str(few_requests), *ONE_DEVICE, "-o", str(tmp_path / "here")).exit_code == 0
    alone = "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    code = f"{alone}; from planners.cli import main; main(sys.argv[1:])"
    arguments = [
        "fleet",
        str(few_requests),
        *ONE_DEVICE,
        "--model",
        "llama-3.1-8b",
        *PROMISES,
        "-o",
        str(tmp_path / "there"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("plan.json", "requests.parquet"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_a_plan_keeps_to_the_racks_there_are(few_requests, tmp_path):
    def in_racks(nodes: str, *more: str):
        racks = f"racks={{a: {{nodes: {{l40s: {nodes}}}, power_w: 4000}}}}"
        return fleet(str(few_requests), *ONE_DEVICE, "--set", racks, "-o", str(tmp_path), *more)

    found = in_racks("[2, 2]", "--json")
    assert found.exit_code == 0, found.output
    limits = json.loads(found.stdout)["result"]["explain"]["limits"]
    assert [row["name"] for row in limits][:2] == [
        "at most 4 x l40s on nodes for 1 or more together",
        "at most 4 x l40s on nodes for 2 or more together",
    ]
    assert all(row["used"] <= row["most"] for row in limits)
    assert limits[2]["most"] == 0.0  # no node holds a replica of four
    none = in_racks("[]")
    assert none.exit_code == 1
    assert "at most 0 x l40s on nodes for 1 or more together" in none.stderr


def test_a_plan_changed_by_hand_is_replayed_as_it_is_now(few_requests, tmp_path):
    assert fleet(str(few_requests), *ONE_DEVICE, "-o", str(tmp_path)).exit_code == 0
    content = json.loads((tmp_path / "plan.json").read_text())

    def simulate_with(pools, shares):
        content["result"]["pools"] = pools
        content["result"]["routing"].update(input_edges=[0], shares=shares)
        (tmp_path / "plan.json").write_text(json.dumps(content))
        return CliRunner().invoke(
            main, ["simulate", str(few_requests), "--fleet", str(tmp_path / "plan.json"), "--json"]
        )

    pool = content["result"]["pools"][0] | {"replicas": 1}
    gone = simulate_with([pool, pool | {"replicas": 0}], [[0.5, 0.5]])
    assert gone.exit_code == 0, gone.output
    assert json.loads(gone.stdout)["warnings"] == ["1 pool of no replica: requests go to the rest"]
    assert json.loads(gone.stdout)["result"]["requests"]["finished"] == 80
    unfit = simulate_with([pool], [[0.5, 0.5]])
    assert "spread by capacity" in json.loads(unfit.stdout)["warnings"][0]
    assert simulate_with([pool | {"replicas": 0}], [[1.0]]).exit_code == 2


def test_a_damaged_plan_is_refused(tmp_path, few_requests):
    (tmp_path / "plan.json").write_text('{"schema": "plan/1", "result": {"pools": []}}')
    outcome = CliRunner().invoke(main, ["simulate", str(few_requests), "--fleet", str(tmp_path / "plan.json")])
    assert outcome.exit_code == 2
    assert "not a whole plan.json" in outcome.stderr


@pytest.mark.parametrize("columns", ["80", "140"])
def test_the_table_fits_the_screen(few_requests, tmp_path, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    outcome = fleet(str(few_requests), *ONE_DEVICE, "-o", str(tmp_path))
    lines = outcome.stdout.splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert len(lines) <= 25


def test_the_first_guess_is_arithmetic_on_the_data_sheet():
    import toys

    from models import device, llm, price
    from planners.search.first_guess import device_seconds, first_guess

    model, h100 = llm.load("llama-3.1-8b"), device.load("h100-sxm")
    trace = toys.trace([0, 10], 1000, 1)  # two prompts of a thousand tokens in ten seconds
    seconds = device_seconds(trace, model, h100, "bf16")
    assert seconds == pytest.approx(2 * model.active_parameters * 2 * 1001 / h100.flops_per_s["bf16"])
    guess = first_guess(trace, model, [h100])
    assert (guess.replicas, guess.devices_per_replica) == (1, 1)
    assert guess.usd_per_hour == price.load("h100-sxm").usd_per_hour
    fp8_seconds = device_seconds(trace, model, h100, "fp8")
    assert guess.usd_per_hour_floor == pytest.approx(fp8_seconds / 10 * guess.usd_per_hour)
    assert first_guess(trace, llm.load("llama-3.1-405b"), [device.load("l4")]) is None


def test_a_scaled_trace_has_more_requests_and_the_reasons_are_told(few_requests, tmp_path):
    outcome = fleet(
        str(few_requests), "--devices", "l40s", "--analytic", "--scale", "3x", "--json", "-o", str(tmp_path)
    )
    inputs = json.loads(outcome.stdout)["inputs"]
    assert inputs["scale"] == "3x"
    assert 200 < inputs["trace"]["requests"] < 300  # about three times 80
    told = fleet(str(few_requests), "--devices", "l40s", "--explain", "-o", str(tmp_path))
    assert "Shadow prices" in told.stdout
    assert "Rivals" in told.stdout
    refused = fleet(str(few_requests), "--scale", "much")
    assert refused.exit_code == 2
    assert "--scale much: expected a factor above 0, as 5x" in refused.stderr
