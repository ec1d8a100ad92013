"""A closed loop: so many clients, each sending its next request when its last is answered, on one engine's scheduler.

The rules are those of continuous batching (Yu et al., Orca, 2022) with chunked prefill (Agrawal et al., Sarathi, 2024):
every step holds one token of each running sequence and prompt tokens up to a budget. Decode steps between two events
are taken in one go.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import ceil
from operator import itemgetter

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Scalars = tuple[float, float, float, float]
Moment = tuple[float, float, float, float]  # components so far, as in Parts


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
    """What one scheduler may put in a step, and when a request comes to its notice.

    prefill_first means that prompts and decodes never share a step. A request passes the front end, which takes
    front_request_s + front_token_s a prompt token and serves one at a time, is noticed at the end of a step (of every
    poll_steps-th), and joins steps_ahead steps later, for those are scheduled already. Unless cuts_prompts, a prompt
    that does not fit into what others leave of the budget waits for the next step. Beside decodes, prompts wait for up
    to wait_steps until a step holds wait_tokens.
    """

    budget_tokens: int
    capacity_tokens: int
    prefill_first: bool
    most_sequences: int = 1 << 30
    steps_ahead: int = 0
    poll_steps: int = 1
    front_request_s: float = 0.0
    front_token_s: float = 0.0
    cuts_prompts: bool = True
    wait_steps: int = 0
    wait_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Parts:
    """The components of time, each to be multiplied by a scalar and summed: steps, sequences, decode s, prefill s.

    fixed_s stands for itself.
    """

    steps: float = 0.0
    sequences: float = 0.0
    decode_s: float = 0.0
    prefill_s: float = 0.0
    fixed_s: float = 0.0

    def weighted(self, scalars: Scalars) -> float:
        """Return the sum of the components times their scalars [s]."""
        a, b, c, d = scalars
        return self.steps * a + self.sequences * b + self.decode_s * c + self.prefill_s * d + self.fixed_s


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

WARM_WAVES, MEASURED_WAVES, OTHER_WAVES, FEWEST_MEASURED = 2, 3, 3, 48


@dataclass(slots=True)
class _Request:
    input_tokens: int
    output_tokens: int
    sent_s: float
    ready_s: float
    sent_at: Moment
    left_tokens: int
    joins: float = -1.0  # from which step on, once noticed
    first_s: float = 0.0
    first_at: Moment = (0.0, 0.0, 0.0, 0.0)
    end_s: float = 0.0
    end_at: Moment = (0.0, 0.0, 0.0, 0.0)


class _Clock:
    """Time and its components so far."""

    def __init__(self, scalars: Scalars) -> None:
        self.scalars = scalars
        self.now_s = self.steps = self.sequences = self.decode_s = self.prefill_s = self.token_steps = 0.0

    def step_s(self, sequences: int, decode_s: float, prefill_s: float) -> float:
        a, b, c, d = self.scalars
        return a + b * sequences + c * decode_s + d * prefill_s

    def take(self, count: int, sequences: int, running: int, decode_s: float, prefill_s: float) -> None:
        """Take `count` steps of this length each."""
        self.now_s += count * self.step_s(sequences, decode_s, prefill_s)
        self.steps += count
        self.sequences += count * sequences
        self.decode_s += count * decode_s
        self.prefill_s += count * prefill_s
        self.token_steps += count * running

    def moment(self) -> Moment:
        return self.steps, self.sequences, self.decode_s, self.prefill_s


class _Clients:
    """The requests still to be sent, and those waiting at the front end or the scheduler, first come first served."""

    def __init__(self, load: Load, scheduler: Scheduler, count: int, rng: np.random.Generator) -> None:
        self.lengths = iter(_lengths(load, count, rng))
        self.scheduler = scheduler
        self.front_free_s = 0.0
        self.waiting: deque[_Request] = deque()

    def send(self, clock: _Clock) -> None:
        """Send one more request, if any is left."""
        found = next(self.lengths, None)
        if found is None:
            return
        prompt, answer = found
        work_s = self.scheduler.front_request_s + self.scheduler.front_token_s * prompt
        self.front_free_s = max(self.front_free_s, clock.now_s) + work_s
        self.waiting.append(_Request(prompt, answer, clock.now_s, self.front_free_s, clock.moment(), prompt))

    def notice(self, clock: _Clock, is_idle: bool) -> None:
        """Let the scheduler see what has passed the front end; an idle one waits for it and starts at once."""
        if is_idle and self.waiting and self.waiting[0].joins < 0:
            clock.now_s = max(clock.now_s, self.waiting[0].ready_s)
        poll = self.scheduler.poll_steps
        for request in self.waiting:
            if request.ready_s > clock.now_s:
                break
            if is_idle:
                request.joins = clock.steps
            elif request.joins < 0:
                request.joins = ceil(clock.steps / poll) * poll + self.scheduler.steps_ahead

    def steps_until_next(self, clock: _Clock, step_s: float) -> int:
        """Return how many steps of this length pass before a waiting request may join, or another is to be noticed."""
        left = 1 << 60
        for request in self.waiting:
            if request.joins < 0:
                return max(1, min(left, ceil((request.ready_s - clock.now_s) / step_s)))
            left = min(left, max(1, int(request.joins - clock.steps)))
        return left


def replay(
    load: Load,
    scheduler: Scheduler,
    decode: DecodeCost,
    prefill: PrefillCost,
    scalars: Scalars,
    rng: np.random.Generator,
) -> Answered:
    """Run the loop for a few waves of requests and return what clients saw once it was warm.

    scalars are the host's seconds per step and per sequence of a step, then factors on device time of decodes and of
    prefills.
    """
    warm = 0 if load.cold_waves else WARM_WAVES * load.concurrency
    measured = max(FEWEST_MEASURED, MEASURED_WAVES * load.concurrency)
    wanted = warm + (_replayed_waves(load) * load.concurrency if load.cold_waves else measured)
    clock = _Clock(scalars)
    clients = _Clients(load, scheduler, wanted + load.concurrency, rng)
    for _ in range(load.concurrency):
        clients.send(clock)
    finish: list[tuple[int, int, _Request]] = []  # at which count of decode steps a running sequence ends
    decoded, context, ticket, waited = 0, 0.0, 0, 0
    done: list[_Request] = []
    while len(done) < wanted:
        clients.notice(clock, not finish)
        admitted = _admit(clients.waiting, scheduler, clock.steps, len(finish), context)
        is_held = waited < scheduler.wait_steps and _waits(admitted, scheduler, len(finish))
        if admitted and not is_held:
            waited = 0
            running = 0 if scheduler.prefill_first else len(finish)
            chunk = sum(map(itemgetter(1), admitted))
            past = sum((r.input_tokens - r.left_tokens) * t for r, t in admitted) / chunk if len(admitted) == 1 else 0.0
            decode_s = decode(running, context) if running else 0.0
            clock.take(1, running + len(admitted), running, decode_s, prefill(running, chunk, past))
            decoded += running > 0
            context += running
            for request, tokens in admitted:
                request.left_tokens -= tokens
                if request.left_tokens == 0:
                    clients.waiting.popleft()
                    request.first_s, request.first_at = clock.now_s, clock.moment()
                    ticket += 1
                    heappush(finish, (decoded + request.output_tokens - 1, ticket, request))
                    context += request.input_tokens + 1
        else:
            running, steps = len(finish), max(1, finish[0][0] - decoded)
            step_s = clock.step_s(running, decode(running, context + running), 0.0)
            steps = min(steps, clients.steps_until_next(clock, step_s))
            clock.take(steps, running, running, decode(running, context + 0.5 * running * steps), 0.0)
            decoded += steps
            waited += steps if is_held else 0
            context += running * steps
        while finish and finish[0][0] <= decoded:
            request = heappop(finish)[2]
            context -= request.input_tokens + request.output_tokens
            request.end_s, request.end_at = clock.now_s, clock.moment()
            done.append(request)
            clients.send(clock)
    return _summary(done[warm:], _weights(load, len(done) - warm), clock)


def _replayed_waves(load: Load) -> int:
    """Return how many of a cold benchmark's waves are replayed: the first, and enough of the others, all alike."""
    return min(load.cold_waves, 1 + max(OTHER_WAVES, ceil(FEWEST_MEASURED / load.concurrency)))


