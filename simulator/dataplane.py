"""The data plane: lanes that batch, prefill, decode, page KV and preempt, as one discrete-event loop on step ends.

Times are whole picoseconds since the trace began. A lane is one scheduler with its own KV pool: a replica has one,
or one per pipeline stage. Between two changes of its batch a lane decodes in one go; an arrival cuts that run short at
the first step end after it. A scheduler at time t sees what arrived before t.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.compiled import inner_kernel, kernel
from models.step import BESIDE_PREFILL, StepTable, decode_ps, decode_run_ps, prefill_ps
from simulator.routing import choose_lane

FAR = 1 << 62
NONE = -1

WAITING, PREFILLING, DECODING, FINISHED, REJECTED = 0, 1, 2, 3, 4
IDLE, DECODE_RUN, MIXED_STEP = 0, 1, 2

REQUEST = np.dtype(
    [
        ("arrival_ps", "i8"),
        ("scheduled_ps", "i8"),  # first time in a batch
        ("first_token_ps", "i8"),
        ("finish_ps", "i8"),
        ("input_tokens", "i4"),
        ("output_tokens", "i4"),
        ("bucket", "i4"),  # size class that a planned router looks at
        ("lane", "i4"),
        ("status", "i4"),
        ("preemptions", "i4"),
        ("generated_tokens", "i4"),  # as of its last prefill
        ("computed_tokens", "i4"),  # as of its last prefill chunk
        ("chunk_tokens", "i4"),  # in the running step
        ("next_waiting", "i4"),
        ("next_prefill", "i4"),
        ("previous_running", "i4"),
        ("next_running", "i4"),
        ("joined_step", "i8"),  # the lane's step count when its decoding began
    ],
    align=True,
)

LANE = np.dtype(
    [
        ("engine", "i8"),
        ("pool", "i8"),
        ("replica", "i8"),
        ("stages", "i8"),  # pipeline depth
        ("max_sequences", "i8"),
        ("max_batched_tokens", "i8"),
        ("long_prefill_tokens", "i8"),
        ("chunked_prefill", "i8"),
        ("block_tokens", "i8"),
        ("total_blocks", "i8"),
        ("watermark_blocks", "i8"),
        ("max_context_tokens", "i8"),
        ("cost", "f8"),  # what one more request weighs, relative to other lanes
        ("activity", "i8"),
        ("start_ps", "i8"),
        ("end_ps", "i8"),
        ("run_steps", "i8"),
        ("steps", "i8"),  # steps in which decodes took part
        ("decoding", "i8"),
        ("running", "i8"),
        ("waiting", "i8"),
        ("outstanding", "i8"),
        ("context_tokens", "i8"),  # KV tokens held by decoding requests
        ("prefilled_tokens", "i8"),  # KV tokens held by requests in prefill, the running chunk included
        ("free_blocks", "i8"),
        ("first_waiting", "i8"),
        ("last_waiting", "i8"),
        ("first_prefill", "i8"),
        ("last_prefill", "i8"),
        ("last_running", "i8"),
        ("scheduled_steps", "i8"),
        ("preemptions", "i8"),
        ("busy_ps", "i8"),
        ("assigned", "i8"),
    ],
    align=True,
)

CLOCK = np.dtype(
    [
        ("next_arrival", "i8"),
        ("next_lane", "i8"),  # of round robin
        ("router", "i8"),
        ("fast_forward", "i8"),
        ("lane_events", "i8"),
        ("arrivals", "i8"),
    ],
    align=True,
)


class State(NamedTuple):
    """Everything that changes during a run, and the tables that price its steps."""

    clock: npt.NDArray[Any]  # one CLOCK
    requests: npt.NDArray[Any]  # REQUEST each
    lanes: npt.NDArray[Any]  # LANE each
    finish_step: npt.NDArray[np.int64]  # heap per lane: step at which a decoding request ends
    finish_request: npt.NDArray[np.int64]  # heap per lane: which request that is
    crossings: npt.NDArray[np.int64]  # [lane, phase]: decoding requests that need a block at steps = phase
    stage_free_ps: npt.NDArray[np.int64]  # [replica, stage]
    next_event: npt.NDArray[np.int64]  # tournament tree of lanes by end_ps
    pools: npt.NDArray[np.int64]  # [pool, (first lane, one past its last)]
    shares: npt.NDArray[np.float64]  # [bucket, pool]: planned fraction of requests
    credits: npt.NDArray[np.float64]  # [bucket, pool]: fraction owed so far
    table: StepTable


@kernel
def advance(state, horizon_ps, request, lane):
    """Run every event up to and including `horizon_ps`: step ends first, then arrivals, in time order.

    Before that, `request` is given to `lane` unless it is NONE: one crossing a request for routers written in Python.
    """
    clock, requests, lanes = state.clock[0], state.requests, state.lanes
    if request != NONE:
        submit(state, request, lane)
    while True:
        lane = state.next_event[1]
        arrival_ps = requests[clock.next_arrival].arrival_ps if clock.next_arrival < clock.arrivals else FAR
        if lanes[lane].end_ps <= arrival_ps:
            if lanes[lane].end_ps > horizon_ps:
                return
            clock.lane_events += 1
            now_ps = lanes[lane].end_ps
            _end_step(state, lane)
            _begin_step(state, lane, now_ps)
        else:
            if arrival_ps > horizon_ps:
                return
            request = clock.next_arrival
            clock.next_arrival += 1
            submit(state, request, choose_lane(state, request))


@inner_kernel
def submit(state, request, lane):
    """Queue a request at a lane on its arrival, waking the lane or cutting its run of decodes short."""
    row, here = state.requests[request], state.lanes[lane]
    row.lane = lane
    here.assigned += 1
    if row.input_tokens + row.output_tokens > here.max_context_tokens:
        row.status = REJECTED
        row.finish_ps = row.arrival_ps
        return
    here.outstanding += 1
    _append_waiting(state, request, lane)
    if here.activity == IDLE:
        _begin_step(state, lane, row.arrival_ps)
    elif _can_start_soon(here):
        _cut_run(state, lane, row.arrival_ps)


@inner_kernel
def _can_start_soon(here):
    """Say whether a request that just queued may be admitted before the lane's run of decodes is over."""
    alone = here.waiting == 1 and here.running < here.max_sequences
    return alone and here.activity == DECODE_RUN and here.run_steps > 1


