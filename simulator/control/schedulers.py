"""Schedulers of a lane: each a function that returns one, by name in one dict."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simulator.control.estimators import EstimatePs
from simulator.control.lane_view import UNBOUNDED_TOKENS, Cursor, LaneView, Paused, Scheduler, Slice, Step, Wait

UNTIL_SOMETHING_HAPPENS = 1 << 30
SMALL_PROMPT_TOKENS = 2048
URGENT_SHARE = 0.1  # of its promise that the head of a batch must have left, as FlowPrefill has it

Key = Callable[[Cursor], Any]


def fcfs(batch_tokens: int = SMALL_PROMPT_TOKENS, max_sequences: int = 256) -> Scheduler:
    """Whole prompts in order of arrival, several where they fit a batch together; decodes when no prompt waits."""
    return _whole_prompts(lambda cursor: cursor.request.arrival_ps, "step", batch_tokens, max_sequences)


def priority(batch_tokens: int = SMALL_PROMPT_TOKENS, max_sequences: int = 256, preempt: str = "step") -> Scheduler:
    """Whole prompts, the most urgent priority first, in order of arrival within one."""
    return _whole_prompts(
        lambda cursor: (cursor.request.priority, cursor.request.arrival_ps), preempt, batch_tokens, max_sequences
    )


def edf(batch_tokens: int = SMALL_PROMPT_TOKENS, max_sequences: int = 256, preempt: str = "op") -> Scheduler:
    """Whole prompts, the earliest deadline first, even where it is past saving."""
    return _whole_prompts(
        lambda cursor: (cursor.request.deadline_ps, cursor.number), preempt, batch_tokens, max_sequences
    )


def s_edf(
    estimate_ps: EstimatePs,
    batch_tokens: int = SMALL_PROMPT_TOKENS,
    max_sequences: int = 128,
    preempt: str = "op",
    quantum_ps: int = 0,
    urgent_share: float = URGENT_SHARE,
) -> Scheduler:
    """Earliest deadline first among prompts that can still meet theirs; those that cannot come last, latest first.

    A small prompt takes small others along while its own promise keeps a share in hand (FlowPrefill).
    """
    return _BySlack(estimate_ps, batch_tokens, max_sequences, preempt, quantum_ps, urgent_share).plan


def vllm_chunked(max_tokens: int, max_sequences: int, long_prefill_tokens: int = UNBOUNDED_TOKENS) -> Scheduler:
    """Continuous batching as in the data plane: decodes first, then chunks of prompts within a budget of tokens.

    Where KV runs out, the last admitted is evicted and computed again.
    """

    def plan(view: LaneView) -> Step | None:
        step = _Filling(view)
        while step.free_tokens < step.decodes:
            step.evict_last()
        step.budget_tokens = max_tokens - step.decodes
        for cursor in [each for each in step.running if not each.is_decoding]:
            step.go_on(cursor, min(cursor.prefill_left, long_prefill_tokens, step.budget_tokens))
        if not step.evicted:
            for cursor in view.waiting:
                chunk = min(cursor.prefill_left, long_prefill_tokens, step.budget_tokens)
                if len(step.running) >= max_sequences or chunk <= 0 or not step.admit(cursor, chunk):
                    break
        return step.planned()

    return plan


def no_preempt(
    batch_tokens: int,
    max_sequences: int = 1000,
    wait_steps: int = 10,
    shares_pool: bool = True,
    adapter_room_tokens: int = UNBOUNDED_TOKENS,
    prefetch: bool = False,
) -> Scheduler:
    """Admit in order only what can finish without preemption, prompts alone between runs of decodes (S-LoRA).

    The running set, the most remaining first, must satisfy max over i of remaining_i * i + sum of used_1..i < capacity
    less the adapters' tokens where they share the pool; where they do not, they must fit a room of their own.
    """
    prefilled_at = 0

    def plan(view: LaneView) -> Step | None:
        nonlocal prefilled_at
        waited = view.decode_steps - prefilled_at
        if not view.running or waited >= wait_steps:
            batch = admit(view)
            if batch:
                prefilled_at = view.decode_steps
                return Step(tuple(Slice(each.number, each.prefill_left) for each in batch))
        if not view.running:
            return None
        left = wait_steps - waited if waited < wait_steps and view.waiting else UNTIL_SOMETHING_HAPPENS
        ahead = tuple(each.number for each in _first_tokens(view.waiting, batch_tokens)) if prefetch else ()
        slices = tuple(Slice(each.number, 1) for each in view.running)
        return Step(slices, repeat=max(1, left), prefetch=ahead)

    def admit(view: LaneView) -> list[Cursor]:
        batch: list[Cursor] = []
        lengths = [_used_and_remaining(each) for each in view.running]
        adapters = {each.request.adapter: each.request.adapter_tokens for each in view.running}
        for cursor in _first_tokens(view.waiting, batch_tokens):
            tried = [*lengths, (cursor.prefill_left + 1, cursor.request.limit_tokens - cursor.generated_tokens - 1)]
            loaded = adapters | {cursor.request.adapter: cursor.request.adapter_tokens}
            taken = sum(loaded.values())
            room = view.capacity_tokens - (taken if shares_pool else 0)
            fits = taken <= adapter_room_tokens and len(tried) <= max_sequences
            if not fits or most_tokens(tried) >= room:
                break
            batch.append(cursor)
            lengths, adapters = tried, loaded
        return batch

    return plan


def windowed(window_ps: int, batch_tokens: int = SMALL_PROMPT_TOKENS, max_sequences: int = 256) -> Scheduler:
    """Whole prompts in order of arrival, as a batch that is full or whose oldest has waited for a window (LAPS).

    Until then what runs decodes, a step at a time; where nothing runs the lane waits.
    """

    def plan(view: LaneView) -> Step | Wait | None:
        room_tokens = min(batch_tokens, view.free_tokens)
        batch = list(_first_tokens(view.waiting, room_tokens))[: max_sequences - len(view.running)]
        if not batch and view.waiting and view.waiting[0].prefill_left <= view.free_tokens:
            batch = [view.waiting[0]]  # longer than a batch is to be: alone
        is_full = len(batch) < len(view.waiting)
        if batch:
            until_ps = batch[0].request.arrival_ps + window_ps
            if is_full or view.now_ps >= until_ps:
                return Step(tuple(Slice(each.number, each.prefill_left) for each in batch))
            if not view.running:
                return Wait(until_ps)
        decodes = _decodes(view)
        return decodes if decodes is None or not batch else replace(decodes, repeat=1)

    return plan


def most_tokens(used_and_remaining: Iterable[tuple[int, int]]) -> int:
    """Return the most KV that requests hold at any time until the last ends, if none is preempted and none comes.

    >>> most_tokens([(10, 5), (100, 1)])  # both for one step more: 112; then the first alone: 15
    112
    """
    most, used = 0, 0
    for place, (has, left) in enumerate(sorted(used_and_remaining, key=lambda each: -each[1]), start=1):
        used += has
        most = max(most, left * place + used)
    return most


SCHEDULERS: dict[str, Callable[..., Scheduler]] = {
    "fcfs": fcfs,
    "priority": priority,
    "edf": edf,
    "s-edf": s_edf,
    "vllm-chunked": vllm_chunked,
    "no-preempt": no_preempt,
    "windowed": windowed,
}


@dataclass(frozen=True, slots=True)
class _BySlack:
    """Slack-aware earliest deadline first, with batches of small prompts."""

    estimate_ps: EstimatePs
    batch_tokens: int
    max_sequences: int
    preempt: str
    quantum_ps: int
    urgent_share: float

    def plan(self, view: LaneView) -> Step | None:
        """Return the best of the steps that stand and the prompts that have not begun; decodes where there is none."""
        known = {cursor.number: cursor for cursor in (*view.waiting, *view.running)}
        standing = [
            (self._rank(view, [known[each.number] for each in paused.slices], paused.done_ps), paused.slices)
            for paused in _standing(view)
        ]
        fresh = self._fresh(view, known)
        best = min(standing, default=None)
        if fresh and (best is None or fresh[0][0] < best[0]):
            batch = self._take_along(view, [cursor for _, cursor in fresh])
            best = fresh[0][0], tuple(Slice(each.number, each.prefill_left) for each in batch)
        return _decodes(view) if best is None else Step(best[1], self.preempt, self.quantum_ps)

    def _fresh(self, view: LaneView, known: Mapping[int, Cursor]) -> list[tuple[Any, Cursor]]:
        """Return the prompts that may begin, the best first; where KV is short, only those that have begun before."""
        busy = {each.number for step in _standing(view) for each in step.slices}
        room = len(view.running) < self.max_sequences
        found = [
            (self._rank(view, [cursor], 0), cursor)
            for cursor in known.values()
            if cursor.number not in busy
            and not cursor.is_decoding
            and (cursor.computed_tokens > 0 or (room and cursor.prefill_left <= view.free_tokens))
        ]
        return sorted(found, key=lambda each: each[0])

    def _rank(self, view: LaneView, members: Sequence[Cursor], done_ps: int) -> tuple[int, int, int]:
        head, tokens = members[0], sum(each.prefill_left for each in members)
        left_ps = max(0.0, self.estimate_ps(head.number, tokens) - done_ps)
        deadline_ps = head.request.deadline_ps
        if deadline_ps - view.now_ps - left_ps >= 0:
            return 0, deadline_ps, head.number
        return 1, -deadline_ps, head.number

    def _take_along(self, view: LaneView, cursors: Sequence[Cursor]) -> list[Cursor]:
        """Return the first prompt and those that may share its step while its own promise has time in hand."""
        head = cursors[0]
        batch, tokens = [head], head.prefill_left
        promise_ps = head.request.deadline_ps - head.request.arrival_ps
        spare_ps = head.request.deadline_ps - view.now_ps - self.urgent_share * promise_ps
        if tokens > self.batch_tokens or spare_ps <= 0:
            return batch
        most_tokens = min(self.batch_tokens, view.free_tokens)
        for other in cursors[1:]:
            more = tokens + other.prefill_left
            fits = more <= most_tokens and len(batch) + len(view.running) < self.max_sequences
            if fits and self.estimate_ps(head.number, more) <= spare_ps:
                batch.append(other)
                tokens = more
        return batch


class _Filling:
    """A step of continuous batching that is being filled: who runs, the chunks given, the KV and tokens left."""

    def __init__(self, view: LaneView) -> None:
        self.running, self.free_tokens, self.budget_tokens = list(view.running), view.free_tokens, 0
        self.evicted: list[int] = []
        self._chunks: dict[int, int] = {}

    @property
    def decodes(self) -> int:
        return sum(each.is_decoding for each in self.running)

    def evict_last(self) -> None:
        """Take the last admitted out of the step."""
        last = self.running.pop()
        self.evicted.append(last.number)
        self.free_tokens += last.computed_tokens + self._chunks.pop(last.number, 0)

    def go_on(self, cursor: Cursor, chunk: int) -> None:
        """Give a prompt that has begun its next chunk, evicting from the tail for it."""
        while cursor in self.running and chunk > self.free_tokens - self.decodes:
            self.evict_last()
        if cursor in self.running and chunk > 0:
            self._give(cursor, chunk)

    def admit(self, cursor: Cursor, chunk: int) -> bool:
        """Let a prompt begin with a chunk; say whether there was KV for it."""
        if chunk + self.decodes > self.free_tokens:
            return False
        self.running.append(cursor)
        self._give(cursor, chunk)
        return True

    def _give(self, cursor: Cursor, chunk: int) -> None:
        self._chunks[cursor.number] = chunk
        self.free_tokens -= chunk
        self.budget_tokens -= chunk

    def planned(self) -> Step | None:
        """Return the step; one of decodes alone goes on until something happens."""
        slices = tuple(
            Slice(each.number, self._chunks.get(each.number, 1))
            for each in self.running
            if each.is_decoding or each.number in self._chunks
        )
        if not slices:
            return None
        repeat = 1 if self._chunks or self.evicted else UNTIL_SOMETHING_HAPPENS
        return Step(slices, repeat=repeat, evict=tuple(self.evicted))


def _whole_prompts(key: Key, preempt: str, batch_tokens: int, max_sequences: int) -> Scheduler:
    """Return a scheduler of whole prompts by a key; small neighbours in that order share a step."""

    def plan(view: LaneView) -> Step | None:
        standing = _standing(view)
        busy = {each.number for step in standing for each in step.slices}
        known = {cursor.number: cursor for cursor in (*view.waiting, *view.running)}
        fresh = sorted((each for each in known.values() if each.number not in busy and not each.is_decoding), key=key)
        oldest = min(standing, key=lambda step: key(known[step.slices[0].number]), default=None)
        if oldest is not None and not (fresh and key(fresh[0]) < key(known[oldest.slices[0].number])):
            return Step(oldest.slices, preempt)
        room = max_sequences - len(view.running)
        batch: list[Cursor] = []
        tokens = 0
        for cursor in fresh:
            more = tokens + cursor.prefill_left
            if len(batch) >= room or more > view.free_tokens or (batch and more > batch_tokens):
                break
            batch.append(cursor)
            tokens = more
        if batch:
            return Step(tuple(Slice(each.number, each.prefill_left) for each in batch), preempt)
        return Step(oldest.slices, preempt) if oldest is not None else _decodes(view)

    return plan


def _standing(view: LaneView) -> list[Paused]:
    """Return the steps that stand at a boundary, the one that was under way among them."""
    return [*view.paused, *([view.under_way] if view.under_way is not None else [])]


def _decodes(view: LaneView) -> Step | None:
    """Return a run of all that decodes; None where nothing does. Where KV runs out, the last admitted is evicted."""
    decoding, evicted, free_tokens = [each for each in view.running if each.is_decoding], [], view.free_tokens
    while len(decoding) > 1 and len(decoding) > free_tokens:
        last = decoding.pop()
        evicted.append(last.number)
        free_tokens += last.computed_tokens
    slices = tuple(Slice(each.number, 1) for each in decoding)
    return Step(slices, repeat=UNTIL_SOMETHING_HAPPENS, evict=tuple(evicted)) if slices else None


def _used_and_remaining(cursor: Cursor) -> tuple[int, int]:
    """Return the KV a request holds at the next step, and the tokens it may still be given after that."""
    used = cursor.request.input_tokens + cursor.generated_tokens
    return used, cursor.request.limit_tokens - cursor.generated_tokens - 1


def _first_tokens(waiting: Iterable[Cursor], batch_tokens: int) -> Iterable[Cursor]:
    """Yield what waits, in order, while its prompts fit a batch."""
    tokens = 0
    for cursor in waiting:
        tokens += cursor.prefill_left
        if tokens > batch_tokens:
            return
        yield cursor
