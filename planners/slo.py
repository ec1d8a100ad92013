"""A promise on latency: a metric, a percentile, a limit; parsed from words and held against a run."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from planners.classes import members, named

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from simulator.run import Run

METRICS = ("ttft", "tpot", "e2e")
UNIT_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0}
EXAMPLE = "ttft:p99<=2s"

_FORM = re.compile(
    r"((?P<slo_class>[^/\s]+)/)?(?P<metric>[a-z0-9]+):p(?P<percent>[0-9.]+)\s*<=?\s*(?P<limit>[0-9.eE+-]+)\s*(?P<unit>[a-z]+)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Slo:
    """The promise that a percentile of a metric is at most limit_s; percent is 0-100, exclusive.

    It is for the requests of a class, as classes.members has them, or, where slo_class is empty, for all.
    """

    metric: str
    percent: float
    limit_s: float
    slo_class: str = ""

    def __str__(self) -> str:
        limit = f"{self.limit_s:g}s" if self.limit_s >= 1 else f"{self.limit_s * 1e3:g}ms"
        return f"{self.name}<={limit}"

    @property
    def name(self) -> str:
        """Return what is limited: chat/ttft:p99."""
        name = f"{self.metric}:p{self.percent:g}"
        return f"{self.slo_class}/{name}" if self.slo_class else name

    def misses_allowed(self, requests: int) -> int:
        """Return how many of so many requests may exceed the limit while the interpolated percentile keeps it."""
        return requests - 1 - math.floor(self.percent / 100 * (requests - 1)) if requests else 0


def parse(text: str) -> Slo:
    """Return the promise that a text like "ttft:p99<=2s", or "chat/ttft:p99<=2s" for one class, makes.

    Raises ValueError naming what is wrong and what would do.

    >>> parse("tpot:p99<=80ms")
    Slo(metric='tpot', percent=99.0, limit_s=0.08, slo_class='')
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"cannot read the promise {text!r}; expected METRIC:pPERCENT<=LIMIT, as in {EXAMPLE!r}")
    metric, unit = found["metric"].lower(), found["unit"].lower()
    if metric not in METRICS:
        raise ValueError(f"promise {text!r}: unknown metric {metric!r}; known: {', '.join(METRICS)}")
    if unit not in UNIT_S:
        raise ValueError(f"promise {text!r}: unknown unit {unit!r}; known: {', '.join(UNIT_S)}")
    percent, limit_s = _number(text, found["percent"]), _number(text, found["limit"]) * UNIT_S[unit]
    if not 0 < percent < 100:
        raise ValueError(f"promise {text!r}: percentile {percent:g} is not between 0 and 100, both excluded")
    if not (limit_s > 0 and math.isfinite(limit_s)):
        raise ValueError(f"promise {text!r}: the limit must be positive")
    return Slo(metric, percent, limit_s, found["slo_class"] or "")


def parse_all(texts: Sequence[str]) -> tuple[Slo, ...]:
    """Return the promises in their order; ValueError where there is none or two limit the same percentile."""
    if not texts:
        raise ValueError(f"no promise given; expected at least one, as in --slo {EXAMPLE!r}")
    slos = tuple(parse(text) for text in texts)
    for index, slo in enumerate(slos):
        for other in slos[:index]:
            if slo.name == other.name:
                raise ValueError(f"two promises on {slo.name}: {other} and {slo}; keep one")
    return slos


def limit_s(slos: Sequence[Slo], metric: str) -> float:
    """Return the longest time any promise allows for a metric; infinite where there is no promise on it."""
    limits = [slo.limit_s for slo in slos if slo.metric == metric]
    return max(limits, default=math.inf)


def tightest_s(slos: Sequence[Slo], metric: str) -> float:
    """Return the time within which the requests of the most demanding class keep all its promises on a metric."""
    return min(limit_s([slo for slo in slos if slo.slo_class == name], metric) for name in {s.slo_class for s in slos})


def loosest(slos: Sequence[Slo]) -> tuple[Slo, ...]:
    """Return the promise of each metric that allows the longest time."""
    return tuple({slo.metric: slo for slo in slos if slo.limit_s == limit_s(slos, slo.metric)}.values())


def value_s(run: "Run", slo: Slo) -> float:
    """Return the percentile that the promise speaks of, as it came out in a run; NaN where no request has it."""
    if not slo.slo_class:
        return run.percentile_s(slo.metric, slo.percent)
    return percentile_s(run.metric_s(slo.metric)[members(run.trace, slo.slo_class)], slo.percent)


def percentile_s(values: "npt.NDArray[np.float64]", percent: float) -> float:
    """Return a percentile of times, NaN left out; infinite where it touches a request that was not served."""
    import numpy as np

    ordered = np.sort(values[~np.isnan(values)])
    if ordered.size == 0:
        return math.nan
    place = percent / 100 * (ordered.size - 1)
    below, above = float(ordered[int(place)]), float(ordered[math.ceil(place)])
    if math.isinf(above):
        return above if place > int(place) or math.isinf(below) else below
    return below + (above - below) * (place - int(place))


def latency_of_class_s(run: "Run", name: str) -> dict[str, dict[str, float]]:
    """Return p50, p90 and p99 of TTFT, TPOT and E2E of one class."""
    from simulator.run import PERCENTILES

    own = members(run.trace, name)
    return {
        metric: {label: percentile_s(run.metric_s(metric)[own], percent) for label, percent in PERCENTILES.items()}
        for metric in METRICS
    }


def kept(run: "Run", slos: Sequence[Slo]) -> "npt.NDArray[np.bool_]":
    """Return which requests stayed within the longest time that the promises to them allow, metric by metric."""
    everyone = {slo.metric: limit_s([s for s in slos if not s.slo_class], slo.metric) for slo in slos}
    found = run.keeps({metric: limit for metric, limit in everyone.items() if math.isfinite(limit)})
    for name in named(slos):
        own = [slo for slo in slos if slo.slo_class == name]
        limits_s = {slo.metric: limit_s(own, slo.metric) for slo in own}
        found = found & (run.keeps(limits_s) | ~members(run.trace, name))
    return found


def strain(run: "Run", slos: Sequence[Slo]) -> float:
    """Return the largest ratio of a promised percentile to its limit: at most 1 where all promises hold."""
    ratios = [value_s(run, slo) / slo.limit_s for slo in slos]
    return max((ratio for ratio in ratios if not math.isnan(ratio)), default=0.0)


def holds(run: "Run", slos: Sequence[Slo]) -> bool:
    """Say whether a run kept every promise."""
    return strain(run, slos) <= 1.0


def broken(run: "Run", slos: Sequence[Slo]) -> tuple[Slo, ...]:
    """Return the promises that a run broke."""
    return tuple(slo for slo in slos if value_s(run, slo) > slo.limit_s)


def _number(text: str, digits: str) -> float:
    try:
        return float(digits)
    except ValueError:
        raise ValueError(f"promise {text!r}: {digits!r} is not a number") from None
