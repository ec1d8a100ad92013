"""Find the cheapest fleet that keeps its promises on a trace: offers, mix, rehearsal, plan."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.llm import Llm
from planners.engines import Offer
from planners.infeasible import Infeasible
from planners.plan import Plan
from planners.slo import Slo
from traces import Trace

__all__ = ["Infeasible", "Progress", "find_plan"]


@dataclass(frozen=True, slots=True)
class Progress:
    """What the search has to tell on its way: a stage ("engines", "analytic", "rehearsal"), words, and a first plan."""

    stage: str
    message: str
    plan: Plan | None = None


def find_plan(
    trace: Trace,
    llm: Llm | None,
    slos: Sequence[Slo],
    devices: Sequence[str] | None = None,
    *,
    seed: int = 0,
    offers: Sequence[Offer] | None = None,
    progress: Callable[[Progress], None] | None = None,
    analytic: bool = False,
) -> Plan:
    """Return the cheapest Plan that keeps every promise in a replay of the whole trace.

    devices are catalogue names, by default ten; `offers` replaces them and the model by priced engines of one's own.
    analytic=True stops before the rehearsal. Raises Infeasible with the reasons that bind.
    """
    raise NotImplementedError
