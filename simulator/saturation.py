"""Whether a fleet kept up with a trace: stable, backlogged or overloaded, by one rule that needs no tuning to a model.

backlog(t) is the requests that have arrived by t and that no step has worked on yet. One whose client gave up stays
in the backlog for ever: impatience hides a queue, it does not serve it.

After a hand-over a request is in the backlog again until its decode lane takes it in.

overloaded   the backlog at the last arrival is more than LEFT_OF_ALL of all requests, and the mean backlog grew from
             each third of the arrivals' span to the next: the fleet falls further behind the longer it runs. In the
             fluid limit that is more than 1 / (1 - LEFT_OF_ALL) times the rate that the fleet can carry.
backlogged   not overloaded, but more than HELD_UP_OF_ALL of the requests waited longer than their service then took:
             bursts outran the fleet, which caught up.
stable       neither.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from models.step import PICOSECONDS_PER_SECOND
from simulator.layout import FAR, REJECTED
from simulator.run import Run

Int64 = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LEFT_OF_ALL = 0.05
HELD_UP_OF_ALL = 0.01
THIRDS = 3

STABLE, BACKLOGGED, OVERLOADED = "stable", "backlogged", "overloaded"


def verdict(run: Run) -> str:
    """Return whether the fleet kept up with the trace: "stable", "backlogged" or "overloaded"."""
    accepted = run.outcome.status != REJECTED
    arrivals_ps, starts_ps = run.arrival_ps[accepted], _starts_ps(run)[accepted]
    if arrivals_ps.size == 0:
        return STABLE
    waits = [(arrivals_ps, starts_ps), _hand_overs(run)]
    left = sum(int(((entered <= arrivals_ps[-1]) & (arrivals_ps[-1] < ended)).sum()) for entered, ended in waits)
    edges_s = np.linspace(arrivals_ps[0], arrivals_ps[-1], THIRDS + 1) / PICOSECONDS_PER_SECOND
    means = sum(_mean_backlogs(edges_s, entered, ended) for entered, ended in waits)
    if left > LEFT_OF_ALL * arrivals_ps.size and (np.diff(means) > 0).all():
        return OVERLOADED
    service_s = run.e2e_s[accepted] - run.queue_s[accepted]
    with np.errstate(invalid="ignore"):
        held_up = ~(run.queue_s[accepted] <= service_s)  # one that was never served counts, for its times are infinite
    held_up &= starts_ps > arrivals_ps
    return BACKLOGGED if held_up.sum() > HELD_UP_OF_ALL * arrivals_ps.size else STABLE


def _starts_ps(run: Run) -> Int64:
    """Return when each request left the backlog, FAR where its client gave up."""
    return np.where(run.is_finished, run.outcome.scheduled_ps, FAR)


def _hand_overs(run: Run) -> tuple[Int64, Int64]:
    """Return when requests were handed over, and when their decode lanes took them in."""
    handed = run.outcome.joined_ps < FAR
    return run.outcome.first_token_ps[handed], run.outcome.joined_ps[handed]


def _mean_backlogs(edges_s: Floats, entered_ps: Int64, ended_ps: Int64) -> Floats:
    """Return the mean number of those that had entered and not ended, between each edge of time and the next."""
    if edges_s[-1] <= edges_s[0]:
        return np.zeros(THIRDS)
    entered_s, ended_s = entered_ps / PICOSECONDS_PER_SECOND, ended_ps / PICOSECONDS_PER_SECOND
    held = [
        np.maximum(np.minimum(ended_s, high) - np.maximum(entered_s, low), 0.0).sum() for low, high in pairwise(edges_s)
    ]
    return np.asarray(np.array(held) / np.diff(edges_s))
