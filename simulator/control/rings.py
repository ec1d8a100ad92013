"""Consistent hashing: keys and lanes on a ring, so that a lane that comes or goes moves a slice of the keys alone."""

from bisect import bisect_right
from collections.abc import Iterator

_WORD = (1 << 64) - 1


def mixed(number: int, seed: int = 0) -> int:
    """Return a 64-bit hash of a number (SplitMix64), the same in every process.

    >>> mixed(1) == mixed(1), mixed(1) == mixed(2), mixed(1) == mixed(1, seed=1)
    (True, False, False)
    """
    word = (number + (seed + 1) * 0x9E3779B97F4A7C15) & _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)


class Ring:
    """Lanes at so many points each of a ring; a key belongs to the first lane at or after its own place."""

    __slots__ = ("_lanes", "_places", "_seed")

    def __init__(self, lanes: int, points: int = 100, seed: int = 0) -> None:
        places = sorted(
            (mixed(mixed(lane, 2 * seed) + point, 2 * seed), lane) for lane in range(lanes) for point in range(points)
        )
        self._places, self._lanes = [place for place, _ in places], [lane for _, lane in places]
        self._seed = 2 * seed + 1

    def walk(self, key: int) -> Iterator[int]:
        """Yield lanes in the order in which the ring comes to them from a key, again and again those with more points.

        >>> next(Ring(4).walk(7)) == next(Ring(4).walk(7))
        True
        """
        first = bisect_right(self._places, mixed(key, self._seed))
        for step in range(len(self._lanes)):
            yield self._lanes[(first + step) % len(self._lanes)]
