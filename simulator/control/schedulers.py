"""Schedulers of a lane: each a function that returns one, by name in one dict."""

from collections.abc import Callable, Iterable
from typing import Any

from simulator.control.estimators import EstimatePs
from simulator.control.scheduled_lane import UNBOUNDED_TOKENS, Cursor, LaneView, Paused, Scheduler, Slice, Step

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

    def remaining_ps(members: list[Cursor], done_ps: int) -> float:
        return max(0.0, estimate_ps(members[0].number, sum(each.prefill_left for each in members)) - done_ps)

    def rank(view: LaneView, members: list[Cursor], done_ps: int) -> tuple[int, int, int]:
        left_ps = remaining_ps(members, done_ps)
        head = members[0]
        deadline_ps = head.request.deadline_ps
        feasible = deadline_ps - view.now_ps - left_ps >= 0
        return (0, deadline_ps, head.number) if feasible else (1, -deadline_ps, head.number)

    def plan(view: LaneView) -> Step | None:
        standing = _standing(view)
        busy = {each.number for step in standing for each in step.slices}
        known = {cursor.number: cursor for cursor in (*view.waiting, *view.running)}
        best, choice = None, None
        for paused in standing:
            ranked = rank(view, [known[each.number] for each in paused.slices], paused.done_ps)
            if best is None or ranked < best:
                best, choice = ranked, paused
        room = len(view.running) < max_sequences
        fresh = [cursor for cursor in known.values() if cursor.number not in busy and not cursor.is_decoding]
        ranks = {
            cursor.number: rank(view, [cursor], 0)
            for cursor in fresh
            if cursor.computed_tokens > 0 or (room and cursor.prefill_left <= view.free_tokens)
        }
        head = min(
            (cursor for cursor in fresh if cursor.number in ranks), key=lambda each: ranks[each.number], default=None
        )
        if head is not None and (best is None or ranks[head.number] < best):
            batch = _take_along(view, head, (each for each in fresh if each.number in ranks), ranks)
            return Step(tuple(Slice(each.number, each.prefill_left) for each in batch), preempt, quantum_ps)
        if choice is not None:
            return Step(choice.slices, preempt, quantum_ps)
        return _decodes(view)

    def _take_along(view: LaneView, head: Cursor, others: Iterable[Cursor], ranks: dict[int, Any]) -> list[Cursor]:
        batch, tokens = [head], head.prefill_left
        promise_ps = head.request.deadline_ps - head.request.arrival_ps
        spare_ps = head.request.deadline_ps - view.now_ps - urgent_share * promise_ps
        if tokens > batch_tokens or spare_ps <= 0:
            return batch
        for other in sorted(others, key=lambda each: ranks[each.number]):
            more = tokens + other.prefill_left
            fits = other is not head and more <= min(batch_tokens, view.free_tokens)
            fits = fits and len(batch) + len(view.running) < max_sequences
            if fits and estimate_ps(head.number, more) <= spare_ps:
                batch.append(other)
                tokens = more
        return batch

    return plan


def vllm_chunked(max_tokens: int, max_sequences: int, long_prefill_tokens: int = UNBOUNDED_TOKENS) -> Scheduler:
    """Continuous batching as in the data plane: decodes first, then chunks of prompts within a budget of tokens.

    Where KV runs out, the last admitted is evicted and computed again.
    """

    def plan(view: LaneView) -> Step | None:
        running, evicted, free = list(view.running), [], view.free_tokens

        def evict_last() -> Cursor:
            nonlocal free
            last = running.pop()
            evicted.append(last.number)
            free += last.computed_tokens + given.pop(last.number, 0)
            return last

        given: dict[int, int] = {}
        while free < sum(each.is_decoding for each in running):
            evict_last()
        budget = max_tokens - sum(each.is_decoding for each in running)
        for cursor in [each for each in running if not each.is_decoding]:
            chunk = min(cursor.prefill_left, long_prefill_tokens, budget)
            while cursor in running and chunk > free - sum(each.is_decoding for each in running):
                evict_last()
            if cursor in running and chunk > 0:
                given[cursor.number] = chunk
                free, budget = free - chunk, budget - chunk
        if not evicted:
            for cursor in view.waiting:
                chunk = min(cursor.prefill_left, long_prefill_tokens, budget)
                taken = chunk + sum(each.is_decoding for each in running)
                if len(running) >= max_sequences or budget <= 0 or taken > free:
                    break
                running.append(cursor)
                given[cursor.number] = chunk
                free, budget = free - chunk, budget - chunk
        slices = [
            Slice(each.number, given.get(each.number, 1))
            for each in running
            if each.is_decoding or each.number in given
        ]
        if not slices:
            return None
        repeat = 1 if given or evicted else UNTIL_SOMETHING_HAPPENS
        return Step(tuple(slices), repeat=repeat, evict=tuple(evicted))

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
}


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
    """Return a run of all that decodes; None where nothing does."""
    slices = tuple(Slice(each.number, 1) for each in view.running if each.is_decoding)
    return Step(slices, repeat=UNTIL_SOMETHING_HAPPENS) if slices else None


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
