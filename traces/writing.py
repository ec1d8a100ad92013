"""Writing a trace so that reading it gives it back, metadata and all."""

import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

from traces.formats_csv import OPTIONAL
from traces.trace import MISSING, NS_PER_S, Array, Column, Labels, Ragged, Status, Trace, content_sha256

METADATA_ENDING = ".metadata.json"


def write(trace: Trace, path: str | Path) -> None:
    """Write a trace to .parquet, or to .csv, .csv.gz or .csv.xz with its metadata in PATH.metadata.json beside it.

    Raises ValueError for another ending.
    """
    path = Path(path)
    if path.name.endswith(".parquet"):
        from traces.parquet import to_parquet

        return to_parquet(trace, path)
    pack = next((pack for ending, pack in PACKERS.items() if path.name.endswith(ending)), None)
    if pack is None:
        raise ValueError(f"cannot write a trace as {path.name!r}; known endings: .parquet, {', '.join(PACKERS)}")
    unknown = set(trace.columns) - {each.name for each in OPTIONAL}
    if unknown:
        raise ValueError(f"CSV has no place for the columns {', '.join(sorted(unknown))}; write .parquet instead")
    path.write_bytes(pack(_csv(trace).encode()))
    about = {
        "name": trace.name,
        "columns": list(trace.columns),
        "content_sha256": content_sha256(trace),
        "metadata": trace.metadata,
    }
    metadata_path(path).write_text(json.dumps(about, indent=1) + "\n")
    return None


def metadata_path(path: str | Path) -> Path:
    """Return where the metadata of a CSV trace lies."""
    return Path(str(path) + METADATA_ENDING)


def seconds_text(time_ns: int) -> str:
    """Return whole nanoseconds as exact decimal seconds."""
    whole, fraction = divmod(time_ns, NS_PER_S)
    return f"{whole}.{fraction:09d}".rstrip("0").rstrip(".")


def _csv(trace: Trace) -> str:
    columns = {
        "arrival_s": [seconds_text(time_ns) for time_ns in trace.arrival_ns.tolist()],
        "input_tokens": trace.input_tokens.tolist(),
        "output_tokens": trace.output_tokens.tolist(),
        "status": [Status(code).name.lower() for code in trace.status.tolist()],
    }
    columns |= {name: _cells(column) for name, column in trace.columns.items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _cells(column: Column) -> list[object]:
    if isinstance(column, Labels):
        return [column[row] for row in range(len(column))]
    if isinstance(column, Ragged):
        return [" ".join(map(str, column[row].tolist())) for row in range(len(column))]
    return _whole(column)


def _whole(column: Array) -> list[object]:
    return ["" if value == MISSING else value for value in column.tolist()]


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".csv": bytes,
    ".csv.gz": lambda content: gzip.compress(content, mtime=0),
    ".csv.xz": lzma.compress,
}
