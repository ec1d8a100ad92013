"""What a trace asks of every engine on offer: load by size bucket, and the requests that break a promise by nature."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from planners.bounds.work import FINE, Alone, Detail, TokenPrices, alone, asked_for, token_prices_of, worth_of
from planners.classes import codes_of, members, named
from planners.facts import Facts
from planners.offers.engines import Offer
from planners.search.mix import Demand
from planners.slo import Slo, limit_s
from traces import Ragged, Trace
from traces.statistics import block_ids
from traces.trace import take

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

BUCKETS = 8


@dataclass(frozen=True, slots=True)
class View:
    """Some requests of a market as a market of their own: their rows there, and which of its promises they are made."""

    market: "Market"
    rows: Counts
    promises: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Market:
    """A trace, its promises and the engines on offer, and what each engine would have to do for it.

    prices[engine] are lower bounds on replica time per token; horizon_s is the time there is to do all work;
    alone_s[promise, engine] is the promised percentile where every request has an idle replica to itself, and
    late[promise, engine, request] says which miss the promise even so; fresh are the prompt tokens of each request that
    no cache can hold. classes are those that promises name, views what each of them is by itself. facts are what
    earlier runs found out.
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
    fresh: Counts
    classes: tuple[str, ...] = ()
    views: "tuple[View, ...]" = ()
    facts: Facts = field(default_factory=Facts, repr=False, compare=False)

    @property
    def buckets(self) -> int:
        """Return the number of buckets: of every class, those by size."""
        return int(self.demand.load.shape[1])

    def bucket_of(self, trace: Trace) -> Counts:
        """Return the bucket of each request of a trace."""
        size = np.searchsorted(self.input_edges, sizes(trace)[0], side="right") - 1
        return codes_of(trace, self.classes) * len(self.input_edges) + size if self.classes else size

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
            views=tuple(replace(view, market=view.market.only(chosen)) for view in self.views),
        )

    def promising(self, kept: Sequence[int]) -> "Market":
        """Return the market with some of its promises only; its buckets, prices and views stay as they are."""
        places = list(kept)
        demand = Demand(self.demand.load, self.demand.lost[places], self.demand.allowed[places])
        slos = tuple(self.slos[place] for place in places)
        return replace(self, slos=slos, demand=demand, alone_s=self.alone_s[places], late=self.late[places])

    @property
    def load(self) -> Array:
        """Return the replicas that the whole trace keeps busy, by engine; infinite where none may be sent there."""
        load: Array = self.demand.load.sum(axis=1)
        return load


