"""Routers that live in the data plane: each a rule that names a lane for an arriving request."""

import numpy as np

from models.compiled import inner_kernel
from models.step import decode_run_ps
from simulator.blocks import context
from simulator.cache import look_up
from simulator.layout import DECODE, FAR, IDLE, NONE, PATIENCE_PS, PS_PER_PAIR, PS_PER_STEP
from simulator.queues import insert_waiting, remove_waiting

ROUND_ROBIN, JOIN_SHORTEST_QUEUE, LEAST_KV, PLANNED, IN_TIME, PREFIX_AWARE = 0, 1, 2, 3, 4, 5
LATE = 1 << 20  # added to the priority of a request that cannot be in time
UNEVEN = 8  # requests between the fullest lane and the emptiest beyond which caches do not count

ROUTERS = {
    "round-robin": ROUND_ROBIN,
    "join-shortest-queue": JOIN_SHORTEST_QUEUE,
    "least-kv": LEAST_KV,
    "planned": PLANNED,
    "in-time": IN_TIME,
    "prefix-aware": PREFIX_AWARE,
}


@inner_kernel
def choose_lane(state, plan, row):
    """Return the lane that the run's built-in router picks for a request at its arrival, NONE where none is open."""
    router = state.clock[0].router
    if router == ROUND_ROBIN:
        return round_robin(state.clock[0], state.lanes)
    if router == LEAST_KV:
        return least_kv(state, row.arrival_ps)
    if router == IN_TIME:
        return in_time(state, plan.prompts, row)
    if router == PREFIX_AWARE:
        return prefix_aware(state, row)
    pool = planned_pool(plan, row.bucket) if router == PLANNED else 0
    lane = state.words[plan.trees[pool] + 1]  # the winner: the lane with the shortest weighed queue
    return lane if state.lanes[lane].load < np.inf else NONE


@inner_kernel
def round_robin(clock, lanes):
    """Return each open lane in turn."""
    for _ in range(clock.front_lanes):
        lane = clock.next_lane
        clock.next_lane = lane + 1 if lane + 1 < clock.front_lanes else 0
        if lanes[lane].cost < np.inf:
            return lane
    return NONE


@inner_kernel
def least_kv(state, now_ps):
    """Return the lane with the smallest share of its KV tokens in use."""
    chosen, least = NONE, np.inf
    for lane in range(state.clock[0].front_lanes):
        load = kv_in_use(state.prices, state.lanes[lane], now_ps)
        if load < least and state.lanes[lane].cost < np.inf:
            chosen, least = lane, load
    return chosen


@inner_kernel
def in_time(state, prompts, row):
    """Return the lane that should be done with the prompt first, by a reckoning of the prompts that each still has.

    Where no lane should be done with it within its patience, some prompt is late. Where lanes go by priority, that is
    the longest of those that wait, and it gives way to all others of its lane: so few are late, whatever comes later.
    Elsewhere the prompt itself is, and goes where it keeps fewest waiting, the lane that is behind the most.
    """
    first, soonest_ps, last, latest_ps = 0, FAR, 0, -FAR
    for lane in range(state.clock[0].front_lanes):
        done_ps = _done_ps(state, prompts, state.lanes[lane], row)
        if done_ps < soonest_ps:
            first, soonest_ps = lane, done_ps
        if done_ps > latest_ps:
            last, latest_ps = lane, done_ps
    if soonest_ps - row.arrival_ps <= prompts[PATIENCE_PS, first]:
        return first
    if not state.lanes[first].by_priority:
        return last
    slot = _longest_in_time(state, row.input_tokens)
    if slot == NONE:
        row.priority += LATE
        return first
    longest = state.requests[slot]
    here = state.lanes[longest.lane]
    remove_waiting(state.requests, here, slot)
    longest.priority += LATE
    insert_waiting(state.requests, here, slot)
    return longest.lane


