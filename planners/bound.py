"""The rigorous lower bound: what no fleet of the offered engines, under any router, can cost less than.

A request that keeps its promises has its prompt computed, and its answer complete, by deadlines that follow from them.
So in any window of time the replicas must at least do the work that both arrives and falls due inside it, at prices
that bound from below the time of every step whatever (planners/work.py). Only the misses that the percentiles allow
may be left out, and windows that share no request share them. One row for each window, in the replicas alone:

    sum over engines of replicas * power  >=  demand - what the misses taken here take out of it

Demand counts each request at the cost of its work on the engine that does it cheapest; where prompts and answers may
be served by different pools, each at its own cheapest. An engine's power is what a replica of it, busy throughout the
window, could do at most in that measure.

All windows of prompts at once give one row more. In that measure a fleet is one queue of a certain speed, in which
every prompt that is kept waits no longer than patience; `fewest_misses` says how many must be left out at a speed.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from planners.demand import Market, sizes
from planners.slo import limit_s
from planners.solver import mathopt, solve
from planners.work import TokenPrices, decode_work_s, prefill_work_s, prompt_prices
from traces.trace import NS_PER_S

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

SHORTEST = 1.25  # length of the shortest windows, in patience with a prompt
LENGTH_RATIO = 2.0
MOST_WINDOWS = 40
BUDGETS = 4.0  # windows are taken until they hold so many times the misses allowed, or MOST_WINDOWS
NODES = 20_000
TOLERANCE = 1e-6  # the solver's own
HALVINGS = 30


@dataclass(frozen=True, slots=True)
class Part:
    """What is counted of each request: its prompt once that falls due, and its answer likewise; times in s.

    able[engine][request] says who can keep the promises; allowed requests may be left out of disjoint windows together.
    """

    prices: tuple[TokenPrices, ...]
    arrival_s: Array
    prompt_due_s: Array
    answer_due_s: Array
    able: npt.NDArray[np.bool_]
    allowed: float


@dataclass(frozen=True, slots=True)
class Row:
    """One window, from the arrival of its first request to its end: power [engine] of a replica, demand, and relief.

    relief is (how many requests, what each takes out at most); rows of one family share the misses allowed.
    """

    first: int
    end_s: float
    power: Array
    demand: float
    relief: tuple[tuple[int, float], ...]
    family: int
    allowed: float


@dataclass(frozen=True, slots=True)
class Windows:
    """All rows of a market, and how many requests miss a promise on every engine, even an idle one, against allowed."""

    rows: tuple[Row, ...]
    is_hopeless: bool

    def only(self, engines: Sequence[int]) -> "Windows":
        """Return the same windows in the replicas of some of the engines."""
        rows = tuple(replace(row, power=row.power[list(engines)]) for row in self.rows)
        return Windows(rows, self.is_hopeless)

    def may_survive(self, replicas: npt.ArrayLike) -> bool:
        """Say whether replicas [engine] have the power that every window takes, but for the misses allowed."""
        counts = np.asarray(replicas, np.float64)
        missed: dict[int, float] = {}
        for row in self.rows:
            lacking = row.demand - float(row.power @ counts)
            if lacking > TOLERANCE * row.demand:
                missed[row.family] = missed.get(row.family, 0.0) + _misses(row.relief, lacking)
                if missed[row.family] > row.allowed + TOLERANCE:
                    return False
        return True


def windows_of(market: Market) -> Windows:
    """Return the windows of a market that fleets are held against; where it has classes, those of every view of it."""
    rows: list[Row] = []
    for view in market.views:
        seen, families = windows_of(view.market), len(rows)
        if seen.is_hopeless:
            return seen
        rows += [replace(row, first=int(view.rows[row.first]), family=families + row.family) for row in seen.rows]
    if market.views:
        return Windows(tuple(rows), False)
    for part in _parts(market):
        cost = _Cost(market, part)
        hopeless = int(np.isinf(cost.cheapest).sum())
        if hopeless > part.allowed:
            return Windows((), True)
        for windows in _families(part, cost):
            family = len(rows)
            rows += [_row(part, cost, first, end_s, family, part.allowed - hopeless) for first, end_s in windows]
        if not np.isfinite(part.answer_due_s).any():
            rows.append(_queue_row(part, cost, len(rows), part.allowed - hopeless))
    return Windows(tuple(row for row in rows if row.demand > 0), False)


def rigorous_usd_per_hour(
    market: Market, windows: Windows | None = None, fails_alone: npt.NDArray[np.bool_] | None = None
) -> float:
    """Return the bound; infinite where not even idle engines keep the promises but for the allowed misses.

    fails_alone [engine] says of which engines one replica by itself is known to break a promise.
    """
    windows = windows or windows_of(market)
    if windows.is_hopeless:
        return math.inf
    fails = np.zeros(market.usd_per_hour.size, bool) if fails_alone is None else fails_alone
    return _cheapest_usd(market.usd_per_hour, windows.rows, fails)


def fewest_misses(work: Array, arrival_s: Array, patience_s: float, speed: float, most: float = math.inf) -> float:
    """Return how many requests one queue has to leave out at least, parts of one allowed, so that none waits too long.

    What is kept of a request's work is done within patience_s of its arrival. Whenever that cannot be, the heaviest of
    the requests since the queue was last empty are left out until it can, as if that always made the queue as much
    shorter. No choice leaves out fewer: let one have left out u requests up to some arrival and have a shorter queue
    than ours; then we could make ours as short, the heaviest first, and still have left out at most u. Idling, a
    request that joins, and leaving out what must be, all keep this true. Stops counting beyond `most`.
    """
    queued, misses, before_s = 0.0, 0.0, 0.0
    kept: list[tuple[float, float]] = []  # (minus the work of a request, minus what is kept of it)
    longest = speed * patience_s
    for now_s, own in zip(arrival_s.tolist(), work.tolist(), strict=True):
        queued -= speed * (now_s - before_s)
        before_s = now_s
        if queued <= 0.0:
            queued = 0.0
            kept.clear()
        queued += own
        heapq.heappush(kept, (-own, -own))
        while queued > longest and kept:
            whole, left = heapq.heappop(kept)
            part = min(-left, queued - longest)
            misses += part / -whole if whole else 0.0
            queued -= part
            if -left > part:
                heapq.heappush(kept, (whole, left + part))
                break
        if misses > most:
            break
    return misses


def least_speed(work: Array, arrival_s: Array, patience_s: float, allowed: float) -> float:
    """Return a speed below which one queue leaves out more requests than allowed, to one part in 2**HALVINGS."""
    if not work.size or work.max() <= 0:
        return 0.0
    low, high = 0.0, float(work.sum()) / patience_s  # at which even all at once are done in time
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if fewest_misses(work, arrival_s, patience_s, middle, allowed) > allowed * (1 + TOLERANCE):
            low = middle
        else:
            high = middle
        if high - low <= TOLERANCE * high:
            break
    return low


def _queue_row(part: Part, cost: "_Cost", family: int, allowed: float) -> Row:
    """Return the row that says how fast the one queue of all prompts must be; prompts all have the same patience."""
    costs = cost.pieces(np.arange(part.arrival_s.size))[0]
    cheapest = costs.min(axis=0)
    served = np.isfinite(cheapest)
    patience_s = float((part.prompt_due_s - part.arrival_s).max())
    speed = least_speed(cheapest[served], part.arrival_s[served], patience_s, allowed)
    power = cost.usd / cost.by_engine((costs[:, served] / cheapest[served]).min(axis=1, initial=np.inf))
    return Row(0, float(part.prompt_due_s.max()), power[cost.stand_in], speed, (), family, 0.0)


def _misses(relief: tuple[tuple[int, float], ...], lacking: float) -> float:
    """Return the fewest requests to leave out that take so much out of a window's demand, parts of one allowed."""
    misses = 0.0
    for count, each in relief:
        if count * each >= lacking:
            return misses + lacking / each
        misses, lacking = misses + count, lacking - count * each
    return math.inf


