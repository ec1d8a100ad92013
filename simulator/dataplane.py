"""The data plane: lanes that batch, prefill, decode, page KV and preempt, as one discrete-event loop on step ends.

Times are whole picoseconds since the trace began. A lane is one scheduler with its own KV pool: a replica has one, or
one per pipeline stage or data-parallel rank. Between two changes of its batch a lane decodes in one go; an arrival cuts
that run short at the first step end after it. A scheduler at time t sees what arrived before t.

An asynchronous scheduler forms a step when the one before begins, so it sees what had arrived, and the blocks that had
come free, by then; where that leaves nothing to do, it forms the step when the device falls idle.
"""

import numpy as np

from models.compiled import inner_kernel
from models.step import ALONE, BESIDE_PREFILL, decode_ps, decode_run_ps, prefill_ps
from simulator.blocks import (
    blocks,
    context,
    grow_context,
    mark_crossings,
    modulo,
    most_blocks,
    own_blocks,
    steps_to,
)
from simulator.cache import give_blocks, hold, leave_content, leave_own, look_up, share, take_blocks
from simulator.layout import (
    CANCELLED,
    CANCELS,
    DECODE_RUN,
    DECODING,
    DEPARTS,
    FAR,
    FINISHED,
    IDLE,
    LOADING,
    MIXED_STEP,
    MOVING,
    NONE,
    PREFILL,
    PREFILLING,
    READY,
    STAYS,
    TELL_CANCELLED,
    TELL_DEPARTED,
    TELL_FINISHED,
    TELL_FIRST_TOKEN,
    TELL_PREEMPTED,
    TELL_PREFILLED,
    WAITING,
)
from simulator.queues import (
    append_prefill,
    append_ready,
    append_running,
    append_waiting,
    insert_waiting,
    link_running,
    place_of_finish,
    pop_waiting,
    prepend_waiting,
    push_finish,
    remove_finish,
    remove_prefill,
    remove_running,
)
from simulator.reserve import has_room, least_answered, reserve_more
from simulator.tiers import fetch, has_tiers, known_tokens, steps_without_writing, with_fetch, write_through
from simulator.timers import LOADED, set_timer
from simulator.tournament import settle_end, settle_load

KEY_SHIFT = 32


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
        elapsed_ps += _decode_step_ps(state.prices, here, steps)
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
def look_again(state, here, now_ps):
    """Let a lane whose blocks have come free between its steps see at the next whether what waits can begin."""
    if here.waiting > 0:
        cut_run(state, here, now_ps)
    else:
        wake(state, here, now_ps)


@inner_kernel
def release_source(state, row, now_ps):
    """Give back a request's blocks on the lane that prefilled it, which may let that lane go on."""
    source = state.lanes[row.source_lane]
    give_blocks(source, own_blocks(row, source))
    if row.held_nodes > 0:
        leave_content(state, row, source)
    row.contents = 0
    row.source_lane = NONE
    look_again(state, source, now_ps)


@inner_kernel
def unlease(state, slot, now_ps):
    """Give back what was kept free for a request."""
    row = state.requests[slot]
    if row.leased_lane != NONE:
        here = state.lanes[row.leased_lane]
        give_blocks(here, row.leased_blocks)
        here.loading -= 1
        row.leased_lane = NONE
        row.leased_blocks = 0
        look_again(state, here, now_ps)


@inner_kernel
def arrive_ready(state, slot, now_ps):
    """Let a request whose KV has come to its lane take part from the next step on."""
    row = state.requests[slot]
    here = state.lanes[row.lane]
    here.loading -= 1
    row.status = READY
    append_ready(state.requests, here, slot)
    cut_run(state, here, now_ps)


@inner_kernel
def _decode_step_ps(prices, here, step):
    """Return the duration of the lane's `step`-th decode step from now."""
    verified = here.decoding * here.verified_tokens
    fixed_ps = prices[here.token_at + verified] + prices[here.sequence_at + here.decoding]
    return fixed_ps + decode_ps(
        prices, here, ALONE, here.decoding, context(here) + step * here.decoding * here.growth_parts
    )


