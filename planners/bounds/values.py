"""Values of tokens: what no replica earns faster than so much, whatever it prefills and decodes, and in whatever steps.

Give every prefill token, decode step, KV token that a decode reads, and pair of a query and a key a value. A replica
that does work within its promises then earns at most `earnings` a second, so that a fleet must have the earnings that
the work in any window of time is worth. The best values for a demand are the prices of a linear programme: the dual of
choosing the cheapest steps, of whatever engines, that do it. Unlike prices of each engine's own they add up over
pieces of work that different engines do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planners.bounds.work import (
    FINE_RATIO,
    Worth,
    attention_of,
    chunk_floor_s,
    context_floor_s,
    floor_s,
    growth_of,
    pair_floor_s,
    pieces_of,
    spread,
)
from simulator.fleet import PricedEngine

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

COARSE_RATIO = 1.5
MOST_ENGINES = 6  # best at one thing
ROUNDS = 8
CLOSENESS = 1e-3
ROUNDING = 1e-12
INFEASIBLE = 2  # scipy's status


@dataclass(frozen=True, slots=True)
class Values:
    """What a prefill token, a decode step, a KV token it reads, and a pair of query and key are worth [USD/h * s].

    chunk is what a token of a prompt is worth besides, by the longest chunk that it may be in, as in TokenPrices.
    """

    prefill: float
    decode: float
    context: float
    pair: float = 0.0
    chunk: tuple[float, ...] = ()

    def of_prompts(self, fresh: Counts) -> Array:
        """Return what each prompt of so many uncached tokens is worth."""
        worth: Array = np.maximum(fresh, 1) * self.prefill + attention_of(fresh, self.pair, self.chunk)
        return worth

    def of_answers(self, inputs: Counts, outputs: Counts) -> Array:
        """Return what the decode steps of each answer are worth."""
        _, decodes, context = pieces_of(inputs, outputs)
        worth: Array = decodes * self.decode + context * self.context
        return worth


@dataclass(frozen=True, slots=True)
class _Steps:
    """Steps of a lane: what they do at most, at least how long they take, and their decodes times that less a limit."""

    prefill: Array
    decodes: Array
    context: Array
    step_s: Array
    late_s: Array

    def only(self, place: int) -> "_Steps":
        """Return one of the steps."""
        return _Steps(*(getattr(self, name)[place : place + 1] for name in self.__slots__))


def values_of(engines: Sequence[PricedEngine], usd_per_hour: Array, worth: Worth, tpot_limit_s: float) -> Values:
    """Return values at which a demand is worth about most while no engine earns more than it costs.

    worth are prefill tokens, decode steps and KV tokens read; decodes sit in steps of at most tpot_limit_s on average.
    The programme sees the engines that are best at one of these, a grid of their steps, and then those that earn more
    than they should.
    """
    attention = _cheapest_attention(engines, usd_per_hour)
    looked_at = _best_at_one(engines, usd_per_hour, tpot_limit_s)
    chosen, usd = [engines[place] for place in looked_at], usd_per_hour[looked_at]
    steps = [_steps(one, _coarse(one), tpot_limit_s) for one in chosen]
    fine = [_fine_steps(one, tpot_limit_s) for one in chosen]
    coarse = list(steps)
    values = Values(0.0, 0.0, 0.0, *attention)
    for _ in range(ROUNDS):
        found = _prices(chosen, usd, steps, worth)
        if found is None:  # no step with a decode is fast enough
            return values_of(engines, usd_per_hour, worth, math.inf)
        values = Values(*found, *attention)
        most = [_best(*grids, values, tpot_limit_s) for grids in zip(fine, coarse, strict=True)]
        over = [one.lanes * most[i][0] > usd[i] * (1 + CLOSENESS) for i, one in enumerate(chosen)]
        if not any(over):
            break
        steps = [_joined(own, most[i][1]) if over[i] else own for i, own in enumerate(steps)]
    return values


def _cheapest_attention(engines: Sequence[PricedEngine], usd_per_hour: Array) -> tuple[float, tuple[float, ...]]:
    """Return what a pair, and what a token by its chunk, is worth where attention is cheapest."""
    usd = usd_per_hour / [one.lanes for one in engines]
    pairs, chunks = (np.array([floor_s_of(one) for one in engines]) for floor_s_of in (pair_floor_s, chunk_floor_s))
    return float((usd * pairs).min()), tuple((usd[:, None] * chunks).min(axis=0).tolist())


def _best_at_one(engines: Sequence[PricedEngine], usd_per_hour: Array, tpot_limit_s: float) -> list[int]:
    """Return the engines that do most for their price of prefill, of decodes, or of reading KV, each by itself."""
    chosen: set[int] = set()
    for single in (Values(1.0, 0.0, 0.0), Values(0.0, 1.0, 0.0), Values(0.0, 0.0, 1.0)):
        earned = []
        for one in engines:
            steps = _steps(one, _coarse(one), tpot_limit_s)
            patience = _patience(steps, single) if single.prefill == 0 and math.isfinite(tpot_limit_s) else 0.0
            earned.append(one.lanes * float(_earned(steps, single, patience).max()))
        chosen.update(np.argsort(-np.array(earned) / usd_per_hour, kind="stable")[:MOST_ENGINES].tolist())
    return sorted(chosen)


def _prices(
    engines: Sequence[PricedEngine], usd_per_hour: Array, steps: Sequence["_Steps"], worth: Worth
) -> tuple[float, float, float] | None:
    """Return the prices of the demand in the cheapest steps that do it; None where no step is fast enough."""
    from scipy.optimize import linprog
    from scipy.sparse import coo_array, vstack

    rates = np.concatenate([[grid.prefill, grid.decodes, grid.context] for grid in steps], axis=1)
    cost = np.concatenate(
        [usd * grid.step_s / one.lanes for one, usd, grid in zip(engines, usd_per_hour, steps, strict=True)]
    )
    scale = 1 / np.maximum(rates.max(axis=1), 1)
    wanted = np.array(worth) * scale
    owner = np.repeat(np.arange(len(steps)), [grid.step_s.size for grid in steps])
    late = coo_array((np.concatenate([grid.late_s for grid in steps]), (owner, np.arange(cost.size))))
    matrix = vstack([-coo_array(rates * scale[:, None]), late]).tocsr()
    limit = np.concatenate([-wanted / wanted.max(), np.zeros(len(steps))])
    found = linprog(cost, A_ub=matrix, b_ub=limit, bounds=(0, None), method="highs-ds")
    if found.status == INFEASIBLE:
        return None
    assert found.status == 0, found.message
    prefill, decode, context = -found.ineqlin.marginals[:3] * scale
    return float(prefill), float(decode), float(context)


def earnings(one: PricedEngine, values: Values, tpot_limit_s: float) -> float:
    """Return what a replica of an engine earns at most [USD/h]; decodes sit in steps of tpot_limit_s on average.

    A step that is longer pays for that, one that is shorter is paid, by a factor that is the same for all; the best
    one is taken. Prefill tokens come in cells: those of the most of a cell are earned in the time of the fewest.
    """
    most, _ = _best(_fine_steps(one, tpot_limit_s), _steps(one, _coarse(one), tpot_limit_s), values, tpot_limit_s)
    return one.lanes * max(most, _attention_earnings(one, values))


def _attention_earnings(one: PricedEngine, values: Values) -> float:
    """Return what a lane earns at most while it does attention: what is worth nothing anywhere takes it no time."""
    worth = np.array([values.pair, *values.chunk])
    takes_s = np.array([pair_floor_s(one), *chunk_floor_s(one)])[: worth.size]
    return float((worth[worth > 0] / takes_s[worth > 0]).max(initial=0.0))


def _best(fine: _Steps, coarse: _Steps, values: Values, tpot_limit_s: float) -> tuple[float, _Steps]:
    """Return what a lane earns at most [USD/h], and the step in which it does.

    The factor is the best for a coarse grid, then for that and the steps that earned most, while that helps.
    """
    if not math.isfinite(tpot_limit_s) or values.decode + values.context == 0:
        earned = _earned(fine, values, 0.0)
        return float(earned.max()), fine.only(int(np.argmax(earned)))
    seen, most, at = coarse, math.inf, fine.only(0)
    for _ in range(ROUNDS):
        earned = _earned(fine, values, _patience(seen, values))
        best = int(np.argmax(earned))
        is_lower = earned[best] < most * (1 - CLOSENESS)
        if earned[best] < most:
            most, at = float(earned[best]), fine.only(best)
        if not is_lower:
            break
        seen = _joined(seen, fine.only(best))
    return most, at


def _patience(steps: _Steps, values: Values) -> float:
    """Return the factor, not below 0, at which the steps earn least at most.

    What a step earns falls or rises with the factor along a line: where the uppermost of the falling ones meets the
    uppermost of the rising ones none is above them.
    """
    earned, slope = _earned(steps, values, 0.0), -steps.late_s / steps.step_s
    falling, rising = int(np.argmax(earned)), int(np.lexsort((earned, slope))[-1])
    if slope[falling] >= 0:
        return 0.0
    while True:
        factor = float((earned[falling] - earned[rising]) / (slope[rising] - slope[falling]))
        above = earned + factor * slope
        highest = int(np.argmax(above))
        if above[highest] <= above[falling] + ROUNDING * earned.max():
            return factor
        if slope[highest] < 0:
            falling = highest
        else:
            rising = highest


def _earned(steps: _Steps, values: Values, patience: float) -> Array:
    """Return what steps earn per second."""
    worth = steps.prefill * values.prefill + steps.decodes * values.decode + steps.context * values.context
    earned: Array = (worth - patience * steps.late_s) / steps.step_s
    return earned


def _joined(some: _Steps, more: _Steps) -> _Steps:
    return _Steps(*(np.append(getattr(some, name), getattr(more, name)) for name in _Steps.__slots__))


def _most_decodes(one: PricedEngine) -> int:
    return min(one.limits.max_sequences, one.limits.max_batched_tokens // one.limits.verified_tokens)


def _fine_steps(one: PricedEngine, tpot_limit_s: float) -> _Steps:
    edges = spread(one.limits.max_batched_tokens, FINE_RATIO)
    cells = edges, np.append(edges[1:] - 1, edges[-1]), np.arange(_most_decodes(one) + 1)
    return _steps(one, cells, tpot_limit_s)


def _coarse(one: PricedEngine) -> tuple[Counts, Counts, Counts]:
    prefill = spread(one.limits.max_batched_tokens, COARSE_RATIO)
    return prefill, prefill, spread(_most_decodes(one), COARSE_RATIO)


def _steps(one: PricedEngine, cells: tuple[Counts, Counts, Counts], tpot_limit_s: float) -> _Steps:
    """Return the legal steps of (fewest, most) prefill tokens and of decodes that read no KV or as much as there is.

    Worth over time is a ratio of two lines in the KV read, so that no step of less KV earns more than both.
    """
    limits = one.limits
    fewest, most = cells[0][:, None], cells[1][:, None]
    decodes = cells[2][None, :]
    most = np.minimum(most, limits.max_batched_tokens - decodes)
    legal = (fewest <= most) & (most + decodes > 0)
    tokens_s, sequences_s = floor_s(one.table.token_ps[0]), floor_s(one.table.sequence_ps[0])
    tokens = np.minimum(np.maximum(fewest, decodes == 0) + decodes, limits.max_batched_tokens)
    step_s = (tokens_s[tokens] + sequences_s[np.maximum(decodes, 1)])[legal]
    prefill, decoding = np.broadcast_to(most, legal.shape)[legal], np.broadcast_to(decodes, legal.shape)[legal]
    kv_tokens = np.minimum(limits.total_blocks * limits.block_tokens, decoding * limits.max_context_tokens)
    both_s: Array = np.concatenate([step_s, step_s + kv_tokens * context_floor_s(one)])
    growth, twice = growth_of(one), np.tile(decoding, 2).astype(np.float64)
    context = growth * np.concatenate([np.zeros(kv_tokens.size), kv_tokens])
    limit_s = growth * tpot_limit_s if math.isfinite(tpot_limit_s) else 0.0
    late_s: Array = twice * (both_s - limit_s) * (limit_s > 0)
    return _Steps(np.tile(prefill, 2).astype(np.float64), growth * twice, context, both_s, late_s)
