"""Facts that earlier runs found out, by all that they depend on: kept on disk, so that nothing is replayed twice.

A fact is what replays of a trace on a fleet told, or a bound. It is found under a hash of contents: of the trace, the
promises, the step tables and limits of engines, and this package's own sources. Whatever changes any of those, a
calibration, a trace, a version, asks for another fact; what prices change alone is still known.
"""

import hashlib
import json
import os
import platform
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from models.step import StepTable
from traces.trace import Trace, content_sha256

SWITCH = "FLEETPLAN_FACTS"  # "off" keeps none
FILE = "facts.sqlite"
MOST_BYTES = 64 << 20  # of the file; then the older half is forgotten
WAIT_S = 5.0  # for other processes
PACKAGES = ("models", "simulator", "planners", "traces")


class Facts:
    """What is known from earlier runs; without a file, nothing ever is."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._hashes: dict[int, tuple[Any, str]] = {}  # of large parts by identity, each kept alive beside its hash

    def known(self, about: tuple[Any, ...], find: Callable[[], Any]) -> Any:
        """Return a fact about something, of plain values, found now where it is not known.

        about holds plain values, arrays, traces and dataclasses of those. A file that cannot be read or written is done
        without.
        """
        if self.file is None:
            return find()
        key = self._key(about)
        with closing(_opened(self.file)) as table:
            told = _read(table, key)
        if told is not None:
            return json.loads(told)
        told = json.dumps(find())
        with closing(_opened(self.file)) as table:
            _write(table, key, told)
        return json.loads(told)

    def _key(self, about: tuple[Any, ...]) -> str:
        return _hashed([_sources(), *map(self._content, about)])

    def _content(self, part: Any) -> Any:
        """Return a part as plain values; what is large is hashed once."""
        if isinstance(part, Trace):
            return self._once(part, lambda: [content_sha256(part), part.metadata.get("block_tokens")])
        if isinstance(part, StepTable):
            return self._once(part, lambda: [self._content(column) for column in part])
        if isinstance(part, np.ndarray):
            return [str(part.dtype), part.shape, hashlib.sha256(part.tobytes()).hexdigest()]
        if is_dataclass(part):
            return [type(part).__name__, *(self._content(getattr(part, one.name)) for one in fields(part))]
        if isinstance(part, Mapping):
            return [[str(key), self._content(value)] for key, value in sorted(part.items())]
        if isinstance(part, tuple | list):
            return [self._content(one) for one in part]
        return part

    def _once(self, part: Any, content: Callable[[], Any]) -> str:
        if id(part) not in self._hashes:
            self._hashes[id(part)] = part, _hashed(content())
        return self._hashes[id(part)][1]


def of_earlier_runs() -> Facts:
    """Return the facts in the cache folder; none where the environment's FLEETPLAN_FACTS is "off"."""
    from models.compiled import cache_directory

    folder = cache_directory()
    if os.environ.get(SWITCH) == "off" or folder is None:
        return Facts()
    return Facts(folder.parent.parent / FILE)


def described() -> str:
    """Return where facts are kept, how many there are, and how large they are."""
    file = of_earlier_runs().file
    if file is None:
        return f"none are kept: {SWITCH} is off, or no folder can be written to"
    with closing(_opened(file)) as table:
        (count,) = table.execute("SELECT COUNT(*) FROM facts").fetchone()
    return f"{count} in {file.stat().st_size / 1e6:.1f} MB at {file}, {SWITCH}=off keeps none"


def _opened(file: Path) -> sqlite3.Connection:
    """Return the table of facts, the older half left out where they are too many; one in memory where it is broken."""
    try:
        table = sqlite3.connect(file, timeout=WAIT_S, isolation_level=None)
        table.execute("PRAGMA synchronous = OFF")
        table.execute("CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, told TEXT)")
    except sqlite3.Error:
        table = sqlite3.connect(":memory:", isolation_level=None)
        table.execute("CREATE TABLE facts (key TEXT PRIMARY KEY, told TEXT)")
    return table


def _read(table: sqlite3.Connection, key: str) -> str | None:
    try:
        row = table.execute("SELECT told FROM facts WHERE key = ?", (key,)).fetchone()
    except sqlite3.Error:
        return None
    return None if row is None else str(row[0])


def _write(table: sqlite3.Connection, key: str, told: str) -> None:
    try:
        table.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, told))
        (pages,), (size,) = (table.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
        if pages * size > MOST_BYTES:
            half = "SELECT rowid FROM facts ORDER BY rowid LIMIT (SELECT (COUNT(*) + 1) / 2 FROM facts)"
            table.execute(f"DELETE FROM facts WHERE rowid IN ({half})")
            table.execute("VACUUM")
    except sqlite3.Error:
        return


def _hashed(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a fact cannot depend on {type(value).__name__}")


@cache
def _sources() -> str:
    """Return a hash of what could change a fact beside what it is about: our sources, and whose arithmetic it is."""
    root, digest = Path(__file__).resolve().parent.parent, hashlib.sha256()
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.read_bytes())
    versions = [np.__version__, platform.machine(), platform.python_version()]
    return _hashed([digest.hexdigest(), versions])