def _weights(load: Load, count: int) -> Floats | None:
    """Return for how many requests each stands: later waves for those not replayed; None where medians are told."""
    if not load.cold_waves:
        return None
    others = (load.cold_waves - 1) / max(1, _replayed_waves(load) - 1)
    return np.where(np.arange(count) < load.concurrency, 1.0, others)


def _lengths(load: Load, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    shares = load.shortest + (1.0 - load.shortest) * rng.random((count, 2))
    tokens = np.rint(shares * (load.input_tokens, load.output_tokens)).astype(int)
    prompts, answers = np.maximum(tokens, (1, 2)).T.tolist()
    return list(zip(prompts, answers, strict=True))


def _admit(
    waiting: deque[_Request], scheduler: Scheduler, step: float, running: int, context: float
) -> list[tuple[_Request, int]]:
    """Return which waiting prompts the next step takes tokens of, first come first served, and how many of each."""
    budget = scheduler.budget_tokens - (0 if scheduler.prefill_first else running)
    room = scheduler.capacity_tokens - context
    admitted: list[tuple[_Request, int]] = []
    for request in waiting:
        busy = running or admitted
        if budget <= 0 or not 0 <= request.joins <= step or (room < request.left_tokens and busy):
            break
        if running + len(admitted) >= scheduler.most_sequences:
            break
        if admitted and request.left_tokens > budget and not scheduler.cuts_prompts:
            break
        tokens = min(budget, request.left_tokens)
        admitted.append((request, tokens))
        budget -= tokens
        room -= request.left_tokens
        if tokens < request.left_tokens:
            break
    return admitted


def _waits(admitted: list[tuple[_Request, int]], scheduler: Scheduler, running: int) -> bool:
    """Return whether prompts wait for company: some are there, beside decodes, but too few tokens for a step."""
    tokens = running + sum(map(itemgetter(1), admitted))
    return bool(running and admitted) and tokens < scheduler.wait_tokens


def _summary(done: list[_Request], weights: Floats | None, clock: _Clock) -> Answered:
    tokens = np.array([request.output_tokens - 1.0 for request in done])
    sent_s, first_s, end_s = (np.array([getattr(r, name) for r in done]) for name in ("sent_s", "first_s", "end_s"))
    sent, first, end = (np.array([getattr(r, name) for r in done]) for name in ("sent_at", "first_at", "end_at"))
    tpot_s, ttft_s, e2e_s = (end_s - first_s) / tokens, first_s - sent_s, end_s - sent_s
    return Answered(
        _typical(ttft_s, weights),
        _typical(tpot_s, weights),
        _typical(e2e_s, weights),
        len(done) / float(end_s.max() - sent_s.min()),
        clock.token_steps / max(1.0, clock.steps),
        _parts((end - first) / tokens[:, None], tpot_s, clock.scalars, weights),
        _parts(first - sent, ttft_s, clock.scalars, weights),
    )


def _typical(seconds: Floats, weights: Floats | None) -> float:
    """Return the median, or the mean where requests have weights."""
    return float(np.median(seconds) if weights is None else np.average(seconds, weights=weights))


def _parts(rows: Floats, seconds: Floats, scalars: Scalars, weights: Floats | None) -> Parts:
    """Return mean components: of the middle half of the requests for a median, of all for a mean."""
    order = np.argsort(seconds)
    if weights is None:
        order = order[len(order) // 4 : max(len(order) // 4 + 1, 3 * len(order) // 4)]
        weights = np.ones(len(seconds))
    mean = np.average(rows[order], axis=0, weights=weights[order])
    fixed_s = float(np.average(seconds[order], weights=weights[order]) - mean @ np.array(scalars))
    steps, sequences, decode_s, prefill_s = (float(value) for value in mean)
    return Parts(steps, sequences, decode_s, prefill_s, max(0.0, fixed_s))
