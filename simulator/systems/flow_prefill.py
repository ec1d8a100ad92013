"""FlowPrefill on a prefill instance, and what it is measured against: whole prompts, or chunks, in order of arrival."""

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple

import simpy

from models.engine import PICOSECONDS_PER_SECOND
from simulator.control.estimators import Polynomial, fit, with_error
from simulator.control.kv_pool import KvPool
from simulator.control.lane_view import Request, Scheduler
from simulator.control.scheduled_lane import ScheduledLane
from simulator.control.schedulers import SMALL_PROMPT_TOKENS, edf, fcfs, s_edf, vllm_chunked
from simulator.control.step_prices import StepPrices

RUNNERS = 128  # prompts that may have begun at once
PROFILED_TOKENS = (32, 128, 512, 1024, 2048, 4096, 8192, 16384)


class Prompt(NamedTuple):
    """A prompt that arrives at a time and is promised its first token within another."""

    arrival_s: float
    input_tokens: int
    promise_s: float
    label: str


class Outcome(NamedTuple):
    """Seconds to the first token of each prompt, in order; and how long arrivals waited to be heard [s]."""

    ttft_s: list[float]
    blocking_s: list[float]
    preemptions: int


def profiled(prices: StepPrices) -> Polynomial:
    """Return the cubic that FlowPrefill fits to prefill times before it serves."""
    tokens = [each for each in PROFILED_TOKENS if each <= prices.most_tokens]
    return fit(lambda each: prices.step_ps([(each, 0)], 0, 0), tokens)


def flow_prefill(
    prices: StepPrices,
    *,
    spread: float = 0.0,
    seed: int = 0,
    preempt: str = "op",
    quantum_s: float = 0.0,
    batch_tokens: int = SMALL_PROMPT_TOKENS,
) -> Scheduler:
    """Preempt between operators by slack; step times are predicted with this spread of errors."""
    estimate_ps = with_error(profiled(prices), spread, seed)
    quantum_ps = round(quantum_s * PICOSECONDS_PER_SECOND)
    return s_edf(estimate_ps, batch_tokens, RUNNERS, preempt, quantum_ps)


def whole_prompts(prices: StepPrices) -> Scheduler:
    """Whole prompts in order of arrival, small ones together (DistServe's prefill instance)."""
    return fcfs(SMALL_PROMPT_TOKENS, RUNNERS)


def by_deadline(prices: StepPrices) -> Scheduler:
    """Preempt between operators by deadline alone."""
    return edf(SMALL_PROMPT_TOKENS, RUNNERS)


def chunks(prices: StepPrices, tokens: int = 512) -> Scheduler:
    """Chunked prefill in order of arrival, as vLLM's."""
    return vllm_chunked(tokens, RUNNERS)


def serve(
    build: Callable[[StepPrices], Scheduler],
    prices: StepPrices,
    kv_tokens: int,
    prompts: Sequence[Prompt],
    may_miss: Mapping[str, int] | None = None,
) -> Outcome | None:
    """Serve prompts, in order of arrival, on one prefill instance: a request leaves with its first token.

    Return None, early, where more prompts of a label ("" for all together) than may miss their promise have done so.
    """
    environment = simpy.Environment(initial_time=0)
    lane = ScheduledLane(environment, prices, build(prices), KvPool(kv_tokens))
    misses = Misses(lane, may_miss or {})

    def arrive() -> "simpy.events.ProcessGenerator":
        for number, prompt in enumerate(prompts):
            arrival_ps = round(prompt.arrival_s * PICOSECONDS_PER_SECOND)
            yield environment.timeout(arrival_ps - environment.now)
            deadline_ps = arrival_ps + round(prompt.promise_s * PICOSECONDS_PER_SECOND)
            request = Request(number, arrival_ps, prompt.input_tokens, 1, deadline_ps, label=prompt.label)
            lane.submit(request, output_tokens=1)
            misses.expect(request, environment.now)

    environment.process(arrive())
    while environment.peek() < inf:
        environment.step()
        if misses.are_too_many:
            return None
    ttft_s = [0.0] * len(prompts)
    for each in lane.served:
        ttft_s[each.request.number] = (each.first_token_ps - each.request.arrival_ps) / PICOSECONDS_PER_SECOND
    blocking_s = [each / PICOSECONDS_PER_SECOND for each in lane.blocking_ps]
    return Outcome(ttft_s, blocking_s, lane.preemptions)


class Misses:
    """Counts promises that were not kept, as their deadlines pass."""

    def __init__(self, lane: ScheduledLane, may_miss: Mapping[str, int]) -> None:
        self.may_miss, self.are_too_many = may_miss, False
        self._lane, self._seen = lane, 0
        self._in_time: set[int] = set()
        self._counts: dict[str, int] = {}
        self._deadlines: list[tuple[int, int, str]] = []

    def expect(self, request: Request, now_ps: int) -> None:
        """Take note of a promise, and of those whose time has passed."""
        if not self.may_miss:
            return
        heappush(self._deadlines, (request.deadline_ps, request.number, request.label))
        for each in self._lane.served[self._seen :]:
            if each.first_token_ps <= each.request.deadline_ps:
                self._in_time.add(each.request.number)
        self._seen = len(self._lane.served)
        while self._deadlines[0][0] < now_ps:
            _, number, label = heappop(self._deadlines)
            if number not in self._in_time:
                for kind in (label, ""):
                    self._counts[kind] = self._counts.get(kind, 0) + 1
                    self.are_too_many |= self._counts[kind] > self.may_miss.get(kind, self._counts[kind])
