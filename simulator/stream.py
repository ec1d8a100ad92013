"""Replays a trace that comes in blocks, in the memory of the requests in flight and the columns asked for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import simpy

from simulator.fleet import Fleet
from simulator.layout import FINISHED, without_extras
from simulator.replay import NO_CONTENTS, Course, Ledger
from simulator.run import Run
from simulator.turnover import CHUNK_REQUESTS, Chunk, Outcome, blank, clear_out
from traces import Trace

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a streamed replay leaves: the columns asked for, one entry a request, and the lanes at the end."""

    requests: int
    columns: dict[str, Floats]
    lanes: npt.NDArray[Any]
    clock: npt.NDArray[Any]


def replay_blocks(blocks: Iterable[Trace], fleet: Fleet, columns: Sequence[str] = ("ttft_s", "tpot_s")) -> Streamed:
    """Replay blocks of a trace, which follow each other in time, on a fleet with a built-in router.

    columns are properties of Run that have one entry a request. Prefix blocks, priorities and classes are left out.
    """
    window = _Window(fleet, columns)
    course = Course(fleet, NO_CONTENTS)
    environment = simpy.Environment(initial_time=0)
    environment.run(until=environment.process(course.run(environment, window.chunks(blocks))))
    clear_out(without_extras(course.state), window.ledger.outcome, window.ledger.first)
    window.close()
    found = {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in window.found.items()}
    return Streamed(window.ledger.first, found, course.state.lanes, course.state.clock)


class _Window:
    """The rows of a trace from the first that is not done to the last that was taken in, with their outcomes."""

    def __init__(self, fleet: Fleet, columns: Sequence[str]) -> None:
        self.fleet = fleet
        self.found: dict[str, list[Floats]] = {name: [] for name in columns}
        self.rows: list[Trace] = []  # chunks, the last of which may not have been taken in yet
        self.ledger = Ledger(0, blank(0))

    def chunks(self, blocks: Iterable[Trace]) -> Iterator[tuple[Chunk, Ledger]]:
        """Yield the blocks' rows by chunks, with the ledger as it is when each is taken in."""
        first = 0
        for block in blocks:
            for start in range(0, len(block), CHUNK_REQUESTS):
                rows = _slice(block, start, start + CHUNK_REQUESTS)
                self._close_done()
                self.rows.append(rows)
                outcome = _joined(self.ledger.outcome, blank(len(rows)))
                self.ledger = Ledger(self.ledger.first, outcome)
                arrays = (rows.arrival_ns, rows.input_tokens, rows.output_tokens, np.zeros(len(rows), np.int64))
                yield Chunk(first, *arrays, np.zeros(0, np.int64), np.zeros(len(rows), np.int64)), self.ledger
                first += len(rows)

    def close(self) -> None:
        """Read the columns of all that is left."""
        while self.rows:
            self._close_first()

    def _close_done(self) -> None:
        """Read the columns of the chunks at the front that are done to the last request."""
        while len(self.rows) > 1 and (self.ledger.outcome.status[: len(self.rows[0])] >= FINISHED).all():
            self._close_first()

    def _close_first(self) -> None:
        rows, outcome = self.rows.pop(0), self.ledger.outcome
        size = len(rows)
        run = Run(rows, self.fleet, Outcome._make(column[:size] for column in outcome), np.zeros(0), np.zeros(0))
        for name, parts in self.found.items():
            parts.append(getattr(run, name))
        self.ledger = Ledger(self.ledger.first + size, Outcome._make(column[size:] for column in outcome))


def _slice(trace: Trace, start: int, stop: int) -> Trace:
    arrays = (trace.input_tokens[start:stop], trace.output_tokens[start:stop], trace.status[start:stop])
    return Trace(trace.name, trace.arrival_ns[start:stop], *arrays)


def _joined(first: Any, second: Any) -> Outcome:
    return Outcome._make(np.concatenate([one, other]) for one, other in zip(first, second, strict=True))
