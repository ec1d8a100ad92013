"""The rigorous lower bound: what no fleet of the offered engines, under any router, can cost less than.

A request that keeps its promises has its prompt computed, and its answer complete, by deadlines that follow from them.
So in any window of time the replicas must at least do the work that both arrives and falls due inside it, at prices
that bound from below the time of every step whatever (work.py). Only the misses that the percentiles allow may be left
out, and windows that share no request share them. One row for each window, in the replicas alone:

    sum over engines of replicas * power  >=  demand - what the misses taken here take out of it

Demand counts each request at the cost of its work on the engine that does it cheapest; where prompts and answers may
be served by different pools, each at its own cheapest. An engine's power is what a replica of it, busy throughout the
window, could do at most in that measure.

Demand is also counted at values of tokens that no engine earns faster than its power says (values.py). These add up
over what different engines do, so that prompts and answers count together (joint.py).

All windows of prompts at once give one row more. In that measure a fleet is one queue of a certain speed, in which
every prompt that is kept waits no longer than patience; `fewest_misses` says how many must be left out at a speed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from planners.bounds.joint import joint_rows
from planners.bounds.queue import least_speed
from planners.bounds.told import row_told, row_values
from planners.bounds.windows import Relief, Row, densest, lengths_s, relief_of
from planners.bounds.work import TokenPrices, decode_work_s, prefill_work_s, prompt_prices
from planners.classes import members
from planners.demand import Market, View, misses_allowed, sizes
from planners.siblings import origins
from planners.slo import Slo, limit_s, loosest
from planners.solver import BY_PROOF, mathopt, solve
from traces import Trace
from traces.trace import NS_PER_S, take

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

NODES = 20_000
TOLERANCE = 1e-6  # the solver's own
CLOSENESS = 1e-4  # of the speed of a queue
LEAST_WORK = 0.005  # of prompts, in the shortest of them


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
    slos: tuple[Slo, ...]  # whose misses are allowed together
    allowed: float


@dataclass(frozen=True, slots=True)
class Windows:
    """All rows of a market, and how many requests miss a promise on every engine, even an idle one, against allowed."""

    rows: tuple[Row, ...]
    is_hopeless: bool
    powers: Array = field(init=False, repr=False, compare=False)  # [row, engine], in what the row demands

    def __post_init__(self) -> None:
        object.__setattr__(self, "powers", np.array([row.power / row.demand for row in self.rows]))

    def only(self, engines: Sequence[int]) -> "Windows":
        """Return the same windows in the replicas of some of the engines."""
        rows = tuple(replace(row, power=row.power[list(engines)]) for row in self.rows)
        return Windows(rows, self.is_hopeless)

    def may_survive(self, replicas: npt.ArrayLike) -> bool:
        """Say whether replicas [engine] have the power that every window takes, but for the misses allowed."""
        missed: dict[int, float] = {}
        lacking = 1 - self.powers @ np.asarray(replicas, np.float64) if self.rows else np.zeros(0)
        for place in np.flatnonzero(lacking > TOLERANCE):
            row = self.rows[place]
            missed[row.family] = missed.get(row.family, 0.0) + _misses(row.relief, float(lacking[place]) * row.demand)
            if missed[row.family] > row.allowed + TOLERANCE:
                return False
        return True


def windows_of(market: Market, siblings: Sequence[Trace] = (), *, only_whole: bool = False) -> Windows:
    """Return the windows of a market that fleets are held against; where it has classes, those of every view of it.

    Those of all lengths, or soon only the whole trace's, which know nothing of bursts.

    With siblings of the trace, also what they ask for; where there are classes, what those do that have all their
    promises to themselves: what is promised to all may be missed by any class.
    """
    about = ("windows", *_asked(market), siblings, only_whole)
    is_hopeless, *rows = market.facts.known(about, lambda: _told(_windows(market, siblings, only_whole)))
    return Windows(tuple(map(row_told, rows)), is_hopeless)


def _asked(market: Market) -> tuple[Any, ...]:
    """Return all of a market that its windows depend on."""
    engines = [(one.role, replace(one.priced, name="", engine=None)) for one in market.offers]
    own = [(view.rows, view.promises, _asked(view.market)) for view in market.views]
    asked = (market.trace, market.slos, market.usd_per_hour, market.demand.allowed, market.late, market.fresh)
    return (*asked, market.prices, engines, own)


def _told(windows: Windows) -> list[Any]:
    return [windows.is_hopeless, *map(row_values, windows.rows)]


def _windows(market: Market, siblings: Sequence[Trace], only_whole: bool) -> Windows:
    rows: list[Row] = []
    for view in market.views:
        seen, families = windows_of(view.market, _of_class(view, siblings), only_whole=only_whole), len(rows)
        if seen.is_hopeless:
            return seen
        rows += [replace(row, first=int(view.rows[row.first]), family=families + row.family) for row in seen.rows]
    if market.views:
        return Windows(tuple(rows), False)
    for part in _parts(market):
        cost = _Cost(market, part)
        if cost.hopeless > part.allowed:
            return Windows((), True)
        for windows in [_whole(part)] if only_whole else _families(part, cost):
            family = len(rows)
            rows += [_row(part, cost, first, end_s, family, part.allowed - cost.hopeless) for first, end_s in windows]
        if not only_whole and not np.isfinite(part.answer_due_s).any():
            rows += _queue_rows(part, cost, len(rows), [market.trace, *siblings])
    rows += [] if only_whole else joint_rows(market, siblings, len(rows))
    return Windows(tuple(row for row in rows if row.demand > 0), False)


def _of_class(view: View, siblings: Sequence[Trace]) -> tuple[Trace, ...]:
    """Return the requests of siblings that are of a view's class; none where it shares a promise with others."""
    names = {slo.slo_class for slo in view.market.slos}
    if not view.promises or len(names) != 1 or "" in names:
        return ()
    (name,) = names
    own = (take(sibling, np.flatnonzero(members(sibling, name))) for sibling in siblings)
    return tuple(sibling for sibling in own if len(sibling))


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
    about = ("cheapest", market.usd_per_hour, windows.rows, fails)
    return float(market.facts.known(about, lambda: _cheapest_usd(market.usd_per_hour, windows.rows, fails)))


