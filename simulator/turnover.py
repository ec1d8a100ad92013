"""Requests pass through slots: those to come take vacant ones, those that are done leave their outcome and go.

So a run's memory is the requests in flight, and what is touched often stays in the processor's caches.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.compiled import kernel
from models.step import PICOSECONDS_PER_NANOSECOND
from simulator.layout import COMING, FAR, FINISHED, NONE, REQUEST, STAYS, VACANT, State
from simulator.timers import WORDS

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]

CHUNK_REQUESTS = 8192


class Chunk(NamedTuple):
    """Requests that follow each other in a trace, the first of them its row `first`.

    contents_at holds where each one's content blocks begin, and where the last one's end; or nothing. first_bucket is
    the first of the size buckets of each one's class.
    """

    first: int
    arrival_ns: Int64
    input_tokens: Int32
    output_tokens: Int32
    priority: Int64
    contents_at: Int64
    first_bucket: Int64


class Outcome(NamedTuple):
    """What became of every request of a trace, in its order; times since its start, FAR where they never came."""

    queued_ps: Int64
    scheduled_ps: Int64
    joined_ps: Int64
    first_token_ps: Int64
    finish_ps: Int64
    lane: Int32
    cached_tokens: Int32
    preemptions: Int32
    status: npt.NDArray[np.int8]


def blank(requests: int) -> Outcome:
    """Return the outcome before the first event."""
    queued_ps, scheduled_ps, joined_ps, first_token_ps, finish_ps = (np.full(requests, FAR, np.int64) for _ in range(5))
    lane = np.full(requests, NONE, np.int32)
    cached_tokens, preemptions = np.zeros(requests, np.int32), np.zeros(requests, np.int32)
    return Outcome(
        queued_ps,
        scheduled_ps,
        joined_ps,
        first_token_ps,
        finish_ps,
        lane,
        cached_tokens,
        preemptions,
        np.zeros(requests, np.int8),
    )


def with_room(state: State, arrivals: int) -> State:
    """Return the state with at least so many vacant slots, and room to name them as coming."""
    vacant = int((state.requests["status"] == VACANT).sum())
    if vacant < arrivals:
        more = np.zeros(max(arrivals - vacant, state.requests.size), REQUEST)
        more["status"] = VACANT
        state = state._replace(requests=np.concatenate([state.requests, more]))
    notices = 8 * state.requests.size + 64  # a request can be the matter of several before one is read
    if state.notices.size < notices and state.clock["told"][0]:
        state = state._replace(notices=np.zeros(notices, np.int64))
    if state.coming.size < arrivals:
        state = state._replace(coming=np.empty(arrivals, np.int64))
    timers = int(state.clock["timers"][0]) + 2 * state.requests.size + arrivals
    if state.timers.size < WORDS * timers:
        more = np.zeros(2 * WORDS * timers - state.timers.size, np.int64)
        state = state._replace(timers=np.concatenate([state.timers, more]))
    return state


@kernel
def take_in(state, chunk, input_edges):
    """Give vacant slots to the next requests; one that has no token in or out still computes and emits one."""
    clock, requests, coming = state.clock[0], state.requests, state.coming
    slot = 0
    for i in range(chunk.arrival_ns.size):
        while requests[slot].status != VACANT:
            slot += 1
        row = requests[slot]
        row.number = chunk.first + i
        row.arrival_ps = chunk.arrival_ns[i] * PICOSECONDS_PER_NANOSECOND
        row.input_tokens = max(1, chunk.input_tokens[i])
        row.output_tokens = max(1, chunk.output_tokens[i])
        row.bucket = chunk.first_bucket[i] + np.searchsorted(input_edges, row.input_tokens, side="right") - 1
        row.queued_ps = row.scheduled_ps = row.joined_ps = row.first_token_ps = row.finish_ps = FAR
        row.preemptions = row.generated_tokens = row.computed_tokens = row.chunk_tokens = 0
        row.lane = row.own_node = row.source_lane = row.leased_lane = NONE
        row.leased_blocks = row.swapped_tokens = row.copied_tokens = row.remote_tokens = row.told = 0
        row.is_leaving = STAYS
        row.priority = chunk.priority[i]
        row.held_nodes = row.held_blocks = row.cached_tokens = row.contents = 0
        if chunk.contents_at.size > 0:
            row.contents_at = chunk.contents_at[i]
            most = (row.input_tokens + clock.content_tokens - 1) // clock.content_tokens
            row.contents = min(most, chunk.contents_at[i + 1] - chunk.contents_at[i])
        row.status = COMING
        coming[i] = slot
    clock.next_coming = 0
    clock.coming = chunk.arrival_ns.size


@kernel
def clear_out(state, outcome, first):
    """Write down the outcome of every request that is done, from number `first` on, and vacate its slot."""
    for slot in range(state.requests.size):
        row = state.requests[slot]
        if FINISHED <= row.status < VACANT:
            place = row.number - first
            outcome.queued_ps[place] = row.queued_ps
            outcome.scheduled_ps[place] = row.scheduled_ps
            outcome.joined_ps[place] = row.joined_ps
            outcome.first_token_ps[place] = row.first_token_ps
            outcome.finish_ps[place] = row.finish_ps
            outcome.lane[place] = row.lane
            outcome.cached_tokens[place] = row.cached_tokens
            outcome.preemptions[place] = row.preemptions
            outcome.status[place] = row.status
            row.status = VACANT
