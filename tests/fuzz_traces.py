"""Mutates small files of every format for as long as asked, to find any end but a trace or a reason.

`python tests/fuzz_traces.py 600 [seed]` runs ten minutes and prints what it tried and found; exit code 1 after a find.
With atheris installed, `python tests/fuzz_traces.py atheris` lets coverage guide it.
"""

import contextlib
import gzip
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

GUIDED = sys.argv[1:2] == ["atheris"]
if GUIDED:
    import atheris

with atheris.instrument_imports(include=["traces"]) if GUIDED else contextlib.nullcontext():
    from test_traces_formats import ODD, SEEDS

    import traces
    from traces import BadTrace, servegen, streaming
    from traces.statistics import describe
    from traces.trace import content_sha256

TEXTS = [text.encode() for _, text in SEEDS]
TEXTS += [b"0,0,0,,0,0\n600,0.0766,1.156,Gamma,0.748,0.0443\n", b'{"0": {"input_tokens": "{9: 0.5, 163: 0.5}"}}']
PIECES = [piece.encode("utf-8", "surrogatepass") for piece in ODD]
BLOCKS = (1, 7, 40, 200, 10_000)
READINGS = (
    {},
    {"strict": False, "max_bad_fraction": 1.0},
    {"restarts": "append", "strict": False, "max_bad_fraction": 1.0},
    {"restarts": "sort"},
    {"lengths_only": True},
    {"time_unit": "ms"},
    {"limit": 2},
    {"where": ("input_tokens>0",), "time_range": (1.0, 1e6)},
)


def mutated(rng: np.random.Generator) -> bytes:
    """Return a small file of some format after a few random edits."""
    content = TEXTS[rng.integers(len(TEXTS))] * int(rng.integers(1, 4))
    if rng.random() < 0.2:
        content += TEXTS[rng.integers(len(TEXTS))]
    for _ in range(int(rng.integers(1, 8))):
        first = int(rng.integers(len(content) + 1))
        last = min(first + int(rng.integers(16)), len(content))
        other = int(rng.integers(len(content) + 1))
        piece = (
            PIECES[rng.integers(len(PIECES))],
            content[first:last] * 2,
            rng.bytes(int(rng.integers(1, 5))),
            content[other : other + 12],
            b"",
        )[int(rng.integers(5))]
        content = content[:first] + piece + content[last:]
    if rng.random() < 0.05:
        content = gzip.compress(content)
        content = content[: int(rng.integers(len(content) + 1))]
    return content


def tried(content: bytes, folder: Path, choice: int) -> str:
    """Return how reading and importing a file ended; any other exception than BadTrace goes through."""
    path, made = folder / "trace", folder / "made.parquet"
    path.write_bytes(content)
    options = READINGS[choice % len(READINGS)]
    streaming.BLOCK_BYTES = BLOCKS[choice % len(BLOCKS)]
    if choice % 8 == 0:
        with contextlib.suppress(BadTrace):
            servegen.read_pool(path)
    try:
        whole = traces.read(path, **options)
    except BadTrace as reason:
        assert str(reason).startswith(f"{path}:{reason.line}:{reason.column}: ")  # noqa: PT017
        try:
            streaming.import_to_parquet(path, made, **options)
        except BadTrace:
            return "refused"
        if "limit" in options or b"\0" in content or (b'"' in content and "strict" in options):
            return "refused for what lies beyond the limit or the block, say a quote never closed"
        raise AssertionError("imported what reading refuses") from None
    assert whole.metadata["rows_read"] == len(whole) + sum(whole.metadata["rows_dropped"].values())
    describe(whole)
    try:
        streaming.import_to_parquet(path, made, **options)
    except BadTrace as reason:
        assert "too far to put in order" in reason.problem or "time restarts" in reason.problem, reason  # noqa: PT017
        return "read, too disordered to stream"
    assert content_sha256(traces.read(made)) == content_sha256(whole)
    made.unlink()
    return "read"


def run(seconds: float, seed: int) -> int:
    """Fuzz for so many seconds; return the number of finds."""
    warnings.simplefilter("error")
    rng, ends, finds = np.random.default_rng(seed), {}, {}
    stop = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < stop:
            content, choice = mutated(rng), int(rng.integers(1000))
            try:
                end = tried(content, Path(folder), choice)
            except Exception as problem:
                where = traceback.extract_tb(problem.__traceback__)[-1]
                key = f"{type(problem).__name__} at {Path(where.filename).name}:{where.lineno}: {str(problem)[:100]}"
                if key not in finds:
                    print(f"{key}\n  {content!r} choice {choice}", flush=True)
                finds[key] = finds.get(key, 0) + 1
                end = "found"
            ends[end] = ends.get(end, 0) + 1
    print(f"{sum(ends.values())} files in {seconds:g} s, seed {seed}: {ends}")
    return len(finds)


def _tried_by_length(content: bytes, folder: Path) -> None:
    tried(content, folder, len(content))


def guided() -> None:
    """Let atheris choose the bytes."""
    with tempfile.TemporaryDirectory() as folder:
        atheris.Setup(sys.argv[:1] + sys.argv[2:], lambda content: _tried_by_length(content, Path(folder)))
        atheris.Fuzz()


if __name__ == "__main__":
    if GUIDED:
        guided()
    else:
        sys.exit(run(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0) > 0)