def survey(
    trace: Trace,
    slos: Sequence[Slo],
    offers: Sequence[Offer],
    detail: Detail = FINE,
    facts: Facts | None = None,
) -> Market:
    """Return the market for a trace of at least one request; offers are taken in the order of their names.

    Where promises are made to classes, each class has its own buckets, one class after the other, and those of no class
    named come last; each is also seen alone, and those promised a first token or an end together, in `views`.
    """
    offers = tuple(sorted(offers, key=lambda offer: offer.name))
    fresh, edges, names = fresh_tokens(trace), input_edges(sizes(trace)[0]), named(slos)
    allowed = tuple(misses_allowed(slo, trace) for slo in slos)
    horizon_s = max(_horizon_s(trace, _promised(slos, name)) for name in ("", *names))
    whole = Scope(np.arange(len(trace)), fresh, edges, allowed, horizon_s, detail, facts or Facts())
    if not names:
        return _surveyed(trace, slos, offers, whole)
    codes = codes_of(trace, names)
    parts = []
    for code, name in enumerate((*names, "")):
        rows = np.flatnonzero(codes == code)
        places = [place for place, slo in enumerate(slos) if slo.slo_class in ("", name)]
        scope = replace(whole, rows=rows, fresh=fresh[rows], allowed=tuple(allowed[place] for place in places))
        own = _surveyed(take(trace, rows), [slos[place] for place in places], offers, scope)
        parts.append(View(own, rows, tuple(places)))
    return _joined(trace, slos, names, whole, parts)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which rows of a trace are looked at, what of their prompts no cache holds, and what they share with the rest."""

    rows: Counts
    fresh: Counts
    edges: tuple[int, ...]
    allowed: tuple[float, ...]
    horizon_s: float
    detail: Detail
    facts: Facts


def _surveyed(trace: Trace, slos: Sequence[Slo], offers: tuple[Offer, ...], scope: Scope) -> Market:
    """Return the market for requests that all are promised the same."""
    if not len(trace):
        return _of_nobody(trace, slos, offers, scope)
    inputs, outputs = sizes(trace)
    fresh, edges = scope.fresh, scope.edges
    bucket = np.searchsorted(edges, inputs, side="right") - 1
    asked, worth = asked_for(inputs, outputs, fresh), worth_of(inputs, outputs, fresh)
    sums = asked.sums(bucket, len(edges)) / scope.horizon_s
    prices = token_prices_of([offer.priced for offer in offers], worth, limit_s(slos, "tpot"), scope.detail)
    load, alone_s = [], []
    late = np.empty((len(slos), len(offers), len(trace)), bool)
    for engine, (offer, price) in enumerate(zip(offers, prices, strict=True)):
        seen = alone(offer.priced, asked)
        fits = np.bincount(bucket, np.isinf(seen.e2e), len(edges)) == 0
        work = np.array([price.prefill_s, price.pair_s, price.decode_s, price.context_s]) @ sums
        load.append(np.where(fits, work, np.inf))
        for promise, slo in enumerate(slos):
            late[promise, engine] = _is_late(seen, slo)
        alone_s.append([_percentile_s(getattr(seen, slo.metric), slo.percent) for slo in slos])
    lost = [late[:, :, bucket == number].sum(axis=2) for number in range(len(edges))]
    return Market(
        trace=trace,
        slos=tuple(slos),
        offers=offers,
        usd_per_hour=np.array([offer.usd_per_hour for offer in offers]),
        prices=tuple(prices),
        horizon_s=scope.horizon_s,
        input_edges=edges,
        demand=Demand(np.array(load), np.stack(lost, axis=2).astype(float), np.array(scope.allowed, np.float64)),
        alone_s=np.array(alone_s).reshape(len(offers), len(slos)).T,
        late=late,
        fresh=fresh,
        facts=scope.facts,
    )


def _of_nobody(trace: Trace, slos: Sequence[Slo], offers: tuple[Offer, ...], scope: Scope) -> Market:
    """Return the market of a class without a request: any engine carries it."""
    shape = (len(slos), len(offers), len(scope.edges))
    return Market(
        trace=trace,
        slos=tuple(slos),
        offers=offers,
        usd_per_hour=np.array([offer.usd_per_hour for offer in offers]),
        prices=(TokenPrices(0.0, 0.0, 0.0, 0.0),) * len(offers),
        horizon_s=scope.horizon_s,
        input_edges=scope.edges,
        demand=Demand(np.zeros(shape[1:]), np.zeros(shape), np.array(scope.allowed, np.float64)),
        alone_s=np.zeros(shape[:2]),
        late=np.zeros((*shape[:2], 0), bool),
        fresh=scope.fresh,
        facts=scope.facts,
    )


def _joined(trace: Trace, slos: Sequence[Slo], names: tuple[str, ...], whole: Scope, parts: Sequence[View]) -> Market:
    """Return the market of all classes: their buckets side by side, and what is promised to whom."""
    offers = parts[0].market.offers
    inputs, outputs = sizes(trace)
    worth = worth_of(inputs, outputs, whole.fresh)
    loosest_s = max(limit_s(part.market.slos, "tpot") for part in parts if part.rows.size)
    sized = len(whole.edges)
    late = np.zeros((len(slos), len(offers), len(trace)), bool)
    lost = np.zeros((len(slos), len(offers), sized * len(parts)))
    alone_s = np.zeros((len(slos), len(offers)))
    for number, part in enumerate(parts):
        for own, place in enumerate(part.promises):
            late[place][:, part.rows] = part.market.late[own]
            lost[place][:, number * sized : (number + 1) * sized] = part.market.demand.lost[own]
            alone_s[place] = np.maximum(alone_s[place], part.market.alone_s[own])
    market = Market(
        trace=trace,
        slos=tuple(slos),
        offers=offers,
        usd_per_hour=parts[0].market.usd_per_hour,
        prices=tuple(token_prices_of([offer.priced for offer in offers], worth, loosest_s, whole.detail)),
        horizon_s=whole.horizon_s,
        input_edges=whole.edges,
        demand=Demand(np.hstack([part.market.demand.load for part in parts]), lost, np.array(whole.allowed)),
        alone_s=alone_s,
        late=late,
        fresh=whole.fresh,
        classes=names,
        facts=whole.facts,
    )
    return replace(market, views=(*(part for part in parts if part.market.slos and part.rows.size), *_pooled(market)))


def _pooled(market: Market) -> Iterator[View]:
    """Yield all requests that are promised a first token or an end, each held to the longest that any is allowed.

    Whoever keeps its own promises keeps that one; and no more may miss it than may miss any of those it stands for.
    """
    codes = codes_of(market.trace, market.classes)
    groups = {name: _promised(market.slos, name) for name in (*market.classes, "")}
    timed = {name for name, own in groups.items() if math.isfinite(min(limit_s(own, "ttft"), limit_s(own, "e2e")))}
    rows = np.flatnonzero(np.isin(codes, [place for place, name in enumerate(groups) if name in timed]))
    if len({name for name in timed if (codes[rows] == list(groups).index(name)).any()}) < 2:
        return
    slos, late, allowed = [], [], []
    for metric in ("ttft", "tpot", "e2e"):
        limits = [limit_s(groups[name], metric) for name in timed]
        stood_for = [place for place, slo in enumerate(market.slos) if slo.metric == metric]
        if math.isfinite(max(limits)) and stood_for:
            slos.append(Slo(metric, 50.0, max(limits)))
            late.append(market.late[stood_for][:, :, rows].any(axis=0))
            allowed.append(float(market.demand.allowed[stood_for].sum()))
    if slos:
        demand = replace(market.demand, allowed=np.array(allowed))
        own = replace(
            market,
            trace=take(market.trace, rows),
            slos=tuple(slos),
            late=np.array(late),
            demand=demand,
            fresh=market.fresh[rows],
            classes=(),
        )
        yield View(own, rows, ())


def _promised(slos: Sequence[Slo], name: str) -> list[Slo]:
    """Return what the requests of a class are promised, with all others or by themselves."""
    return [slo for slo in slos if slo.slo_class in ("", name)]


def _horizon_s(trace: Trace, slos: Sequence[Slo]) -> float:
    """Return the time there is for the work of a trace; about its span where nothing is promised that ends."""
    horizon_s = trace.span_s + _patience_s(slos, sizes(trace)[1])
    return horizon_s if math.isfinite(horizon_s) else max(trace.span_s, 1.0)


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


def misses_allowed(slo: Slo, trace: Trace) -> int:
    """Return how many requests of a trace may break a promise; one token alone has no TPOT."""
    outputs = sizes(trace)[1][members(trace, slo.slo_class)]
    counted = int((outputs > 1).sum()) if slo.metric == "tpot" else outputs.size
    return slo.misses_allowed(counted)


def _is_late(seen: Alone, slo: Slo) -> npt.NDArray[np.bool_]:
    values: Array = getattr(seen, slo.metric)
    late: npt.NDArray[np.bool_] = values > slo.limit_s  # NaN is not late
    return late


def _percentile_s(values: Array, percent: float) -> float:
    values = values[~np.isnan(values)]
    place = math.ceil(percent / 100 * (values.size - 1))
    return float(np.partition(values, place)[place]) if values.size else 0.0