class _Cost:
    """What the work of requests costs: on each engine, and on the cheapest that is able."""

    def __init__(self, market: Market, part: Part) -> None:
        self.part = part
        self.usd = market.usd_per_hour
        self.inputs, self.outputs = sizes(market.trace)
        self.fresh = market.fresh
        self.is_split = any(offer.role != "both" for offer in market.offers)
        self.stand_in = _stand_ins(self.usd, part)
        self.engines = np.unique(self.stand_in)
        prompts, answers = self.pieces(np.arange(len(market.trace)))
        self.cheapest_prompt = prompts.min(axis=0)
        self.cheapest = self.cheapest_prompt + answers.min(axis=0) if self.is_split else (prompts + answers).min(axis=0)

    def pieces(self, rows: Counts) -> tuple[Array, Array]:
        """Return what prompts and answers [engine that others stand in for, request] cost."""
        prompts, answers = np.empty((2, self.engines.size, rows.size))
        for place, engine in enumerate(self.engines):
            prompts[place], answers[place] = self.of(engine, rows)
        return prompts, answers

    def by_engine(self, values: Array) -> Array:
        """Return values of the engines looked at by the number of the engine; infinite for the rest."""
        spread = np.full(self.usd.size, np.inf)
        spread[self.engines] = values
        return spread

    def of(self, engine: int, rows: Counts) -> tuple[Array, Array]:
        """Return what prompts and answers cost on an engine; infinite where it cannot keep the promises."""
        prices, usd = self.part.prices[engine], float(self.usd[engine])
        prompt = usd * prefill_work_s(prices, self.fresh[rows])
        answer = usd * decode_work_s(prices, self.inputs[rows], self.outputs[rows])
        return np.where(self.part.able[engine, rows], prompt, np.inf), answer


