"""Trace formats that are JSON, one object a line or one document: Mooncake, Bailian and the simulators' own."""

import numpy as np

from traces.layout import Field, Format, arrival, lengths
from traces.trace import MISSING, Column, Labels


def _sessions_from_parents(columns: dict[str, Column]) -> dict[str, Column]:
    """A session is the root of the chain of parents; a parent outside the file starts a session of its own."""
    chats, parents = columns.pop("chat_id"), columns.pop("parent_chat_id")
    assert isinstance(chats, Labels)
    assert isinstance(parents, Labels)
    row_of = {chats[row]: row for row in range(len(chats))}
    parent_rows = [row_of.get(parents[row], MISSING) for row in range(len(parents))]
    roots = [_root(row, parent_rows) for row in range(len(parent_rows))]
    names = {root: index for index, root in enumerate(dict.fromkeys(roots))}
    codes = np.array([names[root] for root in roots], np.int32)
    return columns | {"session_id": Labels(codes, tuple(chats[root] or "" for root in names))}


def _root(row: int, parent_rows: list[int]) -> int:
    for _ in range(len(parent_rows)):
        if parent_rows[row] in (MISSING, row):
            break
        row = parent_rows[row]
    return row


BLOCKS = Field("prefix_blocks", ("hash_ids",), "blocks")
SESSION = Field("session_id", ("session_id",), "label")

MOONCAKE = Format(
    "mooncake",
    "json",
    "Mooncake JSON lines: milliseconds, blocks of 512 tokens",
    (arrival("timestamp"), *lengths("input_length", "output_length"), BLOCKS, SESSION),
    time_unit="ms",
    forbidden=frozenset({"chat_id", "parent_chat_id"}),
    block_tokens=512,
)
BAILIAN = Format(
    "bailian",
    "json",
    "Bailian (Qwen) JSON lines: seconds, blocks of 16 tokens, chats linked to their parents",
    (
        arrival("timestamp"),
        *lengths("input_length", "output_length"),
        BLOCKS,
        Field("chat_id", ("chat_id",), "label", required=True),
        Field("parent_chat_id", ("parent_chat_id",), "label", required=True),
        Field("turn", ("turn",), "count"),
        Field("tenant", ("type",), "label"),
    ),
    block_tokens=16,
    derive=_sessions_from_parents,
)
LLMSERVINGSIM = Format(
    "llmservingsim",
    "json",
    "LLMServingSim JSON lines: nanoseconds",
    (arrival("arrival_time_ns"), *lengths("input_toks", "output_toks")),
    time_unit="ns",
)
ROUTER = Format(
    "router",
    "json",
    "router decision logs of semantic-router and fleet-sim: seconds",
    (
        arrival("timestamp"),
        *lengths("prompt_tokens", "generated_tokens"),
        Field("model", ("selected_model", "model"), "label"),
        Field("slo_class", ("complexity",), "label"),
        Field("tenant", ("category",), "label"),
    ),
)

JSON_FORMATS = (MOONCAKE, BAILIAN, LLMSERVINGSIM, ROUTER)
