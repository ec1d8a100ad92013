"""Conversations, agents, prefixes, adapters and images: what is generated has the structure that was asked for."""

import numpy as np
import pytest

import traces
from traces import Labels, Ragged, Trace
from traces.length_laws import fixed_lengths
from traces.sessions import (
    Agents,
    Conversations,
    PrefixTree,
    compose,
    from_spec,
    generate_agents,
    generate_closed_loop,
    generate_conversations,
    with_adapters,
    with_images,
    zipf_ranks,
)
from traces.statistics import prefix_reuse, session_turns
from traces.trace import content_sha256

TALK = Conversations(turns_mean=4.0, think_median_s=10.0, new_tokens=fixed_lengths(100, 60),
                     prefix=PrefixTree(classes=3, class_tokens=320, groups=5, group_tokens=160))  # fmt: skip


@pytest.fixture(scope="module")
def talk() -> Trace:
    return generate_conversations(TALK, 3000.0, 1, parameters={"rate_per_s": 0.5})


@pytest.fixture(scope="module")
def agents() -> Trace:
    law = Agents(steps_mean=10.0, fan_out_probability=0.3, fan_out_mean=3.0, compact_at_tokens=12_000,
                 compact_to_tokens=4000, retry_probability=0.1, prefix=PrefixTree(class_tokens=1600))  # fmt: skip
    return generate_agents(law, 3000.0, 2, parameters={"rate_per_s": 0.2})


def lists(trace: Trace, name: str) -> list[list[int]]:
    column = trace.columns[name]
    assert isinstance(column, Ragged)
    return [column[row].tolist() for row in range(len(trace))]


def codes(trace: Trace, name: str = "session_id") -> np.ndarray:
    column = trace.columns[name]
    assert isinstance(column, Labels)
    return column.codes


def test_turns_and_context_are_as_asked(talk: Trace) -> None:
    """Each turn adds 100 tokens to a context that starts at 480 and gains 60 by every answer."""
    turns = session_turns(talk)
    assert turns is not None
    assert turns["turns_mean"] == pytest.approx(4, rel=0.12)
    assert np.array_equal(talk.input_tokens, 480 + 160 * talk.columns["turn"] + 100)  # type: ignore[operator]
    assert set(talk.output_tokens.tolist()) == {60}


def test_a_turn_follows_its_parent_by_answer_and_thought(talk: Trace) -> None:
    delays = talk.columns["release_delay_ns"]
    for row, parents in enumerate(lists(talk, "parent_ids")):
        assert len(parents) == (talk.columns["turn"][row] > 0)  # type: ignore[index]
        for parent in parents:
            waited_ns = talk.arrival_ns[row] - talk.arrival_ns[parent] - delays[row]  # type: ignore[index]
            assert waited_ns / 1e9 == pytest.approx(60 / 50, abs=1e-5)
            assert codes(talk)[row] == codes(talk)[parent]