@inner_kernel
def begin_step(state, here, now_ps):
    """Begin the step that the scheduler has formed; where it had nothing to do then, it forms one now."""
    here.start_ps = now_ps
    was_busy = here.activity != IDLE
    formed_ps = here.formed_ps if was_busy else now_ps
    if here.twin != NONE:
        _catch_up(state, here, was_busy, now_ps)
    if here.variant != here.next_variant or here.twin != NONE:
        _price(state, here)
    while not _form_step(state, here, formed_ps):
        if formed_ps == now_ps:
            here.activity = IDLE
            set_end(state, here, FAR)
            break
        formed_ps = now_ps
    if here.twin != NONE:
        _meet_twin(state, here, was_busy, now_ps)


@inner_kernel
def _price(state, here):
    """Take the prices of the lane's variant for its coming steps; of twins, those beside a busy one follow on them."""
    wanted = here.next_variant
    if here.twin != NONE and state.lanes[here.twin].activity != IDLE:
        wanted += 1
    if here.variant != wanted:
        here.variant = wanted
        prices = state.variants[wanted]
        here.token_at, here.sequence_at = prices.token_at, prices.sequence_at
        here.alone_at, here.beside_at = prices.alone_at, prices.beside_at
        here.cells, here.cell_shift = prices.cells, prices.cell_shift
        here.prefill_at, here.window_tokens = prices.prefill_at, prices.window_tokens


@inner_kernel
def _catch_up(state, here, was_busy, now_ps):
    """Book the steps of a twin's run of decodes that have ended by now, and end the run with the step under way.

    So this lane sees the blocks they took, and those that it takes itself are not counted on. Of steps that end at
    this very instant, those of a higher lane come after this one's, but before what wakes an idle lane.
    """
    other = state.lanes[here.twin]
    share_blocks(here, other)
    if other.activity != DECODE_RUN or other.run_steps == 1:
        return
    limit_ps = now_ps - other.start_ps - (1 if was_busy else 0)
    whole = book_steps(state, other, limit_ps)
    elapsed_ps = decode_run_ps(state.prices, other, other.decoding, context(other), 1, FAR)[1]
    other.run_steps = 1
    set_end(state, other, other.start_ps + elapsed_ps)
    if whole > 0:
        share_blocks(other, here)


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
def _meet_twin(state, here, was_busy, now_ps):
    """Show the twin the blocks that are free now, and wake it for them or for steps that have another price."""
    other = state.lanes[here.twin]
    share_blocks(here, other)
    wake(state, other, now_ps)
    if other.activity != IDLE and was_busy != (here.activity != IDLE):
        cut_run(state, other, now_ps)


@inner_kernel
def share_blocks(here, other):
    """Let two lanes of one memory agree on what is free."""
    other.free_blocks, other.plain_blocks = here.free_blocks, here.plain_blocks


@inner_kernel
def _form_step(state, here, formed_ps):
    """Form a step as vLLM v1 does: running requests first, then the waiting, within the token budget; say if any.

    Where prefills go first, decodes take part only if there is nothing to prefill.
    """
    _join_ready(state, here)
    postponed = False
    budget_tokens = here.max_batched_tokens
    if not here.prefill_first:
        postponed = _make_room_for_decodes(state, here)
        budget_tokens -= here.decoding * here.verified_tokens
    here.is_eroding = here.is_short = 0
    chunks, new_tokens, attention_ps = 0, 0, 0
    if here.first_prefill != NONE:
        chunks, new_tokens, attention_ps, preempted = _continue_prefills(state, here, budget_tokens)
        budget_tokens -= new_tokens
        postponed = postponed or preempted
    if here.waiting > 0 and not postponed:
        started, tokens, started_ps = _admit_waiting(state, here, budget_tokens, formed_ps)
        chunks, new_tokens, attention_ps = chunks + started, new_tokens + tokens, attention_ps + started_ps
    if chunks == 0 and here.prefill_first and _make_room_for_decodes(state, here):
        postponed = True
    postponed = postponed or _will_know_more(state.requests, here, formed_ps)
    here.late_blocks = 0
    here.late_finishes = 0
    if chunks > 0:
        _begin_mixed_step(state, here, chunks, new_tokens, attention_ps)
    elif here.decoding > 0:
        _begin_decode_run(state, here, postponed)
    return chunks > 0 or here.decoding > 0


