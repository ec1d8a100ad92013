"""What a notebook shows of a trace, a run and a plan: the figures of the object itself, and nothing unescaped."""

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import toys

from planners.plan import Outcome, Plan, PlannedPool, PromiseKept
from simulator.replay import replay


class Rows(HTMLParser):
    """The rows of the table of a card, and the tags in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: dict[str, str] = {}
        self.tags: list[str] = []
        self.name = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, text):
        if self.tags[-1] == "th":
            self.name = text
        elif self.tags[-1] == "td":
            self.rows[self.name] = text


@pytest.fixture(scope="module")
def run():
    return replay(toys.trace(np.arange(20) / 100, 4, 8), toys.fleet())


def test_a_run_shows_its_fleet_requests_and_latencies(run):
    shown = Rows(run._repr_html_())
    assert shown.rows["fleet"] == "1 x toy, 0.00 USD/h"
    assert shown.rows["requests"] == "20 arrived, 20 finished"
    assert shown.rows["TTFT"].startswith(f"p50 {run.percentile_s('ttft', 50) * 1e3:.3g} ms")
    assert shown.tags.count("rect") > 100


def test_a_run_that_served_nobody_says_never():
    shown = Rows(replay(toys.trace([0, 1], 10_000, 8), toys.fleet())._repr_html_())
    assert shown.rows["requests"] == "2 arrived, 2 rejected"
    assert "never" in shown.rows["TTFT"]


def test_a_plan_shows_what_it_costs_and_what_the_cheaper_fleet_fails_at():
    pools = (PlannedPool("toy", "toy", 2, 4.0, busy=0.5),)
    cheaper = Outcome((PlannedPool("toy", "toy", 1, 2.0),), 2.0, "ttft:p99 is 3 s, promised 2 s")
    kept = (PromiseKept("ttft:p99<=2s", 1.0, 2.0),)
    plan = Plan(pools, 4.0, 3.0, "planned", (0,), ((1.0,),), promises=kept, attainment=0.995, cheaper=cheaper)
    shown = Rows(plan._repr_html_())
    assert shown.rows["cost"] == "4.00 USD/h; no fleet of these engines below 3.00 USD/h, gap 25.0%"
    assert shown.rows["2 x toy"] == "4.00 USD/h, busy 50%"
    assert shown.rows["ttft:p99<=2s"] == "1.00 s of 2.00 s"
    assert shown.rows["cheaper, but fails"] == "1 x toy: ttft:p99 is 3 s, promised 2 s"


def test_names_are_escaped(run):
    named = replace(run, trace=replace(run.trace, name="<script>"))
    assert "script" not in Rows(named._repr_html_()).tags
    assert "script" not in Rows(named.trace._repr_html_()).tags
