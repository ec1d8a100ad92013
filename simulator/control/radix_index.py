"""A radix tree of what a gateway sent where, as SGLang's router keeps: prompts by their beginnings, not by names."""

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from simulator.control.plane import Plane

Blocks = Sequence[int]


class _Node:
    """A run of blocks after those of its parent, and when each lane that should have all of it was last sent some."""

    __slots__ = ("children", "edge", "end", "parent", "sent")

    def __init__(self, parent: "_Node | None", edge: tuple[int, ...]) -> None:
        self.parent, self.edge = parent, edge
        self.end: int = len(edge) + (parent.end if parent else 0)
        self.children: dict[int, _Node] = {}
        self.sent: dict[int, int] = {}


class RadixIndex:
    """What a gateway believes lanes to have cached, the least recently sent ends forgotten; capacities in blocks.

    A block counts only after the very beginning that it was sent with, so content need not be named by all before it.
    """

    def __init__(self, capacities: Sequence[int]) -> None:
        self._capacities, self._held = list(capacities), [0] * len(capacities)
        self._root, self._turn = _Node(None, ()), 0
        self._ends: list[list[tuple[int, int, int, _Node]]] = [[] for _ in capacities]  # oldest first, of those deepest

    @classmethod
    def of(cls, plane: "Plane") -> "RadixIndex":
        """Return an empty index of lanes as large as their KV memories."""
        tokens = plane.lanes["total_blocks"] << plane.lanes["block_shift"]
        return cls((tokens // int(plane.clock["content_tokens"][0])).tolist())

    def matched_blocks(self, blocks: Blocks) -> npt.NDArray[np.int64]:
        """Return, lane by lane, how many of a prompt's first blocks it should have."""
        found = np.zeros(len(self._held), np.int64)
        node: _Node | None = self._root
        place = 0
        while place < len(blocks) and (node := node.children.get(blocks[place])):  # type: ignore[union-attr]
            shared = _common(node.edge, blocks[place:])
            found[list(node.sent)] = place + shared
            place += shared
            if shared < len(node.edge):
                break
        return found

    def matched_at(self, blocks: Blocks, lane: int) -> int:
        """Return how many of a prompt's first blocks one lane should have."""
        return int(self.matched_blocks(blocks)[lane])

    def note(self, blocks: Blocks, lane: int) -> None:
        """Take note of a prompt sent to a lane."""
        self._turn += 1
        node, place = self._root, 0
        while place < len(blocks):
            child = node.children.get(blocks[place])
            if child is None:
                child = node.children[blocks[place]] = _Node(node, tuple(blocks[place:]))
            shared = _common(child.edge, blocks[place:])
            node = self._split(child, shared) if shared < len(child.edge) else child
            self._touch(node, lane)
            place += shared
        while self._held[lane] > self._capacities[lane]:
            self._forget_end(lane)

    def forget(self, lane: int) -> None:
        """Take a lane's memory to be empty."""
        while self._held[lane] > 0:
            self._forget_end(lane)

    def _touch(self, node: _Node, lane: int) -> None:
        if lane not in node.sent:
            self._held[lane] += len(node.edge)
        node.sent[lane] = self._turn
        self._push(node, lane)

    def _push(self, node: _Node, lane: int) -> None:
        heappush(self._ends[lane], (node.sent[lane], -node.end, id(node), node))

    def _split(self, node: _Node, count: int) -> _Node:
        """Make a node's first blocks one of their own, and return it."""
        assert node.parent is not None
        upper = node.parent.children[node.edge[0]] = _Node(node.parent, node.edge[:count])
        upper.children[node.edge[count]] = node
        node.parent, node.edge = upper, node.edge[count:]
        for lane, turn in node.sent.items():
            upper.sent[lane] = turn
            self._push(upper, lane)
        return upper

    def _forget_end(self, lane: int) -> None:
        """Take the oldest, deepest blocks from a lane, no more than it has beyond its capacity."""
        turn, end, _, node = heappop(self._ends[lane])
        if node.sent.get(lane) != turn or node.end != -end:
            return  # sent again since
        beyond = self._held[lane] - self._capacities[lane]
        if 0 < beyond < len(node.edge):
            self._split(node, len(node.edge) - beyond)
        del node.sent[lane]
        self._held[lane] -= len(node.edge)
        while node.parent is not None and not node.sent and not node.children:
            del node.parent.children[node.edge[0]]
            node = node.parent


def _common(edge: Iterable[int], blocks: Iterable[int]) -> int:
    """Return how many blocks two runs begin with alike."""
    count = 0
    for one, other in zip(edge, blocks, strict=False):
        if one != other:
            break
        count += 1
    return count