@inner_kernel
def _join_ready(state, here):
    """Let the requests whose KV has come take part in the decodes of the coming step."""
    while here.first_ready != NONE and here.running < here.max_sequences:
        slot = here.first_ready
        row = state.requests[slot]
        here.first_ready = row.next_waiting
        link_running(state.requests, here, slot)
        row.joined_ps = here.start_ps
        _start_decoding(state.words, here, row, slot)
        if row.is_leaving != STAYS:
            leave(state, here, slot)
            row.finish_ps = here.start_ps
            settle_load(state.words, state.lanes, here)


@inner_kernel
def leave(state, here, slot):
    """Take a request out of the running ones; one that departs keeps its KV, one that was cancelled frees it."""
    row = state.requests[slot]
    if row.status == DECODING:
        stop_decoding(state, here, slot)
    else:
        here.prefilled_tokens -= row.computed_tokens
        remove_prefill(state.requests, here, slot)
    if row.is_leaving == DEPARTS:
        row.is_leaving = STAYS
        _set_out(state, here, slot, TELL_DEPARTED)
        return
    row.status = CANCELLED
    _end(state, here, slot)
    tell(state, TELL_CANCELLED, slot)


@inner_kernel
def _is_seen(row, here, formed_ps):
    """Say whether the scheduler knew of a waiting request when it formed the step."""
    return formed_ps == here.start_ps or row.enqueued_ps < formed_ps


@inner_kernel
def _will_know_more(requests, here, formed_ps):
    """Say whether what waits may be admitted a step later, when an asynchronous scheduler has caught up."""
    if here.waiting == 0:
        return False
    return here.late_finishes > 0 or not _is_seen(requests[here.first_waiting], here, formed_ps)


@inner_kernel
def _begin_mixed_step(state, here, chunks, new_tokens, attention_ps):
    """Prefill the chunks, and give every decode a token beside them unless prefills go alone."""
    here.activity = MIXED_STEP
    here.chunks, here.new_tokens = chunks, new_tokens
    decodes = 0 if here.prefill_first else here.decoding
    here.run_steps = 1 if decodes > 0 else 0
    duration_ps = (
        state.prices[here.token_at + decodes * here.verified_tokens + new_tokens]
        + state.prices[here.sequence_at + decodes + chunks]
        + attention_ps
        + here.swap_ps
    )
    here.swap_ps = 0
    if decodes > 0:
        duration_ps += decode_ps(
            state.prices, here, BESIDE_PREFILL, decodes, context(here) + decodes * here.growth_parts
        )
    if has_tiers(state, here):
        duration_ps = with_fetch(state.words, here, duration_ps)
    set_end(state, here, _through_pipeline(state.words, here, duration_ps))


@inner_kernel
def _begin_decode_run(state, here, postponed):
    """Decode until a request finishes or blocks run out.

    Only one step where that is asked, where lanes share stages or step together, where it also swaps, and where
    admissions are put off.
    """
    here.activity = DECODE_RUN
    steps = (state.words[here.finishes_at] >> KEY_SHIFT) - here.steps
    is_bound = here.stages > 1 or here.ranks > 1
    if is_bound or postponed or here.is_short or here.swap_ps > 0 or state.clock[0].fast_forward == 0:
        steps = 1
    elif here.is_eroding:
        steps = _steps_until_crossing(state.words, here, steps)
    if has_tiers(state, here):
        steps = steps_without_writing(state, here, steps)
    here.run_steps = _steps_within_blocks(state.words, here, steps)
    elapsed_ps = decode_run_ps(state.prices, here, here.decoding, context(here), here.run_steps, FAR)[1]
    set_end(state, here, _through_pipeline(state.words, here, elapsed_ps + here.swap_ps))
    here.swap_ps = 0


@inner_kernel
def _steps_until_crossing(words, here, steps):
    """Return the first of `steps` in which a decode takes a block: one that the head of the queue had hoped to find."""
    for step in range(1, min(steps, 1 << here.period_shift) + 1):
        if words[here.crossings_at + modulo(here.steps + step, here.period_shift)] > 0:
            return step
    return steps


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
def _through_pipeline(words, here, duration_ps):
    """Return when a step ends that passes the replica's stages in turn, each taking an equal part of it."""
    if here.stages == 1:
        return here.start_ps + duration_ps
    end_ps = here.start_ps
    stage_ps = duration_ps // here.stages
    for stage in range(here.stages_at, here.stages_at + here.stages):
        end_ps = max(end_ps, words[stage]) + stage_ps
        words[stage] = end_ps
    return end_ps


