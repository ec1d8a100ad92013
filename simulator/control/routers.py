"""Routers: each a rule that names one of the lanes that prompts may go to, holds the request, or turns it away."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, inf
from typing import Any

import numpy as np
import numpy.typing as npt

from models.step import PICOSECONDS_PER_SECOND
from simulator.control.plane import Decision, Hold, Plane, Reject, Router, Routing
from simulator.control.prefix_index import HotPrefixes, PrefixIndex, content_of
from simulator.control.radix_index import RadixIndex
from simulator.control.rings import Ring
from simulator.layout import (
    DECODE,
    TELL_CANCELLED,
    TELL_FINISHED,
    TELL_FIRST_TOKEN,
    TELL_HELD,
    TELL_PREFILLED,
    TELL_REFUSED,
)
from simulator.replay import FleetView, RequestView, class_codes
from traces import Labels

Lanes = npt.NDArray[np.int64]
Rule = Callable[[RequestView, FleetView, Lanes], Decision]
PROMPT_ENDS = TELL_FIRST_TOKEN | TELL_FINISHED | TELL_CANCELLED | TELL_REFUSED


def over_open_lanes(make: Callable[[Plane], Rule]) -> Routing:
    """Return the routing that asks a rule which of the lanes that prompts may go to.

    It holds while there is none, and turns away what no lane of the fleet serves.
    """

    def routing(plane: Plane) -> Router:
        rule = make(plane)

        def route(request: RequestView, view: FleetView) -> Decision:
            could = plane.lanes["role"] != DECODE
            if plane.serving is not None:
                could &= plane.serves(request.number)
                if not could.any():
                    return Reject()
            lanes = np.flatnonzero(plane.is_open & could)
            return rule(request, view, lanes) if lanes.size else Hold()

        return route

    return routing


def least(lanes: Lanes, *columns: npt.NDArray[Any]) -> int:
    """Return the lane with the least of the first column, ties by the next ones, then the first."""
    return int(lanes[np.lexsort([column[lanes] for column in reversed(columns)])[0]])


# What load alone tells.


def round_robin() -> Routing:
    """Name each lane in turn."""

    def make(plane: Plane) -> Rule:
        last = -1

        def rule(request: RequestView, view: FleetView, lanes: Lanes) -> int:
            nonlocal last
            last = int(lanes[np.searchsorted(lanes, last, side="right") % lanes.size])
            return last

        return rule

    return over_open_lanes(make)


def random(seed: int = 0) -> Routing:
    """Name any lane."""

    def make(plane: Plane) -> Rule:
        rng = np.random.default_rng(seed)
        return lambda request, view, lanes: int(lanes[rng.integers(lanes.size)])

    return over_open_lanes(make)


def least_requests(seed: int | None = None) -> Routing:
    """Name the lane with the fewest requests: the first of equals, or any of them where there is a seed to draw by.

    By a view that is old, equals stay equal, and the first would have all that comes meanwhile.
    """

    def make(plane: Plane) -> Rule:
        rng = None if seed is None else np.random.default_rng(seed)

        def rule(request: RequestView, view: FleetView, lanes: Lanes) -> int:
            return least(lanes if rng is None else rng.permutation(lanes), view.outstanding)

        return rule

    return over_open_lanes(make)


def least_kv() -> Routing:
    """Name the lane whose decodes hold the smallest share of its KV memory."""
    return over_open_lanes(
        lambda plane: lambda request, view, lanes: least(lanes, view.kv_tokens / view.kv_capacity_tokens)
    )


def least_pending_tokens() -> Routing:
    """Name the lane with the fewest tokens waiting to be computed, ties by requests."""
    return over_open_lanes(
        lambda plane: lambda request, view, lanes: least(lanes, view.waiting_tokens, view.outstanding)
    )


def power_of_two(seed: int = 0) -> Routing:
    """Name the one with fewer requests of two lanes drawn at random."""

    def make(plane: Plane) -> Rule:
        rng = np.random.default_rng(seed)
        return lambda request, view, lanes: least(
            lanes[rng.choice(lanes.size, min(2, lanes.size), replace=False)], view.outstanding
        )

    return over_open_lanes(make)


def freeness() -> Routing:
    """Name the lane with most freeness as it is shown, which sinks below 0 where a queue waits (Llumnix)."""
    return over_open_lanes(lambda plane: lambda request, view, lanes: least(lanes, -plane.shown_freeness()))


def weighted() -> Routing:
    """Give each pool the planner's fraction of the requests of a size, and each of them to its emptiest lane."""

    def make(plane: Plane) -> Rule:
        shares, edges = plane.fleet.share_matrix(), np.asarray(plane.fleet.input_edges)
        credits, firsts = np.zeros(shares.shape), edges.size * class_codes(plane.trace, plane.fleet)

        def rule(request: RequestView, view: FleetView, lanes: Lanes) -> int:
            bucket = int(firsts[request.number] + np.searchsorted(edges, request.input_tokens, side="right")) - 1
            pools = plane.lanes["pool"][lanes]
            credits[bucket] += shares[bucket]
            pool = max(np.unique(pools).tolist(), key=lambda each: credits[bucket, each])
            credits[bucket, pool] -= 1.0
            return least(lanes[pools == pool], view.outstanding)

        return rule

    return over_open_lanes(make)


