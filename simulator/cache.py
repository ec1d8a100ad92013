"""Prefix caching: blocks keep what was computed in them until they are taken again, least recently freed first.

Content is known in nodes: the blocks of one content block of the trace (its hash), or those that a preempted request
left behind. Blocks that nobody refers to lie in a lane's queue in the order they came free, as a list of nodes, each
with the number of blocks without content that lie before it. A request gives its blocks back last block first, so a
node is taken from its end and its beginning stays of use. Two requests that compute the same content at the same time
hold it twice, as in vLLM; a last, partial block is shared to the token.

Where a lane's memory has shelves, blocks without content are taken first, then content as the shelves' rule says. A
node that a request lets go of is the newest of its shelf.
"""

from models.compiled import inner_kernel
from simulator.blocks import blocks
from simulator.layout import NONE
from simulator.nodes import enter, find, forget, vacant
from simulator.shelves import (
    BLOCKS,
    MOST_READS,
    has_shelves,
    main_of,
    next_out,
    put_on,
    remember,
    shelf_of,
    take_off,
)
from simulator.tiers import has_tiers, write_back


@inner_kernel
def take_blocks(state, here, blocks):
    """Take free blocks, the least recently freed first; what they held is forgotten."""
    here.free_blocks -= blocks
    if has_shelves(state, here):
        _take_from_shelves(state, here, blocks)
        return
    while blocks > 0 and here.oldest_node != NONE:
        node = here.oldest_node
        row = state.nodes[node]
        plain = min(blocks, row.blocks_before)
        row.blocks_before -= plain
        blocks -= plain
        taken = min(blocks, row.blocks)
        if taken > 0:
            _write_back(state, here, row)
        row.blocks -= taken
        blocks -= taken
        if row.blocks == 0:
            _unlink(state, here, node)
            forget(state, node)
    here.plain_blocks -= blocks


@inner_kernel
def _write_back(state, here, row):
    """Let the tiers have a node that is about to be taken, if it is whole."""
    if has_tiers(state, here) and row.blocks == row.whole_blocks and row.content >= 0:
        write_back(state, here, row.content, row.blocks)


@inner_kernel
def _take_from_shelves(state, here, blocks):
    """Take blocks one by one, so that it makes no difference how many are taken at once."""
    plain = min(blocks, here.plain_blocks)
    here.plain_blocks -= plain
    blocks -= plain
    while blocks > 0:
        node = next_out(state, here.shelves_at)
        row = state.nodes[node]
        _write_back(state, here, row)
        taken = min(1, row.blocks)
        blocks -= taken
        row.blocks -= taken
        state.words[row.shelf + BLOCKS] -= taken
        if row.blocks == 0:
            take_off(state, node)
            _evicted(state, here, node)


@inner_kernel
def _evicted(state, here, node):
    """Forget a node that was taken whole, but for its name where S3-FIFO remembers it."""
    row = state.nodes[node]
    content, blocks, main = row.content, row.whole_blocks, main_of(here.shelves_at, row.shelf)
    was_small = row.shelf != main
    forget(state, node)
    if was_small and content >= 0:
        ghost = vacant(state)
        row = state.nodes[ghost]
        row.content, row.lane, row.blocks = content, _ghosts_of(state, here), blocks
        enter(state, ghost)
        remember(state, main, ghost, here.total_blocks)


@inner_kernel
def _ghosts_of(state, here):
    """Return the place at which nodes are only names."""
    return state.lanes.size + state.words.size + here.number


@inner_kernel
def _shelf_of_new(state, here, content):
    """Return the shelf of content that was just computed: the main one if its name is remembered."""
    shelf = shelf_of(state, here.shelves_at, content)
    ghost = find(state, _ghosts_of(state, here), content)
    if ghost != NONE:
        take_off(state, ghost)
        forget(state, ghost)
        shelf = main_of(here.shelves_at, shelf)
    return shelf


