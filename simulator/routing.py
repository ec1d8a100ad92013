"""Routers that live in the data plane: each a rule that names a lane for an arriving request."""

import numpy as np

from models.compiled import inner_kernel
from models.step import decode_run_ps
from simulator.blocks import context
from simulator.cache import look_up
from simulator.layout import DECODE, DONE_PS, NONE, PATIENCE_PS, PS_PER_TOKEN

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
    """Return the lane that should be done with the prompt first, by a reckoning of the prompts sent to each so far.

    A prompt that no lane should have done within its patience is late anyway. Where that lane goes by priority, it
    gives way to all others there; elsewhere it goes where it keeps fewest waiting, the lane that is behind the most.
    """
    now_ps = row.arrival_ps
    first, last = 0, 0
    for lane in range(state.clock[0].front_lanes):
        if state.lanes[lane].outstanding == 0:
            prompts[DONE_PS, lane] = now_ps
        prompts[DONE_PS, lane] = max(prompts[DONE_PS, lane], now_ps)
        done_ps = prompts[DONE_PS, lane] + prompts[PS_PER_TOKEN, lane] * row.input_tokens
        if done_ps < prompts[DONE_PS, first] + prompts[PS_PER_TOKEN, first] * row.input_tokens:
            first = lane
        if prompts[DONE_PS, lane] > prompts[DONE_PS, last]:
            last = lane
    done_ps = prompts[DONE_PS, first] + prompts[PS_PER_TOKEN, first] * row.input_tokens
    if done_ps - now_ps > prompts[PATIENCE_PS, first]:
        if state.lanes[first].by_priority:
            row.priority += LATE
            return first
        first = last
    prompts[DONE_PS, first] += prompts[PS_PER_TOKEN, first] * row.input_tokens
    return first


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
