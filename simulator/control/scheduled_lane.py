"""A lane whose Scheduler is written in Python: asked at every step, and at boundaries inside one that may be preempted.

Steps cost what they cost in the data plane. Cursors are resumable at every token and, inside a step, at every operator:
a step that is preempted keeps the work done up to the boundary, and goes on from there when it is planned again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import simpy
from simpy.events import URGENT

from simulator.control.kv_pool import Pool
from simulator.control.lane_view import (
    GRANULARITIES,
    UNBOUNDED_TOKENS,
    Cursor,
    IllegalStep,
    LaneView,
    Paused,
    Request,
    Scheduler,
    Served,
    Slice,
    Step,
    Wait,
)
from simulator.control.step_prices import StepPrices


class _Work:
    """A request in the lane's hands."""

    __slots__ = (
        *("request", "output_tokens", "computed", "generated", "is_decoding", "held", "scheduled_ps"),
        *("first_token_ps", "evictions", "is_running", "is_leaving", "pause", "_seen"),
    )

    def __init__(self, request: Request, output_tokens: int) -> None:
        self.request, self.output_tokens = request, max(1, output_tokens)
        self.computed, self.generated, self.held = 0, 0, 0
        self.is_decoding, self.is_running, self.is_leaving = False, False, False
        self.scheduled_ps, self.first_token_ps, self.evictions = -1, -1, 0
        self.pause: _UnderWay | None = None
        self._seen: Cursor | None = None

    def advance(self, tokens: int, now_ps: int) -> bool:
        """Move on by computed tokens; say whether the last token is out."""
        self._seen = None
        self.computed += tokens
        if self.is_decoding:
            self.generated += tokens
        elif self.computed == self.request.input_tokens + self.generated:
            self.generated += 1
            self.is_decoding = True
            if self.generated == 1:
                self.first_token_ps = now_ps
        return self.generated >= self.output_tokens

    def evict(self) -> None:
        """Forget what was computed."""
        self._seen = None
        self.computed, self.held, self.is_decoding, self.is_running = 0, 0, False, False
        self.evictions += 1

    def seen(self) -> Cursor:
        """Return what a scheduler may see."""
        if self._seen is None:
            self._seen = Cursor(self.request, self.computed, self.generated, self.is_decoding)
        return self._seen


class _UnderWay:
    """A step in execution, or one that stands still at a boundary."""

    __slots__ = ("begin_ps", "chunks", "context", "done_ps", "extra_ps", "parts", "runs", "step", "total_ps", "waking")

    def __init__(self, step: Step, parts: list[tuple[_Work, int]]) -> None:
        self.step, self.parts, self.runs = step, parts, 1
        self.chunks = [(tokens, work.computed) for work, tokens in parts if not work.is_decoding]
        self.context = sum(work.computed for work, _ in parts if work.is_decoding)
        self.begin_ps = self.done_ps = self.total_ps = self.extra_ps = 0
        self.waking = False

    @property
    def decodes(self) -> int:
        return len(self.parts) - len(self.chunks)

    def worked_ps(self, now_ps: int) -> int:
        """Return the work done by now; none of what was waited for adapters."""
        return self.done_ps + max(0, now_ps - self.begin_ps)


