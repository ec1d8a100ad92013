"""Prefix caching: blocks keep what was computed in them until they are taken again, least recently freed first.

Content is known in nodes: the blocks of one content block of the trace (its hash), or those that a preempted request
left behind. Blocks that nobody refers to lie in a lane's queue in the order they came free, as a list of nodes, each
with the number of blocks without content that lie before it. A request gives its blocks back last block first, so a
node is taken from its end and its beginning stays of use. Two requests that compute the same content at the same time
hold it twice, as in vLLM; a last, partial block is shared to the token.
"""

from models.compiled import inner_kernel
from simulator.blocks import blocks
from simulator.layout import NONE
from simulator.nodes import enter, find, forget, vacant
from simulator.tiers import has_tiers, write_back


@inner_kernel
def take_blocks(state, here, blocks):
    """Take free blocks, the least recently freed first; what they held is forgotten."""
    here.free_blocks -= blocks
    while blocks > 0 and here.oldest_node != NONE:
        node = here.oldest_node
        row = state.nodes[node]
        plain = min(blocks, row.blocks_before)
        row.blocks_before -= plain
        blocks -= plain
        taken = min(blocks, row.blocks)
        if has_tiers(state, here) and taken > 0 and row.blocks == row.whole_blocks and row.content >= 0:
            write_back(state, here, row.content, row.blocks)
        row.blocks -= taken
        blocks -= taken
        if row.blocks == 0:
            _unlink(state.nodes, here, node)
            forget(state, node)
    here.plain_blocks -= blocks


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
            _append(state.nodes, here, node)
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
    _append(state.nodes, here, node)


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
            _take_from_queue(state.nodes, here, node)
        state.nodes[node].refs += 1
        row.held_blocks += state.nodes[node].blocks
    if part > 0:
        node = find(state, here.number, state.contents[row.contents_at + nodes])
        _take_from_queue(state.nodes, here, node)
        forget(state, node)
    if own > 0:
        _take_from_queue(state.nodes, here, row.own_node)
        forget(state, row.own_node)
    drop_leavings(state, row, here)


@inner_kernel
def drop_leavings(state, row, here):
    """Forget what a preempted request left behind; its blocks stay in the queue, as blocks without content."""
    node = row.own_node
    if node != NONE:
        state.nodes[node].blocks_before += state.nodes[node].blocks
        _unlink(state.nodes, here, node)
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
            _take_from_queue(state.nodes, here, node)
        state.nodes[node].refs += 1
        row.held_nodes += 1
        row.held_blocks += state.nodes[node].blocks


@inner_kernel
def push_out(state, row, here, contents):
    """Evict what of a prompt's first content blocks nobody refers to, to the tiers below where there are any."""
    for place in range(contents):
        node = find(state, here.number, state.contents[row.contents_at + place])
        if node != NONE and state.nodes[node].refs == 0:
            found = state.nodes[node]
            if has_tiers(state, here) and found.blocks == found.whole_blocks:
                write_back(state, here, found.content, found.blocks)
            found.blocks_before += found.blocks
            _unlink(state.nodes, here, node)
            forget(state, node)


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
        found = state.nodes[node]
        found.content, found.lane, found.refs = content, here.number, 1
        found.blocks = blocks(end_tokens, here) - row.held_blocks
        found.whole_blocks = found.blocks
        enter(state, node)
        row.held_nodes += 1
        row.held_blocks += found.blocks


@inner_kernel
def _append(nodes, here, node):
    row = nodes[node]
    here.free_blocks += row.blocks
    row.blocks_before = here.plain_blocks
    here.plain_blocks = 0
    row.previous, row.next = here.newest_node, NONE
    if here.newest_node == NONE:
        here.oldest_node = node
    else:
        nodes[here.newest_node].next = node
    here.newest_node = node


@inner_kernel
def _unlink(nodes, here, node):
    """Take a node out of the queue; the plain blocks before it stay where they are."""
    row = nodes[node]
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
def _take_from_queue(nodes, here, node):
    here.free_blocks -= nodes[node].blocks
    _unlink(nodes, here, node)
