"""What a trace asks of every engine on offer: load by size bucket, and the requests that break a promise by nature."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from planners.engines import Offer
from planners.mix import Demand
from planners.slo import Slo, limit_s
from planners.work import Alone, TokenPrices, alone, request_work_s, token_prices, worth_of
from traces import Ragged, Trace
from traces.statistics import block_ids

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

BUCKETS = 8


@dataclass(frozen=True, slots=True)
class Market:
    """A trace, its promises and the engines on offer, and what each engine would have to do for it.

    prices[engine] are lower bounds on replica time per token; horizon_s is the time there is to do all work;
    alone_s[promise, engine] is the promised percentile where every request has an idle replica to itself, and
    late[promise, engine, request] says which miss the promise even so.
    """

    trace: Trace
    slos: tuple[Slo, ...]
    offers: tuple[Offer, ...]
    usd_per_hour: Array
    prices: tuple[TokenPrices, ...]
    horizon_s: float
    input_edges: tuple[int, ...]
    demand: Demand
    alone_s: Array
    late: npt.NDArray[np.bool_]

    def only(self, engines: Sequence[int]) -> "Market":
        """Return the market with some of its engines."""
        chosen = list(engines)
        demand = Demand(self.demand.load[chosen], self.demand.lost[:, chosen], self.demand.allowed)
        return replace(
            self,
            offers=tuple(self.offers[engine] for engine in chosen),
            usd_per_hour=self.usd_per_hour[chosen],
            prices=tuple(self.prices[engine] for engine in chosen),
            demand=demand,
            alone_s=self.alone_s[:, chosen],
            late=self.late[:, chosen],
        )

    @property
    def load(self) -> Array:
        """Return the replicas that the whole trace keeps busy, by engine; infinite where none may be sent there."""
        load: Array = self.demand.load.sum(axis=1)
        return load


def survey(trace: Trace, slos: Sequence[Slo], offers: Sequence[Offer]) -> Market:
    """Return the market for a trace of at least one request; offers are taken in the order of their names."""
    offers = tuple(sorted(offers, key=lambda offer: offer.name))
    inputs, outputs = sizes(trace)
    fresh = fresh_tokens(trace)
    edges = input_edges(inputs)
    bucket = np.searchsorted(edges, inputs, side="right") - 1
    horizon_s = trace.span_s + _patience_s(slos, outputs)
    if not math.isfinite(horizon_s):
        horizon_s = max(trace.span_s, 1.0)
    prices, load, alone_s = [], [], []
    late = np.empty((len(slos), len(offers), len(trace)), bool)
    for engine, offer in enumerate(offers):
        seen = alone(offer.priced, inputs, outputs, fresh)
        price = token_prices(offer.priced, worth_of(inputs, outputs, fresh), limit_s(slos, "tpot"))
        work = np.bincount(bucket, request_work_s(price, inputs, outputs, fresh), len(edges)) / horizon_s
        fits = np.bincount(bucket, np.isinf(seen.e2e), len(edges)) == 0
        prices.append(price)
        load.append(np.where(fits, work, np.inf))
        late[:, engine] = [_is_late(seen, slo) for slo in slos]
        alone_s.append([_percentile_s(getattr(seen, slo.metric), slo.percent) for slo in slos])
    return Market(
        trace=trace,
        slos=tuple(slos),
        offers=offers,
        usd_per_hour=np.array([offer.usd_per_hour for offer in offers]),
        prices=tuple(prices),
        horizon_s=horizon_s,
        input_edges=edges,
        demand=Demand(
            load=np.array(load),
            lost=np.stack([late[:, :, bucket == number].sum(axis=2) for number in range(len(edges))], axis=2).astype(
                float
            ),
            allowed=np.array([_misses_allowed(slo, outputs) for slo in slos], np.float64),
        ),
        alone_s=np.array(alone_s).T,
        late=late,
    )


def sizes(trace: Trace) -> tuple[Counts, Counts]:
    """Return prompt and answer tokens as the data plane takes them: at least one each."""
    return np.maximum(trace.input_tokens, 1).astype(np.int64), np.maximum(trace.output_tokens, 1).astype(np.int64)


def fresh_tokens(trace: Trace) -> Counts:
    """Return the prompt tokens of each request that no prefix cache, however large, can hold: at least one.

    Those of blocks that an earlier request brought are left out, whichever replica has them.
    """
    inputs = sizes(trace)[0]
    blocks, size = trace.columns.get("prefix_blocks"), trace.metadata.get("block_tokens")
    if not isinstance(blocks, Ragged) or not isinstance(size, int) or not len(blocks.values):
        return inputs
    ids = block_ids(trace, blocks)
    rows = np.repeat(np.arange(len(blocks)), blocks.lengths)
    first = np.full(int(ids.max()) + 1, len(blocks))
    np.minimum.at(first, ids, rows)
    known = np.bincount(rows, first[ids] < rows, len(blocks))
    return np.maximum(inputs - (size * known).astype(np.int64), 1)


def input_edges(inputs: Counts, buckets: int = BUCKETS) -> tuple[int, ...]:
    """Return the lower edges of size buckets that hold about as many prompt tokens each; the first is 0."""
    ordered = np.sort(inputs)
    filled = np.cumsum(ordered)
    places = np.searchsorted(filled, filled[-1] * np.arange(1, buckets) / buckets)
    return tuple(int(edge) for edge in np.unique([0, *ordered[places]]))


def _patience_s(slos: Sequence[Slo], outputs: Counts) -> float:
    """Return how long after its arrival the last request that keeps its promises may end."""
    whole_s = limit_s(slos, "ttft") + (int(outputs.max()) - 1) * limit_s(slos, "tpot")
    return min(whole_s, limit_s(slos, "e2e"))


def _misses_allowed(slo: Slo, outputs: Counts) -> int:
    counted = int((outputs > 1).sum()) if slo.metric == "tpot" else outputs.size
    return slo.misses_allowed(counted)


def _is_late(seen: Alone, slo: Slo) -> npt.NDArray[np.bool_]:
    values: Array = getattr(seen, slo.metric)
    late: npt.NDArray[np.bool_] = values > slo.limit_s  # NaN is not late
    return late


def _percentile_s(values: Array, percent: float) -> float:
    values = np.sort(values[~np.isnan(values)])
    return float(values[math.ceil(percent / 100 * (values.size - 1))]) if values.size else 0.0
