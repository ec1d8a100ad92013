"""Nodes: a table from a place and a content block to what the place keeps of it.

A place is a lane, whose memory holds the content, or a store of a lower tier, counted on from the last lane.
"""

from models.compiled import inner_kernel
from simulator.layout import NONE


@inner_kernel
def find(state, lane, content):
    """Return the node of a content block at a place, or NONE."""
    node = state.buckets[_bucket(state, lane, content)]
    while node != NONE and (state.nodes[node].content != content or state.nodes[node].lane != lane):
        node = state.nodes[node].next_in_bucket
    return node


@inner_kernel
def enter(state, node):
    """Make a node known by its place and content."""
    row = state.nodes[node]
    bucket = _bucket(state, row.lane, row.content)
    row.next_in_bucket = state.buckets[bucket]
    state.buckets[bucket] = node


@inner_kernel
def _bucket(state, lane, content):
    mixed = (content * 1_000_003 + lane) * -7_046_029_254_386_353_131
    return (mixed >> 20) & (state.buckets.size - 1)


@inner_kernel
def vacant(state):
    """Return a node to write to, or NONE where all are in use."""
    node = state.clock[0].vacant_node
    if node != NONE:
        state.clock[0].vacant_node = state.nodes[node].next
    return node


@inner_kernel
def forget(state, node):
    """Take a node out of its bucket, or from the request that left it, and vacate it."""
    row = state.nodes[node]
    if row.content < 0:
        state.requests[-1 - row.content].own_node = NONE
    else:
        bucket = _bucket(state, row.lane, row.content)
        if state.buckets[bucket] == node:
            state.buckets[bucket] = row.next_in_bucket
        else:
            other = state.buckets[bucket]
            while state.nodes[other].next_in_bucket != node:
                other = state.nodes[other].next_in_bucket
            state.nodes[other].next_in_bucket = row.next_in_bucket
    row.next = state.clock[0].vacant_node
    state.clock[0].vacant_node = node
