"""Conversations and agents: requests that follow from requests, share prefixes, and ask for adapters and images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from typing import Any

import numpy as np
from numpy.random import Generator

from traces.arrival_laws import ARRIVAL_LAWS
from traces.generate import CLOCK_NS, build
from traces.joining import groups_of
from traces.length_laws import LengthLaw, fixed_lengths, sample_lengths
from traces.trace import MISSING, NS_PER_S, Array, Column, Labels, Ragged, Trace
from traces.transform import mix, recorded

BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """What prompts have in common: a system prompt of one of `classes`, in it a document of one of `groups`.

    Popularities fall as rank to the power of minus the Zipf exponent; tokens are those of each level.
    """

    classes: int = 1
    class_zipf: float = 1.0
    class_tokens: int = 0
    groups: int = 1
    group_zipf: float = 1.0
    group_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Conversations:
    """Sessions of turns: geometric in number, log-normal think times, context growing by every question and answer.

    new_tokens is the law of a turn's question and answer; tokens_per_s is how fast answers are taken to come, which
    only places later turns in time: their release_delay_ns is the think time alone.
    """

    turns_mean: float = 3.0
    think_median_s: float = 30.0
    think_sigma: float = 1.2
    new_tokens: LengthLaw = field(default_factory=lambda: fixed_lengths(100, 200))
    tokens_per_s: float = 50.0
    context_limit_tokens: int = 131_072
    prefix: PrefixTree = PrefixTree()


@dataclass(frozen=True, slots=True)
class Agents:
    """Runs of an agent: steps one after the other with tool calls between, some of them fanning out.

    A step fans out with fan_out_probability to a geometric number of parallel subagent calls, which the next step
    joins. A context above compact_at_tokens is cut to compact_to_tokens; a call fails and is made again with
    retry_probability.
    """

    steps_mean: float = 20.0
    tool_median_s: float = 2.0
    tool_sigma: float = 1.0
    fan_out_probability: float = 0.1
    fan_out_mean: float = 3.0
    new_tokens: LengthLaw = field(default_factory=lambda: fixed_lengths(400, 200))
    start_tokens: int = 8000
    compact_at_tokens: int = 160_000
    compact_to_tokens: int = 40_000
    retry_probability: float = 0.0
    tokens_per_s: float = 50.0
    prefix: PrefixTree = PrefixTree()


@dataclass(slots=True)
class _Rows:
    """Requests as they are made, one list a column."""

    arrival_ns: list[int] = field(default_factory=list)
    input_tokens: list[int] = field(default_factory=list)
    output_tokens: list[int] = field(default_factory=list)
    session: list[int] = field(default_factory=list)
    turn: list[int] = field(default_factory=list)
    parents: list[list[int]] = field(default_factory=list)
    delay_ns: list[int] = field(default_factory=list)
    blocks: list[Array] = field(default_factory=list)

    def add(
        self,
        arrival_s: float,
        tokens: tuple[int, int],
        session: int,
        turn: int,
        parents: list[int],
        delay_s: float | None,
        blocks: Array,
    ) -> int:
        """Append a request and return its number."""
        self.arrival_ns.append(round(arrival_s * NS_PER_S) // CLOCK_NS * CLOCK_NS)
        self.input_tokens.append(tokens[0])
        self.output_tokens.append(tokens[1])
        self.session.append(session)
        self.turn.append(turn)
        self.parents.append(parents)
        self.delay_ns.append(MISSING if delay_s is None else round(delay_s * NS_PER_S))
        self.blocks.append(blocks)
        return len(self.arrival_ns) - 1


class _Blocks:
    """Ids of the blocks of prompts: shared along the tree, then the session's own; a block not full is one prompt's."""

    def __init__(self, tree: PrefixTree, block_tokens: int, rng: Generator) -> None:
        self.tree, self.block_tokens, self.rng = tree, block_tokens, rng
        self.next_id = 0
        self.known: dict[tuple[int, ...], Array] = {}
        self.shared_tokens = tree.class_tokens + tree.group_tokens

    def shared(self) -> Array:
        """Return the full blocks of a system prompt and document drawn by popularity."""
        place = zipf_ranks(1, self.tree.classes, self.tree.class_zipf, self.rng)[0]
        group = zipf_ranks(1, self.tree.groups, self.tree.group_zipf, self.rng)[0]
        first = self._of((int(place),), self.tree.class_tokens // self.block_tokens)
        whole = self.shared_tokens // self.block_tokens
        return np.concatenate([first, self._of((int(place), int(group)), whole - len(first))])

    def grown(self, known: Array, tokens: int) -> tuple[Array, Array]:
        """Return (full blocks, all blocks) of a prompt of so many tokens that begins with the full blocks known."""
        full = known[: tokens // self.block_tokens]
        full = np.concatenate([full, self._new(tokens // self.block_tokens - len(full))])
        return full, np.concatenate([full, self._new(int(tokens % self.block_tokens > 0))])

    def _of(self, key: tuple[int, ...], count: int) -> Array:
        if key not in self.known:
            self.known[key] = self._new(count)
        return self.known[key]

    def _new(self, count: int) -> Array:
        self.next_id += count
        return np.arange(self.next_id - count, self.next_id)


def generate_conversations(
    law: Conversations,
    duration_s: float,
    seed: int,
    *,
    arrivals: str = "poisson",
    parameters: Mapping[str, Any] | None = None,
    block_tokens: int = BLOCK_TOKENS,
    name: str = "conversations",
) -> Trace:
    """Return sessions whose starts follow an arrival law; turns beyond the duration are left out.

    Columns: session_id, turn, request_id, parent_ids, release_delay_ns, prefix_blocks. Raises ValueError where no
    session starts.
    """
    rng = np.random.default_rng(seed)
    rows, blocks = _Rows(), _Blocks(law.prefix, block_tokens, rng)
    for session, start_s in enumerate(_starts(arrivals, parameters or {"rate_per_s": 1.0}, duration_s, rng)):
        count = int(rng.geometric(1 / max(law.turns_mean, 1.0)))
        questions, answers = sample_lengths(law.new_tokens, count, rng)
        known, context, now_s = blocks.shared(), blocks.shared_tokens, start_s
        parent: int | None = None
        think_s: float | None = None
        for turn, (question, answer) in enumerate(zip(questions.tolist(), answers.tolist(), strict=True)):
            context += question
            if now_s >= duration_s or context + answer > law.context_limit_tokens:
                break
            known, prompt = blocks.grown(known, context)
            before = [] if parent is None else [parent]
            parent = rows.add(now_s, (context, answer), session, turn, before, think_s, prompt)
            context += answer
            think_s = _lognormal(law.think_median_s, law.think_sigma, rng)
            now_s += answer / law.tokens_per_s + think_s
    return _trace(name, rows, law, arrivals, duration_s, seed, block_tokens)


def generate_agents(
    law: Agents,
    duration_s: float,
    seed: int,
    *,
    arrivals: str = "poisson",
    parameters: Mapping[str, Any] | None = None,
    block_tokens: int = BLOCK_TOKENS,
    name: str = "agents",
) -> Trace:
    """Return runs of agents as graphs of calls: a call has several parents where it joins what was fanned out.

    Columns as in `generate_conversations`. Raises ValueError where no run starts.
    """
    rng = np.random.default_rng(seed)
    rows, blocks = _Rows(), _Blocks(law.prefix, block_tokens, rng)
    for session, start_s in enumerate(_starts(arrivals, parameters or {"rate_per_s": 0.1}, duration_s, rng)):
        _run_agent(law, session, start_s, duration_s, rows, blocks, rng)
    return _trace(name, rows, law, arrivals, duration_s, seed, block_tokens)


def _run_agent(
    law: Agents, session: int, start_s: float, duration_s: float, rows: _Rows, blocks: _Blocks, rng: Generator
) -> None:
    known, context = blocks.shared(), max(law.start_tokens, blocks.shared_tokens)
    now_s, turn = start_s, 0
    parents: list[int] = []
    delay_s: float | None = None
    for _ in range(int(rng.geometric(1 / max(law.steps_mean, 1.0)))):
        for _ in range(1 + int(rng.random() < law.retry_probability)):
            if now_s >= duration_s:
                return
            new, answer = (int(each[0]) for each in sample_lengths(law.new_tokens, 1, rng))
            if context + new > law.compact_at_tokens:
                context, known = law.compact_to_tokens, known[: blocks.shared_tokens // blocks.block_tokens]
            known, prompt = blocks.grown(known, context + new)
            parents = [rows.add(now_s, (context + new, answer), session, turn, parents, delay_s, prompt)]
            turn += 1
            end_s = now_s + answer / law.tokens_per_s
            delay_s = 0.0
            now_s = end_s
        context += new + answer
        delay_s = _lognormal(law.tool_median_s, law.tool_sigma, rng)
        if rng.random() < law.fan_out_probability:
            calls, ends_s = [], [end_s]
            for _ in range(int(rng.geometric(1 / max(law.fan_out_mean, 1.0)))):
                begin_s = end_s + delay_s
                new, answer = (int(each[0]) for each in sample_lengths(law.new_tokens, 1, rng))
                size = blocks.shared_tokens + new
                _, prompt = blocks.grown(known[: blocks.shared_tokens // blocks.block_tokens], size)
                if begin_s < duration_s:
                    calls.append(rows.add(begin_s, (size, answer), session, turn, parents, delay_s, prompt))
                    turn += 1
                    ends_s.append(begin_s + answer / law.tokens_per_s)
                context += answer
            parents, end_s = calls or parents, max(ends_s)
            delay_s = _lognormal(law.tool_median_s, law.tool_sigma, rng)
        now_s = end_s + delay_s


def generate_closed_loop(
    users: int,
    think_mean_s: float,
    service_s: float,
    lengths: LengthLaw | Trace,
    duration_s: float,
    seed: int,
    name: str = "closed-loop",
) -> Trace:
    """Return a fixed number of users, each asking again an exponential think time after the last answer.

    service_s is how long an answer is taken to need, which only places requests in time; parent_ids and
    release_delay_ns say what a closed loop has to do instead.
    """
    rng = np.random.default_rng(seed)
    rows, empty = _Rows(), np.zeros(0, np.int64)
    for user in range(users):
        now_s, turn = float(rng.exponential(think_mean_s)), 0
        parents: list[int] = []
        delay_s: float | None = None
        while now_s < duration_s:
            first, second = (int(each[0]) for each in sample_lengths(lengths, 1, rng))
            parents = [rows.add(now_s, (first, second), user, turn, parents, delay_s, empty)]
            delay_s = float(rng.exponential(think_mean_s))
            now_s += service_s + delay_s
            turn += 1
    about = {"users": users, "think_mean_s": think_mean_s, "service_s": service_s}
    return _trace(name, rows, about, "closed loop", duration_s, seed, None)


def compose(parts: Mapping[str, Trace], seed: int, column: str = "client") -> Trace:
    """Return traces laid over each other, each row labelled by the name of its part, ids kept apart."""
    names = tuple(parts)
    labelled = [
        replace(part, columns={**part.columns, column: Labels(np.full(len(part), place, np.int32), names)})
        for place, part in enumerate(parts.values())
    ]
    return mix(labelled, seed)


def with_adapters(
    trace: Trace,
    count: int,
    seed: int,
    *,
    zipf: float = 1.0,
    fraction: float = 1.0,
    by: str | None = "auto",
    drift_s: float | None = None,
    column: str = "adapter",
) -> Trace:
    """Return the trace with an adapter (or model) for a fraction of its groups, popular as Zipf's law says.

    by is what has one adapter throughout (see `joining.groups_of`); every drift_s the ranks turn by one, so that what
    was popular fades. metadata["cold_adapters"] lists those asked for once only.
    """
    rng = np.random.default_rng(seed)
    groups = groups_of(trace, by)
    number = int(groups.max()) + 1 if len(groups) else 0
    ranks = zipf_ranks(number, count, zipf, rng)
    if drift_s is not None:
        first_ns = np.full(number, np.iinfo(np.int64).max)
        np.minimum.at(first_ns, groups, trace.arrival_ns)
        ranks = (ranks + first_ns // round(drift_s * NS_PER_S)) % count
    codes = np.where(rng.random(number) < fraction, ranks, MISSING).astype(np.int32)[groups]
    uses = np.bincount(codes[codes >= 0], minlength=count)
    names = tuple(f"{column}-{each}" for each in range(count))
    cold = [names[each] for each in np.flatnonzero(uses == 1)]
    about = {"count": count, "zipf": zipf, "fraction": fraction, "by": by, "drift_s": drift_s, "column": column}
    metadata = {**trace.metadata, f"cold_{column}s": cold}
    made = replace(trace, columns={**trace.columns, column: Labels(codes, names)}, metadata=metadata)
    return recorded(made, "with_adapters", about, seed)


def with_images(
    trace: Trace,
    seed: int,
    *,
    fraction: float = 0.3,
    count_mean: float = 1.6,
    tokens: Sequence[int] = (1280,),
    weights: Sequence[float] | None = None,
) -> Trace:
    """Return the trace with images in a fraction of requests: geometric in number, tokens each from a table of sizes.

    Their tokens are added to input_tokens (metadata["image_tokens_in_input"]) and kept apart in image_tokens.
    """
    rng = np.random.default_rng(seed)
    chances = None if weights is None else np.asarray(weights, np.float64) / np.sum(weights)
    counts = np.where(rng.random(len(trace)) < fraction, rng.geometric(1 / max(count_mean, 1.0), len(trace)), 0)
    sizes = rng.choice(np.asarray(tokens), size=int(counts.sum()), p=chances)
    sums = np.bincount(np.repeat(np.arange(len(trace)), counts), weights=sizes, minlength=len(trace)).astype(np.int64)
    columns = {**trace.columns, "images": counts, "image_tokens": sums}
    inputs = np.minimum(trace.input_tokens + sums, 2**31 - 1).astype(np.int32)
    metadata = {**trace.metadata, "image_tokens_in_input": True}
    made = replace(trace, input_tokens=inputs, columns=columns, metadata=metadata)
    about = {"fraction": fraction, "count_mean": count_mean, "tokens": list(tokens), "weights": list(weights or [])}
    return recorded(made, "with_images", about, seed)


def zipf_ranks(count: int, ranks: int, exponent: float, rng: Generator) -> Array:
    """Return ranks from 0, int64[count], the r-th drawn in proportion to (r + 1) ** -exponent."""
    weights = np.arange(1, ranks + 1, dtype=np.float64) ** -exponent
    found: Array = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(count), side="right")
    return np.minimum(found, ranks - 1)


def from_spec(spec: Mapping[str, Any], seed: int) -> Trace:
    """Return the trace that a specification asks for, as TOML has it.

    Keys: duration_s; [starts] arrivals and parameters; one of [conversations], [agents] (fields of those laws, with
    [.prefix] and new_tokens = [input, output]), [closed_loop]; then, if wished, [adapters] and [images].
    Raises ValueError for what is unknown or missing.
    """
    kinds = [kind for kind in KINDS if kind in spec]
    unknown = set(spec) - {*KINDS, "duration_s", "starts", "adapters", "images", "name"}
    if len(kinds) != 1 or unknown:
        wrong = f"unknown {sorted(unknown)[0]!r}" if unknown else f"{len(kinds)} of them"
        raise ValueError(
            f"{wrong}: a specification has one of {', '.join(KINDS)}, and duration_s, starts, adapters, images"
        )
    try:
        trace = KINDS[kinds[0]](spec, seed)
        for key, add in (("adapters", with_adapters), ("images", with_images)):
            if key in spec:
                trace = add(trace, seed=seed + 1, **spec[key])  # type: ignore[operator]
    except TypeError as problem:
        raise ValueError(f"specification of {kinds[0]}: {str(problem).rpartition('() ')[2]}") from None
    return trace


def _spec_conversations(spec: Mapping[str, Any], seed: int) -> Trace:
    law = Conversations(**_law_fields(spec["conversations"]))
    return generate_conversations(law, float(spec.get("duration_s", 3600.0)), seed, **spec.get("starts", {}))


def _spec_agents(spec: Mapping[str, Any], seed: int) -> Trace:
    law = Agents(**_law_fields(spec["agents"]))
    return generate_agents(law, float(spec.get("duration_s", 3600.0)), seed, **spec.get("starts", {}))


def _spec_closed_loop(spec: Mapping[str, Any], seed: int) -> Trace:
    about = dict(spec["closed_loop"])
    lengths = fixed_lengths(*about.pop("new_tokens", (100, 200)))
    return generate_closed_loop(lengths=lengths, duration_s=float(spec.get("duration_s", 3600.0)), seed=seed, **about)


KINDS: dict[str, Callable[[Mapping[str, Any], int], Trace]] = {
    "conversations": _spec_conversations,
    "agents": _spec_agents,
    "closed_loop": _spec_closed_loop,
}


def _law_fields(about: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(about)
    if "prefix" in fields:
        fields["prefix"] = PrefixTree(**fields["prefix"])
    if "new_tokens" in fields:
        given = fields["new_tokens"]
        if isinstance(given, Mapping):
            tables = {key: tuple(each) for key, each in given.items() if isinstance(each, list)}
            fields["new_tokens"] = LengthLaw(**tables, rank_correlation=float(given.get("rank_correlation", 0.0)))
        else:
            fields["new_tokens"] = fixed_lengths(*given)
    return fields


def _starts(arrivals: str, parameters: Mapping[str, Any], duration_s: float, rng: Generator) -> list[float]:
    if arrivals not in ARRIVAL_LAWS:
        raise ValueError(f"unknown arrival law {arrivals!r}; known: {', '.join(ARRIVAL_LAWS)}")
    times = ARRIVAL_LAWS[arrivals](duration_s=duration_s, rng=rng, **parameters) / NS_PER_S
    if not len(times):
        raise ValueError(f"{arrivals} with {dict(parameters)} starts nothing in {duration_s} s")
    starts: list[float] = times.tolist()
    return starts


def _lognormal(median: float, sigma: float, rng: Generator) -> float:
    return float(rng.lognormal(log(median), sigma)) if median > 0 else 0.0


def _trace(
    name: str, rows: _Rows, law: object, arrivals: str, duration_s: float, seed: int, block_tokens: int | None
) -> Trace:
    """The rows in order of arrival; request ids are those of the order, parents renamed with them."""
    times = np.array(rows.arrival_ns, np.int64)
    order = np.argsort(times, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    parents = [place[rows.parents[row]] if rows.parents[row] else np.zeros(0, np.int64) for row in order.tolist()]
    sessions = np.array(rows.session, np.int64)[order]
    columns: dict[str, Column] = {
        "session_id": Labels(sessions.astype(np.int32), tuple(str(each) for each in range(int(sessions.max()) + 1))),
        "turn": np.array(rows.turn, np.int64)[order],
        "request_id": np.arange(len(order)),
        "parent_ids": _ragged(parents),
        "release_delay_ns": np.array(rows.delay_ns, np.int64)[order],
    }
    if block_tokens is not None:
        columns["prefix_blocks"] = _ragged([rows.blocks[row] for row in order.tolist()])
    about = {"law": str(law), "arrivals": arrivals, "duration_s": duration_s}
    inputs, outputs = (np.array(each, np.int32)[order] for each in (rows.input_tokens, rows.output_tokens))
    made = build(name, times[order], inputs, outputs, about, seed)
    blocks = {} if block_tokens is None else {"block_tokens": block_tokens, "block_scope": "global"}
    return replace(made, columns=columns, metadata={**made.metadata, **blocks})


def _ragged(rows: list[Array]) -> Ragged:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Ragged(offsets, np.concatenate([np.zeros(0, np.int64), *rows]).astype(np.int64))