def length_classes(edges_tokens: Sequence[int] = (256,), shares: Sequence[float] | None = None) -> Routing:
    """Keep prompts of each class of lengths on lanes of their own, so large a share of them; there, fewest requests."""
    weights = np.full(len(edges_tokens) + 1, 1.0) if shares is None else np.asarray(shares, float)
    if weights.size != len(edges_tokens) + 1 or (weights < 0).any() or not weights.sum():
        raise ValueError(f"shares {shares} of lanes; {len(edges_tokens)} edges make {len(edges_tokens) + 1} classes")
    ends = np.cumsum(weights / weights.sum())

    def rule(request: RequestView, view: FleetView, lanes: Lanes) -> int:
        index = int(np.searchsorted(edges_tokens, request.input_tokens, side="right"))
        begin, end = (round(float(ends[each]) * lanes.size) if each >= 0 else 0 for each in (index - 1, index))
        first = min(begin, lanes.size - 1)
        return least(lanes[first : max(end, first + 1)], view.outstanding)

    return over_open_lanes(lambda plane: rule)


# What a gateway knows of prompts.


def session_affinity() -> Routing:
    """Keep a session on the lane of its first request, the emptiest then; one without a name by its first block."""

    def make(plane: Plane) -> Rule:
        sessions, content, homes = (
            plane.trace.columns.get("session_id"),
            content_of(plane),
            dict[tuple[str, int], int](),
        )

        def rule(request: RequestView, view: FleetView, lanes: Lanes) -> int:
            code = int(sessions.codes[request.number]) if isinstance(sessions, Labels) else -1
            blocks = content(request.number) if code < 0 else []
            key = ("session", code) if code >= 0 else ("block", blocks[0]) if blocks else ("row", request.number)
            if homes.get(key, -1) not in lanes:
                homes[key] = least(lanes, view.outstanding)
            return homes[key]

        return rule

    return over_open_lanes(make)


def prefix_aware(
    most_apart: float = 8,
    deviations: float = 1.0,
    own_index: bool = False,
    below: bool = False,
    index: str = "block-hash",
) -> Routing:
    """Name the lane with most of the prompt cached of those not much fuller than others (AIBrix).

    A lane may have the mean number of requests and so many standard deviations; where the fullest has `most_apart`
    more than the emptiest, the emptiest it is. With `own_index` the gateway goes by what it sent where, kept in an
    `index` of block hashes or a radix tree; with `below` what tiers below a lane's memory have counts as cached.
    """
    if index not in INDEXES:
        raise ValueError(f"unknown index {index!r} of prefixes; known: {', '.join(INDEXES)}")

    def make(plane: Plane) -> Rule:
        matched = Matched(plane, own_index, below, index)

        def rule(request: RequestView, view: FleetView, lanes: Lanes) -> int:
            queues = view.outstanding[lanes]
            if queues.max() - queues.min() > most_apart:
                return matched.sent(request, least(lanes, view.outstanding))
            fit = lanes[queues <= queues.mean() + deviations * queues.std() + 1e-9] if deviations < inf else lanes
            return matched.sent(request, least(fit, -matched.tokens(request), view.outstanding))

        return rule

    return over_open_lanes(make)


def bounded_load(factor: float = 1.25, points: int = 100, seed: int = 0) -> Routing:
    """Name the first lane on from the prompt's place on a ring that has room: `factor` times the mean load, or less."""
    if factor < 1:
        raise ValueError(f"factor {factor:g} of the mean load; no lane would have room below 1")

    def make(plane: Plane) -> Rule:
        ring, content = Ring(len(plane.lanes), points, seed), content_of(plane)

        def rule(request: RequestView, view: FleetView, lanes: Lanes) -> int:
            most = ceil(factor * (view.outstanding[lanes].sum() + 1) / lanes.size)
            fit = set(lanes[view.outstanding[lanes] < most].tolist())
            key = (content(request.number) or [request.number])[0]
            return next((lane for lane in ring.walk(key) if lane in fit), least(lanes, view.outstanding))

        return rule

    return over_open_lanes(make)


