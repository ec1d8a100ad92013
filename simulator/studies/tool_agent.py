"""Requests as a gateway of chats and agents sees them: kinds with a system prompt each, some that go on in turns."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.studies.workloads import Integers, lengths

if TYPE_CHECKING:
    from traces import Trace

LEAD_S = 1500.0  # before the first request that is kept, so that sessions go on from the beginning
OVER = 1.1  # of the time that so many requests should take, made so that enough are left


def requests(about: Mapping[str, Any], block_tokens: int, seed: int, count: int) -> "Trace":
    """Return so many requests of the kinds that `about` lists, in order of arrival, with their content blocks.

    A kind has a share of the requests, a system prompt of whole blocks and laws of what follows it as quantiles at
    `fractions`; its sessions have turns_mean turns, geometric, with log-normal gaps, each adding the last answer and
    further tokens to the prompt. A block that is not full is one request's own.
    """
    from traces.generate import build
    from traces.trace import Ragged

    made = _Made(block_tokens, np.random.default_rng([seed, 9]))
    duration_s = OVER * count / about["requests_per_s"]
    for kind in about["kinds"]:
        made.add(kind, about["fractions"], about["requests_per_s"], duration_s)
    rows = sorted(made.rows, key=lambda row: row[0])[:count]
    arrival_ns = np.array([round(arrival_s * 1e9) for arrival_s, _, _, _ in rows], np.int64)
    inputs, outputs = (np.array([row[place] for row in rows], np.int32) for place in (1, 2))
    blocks = [row[3] for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in blocks])]).astype(np.int64)
    trace = build("tool-and-agent", arrival_ns, inputs, outputs, {"arrivals": "poisson"}, seed)
    columns = {"prefix_blocks": Ragged(offsets, np.concatenate(blocks))}
    return replace(
        trace, columns=columns, metadata={**trace.metadata, "block_tokens": block_tokens, "block_scope": "global"}
    )


class _Made:
    """Requests as they are made: (arrival [s], prompt and answer [tokens], content blocks)."""

    def __init__(self, block_tokens: int, rng: np.random.Generator) -> None:
        self.block_tokens, self.rng = block_tokens, rng
        self.rows: list[tuple[float, int, int, Integers]] = []
        self.next_block = 0

    def add(self, kind: Mapping[str, Any], fractions: Sequence[float], per_s: float, duration_s: float) -> None:
        """Make the sessions of one kind, and of them what comes within the time."""
        turns_mean = kind.get("turns_mean", 1.0)
        system = self._new(kind["system_tokens"] // self.block_tokens)
        count = self.rng.poisson((duration_s + LEAD_S) * per_s * kind["share"] / turns_mean)
        turns = self.rng.geometric(1.0 / turns_mean, count)
        starts_s, first = (
            self.rng.uniform(-LEAD_S, duration_s, count),
            lengths(self.rng, fractions, kind["first"], count),
        )
        for start_s, tokens, left in zip(starts_s.tolist(), first.tolist(), turns.tolist(), strict=True):
            self._session(kind, fractions, system, start_s, kind["system_tokens"] + tokens, left, duration_s)

    def _session(
        self,
        kind: Mapping[str, Any],
        fractions: Sequence[float],
        full: Integers,
        at_s: float,
        tokens: int,
        turns: int,
        duration_s: float,
    ) -> None:
        answers = lengths(self.rng, fractions, kind["answer"], turns).tolist()
        further = lengths(self.rng, fractions, kind["next"], turns).tolist() if turns > 1 else [0]
        for answer, more in zip(answers, further, strict=True):
            full = np.concatenate([full, self._new(tokens // self.block_tokens - full.size)])
            if 0.0 <= at_s < duration_s:
                self.rows.append(
                    (at_s, tokens, answer, np.concatenate([full, self._new(int(tokens % self.block_tokens > 0))]))
                )
            if turns > 1:
                at_s += kind["gap_median_s"] * float(np.exp(kind["gap_sigma"] * self.rng.standard_normal()))
            tokens += answer + more

    def _new(self, count: int) -> Integers:
        self.next_block += count
        return np.arange(self.next_block - count, self.next_block, dtype=np.int64)


def as_replayed(trace: "Trace", longest_tokens: int, stamps_s: float, most: int) -> "Trace":
    """Return the first requests, at most so many, that are shorter than the longest, as DualMap's client sends a log.

    What is logged at one stamp comes one after another, each an equal part of the time to the next stamp; an answer
    ends where a request is as long as the longest.
    """
    from traces.trace import take

    spread = replace(trace, arrival_ns=_spread(trace.arrival_ns, max(1, round(stamps_s * 1e9))))
    sent = take(spread, np.flatnonzero(trace.input_tokens < longest_tokens)[:most])
    return replace(sent, output_tokens=np.minimum(sent.output_tokens, longest_tokens - sent.input_tokens))


def _spread(arrival_ns: Integers, stamps_ns: int) -> Integers:
    """Return arrivals such that those of one stamp are an equal time apart."""
    stamps = arrival_ns // stamps_ns
    places = np.arange(stamps.size) - np.searchsorted(stamps, stamps)
    return np.asarray(stamps * stamps_ns + places * stamps_ns // np.bincount(stamps)[stamps], np.int64)


def after_warm_up(trace: "Trace", count: int, warm_up_per_s: float, rate_per_s: float) -> "Trace":
    """Return a trace whose first `count` requests come evenly at one rate, and the rest as they came but at another."""
    first_s = np.arange(count) / warm_up_per_s
    rest_ns = trace.arrival_ns[count:] - trace.arrival_ns[count]
    mean_per_s = (rest_ns.size - 1) / max(1e-9, float(rest_ns[-1]) / 1e9)
    rest_s = count / warm_up_per_s + rest_ns / 1e9 * mean_per_s / rate_per_s
    return replace(trace, arrival_ns=np.rint(np.concatenate([first_s, rest_s]) * 1e9).astype(np.int64))
