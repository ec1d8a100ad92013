"""A file read once and unpacked on the way: blocks of whole lines, and the hash of its bytes as they lie on disk."""

import bz2
import gzip
import hashlib
import io
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from traces.errors import BadTrace
from traces.source import Source


class Unpacked:
    """A file read once: its unpacked bytes in blocks of whole lines, and the hash of its packed ones."""

    def __init__(self, path: Path) -> None:
        self._hashed = _Hashed(path)
        self._file = str(path)

    def __enter__(self) -> "Unpacked":
        return self

    def __exit__(self, *_: object) -> None:
        self._hashed.close()

    def blocks(self, block_bytes: int) -> Iterator[tuple[int, bytes]]:
        """Yield (lines before, block) until the end; each ends with a line, save the last; the first says something."""
        packed = io.BufferedReader(self._hashed, 1 << 16)
        stream = self._open(packed)
        rest, lines = b"", 0
        while True:
            more = self._read(stream, block_bytes)
            if not more:
                break
            cut = more.rfind(b"\n") + 1
            if not cut:
                rest += more
                continue
            block = rest + more[:cut] if rest else more[:cut]
            if not lines and not block.strip():
                rest += more
                continue
            rest = more[cut:]
            yield lines, block
            lines += block.count(b"\n")
        if rest:
            yield lines, rest
        while packed.read(1 << 20):
            pass

    def source(self) -> Source:
        """Return name, hash and size, once all has been read."""
        return Source(self._file, self._hashed.sha256.hexdigest(), self._hashed.size_bytes, b"")

    def _read(self, stream: BinaryIO, block_bytes: int) -> bytes:
        try:
            return stream.read(block_bytes)
        except (EOFError, ValueError, OSError, lzma.LZMAError) as problem:
            raise BadTrace(self._file, 1, 1, f"damaged file ({problem}): fetch it again") from None

    def _open(self, packed: Any) -> BinaryIO:
        start = packed.peek(8)[:8]
        opened = next((each for magic, each in OPENERS.items() if start.startswith(magic)), None)
        return cast(BinaryIO, packed if opened is None else opened(packed))


class _Hashed(io.RawIOBase):
    def __init__(self, path: Path) -> None:
        self._opened = path.open("rb", buffering=0)
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._opened.readinto(buffer) or 0
        self.sha256.update(memoryview(buffer)[:count])
        self.size_bytes += count
        return count

    def close(self) -> None:
        self._opened.close()
        super().close()


def _zstd(packed: Any) -> BinaryIO:
    import pyarrow as pa

    return cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(packed, "r"), "zstd"))


OPENERS: dict[bytes, Callable[[Any], BinaryIO]] = {
    b"\x1f\x8b": lambda packed: cast(BinaryIO, gzip.GzipFile(fileobj=packed)),
    b"\xfd7zXZ\x00": lambda packed: cast(BinaryIO, lzma.LZMAFile(packed)),  # noqa: SIM115
    b"BZh": lambda packed: cast(BinaryIO, bz2.BZ2File(packed)),
    b"\x28\xb5\x2f\xfd": _zstd,
}