def test_prompts_share_the_tree_and_grow_by_the_session(talk: Trace) -> None:
    blocks = lists(talk, "prefix_blocks")
    assert [len(each) for each in blocks] == (-(-talk.input_tokens // 16)).tolist()
    for row, parents in enumerate(lists(talk, "parent_ids")):
        for parent in parents:
            full = int(talk.input_tokens[parent]) // 16
            assert blocks[row][:full] == blocks[parent][:full]
    assert len({tuple(each[:20]) for each in blocks}) == 3
    assert 3 < len({tuple(each[:30]) for each in blocks}) <= 15
    reuse = prefix_reuse(talk)
    assert reuse is not None
    expected = sum(480 if turn == 0 else 480 + 160 * (turn - 1) + 100 for turn in talk.columns["turn"].tolist())  # type: ignore[union-attr]
    assert reuse["token_hit_infinite"] == pytest.approx(expected / talk.input_tokens.sum(), abs=0.02)


def test_agents_fork_and_join(agents: Trace) -> None:
    parents = lists(agents, "parent_ids")
    assert max(map(len, parents)) > 1
    for row, waits_for in enumerate(parents):
        assert all(each < row for each in waits_for)
        assert all(codes(agents)[each] == codes(agents)[row] for each in waits_for)
    children = np.bincount([each for row in parents for each in row], minlength=len(agents))
    assert children.max() > 1
    started = [row for row, waits_for in enumerate(parents) if not waits_for]
    assert len(started) == len(set(codes(agents).tolist()))


def test_a_joining_call_comes_after_everything_it_joins(agents: Trace) -> None:
    for row, waits_for in enumerate(lists(agents, "parent_ids")):
        ends_s = [agents.arrival_ns[each] / 1e9 + agents.output_tokens[each] / 50 for each in waits_for]
        if ends_s:
            delay_s = agents.columns["release_delay_ns"][row] / 1e9  # type: ignore[index]
            assert agents.arrival_ns[row] / 1e9 == pytest.approx(max(ends_s) + delay_s, abs=1e-4)


def test_agents_compact_their_context(agents: Trace) -> None:
    assert agents.input_tokens.max() <= 12_000
    shrank = 0
    for row, waits_for in enumerate(lists(agents, "parent_ids")):
        shrank += any(agents.input_tokens[row] < agents.input_tokens[each] - 3000 for each in waits_for)
    assert shrank > 0


def test_users_in_a_closed_loop_never_ask_twice_at_once() -> None:
    """Ten users, 4 s to think and 1 s to be served: ten requests in 5 s."""
    trace = generate_closed_loop(10, 4.0, 1.0, fixed_lengths(5, 5), 5000.0, 3)
    assert trace.rate_per_s == pytest.approx(2.0, rel=0.03)
    for user in range(10):
        gaps = np.diff(trace.arrival_ns[codes(trace) == user])
        assert gaps.min() >= 0.999e9


def test_clients_are_laid_over_each_other_with_their_names(talk: Trace, agents: Trace) -> None:
    made = compose({"chat": talk, "agents": agents}, 0)
    assert len(made) == len(talk) + len(agents)
    assert np.bincount(codes(made, "client")).tolist() == [len(talk), len(agents)]
    assert len(set(codes(made).tolist())) == len(set(codes(talk).tolist())) + len(set(codes(agents).tolist()))


def test_popularity_is_zipfs() -> None:
    counts = np.bincount(zipf_ranks(200_000, 50, 1.2, np.random.default_rng(0)), minlength=50)
    slope = np.polyfit(np.log(np.arange(1, 21)), np.log(counts[:20]), 1)[0]
    assert slope == pytest.approx(-1.2, abs=0.05)
    assert zipf_ranks(10, 1, 1.0, np.random.default_rng(0)).tolist() == [0] * 10


def test_a_session_has_one_adapter_or_none(talk: Trace) -> None:
    made = with_adapters(talk, 8, 1, fraction=0.4, zipf=1.0)
    for session in range(codes(made).max() + 1):
        assert len(set(codes(made, "adapter")[codes(made) == session].tolist())) == 1
    assert np.mean(codes(made, "adapter") >= 0) == pytest.approx(0.4, abs=0.06)
    assert "cold_adapters" in made.metadata


def test_popularity_drifts_on_request(talk: Trace) -> None:
    made = with_adapters(talk, 10, 1, zipf=3.0, drift_s=300.0, by=None)
    times, adapters = talk.arrival_ns / 1e9, codes(made, "adapter")
    first, later = (adapters[(times >= start) & (times < start + 300)] for start in (0, 1500))
    assert np.bincount(first).argmax() == 0
    assert np.bincount(later).argmax() == 5


def test_images_add_their_tokens(talk: Trace) -> None:
    made = with_images(talk, 1, fraction=0.5, count_mean=1.6, tokens=(1280, 640), weights=(3, 1))
    images, tokens = made.columns["images"], made.columns["image_tokens"]
    assert np.mean(images > 0) == pytest.approx(0.5, abs=0.05)  # type: ignore[operator]
    assert np.mean(images[images > 0]) == pytest.approx(1.6, abs=0.15)  # type: ignore[index, operator]
    assert np.array_equal(made.input_tokens - talk.input_tokens, tokens)
    assert tokens.sum() / images.sum() == pytest.approx(0.75 * 1280 + 0.25 * 640, rel=0.05)  # type: ignore[union-attr]


def test_everything_made_is_seeded_recorded_and_written(tmp_path, talk: Trace) -> None:
    again = generate_conversations(TALK, 3000.0, 1, parameters={"rate_per_s": 0.5})
    assert content_sha256(again) == content_sha256(talk)
    assert again.identity == talk.identity
    made = with_images(with_adapters(talk, 3, 1), 2)
    assert [step["operation"] for step in made.chain] == ["generate", "with_adapters", "with_images"]
    for name in ("made.csv", "made.parquet"):
        traces.write(made, tmp_path / name)
        assert content_sha256(traces.read(tmp_path / name)) == content_sha256(made)


def test_a_specification_says_it_all() -> None:
    spec = {
        "duration_s": 600,
        "starts": {"arrivals": "renewal", "parameters": {"rate_per_s": 1.0, "cv": 2.0}},
        "conversations": {"turns_mean": 2, "new_tokens": [50, 20], "prefix": {"classes": 2, "class_tokens": 64}},
        "adapters": {"count": 4, "fraction": 0.5},
        "images": {"fraction": 0.2},
    }
    made = from_spec(spec, 1)
    assert {"adapter", "images", "prefix_blocks", "session_id"} <= set(made.columns)
    table = {"probabilities": [0, 1], "input_tokens": [5, 9], "output_tokens": [1, 1]}
    assert len(from_spec({"agents": {"new_tokens": table}, "duration_s": 600}, 1)) > 0
    loop = {"closed_loop": {"users": 2, "think_mean_s": 5, "service_s": 1}, "duration_s": 100}
    assert len(from_spec(loop, 1)) > 10


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({}, "0 of them"),
        ({"agents": {}, "conversations": {}}, "2 of them"),
        ({"agents": {}, "colour": 1}, "unknown 'colour'"),
        ({"agents": {"colour": 1}}, "unexpected keyword argument 'colour'"),
        ({"agents": {}, "starts": {"arrivals": "magic"}}, "unknown arrival law 'magic'"),
        ({"agents": {}, "starts": {"parameters": {"rate_per_s": 1e-12}}}, "starts nothing"),
    ],
)
def test_a_wrong_specification_is_named(spec: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        from_spec(spec, 1)
