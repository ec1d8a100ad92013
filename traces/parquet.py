"""Traces in Parquet: our columns with their metadata inside, or anyone's columns under our names."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from traces.errors import BadTrace
from traces.source import PARQUET_MAGIC, Source
from traces.table import Table, normal
from traces.trace import (
    CORE_DTYPES,
    MISSING,
    NS_PER_S,
    Array,
    Column,
    ContentHash,
    Labels,
    Ragged,
    Trace,
    content_sha256,
)

KEY = b"fleetplan.trace"


def to_parquet(trace: Trace, path: Path) -> None:
    """Write all columns and the metadata of a trace to one Parquet file."""
    writer = BlockWriter(path)
    try:
        core = {name: getattr(trace, name) for name in CORE_DTYPES if name != "arrival_ns"}
        writer.write(trace.arrival_ns, {**core, **trace.columns})
        writer.finish(trace.name, trace.metadata)
    finally:
        writer.close()


class BlockWriter:
    """Writes a trace to Parquet rows by rows; what is not finished is no trace.

    Row groups of 131,072 rows carry their first and last arrival, so that a stretch of time is found without reading
    the rest.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._hash = path, ContentHash()
        self._writer: Any = None
        self.columns: dict[str, Column] = {}
        self.first_ns = 0

    def write(self, arrival_ns: Array, columns: Mapping[str, Column]) -> None:
        """Write the next rows, in order of arrival, with the same columns each time."""
        rows = {"arrival_ns": arrival_ns, **columns}
        rows = {name: np.asarray(rows[name], kind) for name, kind in CORE_DTYPES.items()} | {
            name: column for name, column in rows.items() if name not in CORE_DTYPES
        }
        self._hash.update(rows)
        table = pa.table({name: _arrow(column) for name, column in rows.items()})
        if self._writer is None:
            self.columns = dict.fromkeys(columns, np.zeros(0))
            self.first_ns = int(arrival_ns[0]) if len(arrival_ns) else 0
            self._writer = pq.ParquetWriter(self._path, table.schema, **_encodings(rows))
        self._writer.write_table(table.cast(self._writer.schema), row_group_size=ROW_GROUP_ROWS)

    def finish(self, name: str, metadata: Mapping[str, object]) -> None:
        """Write name, metadata and the hash of the content."""
        about = {"name": name, "metadata": metadata, "content_sha256": self._hash.hexdigest()}
        self._writer.add_key_value_metadata({KEY: json.dumps(about).encode()})

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def read_window(path: str | Path, start_s: float, end_s: float | None = None) -> Trace:
    """Return what `slice_time` of a whole Parquet trace of ours would, reading the row groups concerned only.

    Raises BadTrace where the file is not one of ours, ValueError where no request arrives between the times.
    """
    from traces.transform import sliced

    file = _opened(str(path), path)
    about = _about(str(path), file)
    start_ns = round(start_s * NS_PER_S)
    end_ns = MOST_NS if end_s is None else round(end_s * NS_PER_S)
    groups = [number for number in range(file.num_row_groups) if _overlaps(file.metadata, number, start_ns, end_ns)]
    if not groups:
        raise ValueError(f"no request arrives between {start_s} s and {end_s} s of {path}")
    part = _trace(about, file.read_row_groups(groups))
    before = _sessions_before(file, groups[0])
    return sliced(part, start_s, end_s, before)


def read_blocks(path: str | Path) -> Iterator[Trace]:
    """Yield a Parquet trace of ours row group by row group, arrivals and tokens only, in the memory of one.

    Raises BadTrace where the file is not one of ours.
    """
    file = _opened(str(path), path)
    about = {**_about(str(path), file), "metadata": {}}
    for group in range(file.num_row_groups):
        yield _trace(about, file.read_row_group(group, columns=list(CORE_DTYPES)))


