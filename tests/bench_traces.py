"""Speed and memory of importing a trace as large as the public week of Azure 2024: `python tests/bench_traces.py`.

It writes a CSV of 27 million made-up rows in that trace's layout (dates with and without fraction), imports it in a
process of its own, and cuts ten minutes out of the result. Pass a number of rows to make it smaller.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

ROWS = 27_000_000
WEEK_S = 604_800
BATCH = 500_000

PEAK = """
import json, resource, sys, time
def peak_mb():  # of this process alone; ru_maxrss also remembers the parent
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
"""
IMPORT = (
    PEAK
    + """
from traces.streaming import import_to_parquet
report = import_to_parquet(sys.argv[1], sys.argv[2])
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"rows": report.rows_kept, "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": peak_mb()}))
"""
)
SLICE = (
    PEAK
    + """
from traces.parquet import read_window
begin, used = time.perf_counter(), time.process_time()
part = read_window(sys.argv[1], 300_000.0, 300_600.0)
took, used = time.perf_counter() - begin, time.process_time() - used
print(json.dumps({"rows": len(part), "wall_s": took, "cpu_s": used, "peak_mb": peak_mb()}))
"""
)


def write_week(path: Path, rows: int, seed: int = 0) -> None:
    """Write made-up requests in Azure 2024's layout; one row in a thousand has a time without fraction."""
    rng = np.random.default_rng(seed)
    start_us = int(np.datetime64("2024-05-12", "us").astype(np.int64))
    with path.open("wb") as file:
        file.write(b"TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for first in range(0, rows, BATCH):
            count = min(BATCH, rows - first)
            low, high = (WEEK_S * 1e6 * edge / rows for edge in (first, first + count))
            times = rng.integers(int(low), int(high), count)
            times = np.sort(np.where(rng.random(count) < 1e-3, times - times % 1_000_000, times)) + start_us
            text = pc.cast(pa.array(times.astype("datetime64[us]")), pa.string())
            short = pc.utf8_slice_codeunits(text, 0, 19)
            text = pc.if_else(pa.array(times % 1_000_000 == 0), short, text)
            stamps = pc.binary_join_element_wise(text, "+00:00", "")
            table = pa.table(
                [stamps, rng.integers(1, 8000, count), rng.integers(1, 1000, count)], names=["a", "b", "c"]
            )
            options = pa_csv.WriteOptions(include_header=False, quoting_style="none")
            pa_csv.write_csv(table, file, options)


def main(rows: int) -> None:
    """Print the measurements as JSON lines."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "week.csv", Path(folder) / "week.parquet"
        begin = time.perf_counter()
        write_week(source, rows)
        print(json.dumps({"made_rows": rows, "bytes": source.stat().st_size, "wall_s": time.perf_counter() - begin}))
        made = json.loads(_run(IMPORT, source, target))
        print(json.dumps({"import": made, "rows_per_cpu_s": round(made["rows"] / made["cpu_s"])}))
        print(json.dumps({"slice": json.loads(_run(SLICE, target)), "parquet_bytes": target.stat().st_size}))


def _run(code: str, *arguments: Path) -> str:
    root = Path(__file__).resolve().parents[1]
    return subprocess.check_output([sys.executable, "-c", code, *map(str, arguments)], cwd=root, text=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS)
