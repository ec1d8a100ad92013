"""What a gateway knows of prefixes: what it sent where, and how much of a prompt tells it from others."""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.control.rings import mixed
from traces import Ragged

if TYPE_CHECKING:
    from simulator.control.plane import Plane

Blocks = Sequence[int]


def content_of(plane: "Plane") -> Callable[[int], list[int]]:
    """Return the function from a request to the content blocks of its prompt, in order; none where the trace has none.

    The same content after another beginning is other content.
    """
    blocks = plane.trace.columns.get("prefix_blocks")
    if not isinstance(blocks, Ragged) or not plane.state.contents.size:
        return lambda number: []
    offsets, contents = blocks.offsets.tolist(), plane.state.contents
    return lambda number: contents[offsets[number] : offsets[number + 1]].tolist()


class PrefixIndex:
    """What a gateway believes lanes to have cached: the prompts it sent there, the least recently sent forgotten.

    A lane's capacity is in content blocks. It hears nothing of what lanes evict or what fails on its way.
    """

    def __init__(self, capacities: Sequence[int]) -> None:
        self._capacities = list(capacities)
        self._recent: list[OrderedDict[int, None]] = [OrderedDict() for _ in self._capacities]
        self._holders: dict[int, int] = {}

    @classmethod
    def of(cls, plane: "Plane") -> "PrefixIndex":
        """Return an empty index of lanes as large as their KV memories."""
        tokens = plane.lanes["total_blocks"] << plane.lanes["block_shift"]
        return cls((tokens // int(plane.clock["content_tokens"][0])).tolist())

    def matched_blocks(self, blocks: Blocks) -> npt.NDArray[np.int64]:
        """Return, lane by lane, how many of a prompt's first blocks it should have."""
        found = np.zeros(len(self._recent), np.int64)
        here = (1 << len(self._recent)) - 1
        for place, block in enumerate(blocks):
            still = here & self._holders.get(block, 0)
            if place:
                found[list(_members(here & ~still))] = place
            here = still
            if not here:
                return found
        found[list(_members(here))] = len(blocks)
        return found

    def matched_at(self, blocks: Blocks, lane: int) -> int:
        """Return how many of a prompt's first blocks one lane should have."""
        recent = self._recent[lane]
        return next((place for place, block in enumerate(blocks) if block not in recent), len(blocks))

    def note(self, blocks: Blocks, lane: int) -> None:
        """Take note of a prompt sent to a lane; its beginning counts as more recent than its end, as in lanes."""
        recent = self._recent[lane]
        for block in reversed(blocks):
            recent[block] = None
            recent.move_to_end(block)
            self._holders[block] = self._holders.get(block, 0) | 1 << lane
        while len(recent) > self._capacities[lane]:
            self._drop(recent.popitem(last=False)[0], lane)

    def forget(self, lane: int) -> None:
        """Take a lane's memory to be empty."""
        for block in self._recent[lane]:
            self._drop(block, lane)
        self._recent[lane].clear()

    def _drop(self, block: int, lane: int) -> None:
        left = self._holders[block] & ~(1 << lane)
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]


def _members(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


class HotPrefixes:
    """Tells prompts apart by as few first blocks as keep every key's share of requests small (DualMap's hotness tree).

    A prefix is told apart by one block more from when more than 2/lanes of the last `window` requests began with it,
    until less than 1/lanes do.
    """

    def __init__(self, lanes: int, window: int = 400, splits: bool = True) -> None:
        self._splits_at = 2 * window / lanes if splits else window + 1.0
        self._joins_at, self._window = window / lanes, window
        self._recent: deque[tuple[int, ...]] = deque()
        self._counts: Counter[int] = Counter()
        self._split: set[int] = set()

    def key(self, blocks: Blocks) -> int:
        """Return the key of a prompt, and count it."""
        key, chain = 0, []
        for block in blocks:
            key = mixed(key + block + 1)
            chain.append(key)
            self._counts[key] += 1
            if self._counts[key] > self._splits_at:
                self._split.add(key)
            if key not in self._split:
                break
        self._recent.append(tuple(chain))
        if len(self._recent) > self._window:
            self._forget(self._recent.popleft())
        return key

    def _forget(self, chain: tuple[int, ...]) -> None:
        for key in chain:
            self._counts[key] -= 1
            if self._counts[key] < self._joins_at:
                self._split.discard(key)
            if not self._counts[key]:
                del self._counts[key]
