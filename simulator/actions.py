"""What the control plane may do to the data plane, and whether physics lets it."""

from models.compiled import inner_kernel, kernel
from simulator.batch import arrive_ready, release_source, stop_decoding, unlease
from simulator.blocks import blocks, own_blocks
from simulator.cache import drop_leavings, give_blocks, leave_content, pin, push_out, take_blocks, unheld_blocks
from simulator.fetching import come_back, lose_fetch
from simulator.lane import begun_steps, blocks_crossed, book_steps, cut_run, look_again, queue_at, set_end, tell, wake
from simulator.layout import (
    CANCELLED,
    CANCELS,
    COMING,
    DECODE_RUN,
    DECODING,
    DEPARTS,
    FAR,
    FINISHED,
    HELD,
    IDLE,
    LOADING,
    MOVING,
    NONE,
    PREFILLING,
    READY,
    REJECTED,
    STAYS,
    TELL_CANCELLED,
    TELL_HELD,
    TELL_REFUSED,
    WAITING,
)
from simulator.queues import remove_prefill, remove_running, remove_waiting
from simulator.shelves import clear, has_extras, has_shelves
from simulator.tiers import has_tiers, lose_own_stores
from simulator.timers import DEADLINE, set_timer
from simulator.tournament import settle_load

SUBMIT, HOLD, REJECT, CANCEL, WITHDRAW = 0, 1, 2, 3, 4
DEPART, LEASE, UNLEASE, LAND, DROP = 5, 6, 7, 8, 9
FAIL, SETTLE, REPRICE = 10, 11, 12
PIN, UNPIN, PUSH_OUT = 13, 14, 15
FETCHED = 16


@kernel
def act(state, now_ps, action, slot, lane, amount):
    """Do one action; return whether it could be done."""
    state.clock[0].now_ps = now_ps
    if action == SUBMIT:
        submit(state, slot, lane, now_ps)
        if lane != NONE:
            wake(state, state.lanes[lane], now_ps)
    elif action == HOLD:
        _hold_back(state, slot, now_ps)
    elif action == REJECT:
        _reject(state, slot, now_ps)
    elif action == CANCEL:
        cancel(state, slot, now_ps)
    elif action == WITHDRAW:
        return _withdraw(state, slot)
    elif action == DEPART:
        return _depart(state, slot, now_ps)
    elif action == LEASE:
        return _lease(state, slot, lane, amount, now_ps)
    elif action == UNLEASE:
        unlease(state, slot, now_ps)
    elif action == LAND:
        return _land(state, slot, now_ps)
    elif action == DROP:
        return _drop(state, slot, now_ps)
    elif action == FAIL:
        _fail(state, lane, now_ps)
    elif action == SETTLE:
        settle_load(state.words, state.lanes, state.lanes[lane])
    elif action == REPRICE:
        state.lanes[lane].next_variant = amount
        if state.lanes[lane].activity != IDLE:
            cut_run(state, state.lanes[lane], now_ps)
    elif action == PIN:
        return _pin(state, slot, amount, now_ps)
    elif action == UNPIN:
        _unpin(state, slot, now_ps)
    elif action == PUSH_OUT:
        push_out(state, state.requests[slot], state.lanes[lane], amount)
    elif action == FETCHED:
        return _fetched(state, slot, now_ps)
    return True


@inner_kernel
def _pin(state, slot, contents, now_ps):
    """Keep a request's prompt, so many content blocks, in the cache of the lane that it ended on; say if any is."""
    row = state.requests[slot]
    here = state.lanes[row.lane]
    if row.status != FINISHED or row.held_nodes > 0 or here.caching == 0:
        return False
    if not _spares(state, here, unheld_blocks(state, row, here, contents), now_ps):
        return False
    pin(state, row, here, contents)
    return row.held_nodes > 0


@inner_kernel
def _unpin(state, slot, now_ps):
    row = state.requests[slot]
    if row.status == FINISHED and row.held_nodes > 0:
        leave_content(state, row, state.lanes[row.lane])
        look_again(state, state.lanes[row.lane], now_ps)


@inner_kernel
def _fetched(state, slot, now_ps):
    """Let a request go on whose KV the control plane has moved from a shared tier."""
    row = state.requests[slot]
    if has_extras(state) and row.status == LOADING and row.source_lane == NONE:
        come_back(state, slot, now_ps)
        return True
    return False


@inner_kernel
def submit(state, slot, lane, now_ps):
    """Queue a request at a lane, which is for the caller to wake where it is idle; hold it where there is no lane."""
    row = state.requests[slot]
    if lane == NONE:
        _hold_back(state, slot, now_ps)
        return
    here = state.lanes[lane]
    row.lane = lane
    here.assigned += 1
    if row.input_tokens + row.output_tokens > here.max_context_tokens:
        _reject(state, slot, now_ps)
        return
    _be_patient(state, slot)
    row.status = WAITING
    queued_ps = queue_at(state, here, slot, now_ps)
    if row.queued_ps == FAR:
        row.queued_ps = queued_ps


