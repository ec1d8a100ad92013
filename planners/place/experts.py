"""A subset of experts at the edge: which to keep running, and which of them answer what, under energy and a delay.

Of each kind of query q there comes a share w[q]. A gate sends it to k of the experts that run; their answers are put
together, worth quality[q, e] each, and come as late as the slowest of them:

    max  sum of w[q] quality[q, e] z[q, e]    s.t.  sum over e of z[q, e] = k,   z[q, e] <= y[e],
         sum of w[q] energy[q, e] z[q, e] + sum of standby[e] y[e] <= energy budget,
         z[q, e] = 0 where delay[q, e] > delay budget.

The model of MoE^2 (arXiv 2501.09410), its outer and inner problem as one programme, which CP-SAT solves to the optimum.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planners.search.infeasible import Infeasible
from planners.solver import proven

Array = npt.NDArray[np.float64]

UNITS = 10**9  # whole units of quality and of the energy budget
ROOM = UNITS + 1_000  # what keeps to one part in a million, keeps: energies are rounded to whole units


@dataclass(frozen=True, slots=True)
class Experts:
    """Quality, energy [J] and delay [s] by [query, expert], what running costs an expert [J], shares of queries."""

    quality: Array
    energy_j: Array
    delay_s: Array
    standby_j: Array
    shares: Array


@dataclass(frozen=True, slots=True)
class Subset:
    """The experts that run, those that answer each kind of query, and the mean quality, energy and worst delay."""

    running: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    quality: float
    energy_j: float
    delay_s: float


def best_subset(experts: Experts, energy_j: float, delay_s: float, answering: int = 1) -> Subset:
    """Return the subset of most quality; Infeasible names the query that no experts answer in time, or the energy.

    energy_j is a budget for a mean query and all that runs, delay_s for every query.
    """
    from ortools.sat.python import cp_model

    queries, count = experts.quality.shape
    able = experts.delay_s <= delay_s
    slow = np.flatnonzero(able.sum(axis=1) < answering)
    if slow.size:
        words = f"query {slow[0]} is answered within {delay_s:g} s by {int(able[slow[0]].sum())} experts"
        raise Infeasible((f"{words}, not {answering}",))
    model = cp_model.CpModel()
    runs = [model.new_bool_var("") for _ in range(count)]
    sent = {(int(q), int(e)): model.new_bool_var("") for q, e in np.argwhere(able)}
    for query in range(queries):
        model.add(sum(taken for (q, _), taken in sent.items() if q == query) == answering)
    for (_, expert), taken in sent.items():
        model.add_implication(taken, runs[expert])
    scale = UNITS / max(energy_j, 1e-12)
    used = [round(scale * experts.shares[q] * experts.energy_j[q, e]) * taken for (q, e), taken in sent.items()]
    used += [round(scale * each) * run for each, run in zip(experts.standby_j.tolist(), runs, strict=True)]
    spent = sum(used)
    worth = sum(round(UNITS * experts.shares[q] * experts.quality[q, e]) * taken for (q, e), taken in sent.items())
    model.add(spent <= ROOM)
    model.maximize(worth)
    solver = proven(model)
    if solver is None:
        raise Infeasible((f"no {answering} experts for every query keep to {energy_j:g} J",))
    model.add(worth >= round(solver.objective_value))
    model.minimize(spent)
    solver = proven(model) or solver
    answers = tuple(
        tuple(e for (q, e), taken in sent.items() if q == query and solver.value(taken)) for query in range(queries)
    )
    return measured(experts, answers)


def measured(experts: Experts, answers: Sequence[Sequence[int]]) -> Subset:
    """Return what answers by some experts of each query are worth and take; no other experts run."""
    running = tuple(sorted({expert for own in answers for expert in own}))
    pairs = [(query, expert) for query, own in enumerate(answers) for expert in own]
    quality = sum(float(experts.shares[q] * experts.quality[q, e]) for q, e in pairs)
    energy_j = sum(float(experts.shares[q] * experts.energy_j[q, e]) for q, e in pairs)
    energy_j += sum(float(experts.standby_j[expert]) for expert in running)
    delay_s = max(float(experts.delay_s[q, e]) for q, e in pairs)
    return Subset(running, tuple(tuple(own) for own in answers), quality, energy_j, delay_s)
