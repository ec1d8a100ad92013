"""Which rows are wanted: conditions on columns, and a stretch of time."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from traces.cells import SYNONYMS
from traces.trace import NS_PER_S, Array, Column, Labels, Status

NOT_WHERE, NOT_THEN = "left out by where", "left out by time_range"
TimeRange = tuple[float, float | None]

_CONDITION = re.compile(r"\s*(?P<name>\w+)\s*(?P<sign><=|>=|!=|=|<|>)\s*(?P<value>.+?)\s*")
_SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": np.less_equal,
    ">=": np.greater_equal,
    "!=": np.not_equal,
    "=": np.equal,
    "<": np.less,
    ">": np.greater,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A column of ours, how it is compared, and with what."""

    name: str
    sign: str
    value: str

    def keeps(self, columns: Mapping[str, Column]) -> Array:
        """Return which rows of these columns satisfy the condition; a row that says nothing does not, save under !=.

        Raises ValueError where there is no such column, or it cannot be compared so.
        """
        column = columns.get(self.name)
        if column is None:
            known = ", ".join(sorted(set(columns) - {"arrival_ns", "source_line"}))
            raise ValueError(f"no column {self.name!r} to choose rows by; this trace has {known}")
        if isinstance(column, Labels):
            return self._among(column)
        if not isinstance(column, np.ndarray):
            raise ValueError(f"column {self.name!r} holds lists: rows cannot be chosen by it")
        same = _SIGNS[self.sign](column, self._number())
        return cast(Array, same | (column < 0) if self.sign == "!=" else same & (column >= 0))

    def _among(self, labels: Labels) -> Array:
        if self.sign not in ("=", "!="):
            raise ValueError(f"{self.name} {self.sign} {self.value}: names are compared by = or != only")
        has_name = np.array([name == self.value for name in labels.names] + [False])
        same = has_name[labels.codes]
        return ~same if self.sign == "!=" else same

    def _number(self) -> float:
        word = self.value.upper()
        if self.name == "status" and SYNONYMS.get(word, word) in Status.__members__:
            return float(Status[SYNONYMS.get(word, word)])
        try:
            return float(self.value)
        except ValueError:
            raise ValueError(f"{self.name} {self.sign} {self.value}: {self.value!r} is no number") from None


def condition(text: str) -> Condition:
    """Return the condition that a text states; raises ValueError.

    >>> condition("input_tokens <= 4096")
    Condition(name='input_tokens', sign='<=', value='4096')
    """
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise ValueError(f"cannot read the condition {text!r}; expected COLUMN=VALUE, or <, <=, >, >=, !=")
    return Condition(**found.groupdict())


def time_range(text: str) -> TimeRange:
    """Return the stretch of seconds that a text like "60,120" or "60," means; raises ValueError.

    >>> time_range("60,")
    (60.0, None)
    """
    start, _, end = text.partition(",")
    try:
        found = float(start), float(end) if end.strip() else None
    except ValueError:
        raise ValueError(f"cannot read the time range {text!r}; expected FROM,TO or FROM, in seconds") from None
    check_time_range(found)
    return found


def check_time_range(wanted: TimeRange | None) -> None:
    """Raise ValueError where a stretch of time is none."""
    if wanted is not None and not (wanted[0] >= 0 and (wanted[1] is None or wanted[1] > wanted[0])):
        raise ValueError(f"time range {wanted}: expected 0 <= FROM < TO, in seconds")


def chosen(
    columns: Mapping[str, Column], where: Sequence[str], during: TimeRange | None, times_ns: Array | None
) -> tuple[Array, dict[str, int]]:
    """Return the rows wanted, and how many are not by reason; times_ns count from where the stretch of time does."""
    rows = len(cast(Array, columns["input_tokens"]))
    wanted, left_out = np.ones(rows, bool), {}
    for text in where:
        wanted &= condition(text).keeps(columns)
    if where:
        left_out[NOT_WHERE] = rows - int(np.count_nonzero(wanted))
    if during is not None and times_ns is not None:
        start_ns, end_ns = (None if bound is None else round(bound * NS_PER_S) for bound in during)
        then = (times_ns >= start_ns) & (True if end_ns is None else times_ns < end_ns)
        left_out[NOT_THEN] = int(np.count_nonzero(wanted & ~then))
        wanted &= then
    return np.flatnonzero(wanted), {reason: count for reason, count in left_out.items() if count}
