"""How a trace format is written down: its columns, what they mean, and what marks it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from traces.table import normal
from traces.trace import Column


@dataclass(frozen=True, slots=True)
class Field:
    """One column of ours: its name, the names that sources give it, and its kind (a key of `cells.KINDS` or "time")."""

    name: str
    sources: tuple[str, ...]
    kind: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Format:
    """A layout: `shape` csv or json, its fields, how its numbers of time are to be read, and what they count.

    `marks` are columns that only this format has; `derive` completes the columns afterwards. A format of nested
    objects is known by the rows they are taken apart into (`nested`). time_unit None means dates or epoch numbers;
    timeless formats know no arrivals; keeps_origin says that times count from the start of the trace, which need not
    be the first arrival; interleaved says that rows are grouped by session, so that time goes back and forth;
    row_by_row that no row needs another to be understood.
    """

    name: str
    shape: str
    about: str
    fields: tuple[Field, ...]
    time_unit: str | None = "s"
    tz: str | None = None
    marks: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()
    block_tokens: int | None = None
    block_scope: str = "global"
    context: str = "cumulative"
    keeps_origin: bool = False
    nested: bool = False
    interleaved: bool = False
    row_by_row: bool = True
    notes: tuple[str, ...] = ()
    timeless: bool = False
    derive: Callable[[dict[str, Column]], dict[str, Column]] | None = None

    def source_of(self, wanted: Field, names: Mapping[str, object]) -> str | None:
        """Return the normalised name under which these columns hold a field, or None."""
        return next((normal(name) for name in wanted.sources if normal(name) in names), None)

    def missing(self, names: Mapping[str, object], lengths_only: bool = False) -> list[str]:
        """Return the required columns, as the source spells them, that are not among the names."""
        wanted = [each for each in self.fields if each.required and not (lengths_only and each.kind == "time")]
        absent = [each for each in wanted if self.source_of(each, names) is None]
        return [each.sources[0] for each in absent] + sorted(self.marks - set(names))

    def recognises(self, names: Mapping[str, object], lengths_only: bool = False) -> bool:
        """Return whether columns of these normalised names look like this format."""
        return not self.nested and not self.missing(names, lengths_only) and not self.forbidden & set(names)


def arrival(*sources: str) -> Field:
    """Return the field that holds the time of arrival."""
    return Field("arrival_ns", sources, "time", required=True)


def lengths(input_tokens: str, output_tokens: str) -> tuple[Field, Field]:
    """Return the two fields every format must have."""
    return (
        Field("input_tokens", (input_tokens,), "tokens", required=True),
        Field("output_tokens", (output_tokens,), "tokens", required=True),
    )
