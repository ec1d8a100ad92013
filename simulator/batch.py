"""Who is in a lane's batch: requests that begin to decode, end, leave, are preempted, or hand their KV on."""

from models.compiled import inner_kernel
from simulator.blocks import blocks, grow_context, mark_crossings, own_blocks, steps_to
from simulator.cache import give_blocks, leave_content, leave_own
from simulator.lane import cut_run, look_again, tell
from simulator.layout import (
    CANCELLED,
    CANCELS,
    DECODING,
    DEPARTS,
    FINISHED,
    MOVING,
    NONE,
    READY,
    STAYS,
    TELL_CANCELLED,
    TELL_DEPARTED,
    TELL_FINISHED,
    TELL_PREEMPTED,
    WAITING,
)
from simulator.queues import (
    KEY_SHIFT,
    append_ready,
    insert_waiting,
    place_of_finish,
    prepend_waiting,
    push_finish,
    remove_finish,
    remove_prefill,
    remove_running,
)
from simulator.reserve import reserve_more


@inner_kernel
def start_decoding(words, here, row, slot):
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
def finish(state, here, slot):
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
def _stop(state, here, slot):
    """Take a running request out of the decodes or prefills that it takes part in."""
    row = state.requests[slot]
    if row.status == DECODING:
        stop_decoding(state, here, slot)
    else:
        here.prefilled_tokens -= row.computed_tokens
        remove_prefill(state.requests, here, slot)


@inner_kernel
def leave(state, here, slot):
    """Take a request out of the running ones; one that departs keeps its KV, one that was cancelled frees it."""
    row = state.requests[slot]
    _stop(state, here, slot)
    if row.is_leaving == DEPARTS:
        row.is_leaving = STAYS
        set_out(state, here, slot, TELL_DEPARTED)
        return
    row.status = CANCELLED
    _end(state, here, slot)
    tell(state, TELL_CANCELLED, slot)


@inner_kernel
def set_out(state, here, slot, notice):
    """Take a request out of the batch, its KV where it is, for the control plane to move."""
    row = state.requests[slot]
    here.outstanding -= 1
    remove_running(state.requests, here, slot)
    row.status = MOVING
    row.source_lane = here.number
    row.is_leaving = min(row.is_leaving, CANCELS)
    tell(state, notice, slot)


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
def preempt(state, here, slot):
    """Put a running request back to the head of the queue; its KV must be computed again, but for what stays cached."""
    row = state.requests[slot]
    _stop(state, here, slot)
    if here.swap_ps_per_token > 0:
        give_blocks(here, own_blocks(row, here))
        _swap_out(row, here)
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
def _swap_out(row, here):
    """Write a request's KV to host memory, but for what that has a copy of."""
    row.swapped_tokens = row.computed_tokens
    here.swap_ps += _swap_ps(here, max(0, row.computed_tokens - row.copied_tokens))


@inner_kernel
def swap_in(row, here):
    """Read a request's KV back from host memory, which may keep a copy."""
    here.swap_ps += _swap_ps(here, row.swapped_tokens)
    row.copied_tokens = row.swapped_tokens if here.swap_keeps_copies else 0
    row.swapped_tokens = 0


@inner_kernel
def _swap_ps(here, tokens):
    """Return how long KV takes between device and host memory: n_ops x t_op + bytes / bandwidth (FastSwitch)."""
    operations = (blocks(tokens, here) + here.swap_operation_blocks - 1) // here.swap_operation_blocks
    return operations * here.swap_operation_ps + tokens * here.swap_ps_per_token


@inner_kernel
def prefill_left(row):
    """Return the tokens still to compute before the next one can be sampled: a recompute includes its own output."""
    return row.input_tokens + row.generated_tokens - row.computed_tokens
