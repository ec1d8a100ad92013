"""Tiers below a lane's memory: stores that keep prefix blocks evicted from it, or as soon as they are computed.

A lane's stores form a chain, the nearest first; the last may be one that lanes share. What a prompt finds in them is
read before the step that goes on from it, or layer by layer beside it. A store keeps what it holds on shelves.
"""

from models.compiled import asking_for, inner_kernel
from simulator.blocks import blocks, modulo
from simulator.layout import FAR, NONE
from simulator.nodes import enter, find, forget, vacant
from simulator.shelves import (
    LRU,
    RULE,
    clear,
    has_shelves,
    held_blocks,
    main_of,
    next_out,
    put_on,
    remember,
    shelf_of,
    take_off,
    touch,
)

# What a lane keeps at tiers_at: its nearest store, how long the coming step waits for KV, and in how many parts that
# comes beside the step: 0 where before it, OUTSIDE where requests wait for it outside the batch; see fetching.py.
NEAREST, FETCH_PS, FETCH_LAYERS, LANE_WORDS = range(4)
OUTSIDE = -1

# What a store keeps at its place, before its shelves. Rates are of what one lane moves; the pipe's, how long the store
# is busy for all.
BELOW, CAPACITY_BLOCKS, USED_BLOCKS, BLOCK_SHIFT, WRITES_THROUGH, IS_SHARED, MOVES_UP = range(7)
PS_PER_TOKEN, LATENCY_PS, OPERATION_PS, OPERATION_BLOCKS, PIPE_PS_PER_TOKEN, PIPE_OPERATION_PS = range(7, 13)
READ_FREE_PS, WRITE_FREE_PS, READ_TOKENS, WRITTEN_TOKENS, STORE_WORDS = range(13, 18)

GHOST_PARTS = 10  # of which the names that S3-FIFO remembers are worth one less than the content held


@asking_for("extras")
def has_tiers(state, here):
    """Say whether a lane has tiers."""
    return here.tiers_at != NONE


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
            _read(state, row, reading, here, tokens)
            reading, tokens = store, 0
        tokens += max(0, min((place + 1) * size, row.input_tokens) - max(place * size, from_tokens))
        if state.words[store + MOVES_UP]:
            take_off(state, node)
            state.words[store + USED_BLOCKS] -= state.nodes[node].blocks
            forget(state, node)
        else:
            touch(state, store + STORE_WORDS, node)
        place += 1
    _read(state, row, reading, here, tokens)


@inner_kernel
def _read(state, row, store, here, tokens):
    """Let the coming step wait for so many tokens, after what it waits for already and what others read."""
    words = state.words
    if tokens == 0:
        return
    words[store + READ_TOKENS] += tokens
    is_outside = words[here.tiers_at + FETCH_LAYERS] == OUTSIDE
    if is_outside and words[store + IS_SHARED] and state.clock[0].fetches == 0:
        row.remote_tokens += tokens
        return
    operations = _operations(words, store, blocks(tokens, here))
    begin_ps = max(here.start_ps + words[here.tiers_at + FETCH_PS], words[store + READ_FREE_PS])
    words[store + READ_FREE_PS] = begin_ps + _busy_ps(words, store, operations, tokens)
    words[here.tiers_at + FETCH_PS] = begin_ps - here.start_ps + _passing_ps(words, store, operations, tokens)


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
    if layers <= 0:
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
    if here.free_blocks == here.plain_blocks or _taker(state, here) == NONE:
        return steps
    plain_blocks = here.plain_blocks
    if not has_shelves(state, here):
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
            clear(state, store + STORE_WORDS)
            state.words[store + USED_BLOCKS] = 0
        store = state.words[store + BELOW]


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
    words, place, shelves_at = state.words, state.lanes.size + store, store + STORE_WORDS
    node = find(state, place, content)
    shelf = shelf_of(state, shelves_at, content)
    if node == NONE:
        node = vacant(state)
        if node == NONE:
            return
        row = state.nodes[node]
        row.content, row.lane, row.blocks, row.refs = content, place, blocks, 0
        enter(state, node)
    elif state.nodes[node].ready_ps < FAR:
        if words[shelves_at + RULE] == LRU:
            touch(state, shelves_at, node)
        return
    else:
        take_off(state, node)
        shelf = main_of(shelves_at, shelf)
    operations, tokens = _operations(words, store, blocks), blocks << words[store + BLOCK_SHIFT]
    begin_ps = max(state.clock[0].now_ps, words[store + WRITE_FREE_PS])
    words[store + WRITE_FREE_PS] = begin_ps + _busy_ps(words, store, operations, tokens)
    state.nodes[node].ready_ps = begin_ps + _passing_ps(words, store, operations, tokens)
    state.nodes[node].reads = 0
    words[store + USED_BLOCKS] += blocks
    words[store + WRITTEN_TOKENS] += tokens
    put_on(state, shelf, node)


@inner_kernel
def _evict(state, store):
    """Let a store give up what its rule says; the store below takes it, where there is one."""
    node = next_out(state, store + STORE_WORDS)
    row = state.nodes[node]
    main = main_of(store + STORE_WORDS, row.shelf)
    was_small = row.shelf != main
    take_off(state, node)
    state.words[store + USED_BLOCKS] -= row.blocks
    if state.words[store + BELOW] != NONE:
        _put(state, state.words[store + BELOW], row.content, row.blocks)
    if was_small:
        row.ready_ps = FAR
        remember(state, main, node, held_blocks(state.words, main) * (GHOST_PARTS - 1) // GHOST_PARTS)
    else:
        forget(state, node)
