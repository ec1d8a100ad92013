"""Requests as a gateway of chats and agents sees them: kinds with a system prompt each, some that go on in turns."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

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


def as_replayed(trace: "Trace", longest_tokens: int, stamps_s: float) -> "Trace":
    """Return a trace with prompts cut to so many tokens and arrivals at stamps, as a log of that grain has them."""
    from traces.trace import Ragged

    blocks, size = trace.columns["prefix_blocks"], trace.metadata["block_tokens"]
    assert isinstance(blocks, Ragged)
    assert isinstance(size, int)
    kept = np.minimum(np.diff(blocks.offsets), -(-np.minimum(trace.input_tokens, longest_tokens) // size))
    offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], kept) + np.repeat(blocks.offsets[:-1], kept)
    stamps_ns = max(1, round(stamps_s * 1e9))
    arrival_ns: npt.NDArray[np.int64] = trace.arrival_ns // stamps_ns * stamps_ns
    columns = {**trace.columns, "prefix_blocks": Ragged(offsets, blocks.values[places])}
    inputs = np.minimum(trace.input_tokens, longest_tokens)
    return replace(trace, arrival_ns=arrival_ns, input_tokens=inputs, columns=columns)
