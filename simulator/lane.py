"""A lane between its steps: who queues at it, when it wakes, and where a run of decodes is cut short.

Between two changes of its batch a lane decodes in one go; an arrival ends that run with the first step end after it.
"""

from models.compiled import inner_kernel
from models.step import ALONE, decode_ps, decode_run_ps
from simulator.blocks import context, grow_context, modulo
from simulator.cache import take_blocks
from simulator.layout import DECODE_RUN, FAR, IDLE, NONE
from simulator.queues import append_waiting, insert_waiting
from simulator.tournament import settle_end, settle_load


@inner_kernel
def tell(state, notice, slot):
    """Note down what the control plane wants to be told of."""
    clock = state.clock[0]
    if (clock.told | state.requests[slot].told) & notice:
        state.notices[2 * clock.notices] = notice
        state.notices[2 * clock.notices + 1] = slot
        clock.notices += 1


@inner_kernel
def set_end(state, here, end_ps):
    clock = state.clock[0]
    settle_end(state.words, state.lanes, clock.events_at, clock.event_leaves, here.number, end_ps)


@inner_kernel
def share_blocks(here, other):
    """Let two lanes of one memory agree on what is free."""
    other.free_blocks, other.plain_blocks = here.free_blocks, here.plain_blocks


@inner_kernel
def queue_at(state, here, slot, now_ps):
    """Append a request to a lane's queue and cut its run of decodes short; return when its scheduler takes notice.

    An idle lane is for the caller to wake.
    """
    here.outstanding += 1
    settle_load(state.words, state.lanes, here)
    state.requests[slot].enqueued_ps = now_ps
    if here.by_priority:
        insert_waiting(state.requests, here, slot)
    else:
        append_waiting(state.requests, here, slot)
    if here.activity == IDLE:
        return _notice_ps(state, here, now_ps)
    if here.run_steps <= 1:
        return here.end_ps
    return _interrupt_run(state, here, slot, now_ps)


@inner_kernel
def _notice_ps(state, here, now_ps):
    """Return when an idle lane takes notice: at once, unless others that it steps with are in their step."""
    for rank in range(here.first_rank, here.first_rank + here.ranks):
        if state.lanes[rank].activity != IDLE:
            return state.lanes[rank].end_ps
    return now_ps


@inner_kernel
def wake(state, here, now_ps):
    """Let an idle lane that has something to do form a step, unless others that it steps with are in theirs."""
    has_work = here.waiting > 0 or here.first_ready != NONE
    if here.activity == IDLE and has_work and _notice_ps(state, here, now_ps) == now_ps:
        set_end(state, here, now_ps)


@inner_kernel
def keep_step(state, first, last):
    """Let the steps of lanes that step together end with the slowest one's.

    A lane with nothing to do keeps step with an empty one, which is never the slowest.
    """
    end_ps = 0
    for rank in range(first, last + 1):
        if state.lanes[rank].activity != IDLE:
            end_ps = max(end_ps, state.lanes[rank].end_ps)
    for rank in range(first, last + 1):
        if state.lanes[rank].activity != IDLE:
            set_end(state, state.lanes[rank], end_ps)


@inner_kernel
def _interrupt_run(state, here, slot, now_ps):
    """Return the first step end after `now_ps`; where the request may be admitted then, end the run of decodes there.

    An asynchronous scheduler has formed the step after that one already.
    """
    steps, elapsed_ps = decode_run_ps(
        state.prices, here, here.decoding, context(here), here.run_steps, now_ps - here.start_ps
    )
    queued_ps = here.start_ps + elapsed_ps
    can_start = here.first_waiting == slot and here.running + here.loading < here.max_sequences
    if can_start and here.asynchronous and steps < here.run_steps:
        steps += 1
        elapsed_ps += decode_step_ps(state.prices, here, steps)
    if can_start and steps < here.run_steps:
        here.run_steps = steps
        set_end(state, here, here.start_ps + elapsed_ps)
    return queued_ps


@inner_kernel
def cut_run(state, here, now_ps):
    """End the lane's run of decodes with the first step that ends after `now_ps`; wake a lane that is idle."""
    if here.activity == IDLE:
        wake(state, here, now_ps)
    elif here.activity == DECODE_RUN and here.run_steps > 1:
        steps, elapsed_ps = decode_run_ps(
            state.prices, here, here.decoding, context(here), here.run_steps, now_ps - here.start_ps
        )
        here.run_steps = steps
        set_end(state, here, here.start_ps + elapsed_ps)


@inner_kernel
def begun_steps(state, here, now_ps):
    """Return the decode steps that a lane has begun since its blocks were last counted, the one under way included."""
    if here.activity == IDLE or here.run_steps <= 1:
        return 0 if here.activity == IDLE else here.run_steps
    return decode_run_ps(state.prices, here, here.decoding, context(here), here.run_steps, now_ps - here.start_ps)[0]


@inner_kernel
def decode_step_ps(prices, here, step):
    """Return the duration of the lane's `step`-th decode step from now."""
    verified = here.decoding * here.verified_tokens
    fixed_ps = prices[here.token_at + verified] + prices[here.sequence_at + here.decoding]
    return fixed_ps + decode_ps(
        prices, here, ALONE, here.decoding, context(here) + step * here.decoding * here.growth_parts
    )


@inner_kernel
def book_steps(state, here, limit_ps):
    """Count the steps of a lane's run of decodes that have ended within so long, as far as it goes; return how many."""
    steps = decode_run_ps(state.prices, here, here.decoding, context(here), here.run_steps, limit_ps)[0]
    whole = max(0, steps - 1)
    if whole > 0:
        elapsed_ps = decode_run_ps(state.prices, here, here.decoding, context(here), whole, FAR)[1]
        take_blocks(state, here, blocks_crossed(state.words, here, whole))
        here.steps += whole
        here.scheduled_steps += whole
        here.busy_ps += elapsed_ps
        here.start_ps += elapsed_ps
        here.run_steps -= whole
        grow_context(here, whole * here.decoding * here.growth_parts)
    return whole


@inner_kernel
def look_again(state, here, now_ps):
    """Let a lane whose blocks have come free between its steps see at the next whether what waits can begin."""
    if here.waiting > 0:
        cut_run(state, here, now_ps)
    else:
        wake(state, here, now_ps)


@inner_kernel
def blocks_crossed(words, here, steps):
    """Return how many blocks the lane's decodes take in their next `steps` steps."""
    blocks = (steps >> here.period_shift) * here.decoding * here.growth_parts
    for step in range(here.steps + 1, here.steps + modulo(steps, here.period_shift) + 1):
        blocks += words[here.crossings_at + modulo(step, here.period_shift)]
    return blocks


@inner_kernel
def free_beside_decodes(words, here):
    """Return the free blocks less those that the decodes of this very step will take."""
    return here.free_blocks - here.late_blocks - words[here.crossings_at + modulo(here.steps + 1, here.period_shift)]
