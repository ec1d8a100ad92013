"""A Run: what happened to every request of a replay, and the figures read from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.step import PICOSECONDS_PER_NANOSECOND, PICOSECONDS_PER_SECOND
from simulator.fleet import Fleet
from simulator.layout import CANCELLED, FINISHED, REJECTED
from simulator.series import Series
from simulator.step_log import StepLog
from simulator.stores import Traffic
from simulator.turnover import Outcome
from traces import Labels, Trace

Seconds = npt.NDArray[np.float64]

SECONDS_PER_HOUR = 3600
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0}


@dataclass(frozen=True, slots=True)
class Run:
    """The outcome of a replay; every column has one entry per request of the trace, in its order.

    lanes are the lanes' rows, and clock the run's, as the last event left them; series and steps are what was asked
    for.
    """

    trace: Trace
    fleet: Fleet
    outcome: Outcome
    lanes: npt.NDArray[Any]
    clock: npt.NDArray[Any]
    series: Series | None = None
    steps: StepLog | None = None
    arrived_ps: npt.NDArray[np.int64] | None = None  # where requests came at other times than the trace says
    traffic: tuple[Traffic, ...] = ()  # through the tiers below the lanes' memories

    def _repr_html_(self) -> str:
        """Return the run as a notebook shows it."""
        from simulator.card import html_card

        return html_card(self)

    @property
    def ttft_s(self) -> Seconds:
        """Return the time from arrival to first token; infinite where there was none."""
        return self._since_arrival("first_token_ps")

    @property
    def e2e_s(self) -> Seconds:
        """Return the time from arrival to last token; infinite where there was none."""
        return self._since_arrival("finish_ps")

    @property
    def queue_s(self) -> Seconds:
        """Return the time from arrival to the first step that worked on the request; infinite where there was none."""
        return self._since_arrival("scheduled_ps")

    @property
    def tpot_s(self) -> Seconds:
        """Return the mean time per output token after the first; NaN for answers of one token, infinite if unserved."""
        gaps = np.maximum(self.trace.output_tokens, 1) - 1
        span_s = (self.outcome.finish_ps - self.outcome.first_token_ps) / PICOSECONDS_PER_SECOND
        tpot_s = np.divide(span_s, gaps, out=np.full(gaps.size, np.nan), where=gaps > 0)
        return np.where(self.is_finished, tpot_s, np.inf)

    @property
    def arrival_ps(self) -> npt.NDArray[np.int64]:
        """Return when each request arrived."""
        if self.arrived_ps is not None:
            return self.arrived_ps
        return self.trace.arrival_ns * PICOSECONDS_PER_NANOSECOND

    @property
    def is_finished(self) -> npt.NDArray[np.bool_]:
        """Return which requests were served to their last token."""
        finished: npt.NDArray[np.bool_] = self.outcome.status == FINISHED
        return finished

    @property
    def span_s(self) -> float:
        """Return the time from the trace's start to the last token."""
        ends = self.outcome.finish_ps[self.is_finished]
        return float(ends.max()) / PICOSECONDS_PER_SECOND if ends.size else 0.0

    @property
    def usd(self) -> float:
        """Return the fleet's bill from the trace's start to the last token."""
        return self.fleet.usd_per_hour * self.span_s / SECONDS_PER_HOUR

    def metric_s(self, name: str) -> Seconds:
        """Return the column of "ttft", "tpot", "e2e" or "queue"."""
        column: Seconds = getattr(self, f"{name}_s")
        return column

    def percentile_s(self, name: str, percent: float) -> float:
        """Return a percentile over all requests that have the metric; an unserved request counts as infinite.

        Linear interpolation as numpy's; a percentile that touches an unserved request is infinite, NaN where no
        request has the metric.
        """
        values = self.metric_s(name)
        values = np.sort(values[~np.isnan(values)])
        if values.size == 0:
            return float("nan")
        place = percent / 100 * (values.size - 1)
        below, above = values[int(place)], values[int(np.ceil(place))]
        if np.isinf(above):
            return float("inf") if place > int(place) or np.isinf(below) else float(below)
        return float(below + (above - below) * (place - int(place)))

    def latency_s(self) -> dict[str, dict[str, float]]:
        """Return p50, p90 and p99 of TTFT, TPOT and E2E."""
        return {
            name: {label: self.percentile_s(name, percent) for label, percent in PERCENTILES.items()}
            for name in ("ttft", "tpot", "e2e")
        }

    def keeps(self, limits_s: Mapping[str, float]) -> npt.NDArray[np.bool_]:
        """Return which requests stayed within every limit; one without the metric keeps it."""
        kept = self.is_finished
        for name, limit_s in limits_s.items():
            values = self.metric_s(name)
            kept = kept & (np.isnan(values) | (values <= limit_s))
        return kept

    def attainment(self, limits_s: Mapping[str, float]) -> float:
        """Return the fraction of requests that stayed within every limit; NaN where there was no request."""
        kept = self.keeps(limits_s)
        return float(kept.mean()) if kept.size else float("nan")

    def goodput_per_s(self, limits_s: Mapping[str, float]) -> float:
        """Return the requests within every limit per second, from the trace's start to the last token."""
        return float(self.keeps(limits_s).sum()) / self.span_s if self.span_s else 0.0

    def attainment_by_class(self, limits_s: Mapping[str, float]) -> dict[str, float]:
        """Return the attainment of every class that the trace's column slo_class names, in the order of the names."""
        classes = self.trace.columns.get("slo_class")
        if not isinstance(classes, Labels):
            return {}
        kept = self.keeps(limits_s)
        rows = {name: classes.codes == code for code, name in enumerate(classes.names)}
        return {name: float(kept[mine].mean()) for name, mine in sorted(rows.items()) if mine.any()}

    def counts(self) -> dict[str, int]:
        """Return how many requests arrived, finished, were rejected, failed, and are still in flight."""
        status = self.outcome.status
        finished, rejected, failed = (int((status == kind).sum()) for kind in (FINISHED, REJECTED, CANCELLED))
        return {
            "arrived": status.size,
            "finished": finished,
            "rejected": rejected,
            "failed": failed,
            "in_flight": status.size - finished - rejected - failed,
        }

    def busy_fraction(self) -> list[float]:
        """Return, pool by pool, the fraction of lane time spent in steps."""
        lanes, span_s = self.lanes, self.span_s
        return [
            float(lanes["busy_ps"][lanes["pool"] == pool].mean()) / PICOSECONDS_PER_SECOND / span_s if span_s else 0.0
            for pool in range(len(self.fleet.pools))
        ]

    def _since_arrival(self, event: str) -> Seconds:
        seconds = (getattr(self.outcome, event) - self.arrival_ps) / PICOSECONDS_PER_SECOND
        return np.where(self.is_finished, seconds, np.inf)