def dual_ring(slo_s: float = 5.0, seed: int = 0, splits: bool = True, window: int = 400) -> Routing:
    """Of two lanes that rings name, take that with more cached, or the earlier one where that would be late (DualMap).

    Late is half of the promise of a first token. Prompts are told apart by more blocks where a beginning is common.
    """

    def make(plane: Plane) -> Rule:
        pair, ahead = Pair(plane, seed, splits, window), Ahead(plane)
        matched = Matched(plane, own_index=True)

        def rule(request: RequestView, view: FleetView, lanes: Lanes) -> int:
            cached = matched.tokens(request)
            waits_s = ahead.s_per_token * (ahead.tokens + request.input_tokens - cached)
            lane = nearer(*pair.of(request.number), cached, waits_s, slo_s)
            ahead.sent(request, lane, cached)
            return matched.sent(request, lane)

        return rule

    return over_open_lanes(make)


def nearer(
    first: int, second: int, cached: npt.NDArray[np.int64], waits_s: npt.NDArray[np.float64], slo_s: float
) -> int:
    """Return DualMap's choice of two lanes: more cached, unless half of the promise is over then; else the earlier.

    Of two with as much cached, the earlier too.
    """
    warm = max(first, second, key=lambda lane: (cached[lane], -waits_s[lane]))
    if waits_s[warm] <= slo_s / 2:
        return warm
    return first if waits_s[first] <= waits_s[second] else second


class Pair:
    """The two lanes that prompts of one key belong to, among those that are open."""

    def __init__(self, plane: Plane, seed: int, splits: bool, window: int) -> None:
        self._plane, self._content = plane, content_of(plane)
        self._rings = [Ring(len(plane.lanes), seed=2 * seed), Ring(len(plane.lanes), seed=2 * seed + 1)]
        self._keys = HotPrefixes(int((plane.lanes["role"] != DECODE).sum()), window, splits)

    def of(self, number: int) -> tuple[int, int]:
        """Return a request's lanes: the next on the second ring where both name one, one twice where one is open."""
        key = self._keys.key(self._content(number) or [-2 - number])
        may = self._plane.is_open & (self._plane.lanes["role"] != DECODE) & self._plane.serves(number)
        first = next(lane for lane in self._rings[0].walk(key) if may[lane])
        return first, next((lane for lane in self._rings[1].walk(key) if may[lane] and lane != first), first)


INDEXES: Mapping[str, type[PrefixIndex | RadixIndex]] = {"block-hash": PrefixIndex, "radix": RadixIndex}


class Matched:
    """What of prompts lanes have cached: as they have it, or as the gateway believes from what it sent."""

    def __init__(self, plane: Plane, own_index: bool, below: bool = False, index: str = "block-hash") -> None:
        self._plane, self._content, self._below = plane, content_of(plane), below
        self._index = INDEXES[index].of(plane) if own_index else None
        self._block_tokens = int(plane.clock["content_tokens"][0])

    def tokens(self, request: RequestView) -> npt.NDArray[np.int64]:
        """Return the cached tokens of a prompt, lane by lane."""
        if self._index is None:
            return self._plane.matched_tokens(request.number, self._below)
        blocks = self._index.matched_blocks(self._content(request.number))
        return np.minimum(blocks * self._block_tokens, request.input_tokens)

    def tokens_at(self, request: RequestView, lane: int) -> int:
        """Return the cached tokens of a prompt at one lane."""
        if self._index is None:
            return int(self._plane.matched_tokens(request.number, self._below)[lane])
        blocks = self._index.matched_at(self._content(request.number), lane)
        return min(blocks * self._block_tokens, request.input_tokens)

    def sent(self, request: RequestView, lane: int) -> int:
        """Take note of where a request is sent, and return it."""
        if self._index is not None:
            self._index.note(self._content(request.number), lane)
        return lane


# What service times tell.


class Ahead:
    """The prompt tokens that a gateway sent to each lane and that have no first token yet, and the time each takes."""

    def __init__(self, plane: Plane) -> None:
        self.tokens = np.zeros(len(plane.lanes))
        self.s_per_token = prompt_s_per_token(plane)
        self._sent: dict[int, tuple[int, int]] = {}
        plane.listen(PROMPT_ENDS | TELL_HELD | TELL_PREFILLED, self.ended)

    def sent(self, request: RequestView, lane: int, cached: npt.NDArray[np.int64]) -> None:
        """Count a request's tokens that are to be computed on a lane."""
        self.ended(request.number)
        self._sent[request.number] = lane, request.input_tokens - int(cached[lane])
        self.tokens[lane] += self._sent[request.number][1]

    def ended(self, number: int) -> None:
        """Count a request no more."""
        lane, tokens = self._sent.pop(number, (0, 0))
        self.tokens[lane] -= tokens


