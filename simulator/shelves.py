"""Shelves: where a memory or a store keeps the content that it may evict, and which it evicts first.

For each tenant that has a quota there are three: SMALL for what is new, MAIN, and GHOST for the names of what left
SMALL unread. Only S3-FIFO uses the first and the last (Yang et al., SOSP 2023).
"""

from models.compiled import asking_for, inner_kernel
from simulator.layout import FAR, NONE
from simulator.nodes import forget

LRU, FIFO, S3_FIFO = 0, 1, 2  # in the order of the names in tier.py

# What lies at the place of shelves: the rule, for how many tenants, and their shelves. The quota is that of the tenant,
# on its main shelf.
RULE, TENANTS, SHELVES_AT = range(3)
OLDEST, NEWEST, BLOCKS, QUOTA_BLOCKS, SHELF_WORDS = range(5)
SMALL, MAIN, GHOST, SHELVES_WORDS = 0, SHELF_WORDS, 2 * SHELF_WORDS, 3 * SHELF_WORDS

MOST_READS = 3  # that are counted of a content block
SMALL_PARTS = 10  # the small queue is a tenth


@asking_for("extras")
def has_extras(state):
    """Say whether any lane has tiers or shelves."""
    return len(state.extras) > 0


@asking_for("extras")
def has_shelves(state, here):
    """Say whether a lane's memory has shelves."""
    return here.shelves_at != NONE


@inner_kernel
def shelf_of(state, at, content):
    """Return the shelf of content that has just come: of the tenant that first asked with it, SMALL by S3-FIFO."""
    words, tenant = state.words, 0
    if words[at + TENANTS] > 1 and content >= 0:
        tenant = 1 + words[state.clock[0].tenants_at + content]
    first = at + SHELVES_AT + SHELVES_WORDS * tenant
    return first + SMALL if words[at + RULE] == S3_FIFO else first + MAIN


@inner_kernel
def main_of(at, shelf):
    """Return the main shelf of the tenant that a shelf belongs to."""
    return shelf - (shelf - at - SHELVES_AT) % SHELVES_WORDS + MAIN


@inner_kernel
def touch(state, at, node):
    """Take note that a content block was read, or would have been written again."""
    row, rule = state.nodes[node], state.words[at + RULE]
    if rule == S3_FIFO:
        row.reads = min(MOST_READS, row.reads + 1)
    elif rule == LRU:
        shelf = row.shelf
        take_off(state, node)
        put_on(state, shelf, node)


@inner_kernel
def next_out(state, at):
    """Return the node that the rule evicts next, of the tenant that holds most beyond its quota."""
    first = _most_over(state.words, at)
    if state.words[at + RULE] == S3_FIFO:
        return _unread(state, first)
    return state.words[first + MAIN + OLDEST]


@inner_kernel
def _unread(state, first):
    """Return what S3-FIFO evicts: of a small queue that is full what was read once at most, else of the main one.

    What was read more often moves from the small queue to the main one, and once round the main one for each read.
    """
    words, nodes = state.words, state.nodes
    while True:
        small_blocks, main_blocks = words[first + SMALL + BLOCKS], words[first + MAIN + BLOCKS]
        if SMALL_PARTS * small_blocks >= small_blocks + main_blocks:
            node = words[first + SMALL + OLDEST]
            if nodes[node].reads <= 1:
                return node
            nodes[node].reads = 0
        else:
            node = words[first + MAIN + OLDEST]
            if nodes[node].reads == 0:
                return node
            nodes[node].reads -= 1
        take_off(state, node)
        put_on(state, first + MAIN, node)


@inner_kernel
def _most_over(words, at):
    start = at + SHELVES_AT
    chosen, most = start, -FAR
    for first in range(start, start + SHELVES_WORDS * words[at + TENANTS], SHELVES_WORDS):
        held_blocks = words[first + SMALL + BLOCKS] + words[first + MAIN + BLOCKS]
        over_blocks = held_blocks - words[first + MAIN + QUOTA_BLOCKS]
        if held_blocks > 0 and over_blocks > most:
            chosen, most = first, over_blocks
    return chosen


@inner_kernel
def remember(state, main, node, most_blocks):
    """Keep the name of what was evicted, and forget the oldest names beyond so many blocks of content."""
    ghosts = main - MAIN + GHOST
    put_on(state, ghosts, node)
    while state.words[ghosts + BLOCKS] > most_blocks:
        oldest = state.words[ghosts + OLDEST]
        take_off(state, oldest)
        forget(state, oldest)


@inner_kernel
def held_blocks(words, main):
    """Return the blocks that a tenant's two shelves of content hold."""
    return words[main - MAIN + SMALL + BLOCKS] + words[main + BLOCKS]


@inner_kernel
def clear(state, at):
    """Forget all that lies on shelves, names included."""
    words, first = state.words, at + SHELVES_AT
    for shelf in range(first, first + SHELVES_WORDS * words[at + TENANTS], SHELF_WORDS):
        while words[shelf + OLDEST] != NONE:
            node = words[shelf + OLDEST]
            take_off(state, node)
            forget(state, node)


@inner_kernel
def put_on(state, shelf, node):
    """Lay a node on a shelf, as its newest."""
    words, row = state.words, state.nodes[node]
    row.shelf, row.previous, row.next = shelf, words[shelf + NEWEST], NONE
    if words[shelf + NEWEST] == NONE:
        words[shelf + OLDEST] = node
    else:
        state.nodes[words[shelf + NEWEST]].next = node
    words[shelf + NEWEST] = node
    words[shelf + BLOCKS] += row.blocks


@inner_kernel
def take_off(state, node):
    """Take a node off its shelf."""
    words, row = state.words, state.nodes[node]
    words[row.shelf + BLOCKS] -= row.blocks
    if row.next == NONE:
        words[row.shelf + NEWEST] = row.previous
    else:
        state.nodes[row.next].previous = row.previous
    if row.previous == NONE:
        words[row.shelf + OLDEST] = row.next
    else:
        state.nodes[row.previous].next = row.next
