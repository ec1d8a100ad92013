"""Routers that live in the data plane: each a rule that names a lane for an arriving request."""

import numpy as np

from models.compiled import inner_kernel
from models.step import decode_run_ps

ROUND_ROBIN, JOIN_SHORTEST_QUEUE, LEAST_KV, PLANNED = 0, 1, 2, 3

ROUTERS = {
    "round-robin": ROUND_ROBIN,
    "join-shortest-queue": JOIN_SHORTEST_QUEUE,
    "least-kv": LEAST_KV,
    "planned": PLANNED,
}


@inner_kernel
def choose_lane(state, request):
    """Return the lane that the run's built-in router picks for a request at its arrival."""
    router = state.clock[0].router
    if router == ROUND_ROBIN:
        return round_robin(state)
    if router == LEAST_KV:
        return least_kv(state, state.requests[request].arrival_ps)
    if router == PLANNED:
        pool = planned_pool(state, state.requests[request].bucket)
        return shortest_queue(state, state.pools[pool, 0], state.pools[pool, 1])
    return shortest_queue(state, 0, state.lanes.size)


@inner_kernel
def round_robin(state):
    """Return each lane in turn."""
    clock = state.clock[0]
    lane = clock.next_lane
    clock.next_lane = (lane + 1) % state.lanes.size
    return lane


@inner_kernel
def shortest_queue(state, first, beyond):
    """Return the lane of a range whose queue, one more request counted and weighed by lane, is shortest."""
    chosen, least = first, np.inf
    for lane in range(first, beyond):
        load = (state.lanes[lane].outstanding + 1) * state.lanes[lane].cost
        if load < least:
            chosen, least = lane, load
    return chosen


@inner_kernel
def least_kv(state, now_ps):
    """Return the lane with the smallest share of its KV tokens in use."""
    chosen, least = 0, np.inf
    for lane in range(state.lanes.size):
        load = kv_in_use(state, lane, now_ps)
        if load < least:
            chosen, least = lane, load
    return chosen


@inner_kernel
def kv_in_use(state, lane, now_ps):
    """Return the fraction of a lane's KV tokens that running requests hold after its last step end up to now."""
    here = state.lanes[lane]
    tokens = here.context_tokens + here.prefilled_tokens
    if here.decoding > 0 and here.run_steps > 1:
        begun = decode_run_ps(
            state.table, here.engine, here.decoding, here.context_tokens, here.run_steps, now_ps - here.start_ps
        )[0]
        tokens += (begun - 1) * here.decoding
    return tokens / (here.total_blocks * here.block_tokens)


@inner_kernel
def planned_pool(state, bucket):
    """Return the pool that is owed most of this size bucket by the plan's fractions (smooth weighted round robin)."""
    chosen = 0
    for pool in range(state.pools.shape[0]):
        state.credits[bucket, pool] += state.shares[bucket, pool]
        if state.credits[bucket, pool] > state.credits[bucket, chosen]:
            chosen = pool
    state.credits[bucket, chosen] -= 1.0
    return chosen
