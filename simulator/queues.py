"""A lane's queues: who waits, who is in prefill, who runs, and when each that decodes will end.

Waiting, ready and prefill lists are singly linked, the running list doubly, all through the requests' rows.
"""

from models.compiled import inner_kernel
from simulator.blocks import most_blocks
from simulator.layout import NONE, PREFILLING

KEY_SHIFT = 32  # of the step in the key of a finish


@inner_kernel
def append_waiting(requests, here, slot):
    requests[slot].next_waiting = NONE
    if here.waiting == 0:
        here.first_waiting = slot
    else:
        requests[here.last_waiting].next_waiting = slot
    here.last_waiting = slot
    _count_waiting(requests[slot], here)


@inner_kernel
def prepend_waiting(requests, here, slot):
    requests[slot].next_waiting = here.first_waiting if here.waiting > 0 else NONE
    if here.waiting == 0:
        here.last_waiting = slot
    here.first_waiting = slot
    _count_waiting(requests[slot], here)


@inner_kernel
def insert_waiting(requests, here, slot):
    """Queue a request before those that are less urgent, or as urgent and later."""
    row = requests[slot]
    before, other = NONE, here.first_waiting if here.waiting > 0 else NONE
    while other != NONE and (requests[other].priority, requests[other].number) < (row.priority, row.number):
        before, other = other, requests[other].next_waiting
    row.next_waiting = other
    if before == NONE:
        here.first_waiting = slot
    else:
        requests[before].next_waiting = slot
    if other == NONE:
        here.last_waiting = slot
    _count_waiting(row, here)


@inner_kernel
def remove_waiting(requests, here, slot):
    before, other = NONE, here.first_waiting
    while other != slot:
        before, other = other, requests[other].next_waiting
    if before == NONE:
        here.first_waiting = requests[slot].next_waiting
    else:
        requests[before].next_waiting = requests[slot].next_waiting
    if here.last_waiting == slot:
        here.last_waiting = before
    _discount_waiting(requests[slot], here)


@inner_kernel
def append_ready(requests, here, slot):
    requests[slot].next_waiting = NONE
    if here.first_ready == NONE:
        here.first_ready = slot
    else:
        requests[here.last_ready].next_waiting = slot
    here.last_ready = slot


@inner_kernel
def pop_waiting(requests, here):
    row = requests[here.first_waiting]
    here.first_waiting = row.next_waiting
    _discount_waiting(row, here)


@inner_kernel
def _count_waiting(row, here):
    here.waiting += 1
    here.waiting_tokens += row.input_tokens + row.generated_tokens


@inner_kernel
def _discount_waiting(row, here):
    here.waiting -= 1
    here.waiting_tokens -= row.input_tokens + row.generated_tokens


@inner_kernel
def append_running(requests, here, slot):
    """Admit a request: it runs last in order, in prefill."""
    requests[slot].status = PREFILLING
    link_running(requests, here, slot)
    append_prefill(requests, here, slot)


@inner_kernel
def link_running(requests, here, slot):
    row = requests[slot]
    row.previous_running = here.last_running
    row.next_running = NONE
    if here.last_running != NONE:
        requests[here.last_running].next_running = slot
    here.last_running = slot
    here.running += 1
    here.reserved_blocks += most_blocks(row, here)


@inner_kernel
def remove_running(requests, here, slot):
    row = requests[slot]
    if row.previous_running != NONE:
        requests[row.previous_running].next_running = row.next_running
    if row.next_running != NONE:
        requests[row.next_running].previous_running = row.previous_running
    else:
        here.last_running = row.previous_running
    here.running -= 1
    here.reserved_blocks -= most_blocks(row, here)


@inner_kernel
def append_prefill(requests, here, slot):
    requests[slot].next_prefill = NONE
    if here.first_prefill == NONE:
        here.first_prefill = slot
    else:
        requests[here.last_prefill].next_prefill = slot
    here.last_prefill = slot


@inner_kernel
def remove_prefill(requests, here, slot):
    before, other = NONE, here.first_prefill
    while other != slot:
        before, other = other, requests[other].next_prefill
    if before == NONE:
        here.first_prefill = requests[slot].next_prefill
    else:
        requests[before].next_prefill = requests[slot].next_prefill
    if here.last_prefill == slot:
        here.last_prefill = before


# The heap of finishes: pairs of (key, slot) in the words of a lane; its size is the number of decoding requests. A key
# is the step at which a request ends, and its number, which decides between those of one step.


@inner_kernel
def place_of_finish(words, here, slot):
    place = 0
    while words[here.finishes_at + 2 * place + 1] != slot:
        place += 1
    return place


@inner_kernel
def push_finish(words, here, key, slot):
    place = _lift(words, here.finishes_at, here.decoding, key)
    _put(words, here.finishes_at + 2 * place, key, slot)


@inner_kernel
def remove_finish(words, here, place):
    heap, size = here.finishes_at, here.decoding - 1
    key, slot = words[heap + 2 * size], words[heap + 2 * size + 1]
    if place == size:
        return
    place = _lift(words, heap, place, key)
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and words[heap + 2 * child + 2] < words[heap + 2 * child]:
            child += 1
        if words[heap + 2 * child] >= key:
            break
        _put(words, heap + 2 * place, words[heap + 2 * child], words[heap + 2 * child + 1])
        place = child
    _put(words, heap + 2 * place, key, slot)


@inner_kernel
def _lift(words, heap, place, key):
    """Move later entries down along the way to the root; return the place that `key` may take."""
    while place > 0:
        parent = (place - 1) >> 1
        if words[heap + 2 * parent] <= key:
            break
        _put(words, heap + 2 * place, words[heap + 2 * parent], words[heap + 2 * parent + 1])
        place = parent
    return place


@inner_kernel
def _put(words, at, key, slot):
    words[at], words[at + 1] = key, slot
