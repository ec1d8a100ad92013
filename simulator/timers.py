"""Timers: what will happen to single requests at known times, as a heap in the data plane.

An entry is (time, key, slot). The key is the request's row in the trace times two, plus what is to happen to it: equal
times have an order that does not depend on slots, and an entry that has outlived its request is known by it.
"""

from models.compiled import inner_kernel
from simulator.layout import FAR

DEADLINE, LOADED = 0, 1
WORDS = 3


@inner_kernel
def next_timer_ps(state):
    """Return when the next timer goes off; FAR where there is none."""
    return state.timers[0] if state.clock[0].timers > 0 else FAR


@inner_kernel
def set_timer(state, time_ps, key, slot):
    """Add a timer."""
    heap, place = state.timers, state.clock[0].timers
    state.clock[0].timers += 1
    while place > 0:
        parent = (place - 1) >> 1
        if not _is_before(time_ps, key, heap, parent):
            break
        _copy(heap, parent, place)
        place = parent
    _write(heap, place, time_ps, key, slot)


@inner_kernel
def take_timer(state):
    """Remove the next timer and return (number, slot, what is to happen)."""
    heap = state.timers
    taken_key, taken_slot = heap[1], heap[2]
    state.clock[0].timers -= 1
    size = state.clock[0].timers
    time_ps, key, slot = heap[WORDS * size], heap[WORDS * size + 1], heap[WORDS * size + 2]
    place = 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and _is_before(heap[WORDS * (child + 1)], heap[WORDS * (child + 1) + 1], heap, child):
            child += 1
        if _is_before(time_ps, key, heap, child):
            break
        _copy(heap, child, place)
        place = child
    _write(heap, place, time_ps, key, slot)
    return taken_key >> 1, taken_slot, taken_key & 1


@inner_kernel
def _is_before(time_ps, key, heap, place):
    at = WORDS * place
    return time_ps < heap[at] or (time_ps == heap[at] and key < heap[at + 1])


@inner_kernel
def _copy(heap, source, target):
    for word in range(WORDS):
        heap[WORDS * target + word] = heap[WORDS * source + word]


@inner_kernel
def _write(heap, place, time_ps, key, slot):
    heap[WORDS * place], heap[WORDS * place + 1], heap[WORDS * place + 2] = time_ps, key, slot
