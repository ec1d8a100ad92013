"""The steps of a window of time: what every lane did, one by one."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.step import ALONE, PICOSECONDS_PER_SECOND
from simulator.fleet import Fleet, PricedEngine
from simulator.layout import LOGGED, State

Rows = npt.NDArray[Any]

MOST_ROWS = 200_000


class Window(NamedTuple):
    """The time whose steps are written down, and for how many rows there is room: a run of decodes takes one."""

    from_ps: int
    until_ps: int
    most_rows: int = MOST_ROWS


@dataclass(frozen=True, slots=True)
class StepLog:
    """The steps that reached into a window, in the order of their ends, and how many rows found no room."""

    rows: Rows
    not_logged: int


def window(log_s: tuple[float, float]) -> Window:
    """Return the window of these seconds."""
    return Window(*(round(each_s * PICOSECONDS_PER_SECOND) for each_s in log_s))


def log_of(state: State, fleet: Fleet) -> StepLog:
    """Return what a run wrote down, runs of decodes taken apart into their steps."""
    clock = state.clock[0]
    pools = state.lanes["pool"]
    parts = [_steps(row, fleet.pools[pools[row["lane"]]].engine) for row in state.log[: clock["logged"]]]
    rows = np.concatenate(parts) if parts else np.zeros(0, LOGGED)
    rows = rows[(rows["end_ps"] > clock["log_from_ps"]) & (rows["start_ps"] < clock["log_until_ps"])]
    return StepLog(rows[np.argsort(rows["end_ps"], kind="stable")], int(clock["not_logged"]))


def _steps(row: Any, engine: PricedEngine) -> Rows:
    """Return the single steps of a logged row."""
    count = int(row["steps"])
    rows = np.repeat(np.array([row], LOGGED), count)
    if count > 1:
        shift, growth = engine.limits.part_shift, int(row["decodes"]) * engine.limits.growth_parts
        held = (int(row["context_tokens"]) << shift) + int(row["context_parts"]) + growth * np.arange(count + 1)
        rows["context_tokens"] = held[:-1] >> shift
        rows["context_parts"] = held[:-1] - (rows["context_tokens"] << shift)
        durations_ps = _decode_steps_ps(engine, int(row["decodes"]), held[1:])
        rows["end_ps"] = row["end_ps"] - durations_ps.sum() + np.cumsum(durations_ps)
        rows["start_ps"] = rows["end_ps"] - durations_ps
        rows["start_ps"][0] = row["start_ps"]
        rows["steps"] = 1
    return rows


def _decode_steps_ps(engine: PricedEngine, sequences: int, held: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the time of decode steps of so many sequences that read so much KV, in parts of tokens."""
    table = engine.table
    shift = int(table.cell_shift[0])
    cell = np.minimum(held >> shift, table.decode_ps.shape[-1] - 1)
    fixed_ps = table.token_ps[0, sequences * engine.limits.verified_tokens] + table.sequence_ps[0, sequences]
    attention_ps = table.decode_ps[0, ALONE, sequences, cell]
    growth_ps = table.decode_slope_ps[0, ALONE, sequences, cell] * (held - (cell << shift))
    return np.asarray(fixed_ps + attention_ps + growth_ps)
