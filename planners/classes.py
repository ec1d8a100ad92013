"""Classes of requests: who is promised what, named by the trace's column slo_class or by rules on its other columns."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from traces import Labels, Trace

if TYPE_CHECKING:
    from planners.slo import Slo

COLUMN = "slo_class"
AND = " and "
EXAMPLE = "chat=input_tokens<2000"
CORE = ("input_tokens", "output_tokens", "status")


def classified(trace: Trace, rules: Mapping[str, str]) -> Trace:
    """Return the trace with its requests named by rules like "input_tokens<2000 and output_tokens>=64".

    The first rule that a request satisfies names it; of several traces' own names the rules' stay. Raises ValueError
    for a rule that cannot be read, or a column that the trace does not have.
    """
    if not rules:
        return trace
    from traces.selection import condition

    columns = {**{name: getattr(trace, name) for name in CORE}, **trace.columns}
    codes = np.full(len(trace), -1, np.int32)
    for code, (name, rule) in enumerate(rules.items()):
        try:
            kept = np.all([condition(part).keeps(columns) for part in rule.split(AND)], axis=0)
        except ValueError as error:
            raise ValueError(f"class {name}: {error}") from None
        codes[(codes < 0) & kept] = code
    return replace(trace, columns={**trace.columns, COLUMN: Labels(codes, tuple(rules))})


def named(slos: "Sequence[Slo]") -> tuple[str, ...]:
    """Return the classes that promises speak of, in the order of their first mention."""
    return tuple(dict.fromkeys(slo.slo_class for slo in slos if slo.slo_class))


def members(trace: Trace, name: str) -> npt.NDArray[np.bool_]:
    """Return which requests are of a class; all where the name is empty. ValueError says which classes there are."""
    if not name:
        return np.ones(len(trace), bool)
    labels = trace.columns.get(COLUMN)
    if not isinstance(labels, Labels):
        words = f"the trace names no classes in a column {COLUMN}"
        raise ValueError(f"a promise is for the class {name!r}, but {words}; a rule can, as {EXAMPLE!r}")
    if name not in labels.names:
        known = ", ".join(sorted(labels.names)) or "none"
        raise ValueError(f"a promise is for the class {name!r}; the trace has {known}")
    kept: npt.NDArray[np.bool_] = labels.codes == labels.names.index(name)
    return kept


def by_class(trace: Trace, marked: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Return the fraction of each class's requests that are marked, in the order of the classes' names."""
    labels = trace.columns.get(COLUMN)
    names = sorted(labels.names) if isinstance(labels, Labels) else []
    return {name: float(marked[members(trace, name)].mean()) for name in names if members(trace, name).any()}


def codes_of(trace: Trace, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the place of each request's class among names; those of no class named there come after the last."""
    codes = np.full(len(trace), len(names), np.int64)
    for place, name in enumerate(names):
        codes[members(trace, name)] = place
    return codes
