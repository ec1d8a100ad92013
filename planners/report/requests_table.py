"""requests.parquet: one row a request of a run, times in seconds."""

from pathlib import Path

import numpy as np

from simulator.run import Run
from traces.trace import NS_PER_S

SCHEMA = b"requests/1"


def write(run: Run, path: Path) -> None:
    """Write every request of a run: when it came, where it went, how long it took; null where it was not served."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: _column(pa, values) for name, values in columns(run).items()})
    labels = {b"schema": SCHEMA, b"trace": run.trace.identity.encode()}
    pq.write_table(table.replace_schema_metadata(labels), path, compression="zstd")


def columns(run: Run) -> dict[str, np.ndarray]:
    """Return the columns of the table, each with one entry per request."""
    place = np.maximum(run.outcome.lane, 0)
    is_routed = run.outcome.lane >= 0
    return {
        "arrival_s": run.trace.arrival_ns / NS_PER_S,
        "input_tokens": run.trace.input_tokens,
        "output_tokens": run.trace.output_tokens,
        "pool": np.where(is_routed, run.lanes["pool"][place], -1),
        "replica": np.where(is_routed, _replica_of_lane(run)[place], -1),
        "is_finished": run.is_finished,
        "preemptions": run.outcome.preemptions,
        "queue_s": run.queue_s,
        "ttft_s": run.ttft_s,
        "tpot_s": run.tpot_s,
        "e2e_s": run.e2e_s,
    }


def _replica_of_lane(run: Run) -> np.ndarray:
    """Return, lane by lane, the replica it belongs to, counted over all pools."""
    lanes = [pool.engine.lanes for pool in run.fleet.pools for _ in range(pool.replicas)]
    return np.repeat(np.arange(len(lanes)), lanes)


def _column(arrow, values: np.ndarray):  # type: ignore[no-untyped-def]
    if values.dtype.kind == "f":
        return arrow.array(values, mask=~np.isfinite(values))
    return arrow.array(np.ascontiguousarray(values))
