"""Time: how many requests wait and run, how full each replica is, and single requests from arrival to end."""

from typing import Any

import numpy as np
import numpy.typing as npt

from models.step import PICOSECONDS_PER_SECOND
from planners.report.colours import BAD, FAINT, GOOD, NEUTRAL, of_device
from planners.report.plots.axes import dress, say_nothing_to_show
from simulator.run import Run
from traces.trace import NS_PER_S

Seconds = npt.NDArray[np.float64]
POINTS = 400


def fleet_timeline(ax: Any, run: Run, ttft_limit_s: float | None = None) -> Any:
    """Draw requests waiting and running over time, and the moments whose arrivals got their first token too late."""
    if not run.is_finished.any():
        return say_nothing_to_show(ax, "No request was served", "no finished requests")
    times_s, waiting, running = in_system(run)
    ax.fill_between(times_s, running, step="mid", color=GOOD, alpha=0.5, linewidth=0)
    ax.fill_between(times_s, running, running + waiting, step="mid", color=BAD, alpha=0.7, linewidth=0)
    late = run.trace.arrival_ns[run.ttft_s > ttft_limit_s] / NS_PER_S if ttft_limit_s is not None else np.array([])
    if late.size:
        ax.plot(late, np.full(late.size, ax.get_ylim()[1]), "|", color=BAD, markersize=8)
    finding = f"At most {int(waiting.max())} requests wait; {int(running.max())} run at once"
    finding += f"; {late.size} first tokens late" if ttft_limit_s is not None else ""
    return dress(ax, finding, "time [s]", "requests: green running, red waiting")


def replica_heatmap(ax: Any, run: Run) -> Any:
    """Draw how many requests each lane of the fleet holds over time."""
    lanes = run.lanes.size
    if not run.is_finished.any():
        return say_nothing_to_show(ax, "No request was served", "no finished requests")
    edges_s = np.linspace(0.0, run.span_s, POINTS // 2 + 1)
    held = np.zeros((lanes, edges_s.size - 1))
    for lane in range(lanes):
        mine = (run.outcome.lane == lane) & run.is_finished
        starts, ends = _seconds(run.outcome.scheduled_ps[mine]), _seconds(run.outcome.finish_ps[mine])
        held[lane] = counted(starts, edges_s[:-1]) - counted(ends, edges_s[:-1])
    extent = (0, run.span_s, -0.5, lanes - 0.5)
    ax.imshow(held, aspect="auto", origin="lower", cmap="viridis", extent=extent, interpolation="nearest")
    fullest, idlest = held.mean(1).max(), held.mean(1).min()
    finding = f"The busiest replica holds {fullest:.1f} requests on average, the idlest {idlest:.1f}"
    dress(ax, finding, "time [s]", f"lane; dark holds none, bright {held.max():.0f}")
    ax.grid(False)
    ax.yaxis.get_major_locator().set_params(integer=True)
    return ax


def request_gantt(ax: Any, run: Run, first: int = 0, most: int = 40) -> Any:
    """Draw some requests in order of arrival: waiting, prefill until the first token, decode until the last."""
    chosen = np.flatnonzero(run.is_finished)[first : first + most]
    if not chosen.size:
        return say_nothing_to_show(ax, "No request was served", "no finished requests")
    arrival_s = run.trace.arrival_ns[chosen] / NS_PER_S
    times = [_seconds(getattr(run.outcome, f"{event}_ps")[chosen]) for event in ("scheduled", "first_token", "finish")]
    rows = np.arange(chosen.size)
    ax.barh(rows, times[0] - arrival_s, left=arrival_s, color=FAINT)
    ax.barh(rows, times[1] - times[0], left=times[0], color=BAD)
    for row, request in enumerate(chosen):
        engine = run.fleet.pools[int(run.lanes["pool"][run.outcome.lane[request]])].engine.engine
        colour = of_device(engine.device.name) if engine else NEUTRAL
        ax.barh(row, times[2][row] - times[1][row], left=times[1][row], color=colour)
    ax.invert_yaxis()
    longest = float((times[2] - arrival_s).max())
    finding = f"{chosen.size} requests: grey waits, red is prefill, colour is decode; the longest takes {longest:.2f} s"
    return dress(ax, finding, "time [s]", "request")


def in_system(run: Run) -> tuple[Seconds, Seconds, Seconds]:
    """Return times [s] and the requests that wait and that run then."""
    done = run.is_finished
    arrivals = np.sort(run.trace.arrival_ns[done] / NS_PER_S)
    starts = np.sort(_seconds(run.outcome.scheduled_ps[done]))
    ends = np.sort(_seconds(run.outcome.finish_ps[done]))
    times_s = np.linspace(0.0, run.span_s, POINTS)
    started = counted(starts, times_s)
    return times_s, counted(arrivals, times_s) - started, started - counted(ends, times_s)


def counted(events_s: Seconds, times_s: Seconds) -> Seconds:
    """Return how many events have happened by each time."""
    return np.searchsorted(np.sort(events_s), times_s, side="right").astype(float)


def _seconds(picoseconds: npt.NDArray[np.int64]) -> Seconds:
    seconds: Seconds = picoseconds / PICOSECONDS_PER_SECOND
    return seconds
