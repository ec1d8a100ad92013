"""Serving several models: which lanes may serve which requests, by the model that the trace names for each."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.fleet import Fleet
from traces import Labels, Trace

Lanes = npt.NDArray[np.bool_]


class Serving(NamedTuple):
    """The model of each request as a row of `lanes`, which says what lanes serve it; the last row is for no model."""

    codes: npt.NDArray[np.int32]
    lanes: npt.NDArray[np.bool_]
    names: tuple[str, ...]

    def of(self, number: int) -> Lanes:
        """Return which lanes serve a request."""
        served: Lanes = self.lanes[self.codes[number]]
        return served

    def name(self, number: int) -> str:
        """Return the model of a request in words."""
        code = int(self.codes[number])
        return f"model {self.names[code]!r}" if code >= 0 else "no model"


def serving(trace: Trace, fleet: Fleet, pools: npt.NDArray[np.int64]) -> Serving | None:
    """Return what lanes, of these pools, serve of a trace; None where every pool serves everything.

    Raises ValueError where the trace names no models.
    """
    if not any(pool.serves for pool in fleet.pools):
        return None
    models = trace.columns.get("model")
    if not isinstance(models, Labels):
        raise ValueError(f"trace {trace.name} names no models, but pools of the fleet serve some models only")
    of_pools = [[not pool.serves or name in pool.serves for pool in fleet.pools] for name in models.names]
    of_pools.append([not pool.serves for pool in fleet.pools])
    return Serving(models.codes, np.array(of_pools)[:, pools], models.names)