def _stand_ins(usd: Array, part: Part) -> Counts:
    """Return for each engine one that is no dearer and at least as able, and does every piece of work at least as fast.

    Whatever an engine's replica has of power, its stand-in's has, so that few engines need to be looked at.
    """
    prices = np.array([(p.prefill_s, p.decode_s, p.context_s, p.pair_s) for p in part.prices])
    traits = np.concatenate([usd[:, None], prices], axis=1)
    stand_in = np.arange(usd.size)
    for engine in np.argsort(usd, kind="stable"):
        for other in np.flatnonzero((traits <= traits[engine]).all(axis=1)):
            is_free = stand_in[engine] == engine and stand_in[other] == other != engine
            is_first = other < engine or bool((traits[other] < traits[engine]).any())
            if is_free and is_first and not (part.able[engine] & ~part.able[other]).any():
                stand_in[engine] = other
    return stand_in


def _parts(market: Market) -> Iterator[Part]:
    """Yield what to count: prompts alone, and prompts with answers, at the prices under which each takes longest."""
    outputs = sizes(market.trace)[1]
    arrival_s = market.trace.arrival_ns / NS_PER_S
    ttft_s, tpot_s, e2e_s = (limit_s(market.slos, metric) for metric in ("ttft", "tpot", "e2e"))
    late = {slo.metric: market.late[place] for place, slo in enumerate(market.slos) if _is_loosest(market, place)}
    allowed = {
        slo.metric: float(market.demand.allowed[place])
        for place, slo in enumerate(market.slos)
        if _is_loosest(market, place)
    }
    prompt_due_s = arrival_s + min(ttft_s, e2e_s)
    answer_s = (outputs - 1) * tpot_s if math.isfinite(tpot_s) else np.where(outputs > 1, np.inf, 0.0)
    answer_due_s = arrival_s + np.minimum(ttft_s + answer_s, e2e_s)
    never = np.full(outputs.size, np.inf)
    if math.isfinite(min(ttft_s, e2e_s)):
        prompts = {metric for metric in ("ttft", "e2e") if metric in late}
        able = ~np.any([late[metric] for metric in prompts], axis=0)
        total = sum(allowed[metric] for metric in prompts)
        prices = tuple(prompt_prices(offer.priced) for offer in market.offers)
        yield Part(prices, arrival_s, prompt_due_s, never, able, total)
    if np.isfinite(answer_due_s).any():
        able = ~np.any(list(late.values()), axis=0)
        yield Part(market.prices, arrival_s, prompt_due_s, answer_due_s, able, sum(allowed.values()))


def _is_loosest(market: Market, place: int) -> bool:
    slo = market.slos[place]
    return slo.limit_s == limit_s(market.slos, slo.metric)


def _families(part: Part, cost: _Cost) -> Iterator[list[tuple[int, float]]]:
    """Yield families of windows (first request, end) that share no request: the densest of each length."""
    patience_s = float(part.prompt_due_s[0] - part.arrival_s[0])
    due_s = np.where(np.isfinite(part.answer_due_s), part.answer_due_s, part.prompt_due_s)
    span_s = float(due_s.max() - part.arrival_s[0])
    length_s = SHORTEST * patience_s
    while length_s < span_s:
        yield _densest(part, cost, length_s, patience_s)
        length_s *= LENGTH_RATIO
    yield [(0, float(part.arrival_s[0]) + span_s)]