@inner_kernel
def _steps_within_blocks(words, here, steps):
    """Return how many of `steps` decode steps the free blocks allow; the first was made sure of."""
    if here.free_blocks >= here.decoding * ((steps * here.growth_parts >> here.period_shift) + 1):
        return steps
    rounds = (here.free_blocks // here.decoding) - 1
    allowed = max(0, min(steps, (rounds << here.period_shift) // here.growth_parts))
    left = here.free_blocks - blocks_crossed(words, here, allowed)
    while allowed < steps:
        left -= words[here.crossings_at + modulo(here.steps + allowed + 1, here.period_shift)]
        if left < 0:
            break
        allowed += 1
    return allowed


@inner_kernel
def blocks_crossed(words, here, steps):
    """Return how many blocks the lane's decodes take in their next `steps` steps."""
    blocks = (steps >> here.period_shift) * here.decoding * here.growth_parts
    for step in range(here.steps + 1, here.steps + modulo(steps, here.period_shift) + 1):
        blocks += words[here.crossings_at + modulo(step, here.period_shift)]
    return blocks


@inner_kernel
def _make_room_for_decodes(state, here):
    """Preempt from the tail until every decode that crosses a block boundary in this step can; say if any was."""
    preempted = False
    while here.decoding > 0 and free_beside_decodes(state.words, here) < 0:
        _preempt(state, here, _victim(state.requests, here))
        preempted = True
    return preempted


@inner_kernel
def _victim(requests, here):
    """Return the running request to preempt: the last admitted or, by priority, the least urgent, latest one.

    One that already has a chunk in the step being formed keeps it.
    """
    if here.reserve_fall > 0:
        return least_answered(requests, here)
    victim = here.last_running
    if here.by_priority:
        slot, most = victim, -FAR
        while slot != NONE:
            row = requests[slot]
            urgency = (row.priority << KEY_SHIFT) + row.number
            if row.chunk_tokens == 0 and urgency > most:
                victim, most = slot, urgency
            slot = row.previous_running
    return victim


@inner_kernel
def free_beside_decodes(words, here):
    """Return the free blocks less those that the decodes of this very step will take."""
    return here.free_blocks - here.late_blocks - words[here.crossings_at + modulo(here.steps + 1, here.period_shift)]


@inner_kernel
def _continue_prefills(state, here, budget_tokens):
    """Give the requests in prefill their next chunks; return (chunks, tokens, attention time, was one preempted)."""
    chunks, new_tokens, attention_ps, preempted = 0, 0, 0, False
    slot = here.first_prefill
    while slot != NONE:
        row = state.requests[slot]
        chunk = min(_prefill_left(row), here.long_prefill_tokens, budget_tokens - new_tokens)
        need = blocks(row.computed_tokens + chunk, here) - blocks(row.computed_tokens, here)
        while need > free_beside_decodes(state.words, here) and row.status == PREFILLING:
            _preempt(state, here, _victim(state.requests, here))
            preempted = True
        if row.status != PREFILLING:
            chunk = 0
        row.chunk_tokens = chunk
        if chunk > 0:
            attention_ps += _give_chunk(state, here, row, chunk, need)
            chunks += 1
            new_tokens += chunk
        slot = row.next_prefill
    return chunks, new_tokens, attention_ps, preempted


@inner_kernel
def _admit_waiting(state, here, budget_tokens, formed_ps):
    """Start waiting requests in order while sequences, tokens and blocks allow; return (chunks, tokens, time)."""
    chunks, new_tokens, attention_ps = 0, 0, 0
    most_running = here.max_sequences - here.late_finishes
    while here.waiting > 0 and here.running + here.loading < most_running and new_tokens < budget_tokens:
        slot = here.first_waiting
        row = state.requests[slot]
        if not _is_seen(row, here, formed_ps):
            break
        if row.source_lane != NONE:
            if not _load(state, here, row, slot):
                break
            continue
        chunk, need = _admit(state, here, row, budget_tokens - new_tokens)
        if chunk == 0:
            break
        pop_waiting(state.requests, here)
        append_running(state.requests, here, slot)
        if row.scheduled_ps == FAR:
            row.scheduled_ps = formed_ps
        row.chunk_tokens = chunk
        here.prefilled_tokens += row.computed_tokens
        attention_ps += _give_chunk(state, here, row, chunk, need)
        chunks += 1
        new_tokens += chunk
    return chunks, new_tokens, attention_ps


@inner_kernel
def _load(state, here, row, slot):
    """Lease the blocks of a request that was prefilled elsewhere and start its KV on the way; say if they were free."""
    need = blocks(row.computed_tokens, here)
    if need > free_beside_decodes(state.words, here) - here.watermark_blocks:
        return False
    take_blocks(state, here, need)
    pop_waiting(state.requests, here)
    row.status = LOADING
    here.loading += 1
    source = state.lanes[row.source_lane]
    moving_ps = row.computed_tokens * source.link_ps_per_token
    if source.link_layers > 0:
        moving_ps = max(moving_ps // source.link_layers, moving_ps - row.last_chunk_ps)
    begin_ps = max(here.start_ps, source.link_free_ps)
    source.link_free_ps = begin_ps + moving_ps
    row.lands_ps = begin_ps + moving_ps + source.link_latency_ps
    set_timer(state, row.lands_ps, 2 * row.number + LOADED, slot)
    return True


@inner_kernel
def _admit(state, here, row, budget_tokens):
    """Return a waiting request's (first chunk, blocks it needs), its cached blocks in hold; 0 where it must wait."""
    nodes, shared_blocks, part, own, queued_blocks = 0, 0, 0, 0, 0
    looks_up = here.caching and row.swapped_tokens == 0
    if looks_up:
        nodes, shared_blocks, part, own, queued_blocks = look_up(state, row, here)
    found_blocks = shared_blocks + part + own
    total_tokens = row.input_tokens + row.generated_tokens
    found_tokens = min(found_blocks << here.block_shift, total_tokens)
    from_tokens = found_tokens
    if has_tiers(state, here) and looks_up:
        found_tokens = max(found_tokens, known_tokens(state, row, here, nodes))
        here.is_short = 1  # for what is known below may change at any time
    computed_tokens = max(row.swapped_tokens, min(found_tokens, total_tokens - 1))
    chunk = min(total_tokens - computed_tokens, here.long_prefill_tokens)
    if here.chunked_prefill == 0 and chunk > budget_tokens:
        return 0, 0
    chunk = min(chunk, budget_tokens)
    need = max(0, blocks(computed_tokens + chunk, here) - found_blocks)
    if need + queued_blocks > free_beside_decodes(state.words, here) - here.watermark_blocks:
        here.is_eroding = 1 if queued_blocks > 0 else 0
        return 0, 0
    if here.reserve_fall > 0:
        free_tokens = (free_beside_decodes(state.words, here) - queued_blocks) << here.block_shift
        if not has_room(state.requests, here, row, total_tokens - computed_tokens, free_tokens):
            here.is_short = 1
            return 0, 0
    if here.reserves and here.reserved_blocks + most_blocks(row, here) > here.total_blocks:
        return 0, 0
    if looks_up:
        hold(state, row, here, nodes, part, own)
    if found_tokens > from_tokens:
        fetch(state, row, here, nodes, from_tokens, found_tokens)
    if row.scheduled_ps == FAR:
        row.cached_tokens = min(found_tokens, row.input_tokens)
    row.computed_tokens = computed_tokens
    here.swap_ps += row.swapped_tokens * here.swap_ps_per_token
    row.swapped_tokens = 0
    return chunk, need


@inner_kernel
def _give_chunk(state, here, row, chunk, need):
    """Give a request in prefill its blocks for a chunk; return the chunk's attention time."""
    take_blocks(state, here, need)
    here.prefilled_tokens += chunk
    if here.caching and row.held_nodes < row.contents:
        share(state, row, here, row.computed_tokens + chunk)
    return prefill_ps(state.prices, here, chunk, row.computed_tokens)


@inner_kernel
def end_step(state, here):
    """Book what a lane's ended step or run produced, if it was not idle: decodes, then prefills that are complete.

    The next step is formed now, or was when the ended one began where the scheduler is asynchronous.
    """
    if here.activity == IDLE:
        return
    words = state.words
    if here.start_ps < state.clock[0].log_until_ps:
        _write_down(state, here)
    outstanding, here.formed_ps = here.outstanding, here.end_ps
    if here.asynchronous:
        here.formed_ps = here.start_ps
        if here.run_steps > 1:
            here.formed_ps = here.end_ps - _decode_step_ps(state.prices, here, here.run_steps)
    here.busy_ps += here.end_ps - here.start_ps
    here.scheduled_steps += max(1, here.run_steps)
    if here.decoding > 0:
        take_blocks(state, here, blocks_crossed(words, here, here.run_steps))
        here.steps += here.run_steps
        if here.run_steps > 0 and here.reserve_fall > 0:
            here.reserve = max(here.reserve_least, here.reserve - here.run_steps * here.reserve_fall)
        grow_context(here, here.run_steps * here.decoding * here.growth_parts)
    free_blocks = here.free_blocks
    while here.decoding > 0 and words[here.finishes_at] >> KEY_SHIFT <= here.steps:
        slot = words[here.finishes_at + 1]
        stop_decoding(state, here, slot)
        _finish(state, here, slot)
    if here.activity == MIXED_STEP:
        _end_prefills(state, here)
    if here.leaving > 0:
        _let_leave(state, here)
    if here.outstanding < outstanding:
        settle_load(words, state.lanes, here)
        if here.asynchronous:
            here.late_blocks = here.free_blocks - free_blocks
            here.late_finishes = outstanding - here.outstanding


@inner_kernel
def _write_down(state, here):
    """Log the ended step or run if it reached into the window that is watched, and if there is room."""
    clock = state.clock[0]
    if here.end_ps <= clock.log_from_ps:
        return
    if clock.logged == state.log.size:
        clock.not_logged += 1
        return
    row = state.log[clock.logged]
    clock.logged += 1
    row.lane, row.start_ps, row.end_ps = here.number, here.start_ps, here.end_ps
    row.steps, row.decodes = max(1, here.run_steps), here.decoding if here.run_steps > 0 else 0
    row.context_tokens, row.context_parts = here.context_tokens, here.context_parts
    row.chunks, row.new_tokens = 0, 0
    if here.activity == MIXED_STEP:
        row.chunks, row.new_tokens = here.chunks, here.new_tokens


@inner_kernel
def _end_prefills(state, here):
    """Move every request whose prefill is complete to decoding, with its next token out."""
    slot = here.first_prefill
    here.first_prefill = NONE
    here.last_prefill = NONE
    while slot != NONE:
        row = state.requests[slot]
        following = row.next_prefill
        row.computed_tokens += row.chunk_tokens
        row.chunk_tokens = 0
        if _prefill_left(row) > 0:
            append_prefill(state.requests, here, slot)
        else:
            here.prefilled_tokens -= row.computed_tokens
            if has_tiers(state, here):
                write_through(state, row, here)
            if row.generated_tokens == 0:
                row.first_token_ps = here.end_ps
                tell(state, TELL_FIRST_TOKEN, slot)
            row.generated_tokens += 1
            if row.generated_tokens >= row.output_tokens:
                _finish(state, here, slot)
            elif here.role == PREFILL and row.is_leaving != CANCELS:
                _hand_over(state, here, slot)
            else:
                _start_decoding(state.words, here, row, slot)
        slot = following


@inner_kernel
def _hand_over(state, here, slot):
    """Hand a prefilled request to the lane's twin, or queue it at the decode lane with the shortest queue.

    In a queue its KV stays here until it moves. Where no lane is open, or the control plane moves what was prefilled,
    tell it.
    """
    row = state.requests[slot]
    row.last_chunk_ps = here.end_ps - here.start_ps
    lane = here.twin if here.twin != NONE else state.words[state.clock[0].decode_tree + 1]
    if state.lanes[lane].load == np.inf or (here.twin == NONE and state.clock[0].hands_over == 0):
        _set_out(state, here, slot, TELL_PREFILLED)
        return
    here.outstanding -= 1
    remove_running(state.requests, here, slot)
    row.lane = lane
    other = state.lanes[row.lane]
    other.assigned += 1
    if here.twin == NONE:
        row.status = WAITING
        row.source_lane = here.number
        queue_at(state, other, slot, here.end_ps)
        wake(state, other, here.end_ps)
    else:
        row.status = READY
        other.outstanding += 1
        append_ready(state.requests, other, slot)
        share_blocks(here, other)
        cut_run(state, other, here.end_ps)


@inner_kernel
def _set_out(state, here, slot, notice):
    """Take a request out of the batch, its KV where it is, for the control plane to move."""
    row = state.requests[slot]
    here.outstanding -= 1
    remove_running(state.requests, here, slot)
    row.status = MOVING
    row.source_lane = here.number
    row.is_leaving = min(row.is_leaving, CANCELS)
    tell(state, notice, slot)


@inner_kernel
def _let_leave(state, here):
    """Take out the running requests that were cancelled during the step, the last admitted first."""
    slot = here.last_running
    while slot != NONE:
        before = state.requests[slot].previous_running
        if state.requests[slot].is_leaving != STAYS:
            leave(state, here, slot)
        slot = before
    here.leaving = 0


@inner_kernel
def _start_decoding(words, here, row, slot):
    row.status = DECODING
    row.joined_step = here.steps
    here.context_tokens += row.computed_tokens
    mark_crossings(words, row, here, 1)
    last_step = here.steps + steps_to(row.output_tokens - row.generated_tokens, here)
    push_finish(words, here, (last_step << KEY_SHIFT) + row.number, slot)
    here.decoding += 1


@inner_kernel
def stop_decoding(state, here, slot):
    """Take a decoding request out of the batch."""
    row = state.requests[slot]
    mark_crossings(state.words, row, here, -1)
    decoded_parts = (here.steps - row.joined_step) * here.growth_parts
    grow_context(here, -decoded_parts)
    here.context_tokens -= row.computed_tokens
    row.generated_tokens += decoded_parts >> here.part_shift
    row.computed_tokens += decoded_parts >> here.part_shift
    remove_finish(state.words, here, place_of_finish(state.words, here, slot))
    here.decoding -= 1


@inner_kernel
def _finish(state, here, slot):
    state.requests[slot].status = FINISHED
    _end(state, here, slot)
    tell(state, TELL_FINISHED, slot)


@inner_kernel
def _end(state, here, slot):
    """Let go of a running request, finished or cancelled."""
    row = state.requests[slot]
    row.finish_ps = here.end_ps
    state.clock[0].done += 1
    if row.leased_lane != NONE:
        unlease(state, slot, here.end_ps)
    here.outstanding -= 1
    give_blocks(here, own_blocks(row, here))
    if row.held_nodes > 0:
        leave_content(state, row, here)
    remove_running(state.requests, here, slot)


@inner_kernel
def _preempt(state, here, slot):
    """Put a running request back to the head of the queue; its KV must be computed again, but for what stays cached."""
    row = state.requests[slot]
    if row.status == DECODING:
        stop_decoding(state, here, slot)
    else:
        here.prefilled_tokens -= row.computed_tokens
        remove_prefill(state.requests, here, slot)
    if here.swap_ps_per_token > 0:
        give_blocks(here, own_blocks(row, here))
        row.swapped_tokens = row.computed_tokens
        here.swap_ps += row.computed_tokens * here.swap_ps_per_token
    else:
        full_blocks = max(0, (row.computed_tokens >> here.block_shift) - row.held_blocks)
        give_blocks(here, own_blocks(row, here) - full_blocks)
        leave_own(state, row, here, slot, full_blocks)
    if row.held_nodes > 0:
        leave_content(state, row, here)
    remove_running(state.requests, here, slot)
    if here.reserve_fall > 0:
        reserve_more(state.requests, here)
    row.status = WAITING
    row.computed_tokens = 0
    row.enqueued_ps = NONE
    row.preemptions += 1
    here.preemptions += 1
    if row.is_leaving == DEPARTS:
        row.is_leaving = STAYS
        here.leaving -= 1
    tell(state, TELL_PREEMPTED, slot)
    if here.by_priority:
        insert_waiting(state.requests, here, slot)
    else:
        prepend_waiting(state.requests, here, slot)


@inner_kernel
def _prefill_left(row):
    """Return the tokens still to compute before the next one can be sampled: a recompute includes its own output."""
    return row.input_tokens + row.generated_tokens - row.computed_tokens
