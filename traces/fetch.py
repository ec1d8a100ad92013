"""Public traces by name: shown with licence and size, fetched on consent, resumed where cut, checked before use."""

import hashlib
import json
import shutil
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

from traces.errors import BadTrace
from traces.source import refuse_what_is_no_data

CHUNK_BYTES = 1 << 20
MOST_BYTES = 10 << 30
TIMEOUT_S = 60.0
SIDECAR = ".fetched.json"
PARTIAL = ".partial"


@dataclass(frozen=True, slots=True)
class Public:
    """A public trace: its place, licence, how to cite it, bytes and rows where known, and its checksums."""

    name: str
    url: str
    licence: str
    cite: str = ""
    bytes: int | None = None
    rows: int | None = None
    sha256: str | None = None
    git_blob_sha1: str | None = None
    checksum_from: str = ""
    note: str = ""

    @property
    def file(self) -> str:
        """Return the name that the file has at its publisher's."""
        return Path(urllib.parse.urlparse(self.url).path).name or self.name

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return asdict(self) | {"file": self.file}


class FetchFailed(OSError):
    """A file could not be had, or is not the one that was promised."""


def public_traces() -> dict[str, Public]:
    """Return every public trace that is known, by name."""
    table = tomllib.loads(files("traces").joinpath("public_traces.toml").read_text(encoding="utf-8"))
    return {name: Public(name, **about) for name, about in table.items() if isinstance(about, dict)}


def public(name: str, known: Mapping[str, Public] | None = None) -> Public:
    """Return one public trace; raises ValueError with the nearest names for an unknown one."""
    known = public_traces() if known is None else known
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name, known, n=3) or list(known)[:5]
        raise ValueError(f"unknown public trace {name!r}; nearest: {', '.join(near)} ({len(known)} known)")
    return known[name]


def consent_text(wanted: Public) -> str:
    """Return what someone should know before fetching a trace."""
    size = "size unknown" if wanted.bytes is None else f"{wanted.bytes / 1e6:.1f} MB"
    sums = {"computed": "checksum computed on the file", "recorded": "checksum recorded by independent projects"}
    check = sums.get(wanted.checksum_from, "no checksum known: this download pins it")
    cite = f"; cite {wanted.cite}" if wanted.cite else ""
    return f"{wanted.name}: {size}, licence {wanted.licence}{cite}; {check}; from {wanted.url}"