@inner_kernel
def _be_patient(state, slot):
    """Note when the client of a request that has just come will give up."""
    row = state.requests[slot]
    if row.status == COMING and state.clock[0].patience_ps < FAR:
        set_timer(state, row.arrival_ps + state.clock[0].patience_ps, 2 * row.number + DEADLINE, slot)


@inner_kernel
def _hold_back(state, slot, now_ps):
    """Keep a request at the gateway."""
    _be_patient(state, slot)
    state.requests[slot].status = HELD
    tell(state, TELL_HELD, slot)


@inner_kernel
def _reject(state, slot, now_ps):
    row = state.requests[slot]
    row.status = REJECTED
    row.finish_ps = now_ps
    state.clock[0].done += 1
    tell(state, TELL_REFUSED, slot)


@inner_kernel
def cancel(state, slot, now_ps):
    """Let the client give up: at once where no step works on the request, else at the end of that step."""
    row = state.requests[slot]
    if row.status == WAITING:
        here = state.lanes[row.lane]
        _unqueue(state, slot)
        if row.source_lane != NONE:
            release_source(state, row, now_ps)
        cut_run(state, here, now_ps)
    elif row.status == PREFILLING or row.status == DECODING:
        if row.is_leaving == STAYS:
            state.lanes[row.lane].leaving += 1
        row.is_leaving = CANCELS
        cut_run(state, state.lanes[row.lane], now_ps)
        return
    elif row.status == LOADING or row.status == READY or row.status == MOVING:
        row.is_leaving = CANCELS
        return
    row.status = CANCELLED
    row.finish_ps = now_ps
    state.clock[0].done += 1
    tell(state, TELL_CANCELLED, slot)


@inner_kernel
def _unqueue(state, slot):
    """Take a request out of the queue it waits in."""
    row = state.requests[slot]
    here = state.lanes[row.lane]
    remove_waiting(state.requests, here, slot)
    drop_leavings(state, row, here)
    here.outstanding -= 1
    settle_load(state.words, state.lanes, here)


@inner_kernel
def _withdraw(state, slot):
    """Take a waiting request back to the gateway, or to where its KV is."""
    row = state.requests[slot]
    if row.status != WAITING:
        return False
    _unqueue(state, slot)
    row.swapped_tokens = row.copied_tokens = 0
    row.status = HELD if row.source_lane == NONE else MOVING
    return True


@inner_kernel
def _depart(state, slot, now_ps):
    """Take a decoding request out of its batch at the end of the step under way; its KV stays there."""
    row = state.requests[slot]
    if row.status != DECODING or row.is_leaving != STAYS:
        return False
    here = state.lanes[row.lane]
    row.is_leaving = DEPARTS
    here.leaving += 1
    cut_run(state, here, now_ps)
    return True


@inner_kernel
def _lease(state, slot, lane, tokens, now_ps):
    """Keep blocks for so many tokens of a request free on a lane that it will come to; say if there were enough."""
    row, here = state.requests[slot], state.lanes[lane]
    if row.leased_lane != lane and (row.leased_lane != NONE or here.running + here.loading >= here.max_sequences):
        return False
    need = max(0, blocks(tokens, here) - row.leased_blocks)
    if not _spares(state, here, need, now_ps):
        return False
    if row.leased_lane == NONE:
        here.loading += 1
        row.leased_lane = lane
    take_blocks(state, here, need)
    row.leased_blocks += need
    return True


@inner_kernel
def _spares(state, here, need, now_ps):
    """Say whether so many blocks are free beside those of the steps begun; a run that would take them later is cut."""
    free_blocks = here.free_blocks - here.late_blocks
    begun = blocks_crossed(state.words, here, begun_steps(state, here, now_ps))
    if need > free_blocks - begun - here.watermark_blocks:
        return False
    if need > free_blocks - blocks_crossed(state.words, here, here.run_steps):
        cut_run(state, here, now_ps)
    return True


@inner_kernel
def _land(state, slot, now_ps):
    """Let a request that is on its way go on where its blocks are leased; say if they suffice."""
    row = state.requests[slot]
    if row.status != MOVING or row.leased_lane == NONE:
        return False
    lane = row.leased_lane
    here = state.lanes[lane]
    if not _lease(state, slot, lane, row.computed_tokens, now_ps):
        return False
    if row.source_lane != NONE:
        release_source(state, row, now_ps)
    give_blocks(here, row.leased_blocks - blocks(row.computed_tokens, here))
    row.lane = lane
    row.leased_lane = NONE
    row.leased_blocks = row.copied_tokens = 0
    here.assigned += 1
    here.outstanding += 1
    settle_load(state.words, state.lanes, here)
    arrive_ready(state, slot, now_ps)
    return True


