"""Books what a lane's step or run of decodes produced: tokens, finishes, prefills that are complete, hand-overs."""

import numpy as np

from models.compiled import inner_kernel
from simulator.batch import finish, leave, prefill_left, set_out, start_decoding, stop_decoding
from simulator.blocks import grow_context
from simulator.cache import take_blocks
from simulator.lane import blocks_crossed, cut_run, decode_step_ps, queue_at, share_blocks, tell, wake
from simulator.layout import (
    CANCELS,
    IDLE,
    MIXED_STEP,
    NONE,
    PREFILL,
    READY,
    STAYS,
    TELL_FIRST_TOKEN,
    TELL_PREFILLED,
    WAITING,
)
from simulator.queues import KEY_SHIFT, append_prefill, append_ready, remove_running
from simulator.tiers import has_tiers, write_through
from simulator.tournament import settle_load


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
            here.formed_ps = here.end_ps - decode_step_ps(state.prices, here, here.run_steps)
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
        finish(state, here, slot)
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
        if prefill_left(row) > 0:
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
                finish(state, here, slot)
            elif here.role == PREFILL and row.is_leaving != CANCELS:
                _hand_over(state, here, slot)
            else:
                start_decoding(state.words, here, row, slot)
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
        set_out(state, here, slot, TELL_PREFILLED)
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
def _let_leave(state, here):
    """Take out the running requests that were cancelled during the step, the last admitted first."""
    slot = here.last_running
    while slot != NONE:
        before = state.requests[slot].previous_running
        if state.requests[slot].is_leaving != STAYS:
            leave(state, here, slot)
        slot = before
    here.leaving = 0
