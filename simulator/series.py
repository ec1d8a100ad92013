"""Series: what the pools of a fleet looked like, sampled at even times during a run."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.compiled import kernel
from models.step import PICOSECONDS_PER_SECOND
from simulator.layout import State, without_extras
from simulator.routing import kv_in_use

OBSERVED = ("running", "waiting", "kv_tokens", "kv_capacity_tokens")


@kernel
def observe(state, now_ps, out):
    """Add up, per pool, running and waiting requests and KV tokens in use and in all: out (pools, 4)."""
    out[:] = 0.0
    for lane in range(state.lanes.size):
        here = state.lanes[lane]
        capacity_tokens = here.total_blocks << here.block_shift
        out[here.pool, 0] += here.running
        out[here.pool, 1] += here.waiting
        out[here.pool, 2] += kv_in_use(state.prices, here, now_ps) * capacity_tokens
        out[here.pool, 3] += capacity_tokens


@dataclass(frozen=True, slots=True)
class Series:
    """Samples of every pool: time_s (n,), the others (n, pools); kv_fraction is of the pool's KV tokens."""

    time_s: npt.NDArray[np.float64]
    running: npt.NDArray[np.float64]
    waiting: npt.NDArray[np.float64]
    kv_fraction: npt.NDArray[np.float64]


class Sampler:
    """Takes samples of a state as SimPy calls it."""

    def __init__(self, pools: int) -> None:
        self._pools = pools
        self._times_s: list[float] = []
        self._samples: list[npt.NDArray[np.float64]] = []

    def take(self, state: State, now_ps: int) -> None:
        """Take a sample."""
        sample = np.zeros((self._pools, len(OBSERVED)))
        observe(without_extras(state), now_ps, sample)
        self._times_s.append(now_ps / PICOSECONDS_PER_SECOND)
        self._samples.append(sample)

    def series(self) -> Series:
        """Return all samples so far."""
        running, waiting, used, capacity = (
            np.array(self._samples).reshape(-1, self._pools, len(OBSERVED)).transpose(2, 0, 1)
        )
        fraction = np.divide(used, capacity, out=np.zeros_like(used), where=capacity > 0)
        return Series(np.array(self._times_s), running, waiting, fraction)