@inner_kernel
def give_blocks(here, blocks):
    """Give back blocks whose content is of no more use."""
    here.free_blocks += blocks
    here.plain_blocks += blocks


@inner_kernel
def leave_content(state, row, here):
    """Drop a request's hold on shared content, the last node first; what nobody else holds can be taken from now on."""
    for place in range(row.held_nodes - 1, -1, -1):
        node = find(state, here.number, state.contents[row.contents_at + place])
        state.nodes[node].refs -= 1
        if state.nodes[node].refs == 0:
            _append(state, here, node)
    row.held_nodes = 0
    row.held_blocks = 0


@inner_kernel
def leave_own(state, row, here, slot, blocks):
    """Give back a preempted request's own full blocks, which it may find again when it resumes."""
    row.own_after_nodes = row.held_nodes
    node = vacant(state) if here.caching and blocks > 0 else NONE
    row.own_node = node
    if node == NONE:
        give_blocks(here, blocks)
        return
    state.nodes[node].content = -1 - slot
    state.nodes[node].blocks = blocks
    if has_shelves(state, here):
        state.nodes[node].shelf, state.nodes[node].reads = shelf_of(state, here.shelves_at, NONE), 0
    _append(state, here, node)


@inner_kernel
def look_up(state, row, here):
    """Return what of a request is in the lane's cache: (whole nodes, their blocks, part, own, blocks in queue).

    part is what is left of a node that was partly taken, own what the request left when preempted: one of them is 0.
    """
    nodes, blocks, part, own, queued = 0, 0, 0, 0, 0
    while nodes < row.contents and part == 0:
        node = find(state, here.number, state.contents[row.contents_at + nodes])
        if node == NONE:
            break
        found = state.nodes[node]
        if found.refs == 0:
            queued += found.blocks
        if found.blocks < found.whole_blocks:
            part = found.blocks
        else:
            nodes += 1
            blocks += found.blocks
    if row.own_node != NONE and part == 0 and nodes == row.own_after_nodes:
        own = state.nodes[row.own_node].blocks
        queued += own
    return nodes, blocks, part, own, queued


@inner_kernel
def hold(state, row, here, nodes, part, own):
    """Take hold of what `look_up` found; a node that was partly taken becomes the request's own."""
    row.held_nodes, row.held_blocks = nodes, 0
    for place in range(nodes):
        node = find(state, here.number, state.contents[row.contents_at + place])
        if state.nodes[node].refs == 0:
            _take_from_queue(state, here, node)
        state.nodes[node].refs += 1
        if has_shelves(state, here):
            state.nodes[node].reads = min(MOST_READS, state.nodes[node].reads + 1)
        row.held_blocks += state.nodes[node].blocks
    if part > 0:
        node = find(state, here.number, state.contents[row.contents_at + nodes])
        _take_from_queue(state, here, node)
        forget(state, node)
    if own > 0:
        _take_from_queue(state, here, row.own_node)
        forget(state, row.own_node)
    drop_leavings(state, row, here)


@inner_kernel
def drop_leavings(state, row, here):
    """Forget what a preempted request left behind; its blocks stay in the queue, as blocks without content."""
    if row.own_node != NONE:
        _make_plain(state, here, row.own_node)


@inner_kernel
def _make_plain(state, here, node):
    """Forget what free blocks hold, and leave them where they are."""
    if has_shelves(state, here):
        here.plain_blocks += state.nodes[node].blocks
    else:
        state.nodes[node].blocks_before += state.nodes[node].blocks
    _unlink(state, here, node)
    forget(state, node)


@inner_kernel
def unheld_blocks(state, row, here, contents):
    """Return the blocks of a prompt's first content blocks in a lane's cache that nobody refers to."""
    found_blocks = 0
    for place in range(contents):
        node = find(state, here.number, state.contents[row.contents_at + place])
        if node == NONE:
            break
        if state.nodes[node].refs == 0:
            found_blocks += state.nodes[node].blocks
    return found_blocks


