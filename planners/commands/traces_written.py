"""A trace written to a file, and the answer that tells of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.tables import quantity

if TYPE_CHECKING:
    from traces import Trace


def write_and_tell(command: str, inputs: Mapping[str, Any], trace: "Trace", out: str, as_json: bool) -> None:
    """Write a trace and tell of it."""
    from traces.statistics import describe
    from traces.writing import write

    write(trace, out)
    result: dict[str, Any] = {"out": out} | describe(trace).as_dict() | facts(trace)
    answer = Answer(command, inputs, result, tuple(result["warnings"]))
    give(answer, as_json, f"{out}: {len(trace)} requests in {trace.span_s:.6g} s, {quantity(result['rate_per_s'])}/s")


def facts(trace: "Trace") -> dict[str, Any]:
    """Return where a trace comes from: format, rows read, identity, chain of operations."""
    about = trace.metadata
    names = ("format", "rows_read", "time_unit", "t0_ns", "tz", "inversions", "block_tokens", "block_scope", "sha256")
    chain = {"identity": trace.identity, "chain": list(trace.chain)}
    return {name: about.get(name) for name in names} | {"dropped_examples": about.get("dropped_examples", {})} | chain