@inner_kernel
def _cut_run(state, lane, now_ps):
    """End the lane's run of decodes with the first step that ends after `now_ps`."""
    here = state.lanes[lane]
    steps, elapsed_ps = decode_run_ps(
        state.table, here.engine, here.decoding, here.context_tokens, here.run_steps, now_ps - here.start_ps
    )
    if steps < here.run_steps:
        here.run_steps = steps
        _set_end(state, lane, here.start_ps + elapsed_ps)


@inner_kernel
def _begin_step(state, lane, now_ps):
    """Form the lane's next step as vLLM v1 does: running requests first, then the waiting, within the token budget."""
    here = state.lanes[lane]
    here.start_ps = now_ps
    preempted = _make_room_for_decodes(state, lane)
    budget_tokens = here.max_batched_tokens - here.decoding
    chunks, new_tokens, attention_ps, more_preempted = _continue_prefills(state, lane, budget_tokens)
    budget_tokens -= new_tokens
    preempted = preempted or more_preempted
    if not preempted:
        started, tokens, started_ps = _admit_waiting(state, lane, budget_tokens, now_ps)
        chunks, new_tokens, attention_ps = chunks + started, new_tokens + tokens, attention_ps + started_ps
    if chunks == 0 and here.decoding == 0:
        here.activity = IDLE
        _set_end(state, lane, FAR)
        return
    if chunks == 0:
        _begin_decode_run(state, lane, preempted)
        return
    here.activity = MIXED_STEP
    here.run_steps = 1 if here.decoding > 0 else 0
    duration_ps = (
        state.table.token_ps[here.engine, here.decoding + new_tokens]
        + state.table.sequence_ps[here.engine, here.decoding + chunks]
        + attention_ps
    )
    if here.decoding > 0:
        duration_ps += decode_ps(
            state.table, here.engine, BESIDE_PREFILL, here.decoding, here.context_tokens + here.decoding
        )
    _set_end(state, lane, _through_pipeline(state, lane, duration_ps))


@inner_kernel
def _begin_decode_run(state, lane, preempted):
    """Decode until a request finishes or blocks run out.

    Only one step where that is asked, where stages are shared, and after a preemption, which put off admissions.
    """
    here = state.lanes[lane]
    here.activity = DECODE_RUN
    steps = state.finish_step[lane, 0] - here.steps
    if here.stages > 1 or preempted or state.clock[0].fast_forward == 0:
        steps = 1
    here.run_steps = _steps_within_blocks(state, lane, steps)
    elapsed_ps = decode_run_ps(state.table, here.engine, here.decoding, here.context_tokens, here.run_steps, FAR)[1]
    _set_end(state, lane, _through_pipeline(state, lane, elapsed_ps))