@inner_kernel
def pin(state, row, here, contents):
    """Refer to a prompt's first content blocks, as far as they are whole in the cache, for a request that is done."""
    while row.held_nodes < contents:
        node = find(state, here.number, state.contents[row.contents_at + row.held_nodes])
        if node == NONE or state.nodes[node].blocks < state.nodes[node].whole_blocks:
            return
        if state.nodes[node].refs == 0:
            _take_from_queue(state, here, node)
        state.nodes[node].refs += 1
        row.held_nodes += 1
        row.held_blocks += state.nodes[node].blocks


@inner_kernel
def push_out(state, row, here, contents):
    """Evict what of a prompt's first content blocks nobody refers to, to the tiers below where there are any."""
    for place in range(contents):
        node = find(state, here.number, state.contents[row.contents_at + place])
        if node != NONE and state.nodes[node].refs == 0:
            _write_back(state, here, state.nodes[node])
            _make_plain(state, here, node)


@inner_kernel
def share(state, row, here, computed_tokens):
    """Make known the content blocks that a request will have computed; where another did already, no more of them."""
    size = state.clock[0].content_tokens
    while row.held_nodes < row.contents:
        end_tokens = min((row.held_nodes + 1) * size, row.input_tokens)
        if computed_tokens < end_tokens:
            return
        content = state.contents[row.contents_at + row.held_nodes]
        node = NONE
        if find(state, here.number, content) == NONE:
            node = vacant(state)
        if node == NONE:
            row.contents = row.held_nodes
            return
        _name(state, here, node, content, blocks(end_tokens, here) - row.held_blocks)
        state.nodes[node].refs = 1
        row.held_nodes += 1
        row.held_blocks += state.nodes[node].blocks


@inner_kernel
def _name(state, here, node, content, blocks):
    """Make a vacant node that of content in so many blocks."""
    row = state.nodes[node]
    row.content, row.lane, row.refs, row.blocks, row.whole_blocks = content, here.number, 0, blocks, blocks
    if has_shelves(state, here):
        row.shelf, row.reads = _shelf_of_new(state, here, content), 0
    enter(state, node)


@inner_kernel
def lay_down(state, here, content, blocks):
    """Let blocks that are in nobody's hands hold content, as the newest; return how many, none where it is there."""
    node = find(state, here.number, content)
    if node != NONE:
        if state.nodes[node].refs > 0 or state.nodes[node].blocks == state.nodes[node].whole_blocks:
            return 0
        _make_plain(state, here, node)
    node = vacant(state)
    if node == NONE:
        return 0
    _name(state, here, node, content, blocks)
    _append(state, here, node)
    return blocks


@inner_kernel
def _append(state, here, node):
    nodes, row = state.nodes, state.nodes[node]
    here.free_blocks += row.blocks
    if has_shelves(state, here):
        put_on(state, row.shelf, node)
        return
    row.blocks_before = here.plain_blocks
    here.plain_blocks = 0
    row.previous, row.next = here.newest_node, NONE
    if here.newest_node == NONE:
        here.oldest_node = node
    else:
        nodes[here.newest_node].next = node
    here.newest_node = node


@inner_kernel
def _unlink(state, here, node):
    """Take a node out of the queue; the plain blocks before it stay where they are."""
    nodes, row = state.nodes, state.nodes[node]
    if has_shelves(state, here):
        take_off(state, node)
        return
    if row.next == NONE:
        here.newest_node = row.previous
        here.plain_blocks += row.blocks_before
    else:
        nodes[row.next].previous = row.previous
        nodes[row.next].blocks_before += row.blocks_before
    if row.previous == NONE:
        here.oldest_node = row.next
    else:
        nodes[row.previous].next = row.next


@inner_kernel
def _take_from_queue(state, here, node):
    here.free_blocks -= state.nodes[node].blocks
    _unlink(state, here, node)