@inner_kernel
def _done_ps(state, prompts, here, row):
    """Return when a lane should be done with a prompt if only what must go before it does: full steps, and attention.

    A late prompt that the lane has begun goes before it, too; those that wait only where lanes do not go by priority.
    """
    tokens, pairs = row.input_tokens, _pairs(row.input_tokens, here)
    slot = here.first_prefill
    while slot != NONE:
        other = state.requests[slot]
        computed = other.computed_tokens + other.chunk_tokens
        tokens += other.input_tokens - computed
        pairs += _pairs(other.input_tokens, here) - _pairs(computed, here)
        slot = other.next_prefill
    if not here.by_priority:
        tokens += here.waiting_tokens
    slot = here.first_waiting if here.by_priority and here.waiting > 0 else NONE
    while slot != NONE and state.requests[slot].priority < LATE:
        tokens += state.requests[slot].input_tokens
        pairs += _pairs(state.requests[slot].input_tokens, here)
        slot = state.requests[slot].next_waiting
    room = max(1, here.max_batched_tokens - here.decoding)
    steps_ps = (tokens + room - 1) // room * prompts[PS_PER_STEP, here.number]
    return _step_end_ps(state.prices, here, row.arrival_ps) + steps_ps + pairs * prompts[PS_PER_PAIR, here.number]


@inner_kernel
def _step_end_ps(prices, here, now_ps):
    """Return when the step that a lane is in ends; now where it is idle."""
    if here.activity == IDLE:
        return now_ps
    if here.run_steps <= 1:
        return here.end_ps
    return (
        here.start_ps
        + decode_run_ps(prices, here, here.decoding, context(here), here.run_steps, now_ps - here.start_ps)[1]
    )


@inner_kernel
def _pairs(tokens, here):
    """Return the pairs of a query and a key of an earlier step in the prefill of so many tokens."""
    return tokens * max(0, tokens - here.max_batched_tokens) // 2


@inner_kernel
def _longest_in_time(state, tokens):
    """Return the longest prompt that waits where it can give way and is not late; NONE where none has more tokens."""
    longest = NONE
    for lane in range(state.clock[0].front_lanes):
        here = state.lanes[lane]
        slot = here.first_waiting if here.by_priority and here.waiting > 0 else NONE
        while slot != NONE and state.requests[slot].priority < LATE:
            if state.requests[slot].input_tokens > tokens:
                longest, tokens = slot, state.requests[slot].input_tokens
            slot = state.requests[slot].next_waiting
    return longest


@inner_kernel
def prefix_aware(state, row):
    """Return the lane with most of a prompt in its cache, of those not much fuller than others; ties to the emptiest.

    A lane may have as many requests as the mean and one standard deviation. Where the fullest has many more than the
    emptiest, the emptiest it is, whatever is cached (AIBrix's rule).
    """
    count, total, squares, emptiest, fullest = 0, 0, 0, NONE, 0
    for lane in range(state.lanes.size):
        here = state.lanes[lane]
        if here.cost < np.inf and here.role != DECODE:
            requests = here.outstanding
            count, total, squares = count + 1, total + requests, squares + requests * requests
            fullest = max(fullest, requests)
            if emptiest == NONE or requests < state.lanes[emptiest].outstanding:
                emptiest = lane
    if emptiest == NONE or fullest - state.lanes[emptiest].outstanding > UNEVEN:
        return emptiest
    chosen, most = emptiest, 0
    for lane in range(state.lanes.size):
        here = state.lanes[lane]
        over = count * here.outstanding - total  # the mean, so many times
        is_full = over > 0 and over * over > count * squares - total * total
        if here.caching and here.cost < np.inf and here.role != DECODE and not is_full:
            _, whole, part, _, _ = look_up(state, row, here)
            matched = min((whole + part) << here.block_shift, row.input_tokens)
            is_emptier = here.outstanding < state.lanes[chosen].outstanding
            if matched > most or (matched == most and is_emptier):
                chosen, most = lane, matched
    return chosen


@inner_kernel
def kv_in_use(prices, here, now_ps):
    """Return the fraction of a lane's KV tokens that running requests hold after its last step end up to now."""
    held = context(here)
    if here.decoding > 0 and here.run_steps > 1:
        begun = decode_run_ps(prices, here, here.decoding, held, here.run_steps, now_ps - here.start_ps)[0]
        held += (begun - 1) * here.decoding * here.growth_parts
    return ((held >> here.part_shift) + here.prefilled_tokens) / (here.total_blocks << here.block_shift)


@inner_kernel
def planned_pool(plan, bucket):
    """Return the pool that is owed most of this size bucket by the plan's fractions (smooth weighted round robin)."""
    chosen = 0
    for pool in range(plan.shares.shape[1]):
        plan.credits[bucket, pool] += plan.shares[bucket, pool]
        if plan.credits[bucket, pool] > plan.credits[bucket, chosen]:
            chosen = pool
    plan.credits[bucket, chosen] -= 1.0
    return chosen
