"""Forms the steps of a lane: the data plane's lanes batch, prefill, decode, page KV and preempt as vLLM v1 does.

Times are whole picoseconds since the trace began. A lane is one scheduler with its own KV pool: a replica has one, or
one per pipeline stage or data-parallel rank. Between two changes of its batch a lane decodes in one go; an arrival cuts
that run short at the first step end after it. A scheduler at time t sees what arrived before t.

An asynchronous scheduler forms a step when the one before begins, so it sees what had arrived, and the blocks that had
come free, by then; where that leaves nothing to do, it forms the step when the device falls idle.
"""

from models.compiled import inner_kernel
from models.step import BESIDE_PREFILL, decode_ps, decode_run_ps, prefill_ps
from simulator.batch import leave, preempt, prefill_left, start_decoding, swap_in
from simulator.blocks import blocks, context, modulo, most_blocks
from simulator.cache import hold, look_up, share, take_blocks
from simulator.fetching import NO_ROOM, SET_OUT, fetches_outside, set_out_for
from simulator.lane import blocks_crossed, book_steps, cut_run, free_beside_decodes, set_end, share_blocks, wake
from simulator.layout import DECODE_RUN, FAR, IDLE, LOADING, MIXED_STEP, NONE, PREFILLING, STAYS
from simulator.queues import KEY_SHIFT, append_running, link_running, pop_waiting
from simulator.reserve import has_room, least_answered
from simulator.tiers import fetch, has_tiers, known_tokens, steps_without_writing, with_fetch
from simulator.timers import LOADED, set_timer
from simulator.tournament import settle_load


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
def _meet_twin(state, here, was_busy, now_ps):
    """Show the twin the blocks that are free now, and wake it for them or for steps that have another price."""
    other = state.lanes[here.twin]
    share_blocks(here, other)
    wake(state, other, now_ps)
    if other.activity != IDLE and was_busy != (here.activity != IDLE):
        cut_run(state, other, now_ps)


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
        start_decoding(state.words, here, row, slot)
        if row.is_leaving != STAYS:
            leave(state, here, slot)
            row.finish_ps = here.start_ps
            settle_load(state.words, state.lanes, here)


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
def _make_room_for_decodes(state, here):
    """Preempt from the tail until every decode that crosses a block boundary in this step can; say if any was."""
    preempted = False
    while here.decoding > 0 and free_beside_decodes(state.words, here) < 0:
        preempt(state, here, _victim(state.requests, here))
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
def _continue_prefills(state, here, budget_tokens):
    """Give the requests in prefill their next chunks; return (chunks, tokens, attention time, was one preempted)."""
    chunks, new_tokens, attention_ps, preempted = 0, 0, 0, False
    slot = here.first_prefill
    while slot != NONE:
        row = state.requests[slot]
        chunk = min(prefill_left(row), here.long_prefill_tokens, budget_tokens - new_tokens)
        need = blocks(row.computed_tokens + chunk, here) - blocks(row.computed_tokens, here)
        while need > free_beside_decodes(state.words, here) and row.status == PREFILLING:
            preempt(state, here, _victim(state.requests, here))
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
        if fetches_outside(state, here) and here.caching and row.swapped_tokens == 0:
            fetched = set_out_for(state, row, here, slot)
            if fetched == NO_ROOM:
                break
            if fetched == SET_OUT:
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
        here.is_short = 1  # for what is known below may change at any time
        if not fetches_outside(state, here):
            found_tokens = max(found_tokens, known_tokens(state, row, here, nodes))
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
    if has_tiers(state, here) and found_tokens > from_tokens:
        fetch(state, row, here, nodes, from_tokens, found_tokens)
    if row.scheduled_ps == FAR:
        row.cached_tokens = min(found_tokens, row.input_tokens)
    row.computed_tokens = computed_tokens
    if row.swapped_tokens > 0:
        swap_in(row, here)
    return chunk, need


@inner_kernel
def _give_chunk(state, here, row, chunk, need):
    """Give a request in prefill its blocks for a chunk; return the chunk's attention time."""
    take_blocks(state, here, need)
    here.prefilled_tokens += chunk
    if here.caching and row.held_nodes < row.contents:
        share(state, row, here, row.computed_tokens + chunk)
    return prefill_ps(state.prices, here, chunk, row.computed_tokens)
