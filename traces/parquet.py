"""Traces in Parquet: our columns with their metadata inside, or anyone's columns under our names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from traces.errors import BadTrace
from traces.source import Source
from traces.table import Table, normal
from traces.trace import CORE_DTYPES, MISSING, Array, Column, Labels, Ragged, Trace, content_sha256

KEY = b"fleetplan.trace"


def to_parquet(trace: Trace, path: Path) -> None:
    """Write all columns and the metadata of a trace to one Parquet file."""
    arrays = {name: pa.array(getattr(trace, name)) for name in CORE_DTYPES}
    arrays |= {name: _arrow(column) for name, column in trace.columns.items()}
    about = {"name": trace.name, "metadata": trace.metadata, "content_sha256": content_sha256(trace)}
    table = pa.table(arrays).replace_schema_metadata({KEY: json.dumps(about).encode()})
    pq.write_table(table, path, compression="zstd")


def from_parquet(source: Source) -> Trace | Table:
    """Return the trace we wrote, or the raw cells of another Parquet file; raises BadTrace where it is damaged."""
    try:
        table = pq.read_table(pa.BufferReader(source.content))
    except (pa.ArrowException, OSError) as problem:
        first = str(problem).splitlines()[0] if str(problem) else "unreadable"
        raise BadTrace(source.file, 1, 1, f"damaged Parquet file ({first}): fetch it again") from None
    about = (table.schema.metadata or {}).get(KEY)
    if about is None:
        return _raw(source.file, table)
    return _own(source.file, table, json.loads(about))


def _own(file: str, table: Any, about: dict[str, Any]) -> Trace:
    columns = {name: _column(table.column(name)) for name in table.column_names}
    core: dict[str, Any] = {name: columns.pop(name) for name in CORE_DTYPES}
    trace = Trace(about["name"], **core, columns=columns, metadata=about["metadata"])
    if content_sha256(trace) != about["content_sha256"]:
        raise BadTrace(file, 1, 1, "rows and metadata do not belong together: edited since we wrote it?")
    return trace


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
    array = chunked.combine_chunks()
    if pa.types.is_large_list(array.type):
        offsets = array.offsets.to_numpy()
        return Ragged(offsets - offsets[0], array.flatten().to_numpy())
    if pa.types.is_dictionary(array.type):
        codes = array.indices.fill_null(MISSING).to_numpy(zero_copy_only=False).astype(np.int32)
        return Labels(codes, tuple(array.dictionary.to_pylist()))
    values: Array = array.to_numpy(zero_copy_only=False)
    return values
