"""The loop of the data plane: step ends, timers and arrivals in time order."""

from models.compiled import inner_kernel, kernel
from simulator.actions import cancel, submit
from simulator.batch import arrive_ready, release_source
from simulator.ending import end_step
from simulator.fetching import come_back
from simulator.forming import begin_step
from simulator.lane import keep_step, wake
from simulator.layout import FAR, FINISHED, IDLE, LOADING, NONE
from simulator.routing import choose_lane
from simulator.shelves import has_extras
from simulator.timers import DEADLINE, next_timer_ps, take_timer


@kernel
def advance(state, plan, now_ps, horizon_ps, slot, lane):
    """Run every event up to and including `horizon_ps`: at equal times step ends first, then timers, then arrivals.

    Before that, at `now_ps`, the request in `slot` is given to `lane` unless it is NONE: one crossing a request for
    routers written in Python. Returns early, after the event in question, where the control plane is to be told of
    something.
    """
    clock, requests, lanes, words = state.clock[0], state.requests, state.lanes, state.words
    if slot != NONE:
        clock.now_ps = now_ps
        submit(state, slot, lane, now_ps)
        wake(state, lanes[lane], now_ps)
    arrival_ps = _next_arrival_ps(state)
    winner = clock.events_at + 1
    while clock.notices == 0:
        lane = words[winner]
        end_ps = lanes[lane].end_ps
        timer_ps = next_timer_ps(state)
        if end_ps <= min(arrival_ps, timer_ps):
            if end_ps > horizon_ps:
                return
            clock.now_ps = end_ps
            clock.lane_events += 1
            first = lanes[lane].first_rank
            last = first + lanes[lane].ranks - 1
            for rank in range(first, last + 1):
                end_step(state, lanes[rank])
            for rank in range(first, last + 1):
                begin_step(state, lanes[rank], end_ps)
            if first < last:
                keep_step(state, first, last)
        elif timer_ps <= arrival_ps:
            if timer_ps > horizon_ps:
                return
            clock.now_ps = timer_ps
            _go_off(state, timer_ps)
        else:
            if arrival_ps > horizon_ps:
                return
            clock.now_ps = arrival_ps
            slot = state.coming[clock.next_coming]
            clock.next_coming += 1
            lane = choose_lane(state, plan, requests[slot])
            submit(state, slot, lane, arrival_ps)
            if lane != NONE and lanes[lane].activity == IDLE:
                wake(state, lanes[lane], arrival_ps)
            arrival_ps = _next_arrival_ps(state)


@inner_kernel
def _next_arrival_ps(state):
    clock = state.clock[0]
    if clock.next_coming == clock.coming:
        return FAR
    return state.requests[state.coming[clock.next_coming]].arrival_ps


@inner_kernel
def _go_off(state, now_ps):
    """Do what the next timer was set for: a client gives up, or KV has come to its lane."""
    number, slot, what = take_timer(state)
    row = state.requests[slot]
    if row.number != number or row.status >= FINISHED:
        return
    if what == DEADLINE:
        cancel(state, slot, now_ps)
    elif row.status != LOADING or row.lands_ps != now_ps:
        return
    elif has_extras(state) and row.source_lane == NONE:
        come_back(state, slot, now_ps)
    else:
        release_source(state, row, now_ps)
        arrive_ready(state, slot, now_ps)