class ScheduledLane:
    """One lane with its own KV pool in an environment whose time is whole picoseconds.

    extra_ps(requests and their tokens) adds to the price of every step, as adapters do. listener(what, request), with
    what "first token", "finished", "refused" or "cancelled", is told of events as they happen.
    """

    def __init__(
        self,
        environment: simpy.Environment,
        prices: StepPrices,
        scheduler: Scheduler,
        pool: Pool,
        *,
        extra_ps: Callable[[Sequence[tuple[Request, int]]], int] | None = None,
        listener: Callable[[str, Request], None] | None = None,
        max_context_tokens: int = UNBOUNDED_TOKENS,
    ) -> None:
        self.environment, self.prices, self.scheduler, self.pool = environment, prices, scheduler, pool
        self.max_context_tokens = max_context_tokens
        self.served: list[Served] = []
        self.refused: list[Request] = []
        self.cancelled: list[Request] = []
        self.blocking_ps: list[int] = []  # from an arrival at a busy lane to when its scheduler could act on it
        self.steps = self.decode_steps = self.busy_ps = self.preemptions = 0
        self._extra_ps = extra_ps or (lambda parts: 0)
        self._tell = listener or (lambda what, request: None)
        self._works: dict[int, _Work] = {}
        self._waiting: list[_Work] = []
        self._running: list[_Work] = []
        self._paused: list[_UnderWay] = []
        self._now: _UnderWay | None = None
        self._unanswered: list[int] = []
        self._end = 0  # the number of the end that counts; those set before it were overtaken

    @property
    def is_idle(self) -> bool:
        """Say whether no step is under way."""
        return self._now is None

    @property
    def held_tokens(self) -> int:
        """Return the KV that requests on this lane hold."""
        return sum(work.held for work in self._running)

    @property
    def outstanding(self) -> int:
        """Return the requests that wait or run."""
        return len(self._works)

    def submit(self, request: Request, output_tokens: int) -> None:
        """Queue a request now; its scheduler is asked at once, at the next boundary, or at the end of the step."""
        if request.number in self._works:
            raise ValueError(f"request {request.number} is on this lane already")
        most = min(self.max_context_tokens, self.pool.capacity_tokens)
        if request.input_tokens + max(1, output_tokens) > most:
            self.refused.append(request)
            self._tell("refused", request)
            return
        work = self._works[request.number] = _Work(request, output_tokens)
        self._waiting.append(work)
        if self._now is None:
            self._decide()
        else:
            self._unanswered.append(self.environment.now)
            self._wake(self._now)

    def cancel(self, number: int) -> bool:
        """Let a client give up: at once where no step works on its request, else at the end of that step.

        Say whether the request was on this lane. A paused step of others, too, keeps it until that has ended.
        """
        work = self._works.get(number)
        if work is None:
            return False
        now = self._now
        if work.pause is not None:
            work.is_leaving = True
            self._abandon(work.pause)
        elif now is not None and any(part is work for part, _ in now.parts):
            work.is_leaving = True
        else:
            self._leave(work)
        if now is None:
            self._decide()
        elif now.runs > 1:
            self._cut(now)
        return True

    def view(self, under_way: Paused | None = None) -> LaneView:
        """Return what the scheduler sees now."""
        return LaneView(
            self.environment.now,
            tuple([work.seen() for work in self._waiting]),
            tuple([work.seen() for work in self._running]),
            tuple([Paused(each.step.slices, each.done_ps) for each in self._paused]),
            under_way,
            self.pool.free_tokens(),
            self.pool.capacity_tokens,
            self.decode_steps,
        )

    def _decide(self) -> None:
        """Ask the scheduler for the next step."""
        self._answer()
        self._now = None
        self._end += 1  # no alarm that was set before is of use
        answer = self.scheduler(self.view())
        if isinstance(answer, Wait):
            self._ask_again(answer.until_ps)
        elif answer is not None:
            self._begin(answer)

    def _ask_again(self, until_ps: int) -> None:
        """Ask the scheduler at a time unless something makes it be asked before."""
        end, delay_ps = self._end, until_ps - self.environment.now
        if delay_ps <= 0:
            raise IllegalStep(f"a wait until {until_ps} ps, which is not after now, {self.environment.now} ps")

        def ask() -> None:
            if end == self._end:
                self._decide()

        self._after(delay_ps, ask)

    def _answer(self) -> None:
        """Book how long the requests that came meanwhile were not heard."""
        now_ps = self.environment.now
        self.blocking_ps += [now_ps - arrived_ps for arrived_ps in self._unanswered]
        self._unanswered.clear()

    def _begin(self, step: Step) -> None:
        """Start a step, or resume one, after checking that the lane can take it."""
        for number in step.evict:
            self._evict(number)
        now_ps = self.environment.now
        paused = next((each for each in self._paused if each.step.slices == step.slices), None)
        if paused is not None:
            self._paused.remove(paused)
            for work, _ in paused.parts:
                work.pause = None
            under_way, paused.step = paused, step
        else:
            under_way = _UnderWay(step, [(self._checked(each), each.tokens) for each in step.slices])
            self._check(under_way)
            self._take(under_way)
        requests = [work.request for work, _ in under_way.parts]
        under_way.begin_ps = max(now_ps, self.pool.ready_ps(requests, now_ps))
        if step.prefetch:
            self.pool.prefetch([self._works[number].request for number in step.prefetch], now_ps)
        self._now = under_way
        self._set_end(under_way.begin_ps + under_way.total_ps - under_way.done_ps)

    def _checked(self, part: Slice) -> _Work:
        work = self._works.get(part.number)
        if work is None:
            raise IllegalStep(f"request {part.number} is not on this lane")
        if work.pause is not None:
            raise IllegalStep(
                f"request {part.number} is in a paused step of {len(work.pause.parts)} requests: resume it as it was"
            )
        left = 1 if work.is_decoding else work.seen().prefill_left
        if not 1 <= part.tokens <= left:
            raise IllegalStep(f"request {part.number} has {left} tokens to compute, not {part.tokens}")
        return work

    def _check(self, under_way: _UnderWay) -> None:
        """Raise IllegalStep where a new step breaks a rule of physics."""
        step, parts = under_way.step, under_way.parts
        tokens = sum(tokens for _, tokens in parts)
        if not parts:
            raise IllegalStep("a step without slices; return None to wait")
        if len({work.request.number for work, _ in parts}) < len(parts):
            raise IllegalStep("a step with two slices of one request")
        if step.preempt not in GRANULARITIES:
            raise IllegalStep(f"unknown preempt {step.preempt!r}; known: {', '.join(GRANULARITIES)}")
        if step.repeat != 1 and under_way.chunks:
            raise IllegalStep("a step with prefills cannot be repeated")
        if tokens > self.prices.most_tokens or len(parts) > self.prices.most_sequences:
            raise IllegalStep(
                f"a step of {tokens} tokens in {len(parts)} sequences; the engine takes at most "
                f"{self.prices.most_tokens} in {self.prices.most_sequences}"
            )
        if not self.pool.can_load([work.request for work, _ in parts], tokens):
            raise IllegalStep(f"a step that needs {tokens} KV tokens; {self.pool.free_tokens()} are free")

    def _take(self, under_way: _UnderWay) -> None:
        """Price a step, let its requests run, and take the KV it will write."""
        if not under_way.chunks:
            left = min(work.output_tokens - work.generated for work, _ in under_way.parts)
            affordable = self.pool.free_tokens() // under_way.decodes
            under_way.runs = max(1, min(under_way.step.repeat, left, affordable))
        for work, tokens in under_way.parts:
            if not work.is_running:
                self._waiting.remove(work)
                self._running.append(work)
                work.is_running = True
                if work.scheduled_ps < 0:
                    work.scheduled_ps = self.environment.now
            work.held += tokens * under_way.runs
        self.pool.take(under_way.runs * sum(tokens for _, tokens in under_way.parts))
        under_way.extra_ps = self._extra_ps([(work.request, tokens) for work, tokens in under_way.parts])
        if under_way.chunks:
            priced_ps = self.prices.step_ps(under_way.chunks, under_way.decodes, under_way.context)
            under_way.total_ps = priced_ps + under_way.extra_ps
        else:
            under_way.total_ps = self._run_ps(under_way, under_way.runs)

    def _run_ps(self, under_way: _UnderWay, runs: int) -> int:
        return self.prices.run_ps(under_way.decodes, under_way.context, runs) + runs * under_way.extra_ps

    def _evict(self, number: int) -> None:
        """Take a running request's KV away and put it to the head of the queue."""
        work = self._works.get(number)
        if work is None or not work.is_running:
            raise IllegalStep(f"request {number} does not run, so it cannot be evicted")
        if work.pause is not None:
            raise IllegalStep(f"request {number} is in a paused step, so it cannot be evicted")
        self.pool.give(work.held)
        work.evict()
        self._running.remove(work)
        self._waiting.insert(0, work)

    def _set_end(self, end_ps: int) -> None:
        """Complete the step at a time, unless another end is set before."""
        self._end += 1
        end = self._end

        def complete() -> None:
            if end == self._end:
                self._complete()

        self._after(end_ps - self.environment.now, complete)

    def _after(self, delay_ps: int, act: Callable[[], Any]) -> None:
        """Act after a time, before anything else that happens then: physics comes before decisions."""
        event = simpy.Event(self.environment)
        event._ok, event._value = True, None
        event.callbacks.append(lambda event: act())
        self.environment.schedule(event, priority=URGENT, delay=delay_ps)

    def _complete(self) -> None:
        """Book what the step has done and ask for the next."""
        under_way, now_ps = self._now, self.environment.now
        assert under_way is not None
        self.steps += under_way.runs
        self.busy_ps += now_ps - under_way.begin_ps
        if not under_way.chunks:
            self.decode_steps += under_way.runs
        elif under_way.decodes:
            self.decode_steps += 1
        has_left = False
        for work, tokens in under_way.parts:
            had_none = work.first_token_ps < 0
            is_over = work.advance(tokens * under_way.runs, now_ps)
            if had_none and work.first_token_ps >= 0:
                self._tell("first token", work.request)
            if is_over or work.is_leaving:
                has_left = True
                (self._finish if is_over else self._leave)(work)
        if has_left:
            self.pool.keep([work.request for work in self._running])
        self._decide()

    def _abandon(self, paused: _UnderWay) -> None:
        """Forget a step that stands at a boundary where all its clients have left."""
        if all(work.is_leaving for work, _ in paused.parts):
            self._paused.remove(paused)
            for work, _ in paused.parts:
                self._leave(work)

    def _leave(self, work: _Work) -> None:
        """Let go of a request whose client has given up."""
        self._let_go(work)
        self.cancelled.append(work.request)
        self.pool.keep([each.request for each in self._running])
        self._tell("cancelled", work.request)

    def _let_go(self, work: _Work) -> None:
        self.pool.give(work.held)
        (self._running if work.is_running else self._waiting).remove(work)
        del self._works[work.request.number]

    def _finish(self, work: _Work) -> None:
        now_ps = self.environment.now
        self._let_go(work)
        self.served.append(Served(work.request, work.scheduled_ps, work.first_token_ps, now_ps, work.evictions))
        self._tell("finished", work.request)

    def _wake(self, under_way: _UnderWay) -> None:
        """A request has come: cut a run of decodes short, or ask the scheduler at the next boundary."""
        if under_way.runs > 1:
            self._cut(under_way)
        elif under_way.step.preempt != "step" and under_way.chunks and not under_way.decodes and not under_way.waking:
            worked_ps = under_way.worked_ps(self.environment.now)
            quantum_ps = under_way.step.quantum_ps
            if quantum_ps:
                worked_ps = -(-worked_ps // quantum_ps) * quantum_ps
            boundary_ps = self.prices.boundary_ps(under_way.chunks, worked_ps, under_way.step.preempt)
            if boundary_ps is not None and boundary_ps < under_way.total_ps:
                under_way.waking = True
                at_ps = under_way.begin_ps + boundary_ps - under_way.done_ps
                end = self._end
                self._after(max(0, at_ps - self.environment.now), lambda: self._pass_boundary(end))

    def _cut(self, under_way: _UnderWay) -> None:
        """End a run of decodes with the first step that ends after now."""
        elapsed_ps = self.environment.now - under_way.begin_ps
        low, high = 1, under_way.runs
        while low < high:
            middle = (low + high) // 2
            if self._run_ps(under_way, middle) > elapsed_ps:
                high = middle
            else:
                low = middle + 1
        if low < under_way.runs:
            spared = under_way.runs - low
            for work, _ in under_way.parts:
                work.held -= spared
            self.pool.give(spared * under_way.decodes)
            under_way.runs, under_way.total_ps = low, self._run_ps(under_way, low)
            self._set_end(under_way.begin_ps + under_way.total_ps)

    def _pass_boundary(self, end: int) -> None:
        """At a boundary: go on, or let the step stand and begin what the scheduler prefers."""
        under_way, now_ps = self._now, self.environment.now
        if end != self._end or under_way is None:
            return
        under_way.waking = False
        self._answer()
        step = self.scheduler(self.view(Paused(under_way.step.slices, under_way.worked_ps(now_ps))))
        if not isinstance(step, Step) or (step.slices == under_way.step.slices and not step.evict):
            return
        self.busy_ps += max(0, now_ps - under_way.begin_ps)
        under_way.done_ps = under_way.worked_ps(now_ps)
        for work, _ in under_way.parts:
            work.pause = under_way
        self._paused.append(under_way)
        self._abandon(under_way)
        self.preemptions += 1
        self._begin(step)