def fetch(
    wanted: Public,
    folder: str | Path,
    now: datetime,
    *,
    accept: bool,
    mirror: str | None = None,
    most_bytes: int = MOST_BYTES,
) -> Path:
    """Return the path of a public trace in a folder, fetched unless it is there already.

    accept says that licence and size were seen. mirror is a folder or URL that holds the file under its own name. A
    partial file is continued; what does not match its checksum, is a Git LFS pointer or a web page, or is larger than
    most_bytes is thrown away. PATH.fetched.json beside it says whence, when and what. Raises PermissionError without
    consent, FileExistsError rather than overwrite, FetchFailed (an OSError) where it cannot be had.
    """
    target = Path(folder) / wanted.file
    if target.exists():
        _already_there(target, wanted)
        return target
    if not accept:
        raise PermissionError(f"needs consent (accept=True, --yes): {consent_text(wanted)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + PARTIAL)
    place = _place(wanted, mirror)
    if _is_folder(place):
        _copied(Path(place) / wanted.file, partial, most_bytes)
    else:
        _download(place, partial, min(most_bytes, wanted.bytes or most_bytes))
    found = _checked(partial, wanted, place)
    partial.replace(target)
    about = {"name": wanted.name, "url": place, "licence": wanted.licence, "cite": wanted.cite}
    about |= {"fetched_at": now.isoformat(), **found}
    target.with_name(target.name + SIDECAR).write_text(json.dumps(about, indent=1) + "\n")
    return target


def offline_list(names: list[str], folder: str | Path) -> list[dict[str, Any]]:
    """Return what somebody with a network should copy where: url, target, bytes, checksum of each file."""
    wanted = [public(name) for name in names]
    return [
        {"url": each.url, "target": str(Path(folder) / each.file), "bytes": each.bytes, "sha256": each.sha256}
        for each in wanted
    ]


def checksums(path: Path) -> dict[str, Any]:
    """Return bytes, sha256 and git blob id of a file."""
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        for chunk in _chunks(file):
            sha256.update(chunk)
            blob.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": sha256.hexdigest(), "git_blob_sha1": blob.hexdigest()}


def _already_there(target: Path, wanted: Public) -> None:
    pinned = _pinned(target) or wanted
    found = checksums(target)
    for name in ("sha256", "git_blob_sha1"):
        expected = getattr(pinned, name)
        if expected and expected != found[name]:
            words = f"another file is there already ({name} {found[name][:12]}..., expected {expected[:12]}...)"
            raise FileExistsError(f"{target}: {words}: move it away")


def _pinned(target: Path) -> Public | None:
    """The checksum that an earlier download pinned, where there is one."""
    beside = target.with_name(target.name + SIDECAR)
    try:
        about = json.loads(beside.read_text())
        return Public(about["name"], about["url"], about["licence"], sha256=about["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _place(wanted: Public, mirror: str | None) -> str:
    if mirror is None:
        if not wanted.url.startswith("https://"):
            raise FetchFailed(f"{wanted.url}: only https is fetched; mirror= names another place")
        return wanted.url
    if _is_folder(mirror):
        return mirror
    return mirror.rstrip("/") + "/" + urllib.parse.quote(wanted.file)


def _is_folder(place: str) -> bool:
    return not place.startswith(("https://", "http://"))


def _copied(source: Path, partial: Path, most_bytes: int) -> None:
    if not source.is_file():
        raise FetchFailed(f"{source}: not in the mirror")
    if source.stat().st_size > most_bytes:
        raise FetchFailed(f"{source}: {source.stat().st_size} bytes, more than {most_bytes}")
    shutil.copyfile(source, partial)


def _download(url: str, partial: Path, most_bytes: int) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "fleetplan", **_range(have)})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            _refuse_downgrade(url, answer.geturl())
            goes_on = answer.status == 206
            with partial.open("ab" if goes_on else "wb") as file:
                written = have if goes_on else 0
                for chunk in _chunks(answer):
                    written += len(chunk)
                    if written > most_bytes:
                        raise FetchFailed(f"{url}: more than the {most_bytes} bytes expected")
                    file.write(chunk)
    except urllib.error.HTTPError as problem:
        if problem.code == 416 and have:
            return  # nothing is left to send: the partial file is whole, or will fail its check
        raise FetchFailed(f"{url}: {problem.code} {problem.reason}") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as problem:
        reason = getattr(problem, "reason", problem)
        raise FetchFailed(f"{url}: {reason}; run again to go on where it stopped, or name a mirror") from None
    except FetchFailed:
        partial.unlink(missing_ok=True)
        raise


def _refuse_downgrade(asked: str, answered: str) -> None:
    if asked.startswith("https://") and not answered.startswith("https://"):
        raise FetchFailed(f"{asked}: redirected to {answered}, which is not https")


def _range(have: int) -> dict[str, str]:
    return {"Range": f"bytes={have}-"} if have else {}


def _checked(partial: Path, wanted: Public, place: str) -> dict[str, Any]:
    try:
        with partial.open("rb") as file:
            refuse_what_is_no_data(place, file.read(512))
        found = checksums(partial)
        if wanted.bytes is not None and found["bytes"] < wanted.bytes:
            raise _CutShort(f"{place}: {found['bytes']} of {wanted.bytes} bytes: run again to go on where it stopped")
        for name in ("sha256", "git_blob_sha1"):
            expected = getattr(wanted, name)
            if expected and expected != found[name]:
                raise FetchFailed(f"{place}: {name} is {found[name]}, expected {expected}: not the file promised")
    except _CutShort:
        raise
    except (BadTrace, FetchFailed) as problem:
        partial.unlink(missing_ok=True)
        raise FetchFailed(str(problem)) from None
    return found


class _CutShort(FetchFailed):
    """Less came than was promised; what came is kept."""


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
