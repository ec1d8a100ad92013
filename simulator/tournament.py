"""Tournaments: trees of lane numbers in which every inner place holds the better of the two under it.

A tree of `leaves` lanes lies at `tree` in the words of a run: its winner at tree + 1, its leaves from tree + leaves.
Lower lanes win ties. A match whose winner is neither new nor changed ends the climb.
"""

import numpy as np
import numpy.typing as npt

from models.compiled import inner_kernel
from simulator.layout import NONE


@inner_kernel
def settle_end(words, lanes, tree, leaves, lane, end_ps):
    """Set when a lane next has something to say, and replay its matches for the earliest end."""
    lanes[lane].end_ps = end_ps
    place = leaves + lane
    while place > 1:
        place >>= 1
        left, right = words[tree + 2 * place], words[tree + 2 * place + 1]
        winner = left if right == NONE or lanes[left].end_ps <= lanes[right].end_ps else right
        if words[tree + place] == winner and winner != lane:
            return
        words[tree + place] = winner


@inner_kernel
def settle_load(words, lanes, here):
    """Weigh a lane's queue with one more request, and replay its matches for the shortest queue."""
    if here.load_tree == NONE:
        return
    here.load = (here.outstanding + 1) * here.cost
    tree, place, lane = here.load_tree, here.load_leaf, here.number
    while place > 1:
        place >>= 1
        left, right = words[tree + 2 * place], words[tree + 2 * place + 1]
        winner = left if right == NONE or lanes[left].load <= lanes[right].load else right
        if words[tree + place] == winner and winner != lane:
            return
        words[tree + place] = winner


def tree_of(lanes: range, keys: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the tree of a range of lanes with every match played by their keys; NONE beyond the last leaf."""
    leaves = 1 << max(0, (len(lanes) - 1).bit_length())
    tree = np.full(2 * leaves, NONE, np.int64)
    tree[leaves : leaves + len(lanes)] = lanes
    for place in range(leaves - 1, 0, -1):
        left, right = tree[2 * place], tree[2 * place + 1]
        tree[place] = left if right == NONE or keys[left] <= keys[right] else right
    return tree
