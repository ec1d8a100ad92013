"""A run as a timeline for Perfetto or chrome://tracing: what each request went through, each lane's steps and queue."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from models.step import PICOSECONDS_PER_SECOND
from planners.report.plots.timeline import counted
from simulator.layout import FAR
from simulator.run import Run
from traces.trace import NS_PER_S

MICROSECONDS = 1e6
COUNTER_POINTS = 1000
MOST_REQUESTS = 50_000


def write(run: Run, path: Path, *, window_s: tuple[float, float] = (0.0, 60.0), most: int = MOST_REQUESTS) -> int:
    """Write the requests that arrive in a window as .json or .json.gz; return how many events that makes."""
    events = events_of(run, window_s, most)
    text = json.dumps({"displayTimeUnit": "ms", "traceEvents": events})
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())
    return len(events)


def events_of(run: Run, window_s: tuple[float, float] = (0.0, 60.0), most: int = MOST_REQUESTS) -> list[dict[str, Any]]:
    """Return trace events; a process is a pool, a thread a lane with its steps, where the run was asked to keep them.

    Spans of requests are asynchronous because they overlap.
    """
    arrival_s = run.trace.arrival_ns / NS_PER_S
    chosen = np.flatnonzero(run.is_finished & (arrival_s >= window_s[0]) & (arrival_s < window_s[1]))[:most]
    pool_of = run.lanes["pool"][np.maximum(run.outcome.lane, 0)]
    events: list[dict[str, Any]] = []
    for number, pool in enumerate(run.fleet.pools):
        name = f"{pool.replicas} x {pool.engine.name}"
        events.append({"ph": "M", "name": "process_name", "pid": number, "args": {"name": name}})
    for request in chosen.tolist():
        events += _spans(run, request, int(pool_of[request]), arrival_s[request])
    for number in range(len(run.fleet.pools)):
        events += _counters(run, number, pool_of, window_s)
    return events + _steps(run)


def _steps(run: Run) -> list[dict[str, Any]]:
    """Return one event a step, on its lane's thread, named by what it computed."""
    if run.steps is None:
        return []
    rows = run.steps.rows
    events: list[dict[str, Any]] = []
    for lane in np.unique(rows["lane"]).tolist():
        same = {"pid": int(run.lanes["pool"][lane]), "tid": lane}
        events.append({**same, "ph": "M", "name": "thread_name", "args": {"name": f"lane {lane}"}})
    start_us, end_us = (rows[name] / PICOSECONDS_PER_SECOND * MICROSECONDS for name in ("start_ps", "end_ps"))
    for row, at_us, until_us in zip(rows, start_us.tolist(), end_us.tolist(), strict=True):
        about = {name: int(row[name]) for name in ("decodes", "chunks", "new_tokens", "context_tokens")}
        lane = int(row["lane"])
        events.append(
            {
                "ph": "X",
                "name": _named(about),
                "cat": "step",
                "pid": int(run.lanes["pool"][lane]),
                "tid": lane,
                "ts": at_us,
                "dur": until_us - at_us,
                "args": about,
            }
        )
    return events


def _named(about: dict[str, int]) -> str:
    parts = [f"prefill {about['new_tokens']}"] if about["chunks"] else []
    return " + ".join([*parts, *([f"decode b={about['decodes']}"] if about["decodes"] else [])])


def _spans(run: Run, request: int, pool: int, arrival_s: float) -> list[dict[str, Any]]:
    is_handed_over = run.outcome.joined_ps[request] < FAR
    names = ("wait", "prefill", *(["hand-over"] if is_handed_over else []), "decode")
    marks = ("scheduled", "first_token", *(["joined"] if is_handed_over else []), "finish")
    times = [getattr(run.outcome, f"{event}_ps")[request] for event in marks]
    edges_us = [arrival_s * MICROSECONDS, *(float(time) / PICOSECONDS_PER_SECOND * MICROSECONDS for time in times)]
    same = {"cat": "request", "id": request, "pid": pool, "tid": int(run.outcome.lane[request])}
    about = {
        "input_tokens": int(run.trace.input_tokens[request]),
        "output_tokens": int(run.trace.output_tokens[request]),
    }
    whole = [
        {**same, "ph": "b", "name": f"request {request}", "ts": edges_us[0], "args": about},
        {**same, "ph": "e", "name": f"request {request}", "ts": edges_us[-1]},
    ]
    parts = []
    for name, start_us, end_us in zip(names, edges_us, edges_us[1:], strict=False):
        parts += [{**same, "ph": "b", "name": name, "ts": start_us}, {**same, "ph": "e", "name": name, "ts": end_us}]
    return [whole[0], *parts, whole[1]]


def _counters(run: Run, pool: int, pool_of: np.ndarray, window_s: tuple[float, float]) -> list[dict[str, Any]]:
    mine = run.is_finished & (pool_of == pool)
    times_s = np.linspace(window_s[0], min(window_s[1], max(run.span_s, window_s[0])), COUNTER_POINTS)
    arrived = counted(run.trace.arrival_ns[mine] / NS_PER_S, times_s)
    started = counted(run.outcome.scheduled_ps[mine] / PICOSECONDS_PER_SECOND, times_s)
    ended = counted(run.outcome.finish_ps[mine] / PICOSECONDS_PER_SECOND, times_s)
    return [
        {
            "ph": "C",
            "name": "requests",
            "pid": pool,
            "ts": at_s * MICROSECONDS,
            "args": {"waiting": wait, "running": runs},
        }
        for at_s, wait, runs in zip(
            times_s.tolist(), (arrived - started).tolist(), (started - ended).tolist(), strict=True
        )
    ]