def is_ours(path: str | Path) -> bool:
    """Return whether a file is a Parquet trace that we wrote."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        if file.read(4) != PARQUET_MAGIC:
            return False
    return KEY in (_opened(str(path), path).metadata.metadata or {})


ROW_GROUP_ROWS = 131_072
MOST_NS = 2**63 - 1


def _overlaps(metadata: Any, group: int, start_ns: int, end_ns: int) -> bool:
    statistics = metadata.row_group(group).column(0).statistics
    return statistics is None or (statistics.max >= start_ns and statistics.min < end_ns)


def _sessions_before(file: Any, group: int) -> frozenset[str]:
    """The names of sessions in the row groups before one."""
    if "session_id" not in file.schema_arrow.names or group == 0:
        return frozenset()
    column = file.read_row_groups(list(range(group)), columns=["session_id"]).column(0)
    return frozenset(name for name in column.unique().to_pylist() if name is not None)


def _encodings(rows: Mapping[str, Column]) -> dict[str, Any]:
    ordered = {"arrival_ns": "DELTA_BINARY_PACKED", "source_line": "DELTA_BINARY_PACKED"}
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [name for name, column in rows.items() if isinstance(column, Labels)],
        "column_encoding": {name: kind for name, kind in ordered.items() if name in rows},
        "write_statistics": True,
    }


def from_parquet(source: Source) -> Trace | Table:
    """Return the trace we wrote, or the raw cells of another Parquet file; raises BadTrace where it is damaged."""
    file = _opened(source.file, pa.BufferReader(source.content))
    try:
        table = file.read()
    except (pa.ArrowException, OSError) as problem:
        raise _damaged(source.file, problem) from None
    if KEY not in (file.metadata.metadata or {}):
        return _raw(source.file, table)
    return _own(source.file, table, _about(source.file, file))


def _opened(name: str, file: Any) -> Any:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as problem:
        if isinstance(problem, FileNotFoundError):
            raise
        raise _damaged(name, problem) from None


def _damaged(name: str, problem: Exception) -> BadTrace:
    first = str(problem).splitlines()[0] if str(problem) else "unreadable"
    return BadTrace(name, 1, 1, f"damaged Parquet file ({first}): fetch it again")


def _about(name: str, file: Any) -> dict[str, Any]:
    about = (file.metadata.metadata or {}).get(KEY)
    if about is None:
        raise BadTrace(name, 1, 1, "not a Parquet trace of ours: import it first")
    found: dict[str, Any] = json.loads(about)
    return found


def _own(file: str, table: Any, about: dict[str, Any]) -> Trace:
    trace = _trace(about, table)
    if content_sha256(trace) != about["content_sha256"]:
        raise BadTrace(file, 1, 1, "rows and metadata do not belong together: edited since we wrote it?")
    return trace


def _trace(about: dict[str, Any], table: Any) -> Trace:
    columns = {name: _column(table.column(name)) for name in table.column_names}
    core: dict[str, Any] = {name: columns.pop(name) for name in CORE_DTYPES}
    return Trace(about["name"], **core, columns=columns, metadata=about["metadata"])


def _raw(file: str, table: Any) -> Table:
    cells = {normal(name): table.column(name).to_pylist() for name in table.column_names}
    return Table(file, "csv", tuple(table.column_names), cells, list(range(1, table.num_rows + 1)))


def _arrow(column: Column) -> Any:
    if isinstance(column, Ragged):
        return pa.LargeListArray.from_arrays(pa.array(column.offsets), pa.array(column.values))
    if isinstance(column, Labels):
        codes = pa.array(column.codes, mask=column.codes == MISSING)
        return pa.DictionaryArray.from_arrays(codes, pa.array(column.names, pa.string()))
    return pa.array(column)


def _column(chunked: Any) -> Column:
    if pa.types.is_dictionary(chunked.type):
        chunked = chunked.unify_dictionaries()
    array = chunked.combine_chunks()
    if pa.types.is_large_list(array.type):
        offsets = array.offsets.to_numpy()
        return Ragged(offsets - offsets[0], array.flatten().to_numpy())
    if pa.types.is_dictionary(array.type):
        codes = array.indices.fill_null(MISSING).to_numpy(zero_copy_only=False).astype(np.int32)
        return Labels(codes, tuple(array.dictionary.to_pylist()))
    values: Array = array.to_numpy(zero_copy_only=False)
    return values