def _queue_rows(part: Part, cost: "_Cost", family: int, traces: Sequence[Trace]) -> list[Row]:
    """Return rows that say how fast the one queue of all prompts must be; prompts all have the same patience.

    One for the market's trace, the first, and one for each sibling whose queue must be faster than those before. Of the
    last of these one more, in which the shortest prompts do not count: engines that are good at nothing else then have
    less power, so that whole replicas fit less well.
    """
    costs = cost.pieces(np.arange(part.arrival_s.size))[0]
    cheapest = costs.min(axis=0)
    rows: list[Row] = []
    most, at = 0.0, 0
    for number in range(len(traces)):
        rows += _queue_row(part, cost, costs, traces, number, np.isfinite(cheapest), most, family + len(rows))
        if rows and rows[-1].demand > most:
            most, at = rows[-1].demand, number
    counted = np.isfinite(cheapest) & ~_shortest(cost.fresh, cheapest)
    return rows + _queue_row(part, cost, costs, traces, at, counted, 0.0, family + len(rows))


def _queue_row(
    part: Part,
    cost: "_Cost",
    costs: Array,
    traces: Sequence[Trace],
    number: int,
    counted: npt.NDArray[np.bool_],
    above: float,
    family: int,
) -> list[Row]:
    """Return the row of one of the traces in which some prompts are counted; none where it does not tell of what."""
    trace = traces[number]
    origin = origins(traces[0], trace) if number else np.arange(counted.size)
    if origin is None or not counted.any():
        return []
    cheapest, kept, arrival_s = costs.min(axis=0), counted[origin], trace.arrival_ns / NS_PER_S
    allowed = float(sum(misses_allowed(slo, trace) for slo in part.slos)) if number else part.allowed
    left = max(allowed - np.count_nonzero(np.isinf(cheapest[origin])), 0.0)
    patience_s = float((part.prompt_due_s - part.arrival_s).max())
    speed = least_speed(cheapest[origin][kept], arrival_s[kept], patience_s, left, above, CLOSENESS)
    power = cost.usd / cost.by_engine((costs[:, counted] / cheapest[counted]).min(axis=1, initial=np.inf))
    return [Row(0, float(arrival_s[-1]), power[cost.stand_in], speed, (), family, 0.0)]


def _shortest(fresh: Counts, work: Array) -> npt.NDArray[np.bool_]:
    """Return which prompts are the shortest, that hold LEAST_WORK of all."""
    order = np.argsort(fresh, kind="stable")
    held = np.cumsum(np.where(np.isfinite(work), work, 0.0)[order])
    is_short: npt.NDArray[np.bool_] = fresh < fresh[order[int(np.searchsorted(held, LEAST_WORK * held[-1]))]]
    return is_short


