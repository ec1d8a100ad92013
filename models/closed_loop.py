"""A closed loop: so many clients, each sending its next request when its last is answered, on one engine's scheduler.

The rules are those of continuous batching (Yu et al., Orca, 2022) with chunked prefill (Agrawal et al., Sarathi, 2024):
every step holds one token of each running sequence and prompt tokens up to a budget. Decode steps between two
completions are taken in one go.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients ask: prompt and answer lengths are uniform between `shortest` times the largest and it.

    A benchmark from cold sends so many waves of requests, the first all at once, and reports means over all of them;
    otherwise medians are told of a loop that is warm.
    """

    input_tokens: int
    output_tokens: int
    concurrency: int
    shortest: float = 1.0
    cold_waves: int = 0


@dataclass(frozen=True, slots=True)
class Scheduler:
    """What one scheduler may put in a step; prefill_first means that prompts and decodes never share a step."""

    budget_tokens: int
    capacity_tokens: int
    prefill_first: bool


@dataclass(frozen=True, slots=True)
class Parts:
    """The components of time, each to be multiplied by a scalar and summed: steps, sequences, decode s, prefill s."""

    steps: float = 0.0
    sequences: float = 0.0
    decode_s: float = 0.0
    prefill_s: float = 0.0

    def weighted(self, scalars: tuple[float, float, float, float]) -> float:
        """Return the sum of the components times their scalars [s]."""
        return (
            self.steps * scalars[0]
            + self.sequences * scalars[1]
            + self.decode_s * scalars[2]
            + self.prefill_s * scalars[3]
        )


@dataclass(frozen=True, slots=True)
class Answered:
    """What clients saw, and the mean batch; the parts are the mean components of a token's and a first token's time."""

    ttft_s: float
    tpot_s: float
    e2e_s: float
    requests_per_s: float
    mean_batch: float
    tpot_parts: Parts
    ttft_parts: Parts


# Seconds of the parts of a step, before scalars: (sequences, total context) and (tokens beside, chunk, past).
DecodeCost = Callable[[int, float], float]
PrefillCost = Callable[[int, int, float], float]

WARM_WAVES, MEASURED_WAVES, FEWEST_MEASURED = 2, 3, 48


@dataclass(slots=True)
class _Request:
    input_tokens: int
    output_tokens: int
    sent_s: float
    sent_at: Parts
    left_tokens: int = 0
    first_s: float = 0.0
    first_at: Parts = Parts()


@dataclass(slots=True)
class _Clock:
    scalars: tuple[float, float, float, float]
    now_s: float = 0.0
    steps: float = 0.0
    sequences: float = 0.0
    decode_s: float = 0.0
    prefill_s: float = 0.0
    token_steps: float = 0.0

    def step(self, count: int, sequences: int, running: int, decode_s: float, prefill_s: float) -> None:
        """Take `count` steps of this length each."""
        a, b, c, d = self.scalars
        self.now_s += count * (a + b * sequences + c * decode_s + d * prefill_s)
        self.steps += count
        self.sequences += count * sequences
        self.decode_s += count * decode_s
        self.prefill_s += count * prefill_s
        self.token_steps += count * running

    def parts(self) -> Parts:
        """Return the components so far."""
        return Parts(self.steps, self.sequences, self.decode_s, self.prefill_s)


