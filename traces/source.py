"""The bytes of a trace file: unpacked, and refused where they are no trace at all."""

import bz2
import gzip
import hashlib
import lzma
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from traces.errors import BadTrace

HEAD_BYTES = 4096  # in which a zero byte tells that a file is no text
PARQUET_MAGIC = b"PAR1"
_LFS_SIZE = re.compile(rb"size (\d+)")


@dataclass(frozen=True, slots=True)
class Source:
    """A file's name for messages, its sha256 and size as found, and its bytes once unpacked."""

    file: str
    sha256: str
    size_bytes: int
    content: bytes


def load(path: str | Path) -> Source:
    """Return the unpacked bytes of a plain, gzip, xz, bzip2 or zstd file, told apart by their first bytes.

    Raises BadTrace for a broken archive, an empty file, a Git LFS pointer or a web page; OSError where unreadable.
    """
    file, packed = str(path), Path(path).read_bytes()
    content = unpack(file, packed)
    refuse_what_is_no_data(file, content)
    return Source(file, hashlib.sha256(packed).hexdigest(), len(packed), content)


def unpack(file: str, packed: bytes) -> bytes:
    """Return the bytes inside a compressed file, or the bytes themselves; raises BadTrace where it is damaged."""
    for magic, (name, decompress) in PACKERS.items():
        if packed.startswith(magic):
            try:
                return decompress(packed)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as problem:
                raise BadTrace(file, 1, 1, f"damaged {name} file ({problem}): fetch it again") from None
    return packed


def refuse_what_is_no_data(file: str, content: bytes) -> None:
    """Raise BadTrace where the bytes are empty, a Git LFS pointer, a web page, or another kind of file."""
    start = content[:512].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise BadTrace(file, 1, 1, "empty file: nothing to read")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        size = _LFS_SIZE.search(start)
        wanted = f" ({size[1].decode()} bytes)" if size else ""
        raise BadTrace(file, 1, 1, f"Git LFS pointer, not data{wanted}: download the real file")
    if start[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise BadTrace(file, 1, 1, "a web page, not data: download the raw file")
    if content[257:262] == b"ustar":
        raise BadTrace(file, 1, 1, "a tar archive, not a trace: unpack it and name one file of it")
    if not content.startswith(PARQUET_MAGIC):
        refuse_binary(file, content, start.startswith((b"PK\x03\x04", b"\xff\xfe", b"\xfe\xff")))


def refuse_binary(file: str, content: bytes, is_binary: bool = False, before_bytes: int = 0) -> None:
    """Raise BadTrace where a file's beginning, of which this content is what follows so many bytes, is no text."""
    if is_binary or b"\0" in content[: max(0, HEAD_BYTES - before_bytes)]:
        raise BadTrace(file, 1, 1, "binary or UTF-16 data: expected UTF-8 text (CSV, JSON) or Parquet")


def _unpack_zstd(packed: bytes) -> bytes:
    import pyarrow as pa

    with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
        return bytes(stream.read())


PACKERS: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"\xfd7zXZ\x00": ("xz", lzma.decompress),
    b"BZh": ("bzip2", bz2.decompress),
    b"\x28\xb5\x2f\xfd": ("zstd", _unpack_zstd),
}