def _densest(part: Part, cost: _Cost, length_s: float, patience_s: float) -> list[tuple[int, float]]:
    """Return disjoint windows of one length, the densest first; density takes an answer for due within half of it."""
    in_time = part.answer_due_s - part.arrival_s <= length_s / 2
    weight = np.where(in_time, cost.cheapest, cost.cheapest_prompt)
    filled = np.concatenate([[0.0], np.cumsum(np.where(np.isfinite(weight), weight, 0.0))])
    beyond = np.searchsorted(part.arrival_s, part.arrival_s + length_s - patience_s, side="right")
    density = filled[beyond] - filled[:-1]
    windows: list[tuple[int, float]] = []
    held = 0
    while len(windows) < MOST_WINDOWS and held < max(BUDGETS * part.allowed, 1):
        first = int(np.argmax(density))
        if density[first] <= 0:
            break
        last = int(beyond[first])
        windows.append((first, float(part.arrival_s[first]) + length_s))
        held += last - first
        overlapping = slice(int(np.searchsorted(beyond, first, side="right")), last)
        density[overlapping] = 0.0
    return windows


def _row(part: Part, cost: _Cost, first: int, end_s: float, family: int, allowed: float) -> Row:
    """Return the row of the window from the arrival of request `first` to an end."""
    beyond = int(np.searchsorted(part.prompt_due_s, end_s, side="right"))
    rows = np.arange(first, beyond)
    answered = part.answer_due_s[rows] <= end_s
    prompts, answers = cost.pieces(rows)
    answers = np.where(answered, answers, 0.0)
    pieces = (prompts, answers[:, answered]) if cost.is_split else (prompts + answers,)
    rates = cost.by_engine(np.min([_least_ratio(piece) for piece in pieces], axis=0))
    cheapest = prompts.min(axis=0) + answers.min(axis=0) if cost.is_split else pieces[0].min(axis=0)
    cheapest = cheapest[np.isfinite(cheapest)]
    power = cost.usd * (end_s - float(part.arrival_s[first])) / rates
    return Row(first, end_s, power[cost.stand_in], float(cheapest.sum()), _relief(cheapest, allowed), family, allowed)


def _least_ratio(costs: Array) -> Array:
    """Return for each engine how much dearer than the cheapest it is at least, over columns that some engine serves."""
    cheapest = costs.min(axis=0)
    counted = np.isfinite(cheapest) & (cheapest > 0)
    ratios: Array = (costs[:, counted] / cheapest[counted]).min(axis=1, initial=np.inf)
    return ratios


def _relief(demand: Array, allowed: float) -> tuple[tuple[int, float], ...]:
    """Return the heaviest requests by groups of 1, 1, 2, 4, ..., each with the largest of its group."""
    ordered = np.sort(demand)[::-1]
    relief, taken, size = [], 0, 1
    while taken < min(ordered.size, allowed):
        relief.append((min(size, ordered.size - taken), float(ordered[taken])))
        size, taken = max(1, taken + size), taken + size
    return tuple(relief)


def _cheapest_usd(usd: Array, rows: Sequence[Row], fails_alone: npt.NDArray[np.bool_]) -> float:
    """Return the least that replicas meeting every row cost, or the best bound on it that the solver proves."""
    library = mathopt()
    model = library.Model()
    replicas = [model.add_integer_variable(lb=0) for _ in usd]
    missed: dict[int, list[Any]] = {}
    allowed: dict[int, float] = {}
    for row in rows:
        relief = [(model.add_variable(lb=0, ub=float(count)), each) for count, each in row.relief]
        missed.setdefault(row.family, []).extend(count for count, _ in relief)
        allowed[row.family] = row.allowed
        done = sum(float(power / row.demand) * count for power, count in zip(row.power, replicas, strict=True) if power)
        model.add_linear_constraint(done + sum(each / row.demand * count for count, each in relief) >= 1.0)
    for family, counts in missed.items():
        if counts:
            model.add_linear_constraint(sum(counts) <= allowed[family])
    model.add_linear_constraint(
        sum((1 if fails else 2) * n for n, fails in zip(replicas, fails_alone, strict=True)) >= 2
    )
    model.minimize(sum(float(price) * count for price, count in zip(usd, replicas, strict=True)))
    found = solve(model, node_limit=NODES)
    return math.inf if found is None else (1 - TOLERANCE) * float(found.best_objective_bound())