def _misses(relief: Relief, lacking: float) -> float:
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
        self.hopeless = int(np.isinf(self.cheapest).sum())

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
    prices = np.array([(p.prefill_s, p.decode_s, p.context_s, p.pair_s, *p.chunk_s) for p in part.prices])
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
    late = {slo.metric: market.late[market.slos.index(slo)] for slo in loosest(market.slos)}
    prompt_due_s = arrival_s + min(ttft_s, e2e_s)
    answer_s = (outputs - 1) * tpot_s if math.isfinite(tpot_s) else np.where(outputs > 1, np.inf, 0.0)
    answer_due_s = arrival_s + np.minimum(ttft_s + answer_s, e2e_s)
    never = np.full(outputs.size, np.inf)
    if math.isfinite(min(ttft_s, e2e_s)):
        slos = tuple(slo for slo in loosest(market.slos) if slo.metric != "tpot")
        able = ~np.any([late[slo.metric] for slo in slos], axis=0)
        prices = tuple(prompt_prices(offer.priced) for offer in market.offers)
        yield Part(prices, arrival_s, prompt_due_s, never, able, slos, _allowed(market, slos))
    if np.isfinite(answer_due_s).any():
        able, slos = ~np.any(list(late.values()), axis=0), loosest(market.slos)
        yield Part(market.prices, arrival_s, prompt_due_s, answer_due_s, able, slos, _allowed(market, slos))


def _allowed(market: Market, slos: Sequence[Slo]) -> float:
    return float(sum(market.demand.allowed[market.slos.index(slo)] for slo in slos))


def _families(part: Part, cost: _Cost) -> Iterator[list[tuple[int, float]]]:
    """Yield families of windows (first request, end) that share no request: the densest of each length.

    Density takes an answer for due within half of it.
    """
    patience_s = float(part.prompt_due_s[0] - part.arrival_s[0])
    whole = _whole(part)
    span_s = whole[0][1] - float(part.arrival_s[0])
    for length_s in lengths_s(patience_s, span_s):
        in_time = part.answer_due_s - part.arrival_s <= length_s / 2
        weight = np.where(in_time, cost.cheapest, cost.cheapest_prompt)
        yield densest(part.arrival_s, weight, length_s, patience_s, part.allowed)
    yield whole


def _whole(part: Part) -> list[tuple[int, float]]:
    due_s = np.where(np.isfinite(part.answer_due_s), part.answer_due_s, part.prompt_due_s)
    return [(0, float(due_s.max()))]


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
    return Row(first, end_s, power[cost.stand_in], float(cheapest.sum()), relief_of(cheapest, allowed), family, allowed)


def _least_ratio(costs: Array) -> Array:
    """Return for each engine how much dearer than the cheapest it is at least, over columns that some engine serves."""
    cheapest = costs.min(axis=0)
    counted = np.isfinite(cheapest) & (cheapest > 0)
    ratios: Array = (costs[:, counted] / cheapest[counted]).min(axis=1, initial=np.inf)
    return ratios


def _cheapest_usd(usd: Array, rows: Sequence[Row], fails_alone: npt.NDArray[np.bool_]) -> float:
    """Return the least that replicas meeting every row cost, or the best bound on it that the solver proves."""
    library = mathopt()
    model = library.Model()
    replicas = [model.add_integer_variable(lb=0) for _ in usd]
    missed: dict[tuple[int, int], list[Any]] = {}
    allowed: dict[tuple[int, int], float] = {}
    for row in rows:
        taken = []
        for kind, (relief, most) in enumerate(row.misses):
            counts = [(model.add_variable(lb=0, ub=float(count)), each) for count, each in relief]
            missed.setdefault((row.family, kind), []).extend(count for count, _ in counts)
            allowed[row.family, kind] = most
            taken += counts
        done = sum(float(power / row.demand) * count for power, count in zip(row.power, replicas, strict=True) if power)
        model.add_linear_constraint(done + sum(each / row.demand * count for count, each in taken) >= 1.0)
    for budget, counted in missed.items():
        if counted:
            model.add_linear_constraint(sum(counted) <= allowed[budget])
    model.add_linear_constraint(
        sum((1 if fails else 2) * n for n, fails in zip(replicas, fails_alone, strict=True)) >= 2
    )
    model.minimize(sum(float(price) * count for price, count in zip(usd, replicas, strict=True)))
    found = solve(model, node_limit=NODES, by=BY_PROOF)
    return math.inf if found is None else (1 - TOLERANCE) * float(found.best_objective_bound())
