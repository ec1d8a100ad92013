"""Fetching public traces: consent, checksums, resuming and mirrors, against a server of our own."""

import functools
import hashlib
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from traces.fetch import FetchFailed, Public, checksums, consent_text, fetch, offline_list, public, public_traces

CONTENT = b"arrival_s,input_tokens,output_tokens\n" + b"0,1,1\n" * 200_000
NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut` answers stop half way; `seen` has the Range header of every request."""

    files: dict[str, bytes]
    cut = 0
    seen: list[str | None]
    ranges = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        asked = self.headers.get("Range")
        self.server.seen.append(asked)
        if content is None:
            self.send_error(404)
            return
        first = int(asked[6:-1]) if asked and self.server.ranges else 0
        if first and first >= len(content):
            self.send_error(416)
            return
        part = content[first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.server.cut:
            self.server.cut -= 1
            part = part[: len(part) // 2]
        self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.files, running.seen = {"/trace.csv": CONTENT}, []
    thread = threading.Thread(target=functools.partial(running.serve_forever, poll_interval=0.01))
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def mirror(server: Server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def wanted(**changed: Any) -> Public:
    about = {"url": "https://example.org/data/trace.csv", "licence": "CC-BY-4.0", "bytes": len(CONTENT),
             "sha256": hashlib.sha256(CONTENT).hexdigest()}  # fmt: skip
    return Public("toy", **{**about, **changed})


def test_nothing_is_fetched_without_consent(tmp_path: Path, server: Server) -> None:
    with pytest.raises(PermissionError, match=r"1\.2 MB, licence CC-BY-4\.0"):
        fetch(wanted(), tmp_path, NOW, accept=False, mirror=mirror(server))
    assert (server.seen, list(tmp_path.iterdir())) == ([], [])


def test_a_trace_is_fetched_checked_and_its_origin_written_down(tmp_path: Path, server: Server) -> None:
    path = fetch(wanted(), tmp_path / "new", NOW, accept=True, mirror=mirror(server))
    assert path.read_bytes() == CONTENT
    about = json.loads((tmp_path / "new" / "trace.csv.fetched.json").read_text())
    assert about["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert (about["fetched_at"], about["url"]) == ("2026-01-02T00:00:00+00:00", mirror(server) + "/trace.csv")
    assert fetch(wanted(), tmp_path / "new", NOW, accept=False) == path
    assert len(server.seen) == 1


def test_a_cut_download_goes_on_where_it_stopped(tmp_path: Path, server: Server) -> None:
    server.cut = 1
    with pytest.raises(FetchFailed, match="run again to go on"):
        fetch(wanted(), tmp_path, NOW, accept=True, mirror=mirror(server))
    half = (tmp_path / "trace.csv.partial").stat().st_size
    assert 0 < half < len(CONTENT)
    path = fetch(wanted(), tmp_path, NOW, accept=True, mirror=mirror(server))
    assert server.seen == [None, f"bytes={half}-"]
    assert path.read_bytes() == CONTENT
    assert not (tmp_path / "trace.csv.partial").exists()


def test_a_server_that_knows_no_ranges_sends_it_all_again(tmp_path: Path, server: Server) -> None:
    (tmp_path / "trace.csv.partial").write_bytes(b"arrival_s,rubbish")
    server.ranges = False
    assert fetch(wanted(), tmp_path, NOW, accept=True, mirror=mirror(server)).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4b\nsize 52283111\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>sign in</html>", "web page"),
        (b"", "empty"),
        (CONTENT.replace(b"1", b"2"), "not the file promised"),
        (CONTENT + b"0,1,1\n", "more than the"),
    ],
)
def test_what_is_not_the_trace_is_thrown_away(tmp_path: Path, server: Server, content: bytes, says: str) -> None:
    server.files["/trace.csv"] = content
    with pytest.raises(FetchFailed, match=says):
        fetch(wanted(), tmp_path, NOW, accept=True, mirror=mirror(server))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_says_so(tmp_path: Path, server: Server) -> None:
    with pytest.raises(FetchFailed, match="404"):
        fetch(wanted(url="https://example.org/other.csv"), tmp_path, NOW, accept=True, mirror=mirror(server))


def test_another_file_of_that_name_is_never_overwritten(tmp_path: Path, server: Server) -> None:
    (tmp_path / "trace.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="move it away"):
        fetch(wanted(), tmp_path, NOW, accept=True, mirror=mirror(server))
    assert (tmp_path / "trace.csv").read_text() == "mine"


def test_a_folder_is_a_mirror_too(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "trace.csv").write_bytes(CONTENT)
    path = fetch(wanted(), tmp_path / "here", NOW, accept=True, mirror=str(tmp_path / "mirror"))
    assert path.read_bytes() == CONTENT
    with pytest.raises(FetchFailed, match="not in the mirror"):
        fetch(wanted(url="https://a.org/x"), tmp_path / "here", NOW, accept=True, mirror=str(tmp_path / "mirror"))


def test_only_https_is_fetched_from_a_publisher(tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="only https"):
        fetch(wanted(url="http://example.org/trace.csv"), tmp_path, NOW, accept=True)


def test_the_first_download_pins_a_checksum_that_nobody_knew(tmp_path: Path, server: Server) -> None:
    unknown = wanted(sha256=None, bytes=None)
    path = fetch(unknown, tmp_path, NOW, accept=True, mirror=mirror(server))
    path.write_bytes(b"changed")
    with pytest.raises(FileExistsError):
        fetch(unknown, tmp_path, NOW, accept=True, mirror=mirror(server))


def test_git_blob_ids_are_checked_as_git_makes_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello\n")
    assert checksums(tmp_path / "file")["git_blob_sha1"] == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_every_public_trace_has_a_place_and_a_licence() -> None:
    known = public_traces()
    assert len(known) == 50
    for name, each in known.items():
        assert each.url.startswith("https://")
        assert each.licence
        assert each.file
        assert name in consent_text(each)
    assert known["azure2024-conv"].rows == 27_303_999
    with pytest.raises(ValueError, match="azure2023-code"):
        public("azure2023_code")
    assert offline_list(["azure2023-code"], "here")[0]["target"] == "here/AzureLLMInferenceTrace_code.csv"


def test_files_held_already_have_the_checksums_listed(shared: Path, tmp_path: Path) -> None:
    import gzip

    held = shared / "traces" / "azure2023" / "AzureLLMInferenceTrace_code.csv.gz"
    listed = public("azure2023-code")
    (tmp_path / listed.file).write_bytes(gzip.decompress(held.read_bytes()))
    found = checksums(tmp_path / listed.file)
    assert (found["sha256"], found["git_blob_sha1"]) == (listed.sha256, listed.git_blob_sha1)
    assert fetch(listed, tmp_path, NOW, accept=False) == tmp_path / listed.file
