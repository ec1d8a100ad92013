"""Tiers below a lane's memory: stores that keep prefix blocks evicted from it, or as soon as they are computed.

A lane's stores form a chain, the nearest first; the last may be one that lanes share. What a prompt finds in them is
read before the step that goes on from it, or layer by layer beside it. A store keeps what it holds on three shelves for
each tenant that has a quota: SMALL for what is new to it, MAIN, and GHOST for the names of what left SMALL unread.
"""

from models.compiled import inner_kernel
from simulator.blocks import blocks, modulo
from simulator.layout import FAR, NONE
from simulator.nodes import enter, find, forget, vacant

LRU, FIFO, S3_FIFO = 0, 1, 2
EVICTIONS = {"lru": LRU, "fifo": FIFO, "s3-fifo": S3_FIFO}

# What a lane keeps at tiers_at: its nearest store, how long the coming step waits for KV, and in how many parts that
# comes beside the step, 0 where before it.
NEAREST, FETCH_PS, FETCH_LAYERS, LANE_WORDS = range(4)

# What a store keeps at its place. Rates are of what one lane moves; the pipe's, how long the store is busy for all.
BELOW, CAPACITY_BLOCKS, USED_BLOCKS, BLOCK_SHIFT, EVICTION, WRITES_THROUGH = range(6)
PS_PER_TOKEN, LATENCY_PS, OPERATION_PS, OPERATION_BLOCKS, PIPE_PS_PER_TOKEN, PIPE_OPERATION_PS = range(6, 12)
READ_FREE_PS, WRITE_FREE_PS, READ_TOKENS, WRITTEN_TOKENS, IS_SHARED, MOVES_UP, TENANTS, STORE_WORDS = range(12, 20)

# After it come its shelves, three for each tenant; the quota is that of the tenant, on its main shelf.
OLDEST, NEWEST, BLOCKS, QUOTA_BLOCKS, SHELF_WORDS = range(5)
SMALL, MAIN, GHOST, SHELVES_WORDS = 0, SHELF_WORDS, 2 * SHELF_WORDS, 3 * SHELF_WORDS

MOST_READS = 3  # that are counted of a content block
SMALL_PARTS = 10  # the small queue is a tenth (Yang et al., SOSP 2023)


@inner_kernel
def has_tiers(state, here):
    """Say whether a lane has tiers; where no lane has, the kernels are compiled without all that follows from it."""
    return len(state.tiers) > 0 and here.tiers_at != NONE


@inner_kernel
def known_tokens(state, row, here, nodes):
    """Return the tokens at a prompt's head that are cached: `nodes` content blocks here, those after them below."""
    place = nodes
    while place < row.contents and _holder(state, here, state.contents[row.contents_at + place]) != NONE:
        place += 1
    return min(place * state.clock[0].content_tokens, row.input_tokens)


@inner_kernel
def _holder(state, here, content):
    """Return the node of a content block in the nearest store that has it by now, or NONE."""
    store = state.words[here.tiers_at + NEAREST]
    while store != NONE:
        node = find(state, state.lanes.size + store, content)
        if node != NONE and state.nodes[node].ready_ps <= state.clock[0].now_ps:
            return node
        store = state.words[store + BELOW]
    return NONE


@inner_kernel
def fetch(state, row, here, nodes, from_tokens, until_tokens):
    """Read a prompt's tokens of its content blocks after the first `nodes`: a transfer for each run in one store."""
    size, place, tokens, reading = state.clock[0].content_tokens, nodes, 0, NONE
    while place * size < until_tokens:
        node = _holder(state, here, state.contents[row.contents_at + place])
        store = state.nodes[node].lane - state.lanes.size
        if store != reading:
            _read(state.words, reading, here, tokens)
            reading, tokens = store, 0
        tokens += max(0, min((place + 1) * size, row.input_tokens) - max(place * size, from_tokens))
        if state.words[store + MOVES_UP]:
            _take_off(state, node)
            state.words[store + USED_BLOCKS] -= state.nodes[node].blocks
            forget(state, node)
        else:
            _touch(state, store, node)
        place += 1
    _read(state.words, reading, here, tokens)


