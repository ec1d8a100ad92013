"""What a step costs and where inside it one may stop: the data plane's own tables, with operator boundaries."""

from collections.abc import Sequence
from math import ceil

from models.step import ALONE, BESIDE_PREFILL, decode_ps, decode_run_ps, pack, prefill_ps
from simulator.fleet import PricedEngine

NO_LIMIT_PS = 1 << 61
EVEN_SPLIT = 0.5
ATTENTION_LABELS = ("qkv", "attention out", "qkv down", "q up", "kv up", "rope")
SHARED_LABELS = ("norms", "embedding", "all-reduce", "stage hand-over")


class StepPrices:
    """Prices of an Engine's steps in whole picoseconds, and the boundaries between their operators.

    mlp_share is the part of a step's token time that feed-forward layers take: it places the boundary after attention.
    """

    def __init__(self, priced: PricedEngine, mlp_share: float = EVEN_SPLIT) -> None:
        places, self._prices = pack([priced.table])
        self._place = places[0]
        self._token_ps = priced.table.token_ps[0].tolist()
        self._sequence_ps = priced.table.sequence_ps[0].tolist()
        self.layers, self.mlp_share = priced.layers, mlp_share

    @property
    def most_tokens(self) -> int:
        """Return the new tokens that a step may hold."""
        return len(self._token_ps) - 1

    @property
    def most_sequences(self) -> int:
        """Return the sequences that a step may hold."""
        return len(self._sequence_ps) - 1

    def step_ps(self, chunks: Sequence[tuple[int, int]], decodes: int, context_tokens: int) -> int:
        """Return the duration of a step of prefill chunks (tokens, past) beside decodes.

        context_tokens is the KV that the decodes hold before the step; each reads its new token too.
        """
        tokens = decodes + sum(chunk for chunk, _ in chunks)
        duration_ps = self._token_ps[tokens] + self._sequence_ps[decodes + len(chunks)] + self._chunks_ps(chunks)
        if decodes:
            beside = BESIDE_PREFILL if chunks else ALONE
            duration_ps += int(decode_ps(self._prices, self._place, beside, decodes, context_tokens + decodes))
        return int(duration_ps)

    def run_ps(self, decodes: int, context_tokens: int, steps: int) -> int:
        """Return the duration of so many decode steps in a row."""
        return int(decode_run_ps(self._prices, self._place, decodes, context_tokens, steps, NO_LIMIT_PS)[1])

    def boundary_ps(self, chunks: Sequence[tuple[int, int]], at_least_ps: int, every: str) -> int | None:
        """Return the first boundary of a prefill step, not before a time since its start; None where only its end is.

        Boundaries come after attention and after the feed-forward part of each layer, or after layers alone where
        `every` is "layer"; head and sampler follow the last.
        """
        token_ps = self._token_ps[sum(chunk for chunk, _ in chunks)]
        feed_forward_ps = token_ps * self.mlp_share / self.layers
        attention_ps = (token_ps * (1 - self.mlp_share) + self._chunks_ps(chunks)) / self.layers
        layer_ps = attention_ps + feed_forward_ps
        done = int(at_least_ps / layer_ps)
        candidates = [done * layer_ps, done * layer_ps + attention_ps, (done + 1) * layer_ps]
        if every == "layer":
            del candidates[1]
        boundary_ps = next(ceil(candidate) for candidate in candidates if ceil(candidate) >= at_least_ps)
        return boundary_ps if boundary_ps < self.layers * layer_ps else None

    def _chunks_ps(self, chunks: Sequence[tuple[int, int]]) -> int:
        return sum(int(prefill_ps(self._prices, self._place, chunk, past)) for chunk, past in chunks)


def prices_of(priced: PricedEngine) -> StepPrices:
    """Return the prices of an Engine, the share of its feed-forward layers as its operators are priced."""
    if priced.engine is None:
        return StepPrices(priced)
    import numpy as np

    from models import forward
    from models.calibration.predict import call_s

    engine = priced.engine
    tokens = np.array([float(engine.settings.max_num_batched_tokens)])
    attention_s, feed_forward_s = 0.0, 0.0
    for call in forward.token_calls(engine, tokens):
        seconds = call.times * float(call_s(engine, call)[0])
        if call.label in ATTENTION_LABELS:
            attention_s += seconds
        elif call.label not in SHARED_LABELS:
            feed_forward_s += seconds
    return StepPrices(priced, feed_forward_s / (attention_s + feed_forward_s))
