"""Windows of prompts and answers together, at values that no engine earns faster than its power says."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planners.bounds.values import Values, earnings, values_of
from planners.bounds.windows import Row, densest, lengths_s, relief_of
from planners.bounds.work import worth_of
from planners.demand import Market, fresh_tokens, misses_allowed, sizes
from planners.slo import Slo, limit_s, loosest
from traces import Trace
from traces.trace import NS_PER_S

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Worth:
    """What each request's prompt and answer are worth, when it comes and both fall due [s], and how many may miss."""

    prompts: Array
    answers: Array
    arrival_s: Array
    prompt_due_s: Array
    answer_due_s: Array
    late: float  # of its promises on prompts and whole requests
    slow: float  # of that on the time per token


def joint_rows(market: Market, siblings: Sequence[Trace], family: int) -> list[Row]:
    """Return windows of a trace and its siblings where both prompts and answers have to be in time; none elsewhere.

    What a request is worth must be earned between its arrival and when it falls due: all decodes of an answer are in
    that time, so that they sit in steps of the promised time on average. A request that is late to begin takes all it
    is worth out of a window, one that is slow to go on what its answer is. Of a sibling only what asks for more than
    any row before is kept.
    """
    patience_s = min(limit_s(market.slos, "ttft"), limit_s(market.slos, "e2e"))
    if not math.isfinite(patience_s) or not {"tpot", "e2e"} & {slo.metric for slo in market.slos}:
        return []
    engines, tpot_s = [offer.priced for offer in market.offers], limit_s(market.slos, "tpot")
    asked = worth_of(*sizes(market.trace), market.fresh)
    values = values_of(engines, market.usd_per_hour, asked, tpot_s)
    earned = np.array([earnings(one, values, tpot_s) for one in engines])
    rows: list[Row] = []
    most = 0.0
    for number, worth in enumerate(_worths(market, siblings, values)):
        for windows in _families(worth, earned, family + len(rows)):
            needed = max((_needed_usd(row, earned) for row in windows), default=0.0)
            if number == 0 or needed > most:
                rows += windows
            most = max(most, needed)
    return rows


def _worths(market: Market, siblings: Sequence[Trace], values: Values) -> Iterator[_Worth]:
    """Yield what the requests of the trace, then of each sibling, are worth."""
    slos = loosest(market.slos)
    allowed = {slo.metric: float(market.demand.allowed[market.slos.index(slo)]) for slo in slos}
    yield _worth(market.trace, market.fresh, values, market.slos, allowed)
    for trace in siblings:
        allowed = {slo.metric: float(misses_allowed(slo, trace)) for slo in slos}
        yield _worth(trace, fresh_tokens(trace), values, market.slos, allowed)


def _needed_usd(row: Row, earned: Array) -> float:
    """Return what must be earned per hour, whatever else takes the misses."""
    spared = sum(_most_spared(relief, allowed) for relief, allowed in row.misses)
    return (row.demand - spared) / float((row.power / earned).max())


def _most_spared(relief: tuple[tuple[int, float], ...], allowed: float) -> float:
    spared = 0.0
    for count, each in relief:
        spared += min(count, allowed) * each
        allowed -= min(count, allowed)
    return spared


def _worth(trace: Trace, fresh: Counts, values: Values, slos: Sequence[Slo], allowed: Mapping[str, float]) -> _Worth:
    ttft_s, tpot_s, e2e_s = (limit_s(slos, metric) for metric in ("ttft", "tpot", "e2e"))
    inputs, outputs = sizes(trace)
    arrival_s = trace.arrival_ns / NS_PER_S
    lasts_s = (outputs - 1) * tpot_s if math.isfinite(tpot_s) else np.where(outputs > 1, np.inf, 0.0)
    return _Worth(
        values.of_prompts(fresh),
        values.of_answers(inputs, outputs),
        arrival_s,
        arrival_s + min(ttft_s, e2e_s),
        arrival_s + np.minimum(ttft_s + lasts_s, e2e_s),
        allowed.get("ttft", 0.0) + allowed.get("e2e", 0.0),
        allowed.get("tpot", 0.0),
    )


def _families(worth: _Worth, earned: Array, family: int) -> Iterator[list[Row]]:
    """Yield families of windows that share no request: the densest of each length, and the whole span."""
    arrival_s = worth.arrival_s
    patience_s = float(worth.prompt_due_s[0] - arrival_s[0])
    span_s = float(worth.answer_due_s[np.isfinite(worth.answer_due_s)].max(initial=arrival_s[-1]) - arrival_s[0])
    for length_s in [*lengths_s(patience_s, span_s), span_s]:
        in_time = worth.answer_due_s - arrival_s <= length_s / 2
        weight = worth.prompts + np.where(in_time, worth.answers, 0.0)
        windows = densest(arrival_s, weight, length_s, patience_s, worth.late + worth.slow)
        yield [_row(worth, earned, first, end_s, family) for first, end_s in windows]
        family += len(windows)


def _row(worth: _Worth, earned: Array, first: int, end_s: float, family: int) -> Row:
    rows = slice(first, int(np.searchsorted(worth.prompt_due_s, end_s, side="right")))
    answers = np.where(worth.answer_due_s[rows] <= end_s, worth.answers[rows], 0.0)
    both = worth.prompts[rows] + answers
    power = earned * (end_s - float(worth.arrival_s[first]))
    budgets = ((relief_of(both, worth.late), worth.late), (relief_of(answers, worth.slow), worth.slow))
    allowed = worth.late + worth.slow
    return Row(first, end_s, power, float(both.sum()), relief_of(both, allowed), family, allowed, budgets)