@inner_kernel
def _read(words, store, here, tokens):
    """Let the coming step wait for so many tokens, after what it waits for already and what others read."""
    if tokens == 0:
        return
    operations = _operations(words, store, blocks(tokens, here))
    begin_ps = max(here.start_ps + words[here.tiers_at + FETCH_PS], words[store + READ_FREE_PS])
    words[store + READ_FREE_PS] = begin_ps + _busy_ps(words, store, operations, tokens)
    words[here.tiers_at + FETCH_PS] = begin_ps - here.start_ps + _passing_ps(words, store, operations, tokens)
    words[store + READ_TOKENS] += tokens


@inner_kernel
def _busy_ps(words, store, operations, tokens):
    return operations * words[store + PIPE_OPERATION_PS] + tokens * words[store + PIPE_PS_PER_TOKEN]


@inner_kernel
def _passing_ps(words, store, operations, tokens):
    """Return how long a transfer takes alone: n_ops x t_op + latency + bytes / bandwidth."""
    return operations * words[store + OPERATION_PS] + words[store + LATENCY_PS] + tokens * words[store + PS_PER_TOKEN]


@inner_kernel
def _operations(words, store, blocks):
    return (blocks + words[store + OPERATION_BLOCKS] - 1) // words[store + OPERATION_BLOCKS]


@inner_kernel
def with_fetch(words, here, compute_ps):
    """Return how long a step takes that waits for KV before it or, in L layers, beside it: max + min / L."""
    fetch_ps, layers = words[here.tiers_at + FETCH_PS], words[here.tiers_at + FETCH_LAYERS]
    words[here.tiers_at + FETCH_PS] = 0
    if layers == 0:
        return compute_ps + fetch_ps
    return max(compute_ps, fetch_ps) + min(compute_ps, fetch_ps) // layers


@inner_kernel
def write_back(state, here, content, blocks):
    """Write a content block that a lane evicts to the nearest store that takes such."""
    store = _taker(state, here)
    if store != NONE:
        _write(state, store, content, blocks)


@inner_kernel
def _taker(state, here):
    """Return the nearest store that takes what a lane evicts, or NONE."""
    store = state.words[here.tiers_at + NEAREST]
    while store != NONE and state.words[store + WRITES_THROUGH]:
        store = state.words[store + BELOW]
    return store


@inner_kernel
def write_through(state, row, here):
    """Write the content blocks of a prompt that has been computed to all stores that take them at once."""
    store = state.words[here.tiers_at + NEAREST]
    while store != NONE:
        if state.words[store + WRITES_THROUGH]:
            for place in range(row.held_nodes):
                content = state.contents[row.contents_at + place]
                _write(state, store, content, state.nodes[find(state, here.number, content)].whole_blocks)
        store = state.words[store + BELOW]


@inner_kernel
def steps_without_writing(state, here, steps):
    """Return how many decode steps take none but plain blocks, at least one: what is evicted is written on time."""
    if here.oldest_node == NONE or _taker(state, here) == NONE:
        return steps
    plain_blocks = state.nodes[here.oldest_node].blocks_before
    for step in range(1, steps + 1):
        plain_blocks -= state.words[here.crossings_at + modulo(here.steps + step, here.period_shift)]
        if plain_blocks < 0:
            return max(1, step - 1)
    return steps


@inner_kernel
def lose_own_stores(state, here):
    """Lose what the stores of a lane's own replica keep, and what its coming step waits for."""
    state.words[here.tiers_at + FETCH_PS] = 0
    store = state.words[here.tiers_at + NEAREST]
    while store != NONE:
        if state.words[store + IS_SHARED] == 0:
            _empty(state, store)
        store = state.words[store + BELOW]


@inner_kernel
def _empty(state, store):
    first = store + STORE_WORDS
    for shelf in range(first, first + SHELVES_WORDS * state.words[store + TENANTS], SHELF_WORDS):
        while state.words[shelf + OLDEST] != NONE:
            node = state.words[shelf + OLDEST]
            _take_off(state, node)
            forget(state, node)
    state.words[store + USED_BLOCKS] = 0


@inner_kernel
def _write(state, store, content, blocks):
    """Write a content block to a store unless it is there or on its way, and make room for it."""
    _put(state, store, content, blocks)
    while store != NONE:
        while state.words[store + USED_BLOCKS] > state.words[store + CAPACITY_BLOCKS]:
            _evict(state, store)
        store = state.words[store + BELOW]