@inner_kernel
def _through_pipeline(state, lane, duration_ps):
    """Return when a step ends that passes the replica's stages in turn, each taking an equal part of it."""
    here = state.lanes[lane]
    if here.stages == 1:
        return here.start_ps + duration_ps
    end_ps = here.start_ps
    stage_ps = duration_ps // here.stages
    for stage in range(here.stages):
        end_ps = max(end_ps, state.stage_free_ps[here.replica, stage]) + stage_ps
        state.stage_free_ps[here.replica, stage] = end_ps
    return end_ps


@inner_kernel
def _steps_within_blocks(state, lane, steps):
    """Return how many of `steps` decode steps the free blocks allow; the first was made sure of."""
    here = state.lanes[lane]
    if here.free_blocks >= here.decoding * (steps // here.block_tokens + 1):
        return steps
    rounds = (here.free_blocks // here.decoding) - 1
    allowed = max(0, min(steps, rounds * here.block_tokens))
    left = here.free_blocks - _blocks_crossed(state, lane, allowed)
    while allowed < steps:
        left -= state.crossings[lane, (here.steps + allowed + 1) % here.block_tokens]
        if left < 0:
            break
        allowed += 1
    return allowed


@inner_kernel
def _blocks_crossed(state, lane, steps):
    """Return how many blocks the lane's decodes take in their next `steps` steps."""
    here = state.lanes[lane]
    rounds, rest = steps // here.block_tokens, steps % here.block_tokens
    blocks = rounds * here.decoding
    for step in range(here.steps + 1, here.steps + rest + 1):
        blocks += state.crossings[lane, step % here.block_tokens]
    return blocks


@inner_kernel
def _make_room_for_decodes(state, lane):
    """Preempt from the tail until every decode that crosses a block boundary in this step can; say if any was."""
    here = state.lanes[lane]
    preempted = False
    if here.decoding == 0:
        return preempted
    phase = (here.steps + 1) % here.block_tokens
    while state.crossings[lane, phase] > here.free_blocks:
        _preempt(state, here.last_running, lane)
        preempted = True
    return preempted


@inner_kernel
def _free_beside_decodes(state, lane):
    """Return the free blocks less those that the decodes of this very step will take."""
    here = state.lanes[lane]
    return here.free_blocks - state.crossings[lane, (here.steps + 1) % here.block_tokens]


@inner_kernel
def _continue_prefills(state, lane, budget_tokens):
    """Give the requests in prefill their next chunks; return (chunks, tokens, attention time, was one preempted)."""
    here, requests = state.lanes[lane], state.requests
    chunks, new_tokens, attention_ps, preempted = 0, 0, 0, False
    request = here.first_prefill
    while request != NONE:
        row = requests[request]
        chunk = min(_prefill_left(row), here.long_prefill_tokens, budget_tokens - new_tokens)
        need = _blocks(row.computed_tokens + chunk, here.block_tokens) - _blocks(row.computed_tokens, here.block_tokens)
        while need > _free_beside_decodes(state, lane) and row.status == PREFILLING:
            _preempt(state, here.last_running, lane)
            preempted = True
        if row.status != PREFILLING:
            break
        row.chunk_tokens = chunk
        if chunk > 0:
            here.free_blocks -= need
            here.prefilled_tokens += chunk
            attention_ps += prefill_ps(state.table, here.engine, chunk, row.computed_tokens)
            chunks += 1
            new_tokens += chunk
        request = row.next_prefill
    return chunks, new_tokens, attention_ps, preempted


@inner_kernel
def _admit_waiting(state, lane, budget_tokens, now_ps):
    """Start waiting requests in order while sequences, tokens and blocks allow; return (chunks, tokens, time)."""
    here, requests = state.lanes[lane], state.requests
    chunks, new_tokens, attention_ps = 0, 0, 0
    while here.waiting > 0 and here.running < here.max_sequences and new_tokens < budget_tokens:
        request = here.first_waiting
        row = requests[request]
        chunk = min(_prefill_left(row), here.long_prefill_tokens)
        if here.chunked_prefill == 0 and chunk > budget_tokens - new_tokens:
            break
        chunk = min(chunk, budget_tokens - new_tokens)
        need = _blocks(chunk, here.block_tokens)
        if need > _free_beside_decodes(state, lane) - here.watermark_blocks:
            break
        _pop_waiting(state, lane)
        _append_running(state, request, lane)
        here.free_blocks -= need
        here.prefilled_tokens += chunk
        if row.scheduled_ps == FAR:
            row.scheduled_ps = now_ps
        row.chunk_tokens = chunk
        attention_ps += prefill_ps(state.table, here.engine, chunk, 0)
        chunks += 1
        new_tokens += chunk
    return chunks, new_tokens, attention_ps


@inner_kernel
def _end_step(state, lane):
    """Book what the ended step or run produced: decodes first, then prefills that are complete."""
    here = state.lanes[lane]
    here.busy_ps += here.end_ps - here.start_ps
    here.scheduled_steps += max(1, here.run_steps)
    if here.decoding > 0:
        here.free_blocks -= _blocks_crossed(state, lane, here.run_steps)
        here.steps += here.run_steps
        here.context_tokens += here.run_steps * here.decoding
        while here.decoding > 0 and state.finish_step[lane, 0] <= here.steps:
            request = state.finish_request[lane, 0]
            _stop_decoding(state, request, lane, 0)
            _finish(state, request, lane)
    if here.activity == MIXED_STEP:
        _end_prefills(state, lane)


@inner_kernel
def _end_prefills(state, lane):
    """Move every request whose prefill is complete to decoding, with its next token out."""
    here, requests = state.lanes[lane], state.requests
    request = here.first_prefill
    here.first_prefill = NONE
    here.last_prefill = NONE
    while request != NONE:
        row = requests[request]
        following = row.next_prefill
        row.computed_tokens += row.chunk_tokens
        row.chunk_tokens = 0
        if _prefill_left(row) > 0:
            _append_prefill(state, request, lane)
        else:
            here.prefilled_tokens -= row.computed_tokens
            if row.generated_tokens == 0:
                row.first_token_ps = here.end_ps
            row.generated_tokens += 1
            if row.generated_tokens >= row.output_tokens:
                here.free_blocks += _blocks(row.computed_tokens, here.block_tokens)
                _finish(state, request, lane)
            else:
                _start_decoding(state, request, lane)
        request = following


@inner_kernel
def _start_decoding(state, request, lane):
    row, here = state.requests[request], state.lanes[lane]
    row.status = DECODING
    row.joined_step = here.steps
    here.context_tokens += row.computed_tokens
    state.crossings[lane, _phase(row, here.block_tokens)] += 1
    _push_finish(state, lane, here.steps + row.output_tokens - row.generated_tokens, request)
    here.decoding += 1


@inner_kernel
def _stop_decoding(state, request, lane, place):
    """Take a decoding request, at `place` of the finish heap, out of the batch and give its blocks back."""
    row, here = state.requests[request], state.lanes[lane]
    decoded = here.steps - row.joined_step
    state.crossings[lane, _phase(row, here.block_tokens)] -= 1
    row.generated_tokens += decoded
    row.computed_tokens += decoded
    here.context_tokens -= row.computed_tokens
    here.free_blocks += _blocks(row.computed_tokens, here.block_tokens)
    _remove_finish(state, lane, place)
    here.decoding -= 1


@inner_kernel
def _finish(state, request, lane):
    row, here = state.requests[request], state.lanes[lane]
    row.status = FINISHED
    row.finish_ps = here.end_ps
    here.outstanding -= 1
    _remove_running(state, request, lane)


@inner_kernel
def _preempt(state, request, lane):
    """Put a running request back to the head of the queue; all its KV is lost and will be computed again."""
    row, here = state.requests[request], state.lanes[lane]
    if row.status == DECODING:
        place = 0
        while state.finish_request[lane, place] != request:
            place += 1
        _stop_decoding(state, request, lane, place)
    else:
        held = row.computed_tokens + row.chunk_tokens
        here.free_blocks += _blocks(held, here.block_tokens)
        here.prefilled_tokens -= held
        _remove_prefill(state, request, lane)
    _remove_running(state, request, lane)
    row.status = WAITING
    row.computed_tokens = 0
    row.chunk_tokens = 0
    row.preemptions += 1
    here.preemptions += 1
    _prepend_waiting(state, request, lane)


@inner_kernel
def _prefill_left(row):
    """Return the tokens still to compute before the next one can be sampled: a recompute includes its own output."""
    return row.input_tokens + row.generated_tokens - row.computed_tokens


@inner_kernel
def _blocks(tokens, block_tokens):
    return (tokens + block_tokens - 1) // block_tokens


@inner_kernel
def _phase(row, block_tokens):
    """Return the lane's step count, modulo the block, at which this decoding request needs a new block."""
    computed = row.input_tokens + row.generated_tokens - 1
    return (row.joined_step + 1 - computed) % block_tokens


# Queues: a lane's waiting and prefill lists are singly linked, its running list doubly, all through the requests.


@inner_kernel
def _append_waiting(state, request, lane):
    here = state.lanes[lane]
    state.requests[request].next_waiting = NONE
    if here.waiting == 0:
        here.first_waiting = request
    else:
        state.requests[here.last_waiting].next_waiting = request
    here.last_waiting = request
    here.waiting += 1


@inner_kernel
def _prepend_waiting(state, request, lane):
    here = state.lanes[lane]
    state.requests[request].next_waiting = here.first_waiting if here.waiting > 0 else NONE
    if here.waiting == 0:
        here.last_waiting = request
    here.first_waiting = request
    here.waiting += 1


@inner_kernel
def _pop_waiting(state, lane):
    here = state.lanes[lane]
    here.first_waiting = state.requests[here.first_waiting].next_waiting
    here.waiting -= 1


@inner_kernel
def _append_running(state, request, lane):
    """Admit a request: it runs last in order, in prefill."""
    row, here = state.requests[request], state.lanes[lane]
    row.status = PREFILLING
    row.previous_running = here.last_running
    row.next_running = NONE
    if here.last_running != NONE:
        state.requests[here.last_running].next_running = request
    here.last_running = request
    here.running += 1
    _append_prefill(state, request, lane)


@inner_kernel
def _remove_running(state, request, lane):
    row, here = state.requests[request], state.lanes[lane]
    if row.previous_running != NONE:
        state.requests[row.previous_running].next_running = row.next_running
    if row.next_running != NONE:
        state.requests[row.next_running].previous_running = row.previous_running
    else:
        here.last_running = row.previous_running
    here.running -= 1


@inner_kernel
def _append_prefill(state, request, lane):
    here = state.lanes[lane]
    state.requests[request].next_prefill = NONE
    if here.first_prefill == NONE:
        here.first_prefill = request
    else:
        state.requests[here.last_prefill].next_prefill = request
    here.last_prefill = request


@inner_kernel
def _remove_prefill(state, request, lane):
    here, requests = state.lanes[lane], state.requests
    before, other = NONE, here.first_prefill
    while other != request:
        before, other = other, requests[other].next_prefill
    if before == NONE:
        here.first_prefill = requests[request].next_prefill
    else:
        requests[before].next_prefill = requests[request].next_prefill
    if here.last_prefill == request:
        here.last_prefill = before


@inner_kernel
def _push_finish(state, lane, step, request):
    """Add to the lane's heap of finishing steps; its size is the number of decoding requests."""
    steps, owners = state.finish_step[lane], state.finish_request[lane]
    place = state.lanes[lane].decoding
    while place > 0 and steps[(place - 1) >> 1] > step:
        steps[place], owners[place] = steps[(place - 1) >> 1], owners[(place - 1) >> 1]
        place = (place - 1) >> 1
    steps[place], owners[place] = step, request


@inner_kernel
def _remove_finish(state, lane, place):
    steps, owners = state.finish_step[lane], state.finish_request[lane]
    size = state.lanes[lane].decoding - 1
    step, request = steps[size], owners[size]
    if place == size:
        return
    while place > 0 and steps[(place - 1) >> 1] > step:
        steps[place], owners[place] = steps[(place - 1) >> 1], owners[(place - 1) >> 1]
        place = (place - 1) >> 1
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and steps[child + 1] < steps[child]:
            child += 1
        if steps[child] >= step:
            break
        steps[place], owners[place] = steps[child], owners[child]
        place = child
    steps[place], owners[place] = step, request


@inner_kernel
def _set_end(state, lane, end_ps):
    """Set when the lane next has something to say, and replay its matches in the tournament."""
    state.lanes[lane].end_ps = end_ps
    tree, lanes = state.next_event, state.lanes
    place = (lane + (tree.size >> 1)) >> 1
    while place >= 1:
        left, right = tree[2 * place], tree[2 * place + 1]
        if right == NONE or (left != NONE and lanes[left].end_ps <= lanes[right].end_ps):
            tree[place] = left
        else:
            tree[place] = right
        place >>= 1
