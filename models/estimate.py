"""Estimate what requests see on an Engine: time to first token, time per token, throughput, memory, power."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import ceil, exp, log

import numpy as np
import numpy.typing as npt

from models import forward, framework
from models.calibration.calibration import OperatorFit
from models.calibration.predict import call_s, fit_of_call
from models.closed_loop import Answered, Load, Scheduler, replay
from models.engine import Engine
from models.forward import Call
from models.power import device_w, multiplying
from models.speculation import Speculation

Floats = npt.NDArray[np.float64]

SEED = 7
CONTEXT_POINTS = 24
PAST_TOKENS = 4096.0
REFERENCE_CHUNK_TOKENS = 1024.0
WORST_PROVENANCE = ("measured", "calibrated", "modelled", "assumed")


class StepCosts:
    """Device seconds of an Engine's steps, priced on grids once and read between their points."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.host = framework.of_engine(engine)

    def decode(self, sequences: int, context_tokens: float) -> float:
        """Return the device seconds of a step of `sequences` decodes that read so many tokens in all."""
        attention = self._decode_attention(sequences, context_tokens / sequences)
        return self._tokens_s[sequences] + self._sequences_s[sequences] + attention

    def prefill(self, beside: int, chunk: int, past: float) -> float:
        """Return what a chunk of prompt tokens adds to a step of `beside` decodes."""
        before = self._tokens_s[beside] if beside else 0.0
        tokens = max(self._tokens_s[beside + chunk] - before, 0.0)
        seconds = tokens + self._sequences_s[1] + self._prefill_attention(chunk, past)
        if beside + chunk <= self.host.graph_max_tokens:
            return seconds
        return max(seconds, self.host.eager_s(self.engine.llm) - before)

    @cached_property
    def _tokens_s(self) -> list[float]:
        """By new tokens, padded to the size of their graph."""
        largest = self.engine.settings.max_num_batched_tokens + self.engine.settings.max_num_seqs
        points = _spread(largest, 1.06)
        padded = self.host.padded_tokens(np.arange(largest + 1))
        return _list(np.interp(padded, points, self.total_s(forward.token_calls(self.engine, points))))

    @cached_property
    def _sequences_s(self) -> list[float]:
        points = _spread(self.engine.settings.max_num_seqs, 1.2)
        every = np.arange(self.engine.settings.max_num_seqs + 1)
        return _list(np.interp(every, points, self.total_s(forward.sequence_calls(self.engine, points))))

    @cached_property
    def _decode_grid(self) -> tuple[list[float], list[list[float]]]:
        """Mean contexts, and attention of decodes by sequences at each of them."""
        rows = _spread(self.engine.settings.max_num_seqs, 1.15)
        contexts = np.unique(np.rint(np.geomspace(16, max(64, self.engine.llm.context_tokens), CONTEXT_POINTS)))
        sequences, means = (grid.ravel() for grid in np.meshgrid(rows, contexts, indexing="ij"))
        seconds = self.total_s(forward.decode_calls(self.engine, sequences, means)).reshape(rows.size, contexts.size)
        every = np.arange(self.engine.settings.max_num_seqs + 1)
        by_sequences = [np.interp(every, rows, column) for column in seconds.T]
        return _list(contexts), np.stack(by_sequences, axis=1).tolist()

    def _decode_attention(self, sequences: int, mean_tokens: float) -> float:
        contexts, seconds = self._decode_grid
        row = seconds[sequences]
        upper = min(max(bisect_left(contexts, mean_tokens), 1), len(contexts) - 1)
        share = (mean_tokens - contexts[upper - 1]) / (contexts[upper] - contexts[upper - 1])
        return row[upper - 1] + (row[upper] - row[upper - 1]) * min(max(share, 0.0), 1.0)

    @cached_property
    def _prefill_grid(self) -> tuple[list[float], list[float]]:
        """Attention of a chunk by its tokens, and its growth per token of the past."""
        points = _spread(self.engine.settings.max_num_batched_tokens, 1.15)
        fresh, later = (
            self.total_s(forward.prefill_calls(self.engine, points, np.full_like(points, past)))
            for past in (0.0, PAST_TOKENS)
        )
        every = np.arange(self.engine.settings.max_num_batched_tokens + 1)
        growth = np.interp(every, points, np.maximum(later - fresh, 0.0) / PAST_TOKENS)
        return _list(np.interp(every, points, fresh)), _list(growth)

    def _prefill_attention(self, chunk: int, past: float) -> float:
        fresh, growth = self._prefill_grid
        return fresh[chunk] + past * growth[chunk]

    def total_s(self, calls: Iterable[Call]) -> Floats:
        """Return the summed seconds of calls, one entry per row."""
        return np.asarray(np.sum([call.times * call_s(self.engine, call) for call in calls], axis=0))


