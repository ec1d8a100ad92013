"""The door to OR-Tools: solves a MathOpt model, silently, with clear errors; a CP-SAT model to its end."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

RELATIVE_GAP = 1e-7
BY_PROOF, BY_COUNTING = "GSCIP", "CP_SAT"


def mathopt() -> Any:
    """Return OR-Tools' MathOpt module; RuntimeError where highspy, which cannot share a process with it, is loaded."""
    if "highspy" in sys.modules:
        raise RuntimeError("highspy is loaded, and OR-Tools cannot be in the same process; run the planner in its own")
    from ortools.math_opt.python import mathopt

    return mathopt


def solve(
    model: Any, *, node_limit: int | None = None, relative_gap: float = RELATIVE_GAP, by: str = "HIGHS"
) -> Any | None:
    """Return the result of a MathOpt model, or None where it has no solution.

    One thread, no time limit: the same model gives the same result. HIGHS is the fastest where most is continuous;
    of programmes with whole numbers of any size it has called optimal what was not, so that bounds are proven BY_PROOF,
    and programmes in whole numbers alone solved BY_COUNTING. RuntimeError where the solver fails.
    """
    library = mathopt()
    parameters = library.SolveParameters(
        relative_gap_tolerance=relative_gap,
        absolute_gap_tolerance=0.0,
        random_seed=0,
        node_limit=node_limit,
        threads=1 if by == BY_COUNTING else None,
    )
    try:
        with _silent_stdout():
            result = library.solve(model, getattr(library.SolverType, by), params=parameters)
    except Exception as error:  # its own conversion of errors raises AttributeError; the cause has the words
        raise RuntimeError(f"the solver failed: {error.__context__ or error}") from error
    reasons = library.TerminationReason
    if result.termination.reason in (reasons.INFEASIBLE, reasons.INFEASIBLE_OR_UNBOUNDED):
        return None
    if result.termination.reason not in (reasons.OPTIMAL, reasons.FEASIBLE):
        raise RuntimeError(f"the solver stopped: {result.termination.reason.name} {result.termination.detail}")
    return result


def proven(model: Any) -> Any | None:
    """Return the CP-SAT solver that has solved a model to the optimum, or None where it has no solution.

    One worker, no time limit: the same model gives the same result.
    """
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None
    assert status == cp_model.OPTIMAL, f"without a limit the solver ends with an answer, not {solver.status_name()}"
    return solver


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Send what compiled code prints to stdout nowhere: stdout is the command's result."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