@inner_kernel
def _put(state, store, content, blocks):
    words, place = state.words, state.lanes.size + store
    node = find(state, place, content)
    shelf = store + STORE_WORDS + SHELVES_WORDS * _tenant(state, store, content) + MAIN
    if node == NONE:
        node = vacant(state)
        if node == NONE:
            return
        row = state.nodes[node]
        row.content, row.lane, row.blocks, row.refs = content, place, blocks, 0
        enter(state, node)
        if words[store + EVICTION] == S3_FIFO:
            shelf += SMALL - MAIN
    elif state.nodes[node].ready_ps < FAR:
        if words[store + EVICTION] == LRU:
            _touch(state, store, node)
        return
    else:
        _take_off(state, node)
    operations, tokens = _operations(words, store, blocks), blocks << words[store + BLOCK_SHIFT]
    begin_ps = max(state.clock[0].now_ps, words[store + WRITE_FREE_PS])
    words[store + WRITE_FREE_PS] = begin_ps + _busy_ps(words, store, operations, tokens)
    state.nodes[node].ready_ps = begin_ps + _passing_ps(words, store, operations, tokens)
    state.nodes[node].reads = 0
    words[store + USED_BLOCKS] += blocks
    words[store + WRITTEN_TOKENS] += tokens
    _shelve(state, shelf, node)


@inner_kernel
def _evict(state, store):
    """Let a store give up what its rule says; the store below takes it, where there is one."""
    first = _most_over(state.words, store)
    node = state.words[first + MAIN + OLDEST]
    if state.words[store + EVICTION] == S3_FIFO:
        node = _unread(state, first)
    row = state.nodes[node]
    was_small = row.shelf == first + SMALL
    _take_off(state, node)
    state.words[store + USED_BLOCKS] -= row.blocks
    if state.words[store + BELOW] != NONE:
        _put(state, state.words[store + BELOW], row.content, row.blocks)
    if was_small:
        row.ready_ps = FAR
        _shelve(state, first + GHOST, node)
        _forget_ghosts(state, first)
    else:
        forget(state, node)


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
        _take_off(state, node)
        _shelve(state, first + MAIN, node)


@inner_kernel
def _forget_ghosts(state, first):
    """Remember as much as the main queue is to hold."""
    held_blocks = state.words[first + SMALL + BLOCKS] + state.words[first + MAIN + BLOCKS]
    while state.words[first + GHOST + BLOCKS] * SMALL_PARTS > held_blocks * (SMALL_PARTS - 1):
        node = state.words[first + GHOST + OLDEST]
        _take_off(state, node)
        forget(state, node)


@inner_kernel
def _most_over(words, store):
    """Return the first shelf of the tenant that holds most beyond its quota."""
    start = store + STORE_WORDS
    chosen, most = start, -FAR
    for first in range(start, start + SHELVES_WORDS * words[store + TENANTS], SHELVES_WORDS):
        held_blocks = words[first + SMALL + BLOCKS] + words[first + MAIN + BLOCKS]
        over_blocks = held_blocks - words[first + MAIN + QUOTA_BLOCKS]
        if held_blocks > 0 and over_blocks > most:
            chosen, most = first, over_blocks
    return chosen


@inner_kernel
def _tenant(state, store, content):
    """Return whose quota a content block counts against: that of the first who asked with it."""
    return 0 if state.words[store + TENANTS] == 1 else 1 + state.words[state.clock[0].tenants_at + content]


@inner_kernel
def _touch(state, store, node):
    """Take note that a content block was read, or would have been written again."""
    row = state.nodes[node]
    if state.words[store + EVICTION] == S3_FIFO:
        row.reads = min(MOST_READS, row.reads + 1)
    elif state.words[store + EVICTION] == LRU:
        shelf = row.shelf
        _take_off(state, node)
        _shelve(state, shelf, node)


@inner_kernel
def _shelve(state, shelf, node):
    words, row = state.words, state.nodes[node]
    row.shelf, row.previous, row.next = shelf, words[shelf + NEWEST], NONE
    if words[shelf + NEWEST] == NONE:
        words[shelf + OLDEST] = node
    else:
        state.nodes[words[shelf + NEWEST]].next = node
    words[shelf + NEWEST] = node
    words[shelf + BLOCKS] += row.blocks


@inner_kernel
def _take_off(state, node):
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
