"""Facts of earlier runs: the same answer with and without them, sooner with, and others where anything differs."""

import json
from dataclasses import replace

import planner_toys
import pytest

from models.step import slowed
from planners import facts
from planners.facts import Facts
from planners.search.search import find_plan
from simulator import replay


@pytest.fixture
def replays(monkeypatch):
    """Return a list that grows by one with every replay."""
    made, replay_it = [], replay.replay

    def counted(*arguments, **options):
        made.append(len(arguments))
        return replay_it(*arguments, **options)

    monkeypatch.setattr(replay, "replay", counted)
    return made


@pytest.fixture
def known(tmp_path):
    return Facts(tmp_path / "facts.sqlite")


def answer(offers=None, seed=0, known=None, siblings=0):
    trace = planner_toys.bursty_trace(seed)
    plan = find_plan(
        trace, None, planner_toys.promises(), offers=offers or planner_toys.two_offers(), siblings=siblings, facts=known
    )
    return json.dumps(plan.result())


@pytest.mark.parametrize("siblings", [0, 2])
def test_what_is_known_changes_no_byte_and_spares_the_replays(replays, known, siblings):
    without = answer(siblings=siblings)
    alone = len(replays)
    first = answer(known=known, siblings=siblings)
    spent = len(replays) - alone
    again = answer(known=Facts(known.file), siblings=siblings)
    assert without == first == again
    assert alone > 10
    assert spent <= alone
    assert len(replays) - alone - spent == 1  # for the latencies of the plan itself


def test_other_prices_ask_for_few_new_replays(replays, known):
    answer(known=known)
    cold = len(replays)
    dearer = [replace(offer, usd_per_hour=1.01 * offer.usd_per_hour) for offer in planner_toys.two_offers()]
    with_facts, spent = answer(dearer, known=known), len(replays) - cold
    assert with_facts == answer(dearer)
    assert spent < cold / 4


@pytest.mark.parametrize("change", ["trace", "step times"])
def test_another_trace_and_other_step_times_are_other_facts(known, change):
    def slower(offer):
        return replace(offer, priced=replace(offer.priced, table=slowed(offer.priced.table, 1.02)))

    asked = {"seed": 1} if change == "trace" else {"offers": list(map(slower, planner_toys.two_offers()))}
    answer(known=known)
    assert answer(known=known, **asked) == answer(**asked) != answer()


def test_other_sources_are_other_facts(known, monkeypatch):
    assert known.known(("speed",), lambda: 1.0) == known.known(("speed",), lambda: 2.0) == 1.0
    monkeypatch.setattr(facts, "_sources", lambda: "of another version")
    assert known.known(("speed",), lambda: 2.0) == 2.0


def test_the_file_stays_small_and_forgets_the_oldest(known, monkeypatch):
    monkeypatch.setattr(facts, "MOST_BYTES", 100_000)
    for number in range(100):
        known.known((number,), lambda: "x" * 10_000)
        assert known.file.stat().st_size < 200_000
    assert known.known((99,), lambda: "gone") != "gone"
    assert known.known((0,), lambda: "gone") == "gone"


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to look like one" * 50, None])
def test_a_file_that_is_broken_or_cannot_be_is_done_without(tmp_path, content):
    file = tmp_path / "missing" / "facts.sqlite" if content is None else tmp_path / "facts.sqlite"
    if content is not None:
        file.write_bytes(content)
    assert Facts(file).known(("speed",), lambda: 1.0) == 1.0


def test_facts_can_be_switched_off(monkeypatch, tmp_path):
    monkeypatch.setenv("FLEETPLAN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv(facts.SWITCH, "off")
    assert facts.of_earlier_runs().file is None
    assert "none are kept" in facts.described()
    monkeypatch.delenv(facts.SWITCH)
    assert facts.of_earlier_runs().file == tmp_path / facts.FILE
    assert "0 in" in facts.described()