@inner_kernel
def _drop(state, slot, now_ps):
    """Give up the KV of a request that is in no batch: it is held, to be computed again somewhere."""
    row = state.requests[slot]
    if row.status != MOVING:
        return False
    unlease(state, slot, now_ps)
    if row.source_lane != NONE:
        release_source(state, row, now_ps)
    _lose(state, slot)
    return True


@inner_kernel
def _lose(state, slot):
    """Hold a request whose KV is lost; what it has sent stays sent. One that was cancelled is done."""
    row = state.requests[slot]
    row.computed_tokens = 0
    row.chunk_tokens = 0
    row.swapped_tokens = row.copied_tokens = 0
    row.status = HELD
    if row.is_leaving == CANCELS:
        row.status = CANCELLED
        row.finish_ps = state.clock[0].now_ps
        state.clock[0].done += 1
        tell(state, TELL_CANCELLED, slot)
    else:
        row.is_leaving = STAYS
        tell(state, TELL_HELD, slot)


@inner_kernel
def _fail(state, lane, now_ps):
    """Lose all that a lane holds; its requests are held at the gateway, its memory is empty."""
    here = state.lanes[lane]
    _book_whole_steps(state, here, now_ps)
    while here.last_running != NONE:
        _lose_running(state, here, here.last_running)
    while here.waiting > 0:
        slot = here.first_waiting
        row = state.requests[slot]
        _unqueue(state, slot)
        if row.source_lane != NONE:
            release_source(state, row, now_ps)
        _lose(state, slot)
    here.first_ready = NONE
    for slot in range(state.requests.size):
        _lose_abroad(state, here, slot, now_ps)
    _lose_memory(state, here)
    here.free_blocks = here.plain_blocks = here.total_blocks
    here.loading = here.fetching = here.leaving = here.late_blocks = here.late_finishes = here.is_eroding = 0
    here.swap_ps = here.link_free_ps = here.reserved_blocks = here.prefilled_tokens = 0
    here.outstanding = 0
    here.activity = IDLE
    set_end(state, here, FAR)
    settle_load(state.words, state.lanes, here)


@inner_kernel
def _lose_memory(state, here):
    """Forget what a lane's memory holds, with nothing of it written, and what stores of its own keep."""
    tiers_at, here.tiers_at = here.tiers_at, NONE
    if has_shelves(state, here):
        clear(state, here.shelves_at)
    else:
        take_blocks(state, here, here.free_blocks)
    here.tiers_at = tiers_at
    if has_tiers(state, here):
        lose_own_stores(state, here)


@inner_kernel
def _book_whole_steps(state, here, now_ps):
    """Count the steps of a run of decodes that have ended by now; the step under way is lost."""
    if here.activity == DECODE_RUN:
        book_steps(state, here, now_ps - here.start_ps)
    if here.activity != IDLE:
        here.busy_ps += now_ps - here.start_ps


@inner_kernel
def _lose_running(state, here, slot):
    row = state.requests[slot]
    if row.status == DECODING:
        stop_decoding(state, here, slot)
    else:
        remove_prefill(state.requests, here, slot)
    give_blocks(here, own_blocks(row, here))
    if row.held_nodes > 0:
        leave_content(state, row, here)
    remove_running(state.requests, here, slot)
    _lose(state, slot)


@inner_kernel
def _lose_abroad(state, here, slot, now_ps):
    """Lose what a request that runs nowhere has on a lane: KV that has come, is coming or going, and leases."""
    row = state.requests[slot]
    if row.leased_lane == here.number:
        row.leased_lane = NONE
        row.leased_blocks = 0
    if row.status == FINISHED and row.held_nodes > 0 and row.lane == here.number:
        leave_content(state, row, here)
    comes = (row.status == LOADING or row.status == READY) and row.lane == here.number
    goes = row.source_lane == here.number and (row.status == LOADING or row.status == MOVING or row.status == WAITING)
    if comes:
        if row.source_lane != NONE:
            release_source(state, row, now_ps)
        elif has_tiers(state, here) and row.status == LOADING:
            lose_fetch(state, row, here)
        _lose(state, slot)
    elif goes:
        _forget_source(state, row, here)
        if row.status == WAITING:
            _unqueue(state, slot)
        elif row.status == LOADING:
            _leave_loading(state, row, now_ps)
        else:
            unlease(state, slot, now_ps)
        _lose(state, slot)


@inner_kernel
def _forget_source(state, row, here):
    """Free what a lane that fails holds for a request that has left it."""
    give_blocks(here, own_blocks(row, here))
    if row.held_nodes > 0:
        leave_content(state, row, here)
    row.contents = 0
    row.source_lane = NONE


@inner_kernel
def _leave_loading(state, row, now_ps):
    """Give back the blocks that a lane leased for KV that will not come."""
    there = state.lanes[row.lane]
    give_blocks(there, blocks(row.computed_tokens, there))
    there.loading -= 1
    there.outstanding -= 1
    settle_load(state.words, state.lanes, there)
    look_again(state, there, now_ps)
