"""Infeasible: no fleet can keep the promises, and why."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reachable:
    """The best value of a promised percentile that one engine of a device reaches when it is idle [s]."""

    promise: str
    device: str
    engine: str
    best_s: float


class Infeasible(Exception):
    """No fleet of the offered engines keeps the promises; reasons says which of them bind and what can be reached."""

    def __init__(self, reasons: tuple[str, ...], reachable: tuple[Reachable, ...] = ()) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons
        self.reachable = reachable

    def result(self) -> dict[str, Any]:
        """Return what the JSON answer says: reasons in words, and the best value by promise and device."""
        from planners.plan import rounded

        rows = [
            {"promise": row.promise, "device": row.device, "engine": row.engine, "best_s": row.best_s}
            for row in self.reachable
        ]
        return {"reasons": list(self.reasons), "reachable": [rounded(row) for row in rows]}
