"""Versions of engines and libraries: their order, and which measured one stands for another."""

import re

Parsed = tuple[int, ...]

RELEASE = re.compile(r"v?\d+(\.\w+)+$")
LATEST: Parsed = (1 << 30,)


def parsed(version: str) -> Parsed:
    """Return a version as numbers that order as releases do; what names no release counts as the latest.

    >>> parsed("1.3.0rc10") > parsed("1.3.0rc5") > parsed("0.24.0")
    True
    >>> parsed("nightly") > parsed("99.0")
    True
    """
    return tuple(map(int, re.findall(r"\d+", version))) if RELEASE.match(version) else LATEST


def distance(wanted: str, measured: str) -> tuple[bool, tuple[int, ...]]:
    """Return how far any of the measured versions ("a, b") is from the one wanted: less is nearer.

    A version stands for itself, else for the next ones up to the next measured; before the first, the first stands.
    """
    target = parsed(wanted)
    older = [one for one in map(parsed, measured.split(", ")) if one <= target]
    if older:
        return False, tuple(-number for number in max(older))
    return True, min(map(parsed, measured.split(", ")))


def nearest(wanted: str, offered: tuple[str, ...]) -> str:
    """Return which of the offered versions stands for the one wanted.

    >>> nearest("0.20.0", ("0.19.0", "0.24.0")), nearest("0.1.0", ("0.24.0", "0.19.0"))
    ('0.19.0', '0.19.0')
    """
    return min(offered, key=lambda one: distance(wanted, one))