def _list(values: Floats) -> list[float]:
    return list(values.tolist())


def _spread(largest: int, growth: float) -> Floats:
    """Return 1 to 8, then steps of a growth, up to the largest."""
    steps = np.geomspace(8, max(9, largest), 2 + int(log(max(9, largest) / 8) / log(growth)))
    points = np.unique(np.concatenate([np.arange(1, 9), np.rint(steps), [largest]]))
    return points[points <= largest].astype(np.float64)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one replica of an Engine does under a closed loop; times are medians, tokens per second of the replica.

    decode_parts and prefill_parts are the seconds of a decode step and of one prompt by kind of operator, host
    included. interval holds the factors on times between which 90 % of measurements are expected.
    """

    ttft_s: float
    tpot_s: float
    e2e_s: float
    requests_per_s: float
    output_tokens_per_s: float
    mean_batch: float
    weight_bytes_per_device: float
    kv_tokens: int
    power_w: float | None
    joules_per_output_token: float | None
    decode_parts: Mapping[str, float] = field(hash=False)
    prefill_parts: Mapping[str, float] = field(hash=False)
    provenance: str
    interval: tuple[float, float]


def estimate(engine: Engine, load: Load, costs: StepCosts | None = None) -> Estimate:
    """Return the estimate of one replica; ValueError where the model or one request does not fit."""
    costs = costs or StepCosts(engine)
    check_fits(engine, load)
    drafts = engine.settings.speculation
    answered = answer(costs, load) if drafts is None else answer_drafting(costs, load, drafts)
    batch = max(1.0, answered.mean_batch)
    context = load.input_tokens + 0.5 * load.output_tokens
    one = np.ones(1)
    decode = [
        *forward.token_calls(engine, batch * (drafts.verified_tokens if drafts else 1) * one),
        *forward.sequence_calls(engine, batch * one),
        *forward.decode_calls(engine, batch * one, context * one),
    ]
    chunk = float(min(load.input_tokens, engine.settings.max_num_batched_tokens))
    prefill = [*forward.token_calls(engine, chunk * one), *forward.prefill_calls(engine, chunk * one, 0.0 * one)]
    step_s = costs.host.step_s(engine.llm.layers)
    host_s = step_s + costs.host.host_sequence_s * batch
    provenance, interval = trust(engine, costs, decode)
    tokens_per_s = answered.requests_per_s * load.output_tokens * engine.dp
    power_w = power_of(engine, costs, decode, batch)
    return Estimate(
        answered.ttft_s,
        answered.tpot_s,
        answered.e2e_s,
        answered.requests_per_s * engine.dp,
        tokens_per_s,
        answered.mean_batch,
        engine.weight_bytes_per_device,
        engine.kv_tokens,
        power_w,
        power_w / tokens_per_s if power_w else None,
        {**parts_of(engine, decode, costs.host.decode_factor), "host": host_s},
        {**parts_of(engine, prefill, costs.host.prefill_factor), "host": step_s},
        provenance,
        interval,
    )


def at_rate(engine: Engine, input_tokens: int, output_tokens: int, per_s: float, costs: StepCosts) -> Estimate:
    """Return the estimate at the concurrency whose throughput is the rate of requests asked for.

    ValueError names the most that the replica carries, where that is less.
    """
    low, high = 1, 1
    while True:
        found = estimate(engine, Load(input_tokens, output_tokens, high), costs)
        if found.requests_per_s >= per_s:
            break
        if high >= engine.settings.max_num_seqs or found.mean_batch * engine.dp < 0.7 * high:
            raise ValueError(
                f"{engine.name} carries at most {found.requests_per_s:.3g} requests a second, not {per_s:g}"
            )
        low, high = high, 2 * high
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        if estimate(engine, Load(input_tokens, output_tokens, middle), costs).requests_per_s < per_s:
            low = middle
        else:
            high = middle
    return estimate(engine, Load(input_tokens, output_tokens, high), costs)


def check_fits(engine: Engine, load: Load) -> None:
    """Raise ValueError where the weights leave no room for one request."""
    need = load.input_tokens + load.output_tokens
    if engine.kv_tokens < need:
        raise ValueError(
            f"{engine.name}: a request of {need} tokens does not fit; the weights leave room for {engine.kv_tokens} KV "
            "tokens: use more tp, a narrower dtype or a larger device"
        )


def answer(costs: StepCosts, load: Load, scheduler: Scheduler | None = None) -> Answered:
    """Return what the clients of a closed loop see; data-parallel ranks share them evenly."""
    engine, host = costs.engine, costs.host
    per_rank = replace(load, concurrency=ceil(load.concurrency / engine.dp))
    scalars = (host.step_s(engine.llm.layers), host.host_sequence_s, host.decode_factor, host.prefill_factor)
    scheduler = scheduler or scheduler_of(costs)
    seen = replay(per_rank, scheduler, costs.decode, costs.prefill, scalars, np.random.default_rng(SEED))
    return replace(seen, ttft_s=seen.ttft_s + host.first_token_s, e2e_s=seen.e2e_s + host.first_token_s)


def scheduler_of(costs: StepCosts) -> Scheduler:
    """Return the scheduler of one rank of an Engine, as its framework comes."""
    engine, host = costs.engine, costs.host
    return Scheduler(
        engine.settings.max_num_batched_tokens,
        engine.kv_tokens,
        host.prefill_first,
        engine.settings.max_num_seqs,
        host.steps_ahead,
        front_request_s=host.front_request_s,
        front_token_s=host.front_token_s,
    )


class DraftingCosts(StepCosts):
    """The same where decodes draft and verify; a step of answers of `input_tokens` prompts emits several tokens."""

    def __init__(self, engine: Engine, drafts: Speculation, input_tokens: int) -> None:
        super().__init__(engine)
        self.drafts, self.input_tokens = drafts, input_tokens

    def decode(self, sequences: int, context_tokens: float) -> float:
        """Return the device seconds of a step; context_tokens counts one token a step, where several were emitted."""
        prompts_tokens = sequences * self.input_tokens
        emitted = max(context_tokens - prompts_tokens, 0.0) * self.drafts.expected_tokens
        attention_s = self._decode_attention(sequences, (prompts_tokens + emitted) / sequences)
        head_s, body_s = self._sequences_s[sequences], self._tokens_s[sequences] + attention_s
        if self.drafts.draft_share is None:
            draft_s = body_s / self.engine.llm.layers + head_s
        else:
            draft_s = self.drafts.draft_share * (body_s + head_s)
        verified = sequences * self.drafts.verified_tokens
        drafts_s = self.drafts.draft_tokens * draft_s
        return self._tokens_s[verified] + self._head_s(verified) + attention_s + drafts_s

    def _head_s(self, rows: int) -> float:
        """Return the time of the head and the sampler; pro rata for more rows than the most sequences."""
        last = len(self._sequences_s) - 1
        return self._sequences_s[min(rows, last)] * max(1.0, rows / last)

    def prefill(self, beside: int, chunk: int, past: float) -> float:
        """Return what a chunk of prompt tokens adds to a step of `beside` decodes."""
        return super().prefill(beside * self.drafts.verified_tokens, chunk, past)


def answer_drafting(costs: StepCosts, load: Load, drafts: Speculation) -> Answered:
    """Return what clients see where every step emits the mean of what the acceptance law says."""
    steps = ceil((load.output_tokens - 1) / drafts.expected_tokens)
    seen = answer(DraftingCosts(costs.engine, drafts, load.input_tokens), replace(load, output_tokens=1 + steps))
    return replace(seen, tpot_s=seen.tpot_s * steps / (load.output_tokens - 1))


def parts_of(engine: Engine, calls: Iterable[Call], factor: float) -> dict[str, float]:
    """Return the seconds of a step by what operators are for."""
    parts: dict[str, float] = {}
    for call in calls:
        parts[call.label] = parts.get(call.label, 0.0) + factor * call.times * float(call_s(engine, call)[0])
    return parts


def trust(engine: Engine, costs: StepCosts, calls: Iterable[Call]) -> tuple[str, tuple[float, float]]:
    """Return the least sure provenance among the operators that matter, and the 90 % factors on a step's time.

    Operators' errors are taken to move together, and independent of the profile's own.
    """
    fits: list[tuple[float, OperatorFit]] = []
    for call in calls:
        fits.append((call.times * float(call_s(engine, call)[0]), fit_of_call(engine, call)))
    total = sum(seconds for seconds, _ in fits)
    low = sum(seconds / total * log(fit.interval[0]) for seconds, fit in fits)
    high = sum(seconds / total * log(fit.interval[1]) for seconds, fit in fits)
    host = costs.host
    spread = (
        exp(-((low**2 + log(host.interval[0]) ** 2) ** 0.5)),
        exp((high**2 + log(host.interval[1]) ** 2) ** 0.5),
    )
    weighty = [fit.provenance for seconds, fit in fits if seconds > 0.02 * total] + [host.provenance]
    return max(weighty, key=WORST_PROVENANCE.index), spread


def power_of(engine: Engine, costs: StepCosts, calls: Iterable[Call], batch: float) -> float | None:
    """Return the watts of all devices of a replica while they decode such a batch."""
    device_s = sum(call.times * float(call_s(engine, call)[0]) for call in calls) * costs.host.decode_factor
    step_s = device_s + costs.host.step_s(engine.llm.layers)
    busy = 1.0 - costs.host.host_step_s / step_s  # small kernels between the large ones draw no less
    watts = device_w(engine.device, busy, multiplying(engine, batch / step_s))
    return None if watts is None else engine.devices * watts
