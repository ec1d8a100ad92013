"""KV that comes from tiers while its request waits outside the batch, and holds no seat in it.

Blocks are kept free for it meanwhile. What has come lies in the lane's cache, most recently used, and its request is at
the head of the queue, where the next step finds it; so nothing is held by who cannot go on.
"""

from models.compiled import asking_for, inner_kernel
from simulator.blocks import blocks
from simulator.cache import give_blocks, hold, lay_down, leave_content, look_up, take_blocks
from simulator.lane import cut_run, free_beside_decodes, tell
from simulator.layout import CANCELLED, CANCELS, FAR, LOADING, NONE, TELL_CANCELLED, TELL_FETCHING, WAITING
from simulator.queues import insert_waiting, pop_waiting, prepend_waiting
from simulator.tiers import FETCH_LAYERS, FETCH_PS, OUTSIDE, fetch, has_tiers, known_tokens
from simulator.timers import LOADED, WORDS, set_timer
from simulator.tournament import settle_load

NOTHING, SET_OUT, NO_ROOM = 0, 1, 2


@asking_for("extras")
def fetches_outside(state, here):
    """Say whether a lane's requests wait for tiers outside its batch."""
    return has_tiers(state, here) and state.words[here.tiers_at + FETCH_LAYERS] == OUTSIDE


@inner_kernel
def set_out_for(state, row, here, slot):
    """Let the head of the queue wait for what tiers have of it: NOTHING, SET_OUT, or NO_ROOM for it yet."""
    nodes, shared_blocks, part, own, queued_blocks = look_up(state, row, here)
    found_tokens = (shared_blocks + part + own) << here.block_shift
    known = known_tokens(state, row, here, nodes)
    if known <= found_tokens:
        return NOTHING
    here.is_short = 1  # for what is known below may change at any time
    need = blocks(known, here) - shared_blocks
    no_timer = WORDS * state.clock[0].timers >= state.timers.size
    if no_timer or need + queued_blocks > free_beside_decodes(state.words, here) - here.watermark_blocks:
        return NO_ROOM
    pop_waiting(state.requests, here)
    hold(state, row, here, nodes, 0, 0)
    take_blocks(state, here, need)
    row.leased_blocks = need
    row.computed_tokens = known
    fetch(state, row, here, nodes, shared_blocks << here.block_shift, known)
    row.lands_ps = here.start_ps + state.words[here.tiers_at + FETCH_PS]
    state.words[here.tiers_at + FETCH_PS] = 0
    row.status = LOADING
    here.fetching += 1
    if row.remote_tokens > 0:
        tell(state, TELL_FETCHING, slot)
    else:
        set_timer(state, row.lands_ps, 2 * row.number + LOADED, slot)
    return SET_OUT


@inner_kernel
def come_back(state, slot, now_ps):
    """Lay what has come into the cache, the beginning most recently used, and queue its request first."""
    row = state.requests[slot]
    here = state.lanes[row.lane]
    size, left_blocks = state.clock[0].content_tokens, row.leased_blocks
    for place in range((row.computed_tokens - 1) // size, row.held_nodes - 1, -1):
        end_tokens = min((place + 1) * size, row.input_tokens)
        node_blocks = blocks(end_tokens, here) - blocks(place * size, here)
        left_blocks -= lay_down(state, here, state.contents[row.contents_at + place], node_blocks)
    give_blocks(here, left_blocks)
    leave_content(state, row, here)
    row.leased_blocks = row.computed_tokens = row.remote_tokens = 0
    here.fetching -= 1
    if row.is_leaving == CANCELS:
        _cancel(state, row, here, slot, now_ps)
    else:
        row.status = WAITING
        row.enqueued_ps = NONE
        if here.by_priority:
            insert_waiting(state.requests, here, slot)
        else:
            prepend_waiting(state.requests, here, slot)
    cut_run(state, here, now_ps)


@inner_kernel
def _cancel(state, row, here, slot, now_ps):
    row.status = CANCELLED
    row.finish_ps = now_ps
    here.outstanding -= 1
    state.clock[0].done += 1
    settle_load(state.words, state.lanes, here)
    tell(state, TELL_CANCELLED, slot)


@inner_kernel
def lose_fetch(state, row, here):
    """Give up what a request waits for on a lane that fails."""
    leave_content(state, row, here)
    row.leased_blocks = row.remote_tokens = 0
    row.lands_ps = FAR