def prompt_s_per_token(plane: Plane) -> npt.NDArray[np.float64]:
    """Return the time that a further token of a prompt takes, lane by lane, fitted to the prices of prefill steps."""
    from simulator.control.estimators import fit
    from simulator.control.step_prices import StepPrices

    slopes = []
    for pool in plane.fleet.pools:
        prices = StepPrices(pool.engine)
        tokens = sorted({max(1, prices.most_tokens >> shift) for shift in range(6)})
        line = fit(lambda each, prices=prices: prices.step_ps([(each, 0)], 0, 0), tokens, min(1, len(tokens) - 1))  # type: ignore[misc]
        slopes.append(max(line.coefficients[-1], line(prices.most_tokens) / prices.most_tokens))
    return np.asarray(np.array(slopes)[plane.lanes["pool"]] / PICOSECONDS_PER_SECOND)


def latency_predictive(caches: bool = True, own_account: bool = True) -> Routing:
    """Name the lane where the first token is expected first, by tokens that wait there and the rate they go at.

    Tokens that wait are the gateway's own account, or with `own_account` off what the view shows of queues. With
    `caches` what the gateway sent to a lane before need not be computed again.
    """

    def make(plane: Plane) -> Rule:
        ahead, matched = Ahead(plane), Matched(plane, own_index=True)
        nothing = np.zeros(len(plane.lanes), np.int64)

        def rule(request: RequestView, view: FleetView, lanes: Lanes) -> int:
            cached = matched.tokens(request) if caches else nothing
            pending = ahead.tokens if own_account else view.waiting_tokens
            waits_s = ahead.s_per_token * (pending + request.input_tokens - cached)
            lane = least(lanes, waits_s, view.outstanding)
            ahead.sent(request, lane, cached)
            return matched.sent(request, lane)

        return rule

    return over_open_lanes(make)


def cost_blend(alpha: float = 0.5) -> Routing:
    """Weigh how fast a lane is for the prompt, relative to the fastest, against its load relative to the mean (HexGen).

    alpha is the weight of speed: 1 looks at nothing else, 0 at load alone.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha:g}; expected a weight from 0 (load alone) to 1 (speed alone)")

    def make(plane: Plane) -> Rule:
        s_per_token = prompt_s_per_token(plane)

        def rule(request: RequestView, view: FleetView, lanes: Lanes) -> int:
            speed = s_per_token[lanes].min() / s_per_token
            load = view.outstanding / max(1.0, float(view.outstanding[lanes].mean()))
            return least(lanes, (1 - alpha) * load - alpha * speed)

        return rule

    return over_open_lanes(make)


# What lanes refuse.


def offer_refuse_retry(prompts: int = 1, budget_s: float = inf) -> Routing:
    """Offer a prompt to lanes by their requests, the fewest first; a lane refuses while it has `prompts` (P/D-Serve).

    Where all refuse, it stays at the gateway and is offered again whenever a prompt is done, until its budget is over.
    """
    if prompts < 1:
        raise ValueError(f"lanes that take {prompts} prompts at once would refuse all; expected 1 or more")

    def make(plane: Plane) -> Rule:
        asked: set[int] = set()
        plane.listen(PROMPT_ENDS | TELL_PREFILLED, lambda number: plane.offer_all() if plane.held else None)

        def rule(request: RequestView, view: FleetView, lanes: Lanes) -> Decision:
            waited_ps = int(plane.environment.now) - int(plane.requests["arrival_ps"][request.number])
            if waited_ps >= budget_s * PICOSECONDS_PER_SECOND:
                return Reject()
            here = plane.lanes
            for lane in lanes[np.argsort(view.outstanding[lanes], kind="stable")].tolist():
                if here["waiting"][lane] + here["running"][lane] - here["decoding"][lane] < prompts:
                    return int(lane)
            if budget_s == inf or request.number in asked:
                return Hold()
            asked.add(request.number)
            return Hold(budget_s - waited_ps / PICOSECONDS_PER_SECOND)

        return rule

    return over_open_lanes(make)


ROUTERS: Mapping[str, Callable[..., Routing]] = {
    "round-robin": round_robin,
    "random": random,
    "least-requests": least_requests,
    "least-kv": least_kv,
    "least-pending-tokens": least_pending_tokens,
    "power-of-two": power_of_two,
    "session-affinity": session_affinity,
    "prefix-aware": prefix_aware,
    "dual-ring": dual_ring,
    "bounded-load": bounded_load,
    "length-classes": length_classes,
    "freeness": freeness,
    "latency-predictive": latency_predictive,
    "cost-blend": cost_blend,
    "offer-refuse-retry": offer_refuse_retry,
    "weighted": weighted,
}


def routing_of(name: str, **settings: Any) -> Routing:
    """Return the routing of a name; ValueError lists those there are."""
    if name not in ROUTERS:
        raise ValueError(f"unknown router {name!r}; known: {', '.join(ROUTERS)}")
    return ROUTERS[name](**settings)
