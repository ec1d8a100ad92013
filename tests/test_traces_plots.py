"""Pictures of traces: every one draws what there is, on axes it was given, and says what is lacking."""

import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import traces
from traces import plots
from traces.sessions import Conversations, PrefixTree, generate_conversations, with_adapters
from traces.statistics import lru_token_hit
from traces.trace import Ragged, Trace
from traces.transform import thin


@pytest.fixture
def ax() -> Iterator[Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    yield axes
    figure.canvas.draw()
    plt.close(figure)


@pytest.fixture(scope="module")
def talk() -> Trace:
    law = Conversations(prefix=PrefixTree(classes=3, class_tokens=160))
    made = generate_conversations(law, 1500.0, 1, parameters={"rate_per_s": 0.5})
    return with_adapters(made, 5, 1, column="client")


@pytest.mark.parametrize("name", plots.PLOTS)
def test_every_picture_draws_a_rich_trace_and_names_its_axes(ax: Any, talk: Trace, name: str) -> None:
    assert plots.PLOTS[name](ax, talk) is ax
    assert ax.get_xlabel()
    assert ax.lines or ax.patches or ax.collections or ax.images


@pytest.mark.parametrize("name", ["shares", "stacked_rates", "block_popularity", "turns", "thinking", "gantt"])
def test_a_picture_of_what_is_not_there_says_so(ax: Any, name: str) -> None:
    with pytest.raises(ValueError, match="has no"):
        plots.PLOTS[name](ax, traces.transform.slice_time(traces.sample(), 0, 60))


def test_real_and_made_are_drawn_against_each_other(ax: Any, talk: Trace) -> None:
    plots.before_after(ax, talk, thin(talk, 0.5, 1))
    assert {text.get_text() for text in ax.get_legend().get_texts()} >= {"before", "after", "Poisson"}
    for field in ("gaps", "input_tokens"):
        plots.quantiles(ax, talk, talk, field)
    first, second = ax.lines[-2].get_data()
    assert np.array_equal(first, second)


def test_a_fit_is_drawn_beside_the_dispersion(ax: Any, talk: Trace) -> None:
    plots.dispersion(ax, talk, (10.0,), (0.1,))
    assert [line.get_label() for line in ax.lines] == ["conversations", "Poisson", "fit"]


def test_the_rate_drawn_is_the_rate(ax: Any) -> None:
    tokens = np.ones(100, np.int32)
    trace = Trace("even", np.arange(100) * 500_000_000, tokens, tokens, tokens * 0, {}, {})
    plots.rate(ax, trace, (1.0,))
    assert set(ax.lines[0].get_ydata().tolist()) == {2.0}


def test_a_small_cache_forgets_what_was_not_used_for_longest() -> None:
    """Blocks 1 2 1 3 1 2 one a request, room for two of three: 1 is found twice, 2 is gone when it comes again."""
    tokens = np.full(6, 16, np.int32)
    blocks = Ragged(np.arange(7), np.array([1, 2, 1, 3, 1, 2]))
    trace = Trace("t", np.arange(6), tokens, tokens, tokens * 0, {"prefix_blocks": blocks}, {"block_tokens": 16})
    assert lru_token_hit(trace, 0.7) == pytest.approx(2 / 6)
    assert lru_token_hit(trace, 1.0) == pytest.approx(3 / 6)


def test_mooncake_finds_in_a_cache_what_others_found(shared: Path) -> None:
    """Published for 1, 10, 25 and 50 % of the different blocks: 0.0535, 0.284, 0.36, 0.37."""
    trace = traces.read(shared / "traces" / "mooncake" / "conversation_trace.jsonl.gz")
    for fraction, published in ((0.01, 0.0535), (0.1, 0.284), (0.25, 0.36), (0.5, 0.37)):
        assert lru_token_hit(trace, fraction) == pytest.approx(published, abs=0.001)


def test_a_notebook_shows_the_trace(talk: Trace) -> None:
    shown = talk._repr_html_()
    parsed = xml.etree.ElementTree.fromstring(f"<div>{shown}</div>")
    assert parsed.find("svg") is not None
    assert f"{len(talk):,}" in shown
    named = traces.Trace("<script>", talk.arrival_ns, talk.input_tokens, talk.output_tokens, talk.status, {}, {})
    assert "<script>" not in named._repr_html_()
    none = np.zeros(0, np.int64)
    assert "no requests" in traces.Trace("none", none, none, none, none)._repr_html_()