def replay(
    load: Load,
    scheduler: Scheduler,
    decode: DecodeCost,
    prefill: PrefillCost,
    scalars: tuple[float, float, float, float],
    rng: np.random.Generator,
) -> Answered:
    """Run the loop for a few waves of requests and return what clients saw once it was warm.

    scalars are the host's seconds per step and per sequence of a step, then factors on device time of decodes and of
    prefills.
    """
    warm = 0 if load.cold_waves else WARM_WAVES * load.concurrency
    measured = max(FEWEST_MEASURED, MEASURED_WAVES * load.concurrency)
    wanted = warm + (load.cold_waves * load.concurrency or measured)
    lengths = _lengths(load, wanted + load.concurrency, rng)
    clock = _Clock(scalars)
    waiting = deque(_Request(*lengths[i], 0.0, Parts()) for i in range(load.concurrency))
    for request in waiting:
        request.left_tokens = request.input_tokens
    next_length = load.concurrency
    finish: list[tuple[float, int, _Request]] = []  # at which count of decode steps a running sequence ends
    decoded, context, ticket = 0, 0.0, 0
    done: list[_Request] = []
    seen: list[tuple[float, float, float, Parts, Parts]] = []
    while len(done) < wanted:
        admitted = _admit(waiting, scheduler, len(finish), context)
        if admitted:
            with_decodes = len(finish) > 0 and not scheduler.prefill_first
            running = len(finish) if with_decodes else 0
            chunk = sum(tokens for _, tokens in admitted)
            past = sum((r.input_tokens - r.left_tokens) * t for r, t in admitted) / chunk
            prefill_s = prefill(running, chunk, past) if len(admitted) == 1 else prefill(running, chunk, 0.0)
            clock.step(1, running + len(admitted), running, decode(running, context) if running else 0.0, prefill_s)
            if with_decodes:
                decoded += 1
                context += running
            for request, tokens in admitted:
                request.left_tokens -= tokens
                if request.left_tokens == 0:
                    waiting.popleft()
                    request.first_s, request.first_at = clock.now_s, clock.parts()
                    ticket += 1
                    heappush(finish, (decoded + request.output_tokens - 1, ticket, request))
                    context += request.input_tokens + 1
        else:
            running, steps = len(finish), max(1, int(finish[0][0]) - decoded)
            middle = context + 0.5 * running * steps
            clock.step(steps, running, running, decode(running, middle), 0.0)
            decoded += steps
            context += running * steps
        while finish and finish[0][0] <= decoded:
            request = heappop(finish)[2]
            context -= request.input_tokens + request.output_tokens
            done.append(request)
            seen.append((clock.now_s, request.first_s, request.sent_s, clock.parts(), request.sent_at))
            if next_length < len(lengths):
                fresh = _Request(*lengths[next_length], clock.now_s, clock.parts())
                fresh.left_tokens = fresh.input_tokens
                waiting.append(fresh)
                next_length += 1
    return _summary(done, seen, warm, clock)


def _lengths(load: Load, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    shares = load.shortest + (1.0 - load.shortest) * rng.random((count, 2))
    tokens = np.maximum(1, np.rint(shares * (load.input_tokens, max(2, load.output_tokens)))).astype(int)
    return [(int(prompt), max(2, int(answer))) for prompt, answer in tokens]


def _admit(waiting: deque[_Request], scheduler: Scheduler, running: int, context: float) -> list[tuple[_Request, int]]:
    """Return which waiting prompts the next step takes tokens of, first come first served, and how many of each."""
    budget = scheduler.budget_tokens - (0 if scheduler.prefill_first else running)
    room = scheduler.capacity_tokens - context
    admitted: list[tuple[_Request, int]] = []
    for request in waiting:
        if budget <= 0 or (room < request.left_tokens and (running or admitted)):
            break
        tokens = min(budget, request.left_tokens)
        admitted.append((request, tokens))
        budget -= tokens
        room -= request.left_tokens
        if tokens < request.left_tokens:
            break
    return admitted


def _summary(
    done: list[_Request], seen: list[tuple[float, float, float, Parts, Parts]], warm: int, clock: _Clock
) -> Answered:
    rows = list(zip(done, seen, strict=True))[warm:]
    tokens = np.array([request.output_tokens - 1 for request, _ in rows], float)
    end_s, first_s, sent_s = (np.array([row[i] for _, row in rows]) for i in range(3))
    tpot = (end_s - first_s) / tokens
    ttft = first_s - sent_s
    tpot_parts = _mean_parts(
        [(request.first_at, row[3], t) for (request, row), t in zip(rows, tokens, strict=True)], _middle(tpot, warm)
    )
    ttft_parts = _mean_parts([(row[4], request.first_at, 1.0) for request, row in rows], _middle(ttft, warm))
    span = end_s.max() - sent_s.min()
    typical = np.median if warm else np.mean
    return Answered(
        float(typical(ttft)),
        float(typical(tpot)),
        float(typical(end_s - sent_s)),
        len(rows) / float(span),
        clock.token_steps / max(1.0, clock.steps),
        tpot_parts,
        ttft_parts,
    )


def _middle(values: Floats, warm: int) -> npt.NDArray[np.int64]:
    """Return the rows whose mean stands for the reported statistic: the middle half for a median, all for a mean."""
    order = np.argsort(values)
    return order[len(order) // 4 : max(len(order) // 4 + 1, 3 * len(order) // 4)] if warm else order


def _mean_parts(spans: list[tuple[Parts, Parts, float]], chosen: npt.NDArray[np.int64]) -> Parts:
    """Return the mean components between two moments, each over a count, of the chosen rows."""
    rows = [
        [(getattr(end, name) - getattr(start, name)) / count for name in Parts.__slots__]
        for start, end, count in (spans[i] for i in chosen)
    ]
    return Parts(*(float(value) for value in np.mean(rows, axis=0)))
