"""The estimate of one engine under one load, as the command gives it."""

import json

from click.testing import CliRunner

from planners.cli import main

LOAD = ("--model", "llama-3.1-8b", "--isl", "1024", "--osl", "256", "--concurrency")


def estimated(concurrency):
    answer = CliRunner().invoke(main, ["estimate", "--device", "h100-sxm", *LOAD, concurrency, "--json"])
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)["result"]


def test_more_requests_at_once_give_more_tokens_and_slower_ones():
    few, many = estimated("4"), estimated("64")
    assert many["tpot_s"] > few["tpot_s"]
    assert many["output_tokens_per_s"] > few["output_tokens_per_s"]
    assert many["provenance"]
    assert many["interval"]


def test_an_unknown_device_is_told_with_the_nearest_name():
    answer = CliRunner().invoke(main, ["estimate", "--device", "h100-sx", *LOAD, "1"])
    assert answer.exit_code == 2
    assert "h100-sxm" in answer.output
