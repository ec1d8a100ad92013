"""What drafting and verifying make of an engine's step table."""

import numpy as np

from models.speculation import PART_SHIFT, PARTS, Speculation
from models.step import PICOSECONDS_PER_SECOND, Int64, StepTable


def with_speculation(table: StepTable, chosen: Speculation, layers: int, host_sequence_s: float = 0.0) -> StepTable:
    """Return the step table of an engine of so many layers that drafts and verifies.

    Its cells count parts of tokens; to each batch's attention are added the longer head and the drafts. The host takes
    host_sequence_s for a sequence, however many of its tokens are checked, and nothing for a draft.
    """
    sequences = np.arange(table.sequence_ps.shape[1])
    head_ps = table.sequence_ps[0] - np.rint(sequences * host_sequence_s * PICOSECONDS_PER_SECOND).astype(np.int64)
    longer_ps = _beyond(head_ps, sequences * chosen.verified_tokens) - head_ps
    drafts_ps = chosen.draft_tokens * _draft_ps(table, chosen, layers, head_ps)
    return table._replace(
        decode_ps=table.decode_ps + longer_ps[:, None] + drafts_ps,
        decode_slope_ps=np.rint(table.decode_slope_ps / PARTS).astype(np.int64),
        cell_shift=table.cell_shift + PART_SHIFT,
    )


def _draft_ps(table: StepTable, chosen: Speculation, layers: int, head_ps: Int64) -> Int64:
    """Return the time to draft one token of every sequence of a batch [engine, alone or beside, sequences, cell]."""
    batch = np.arange(table.sequence_ps.shape[1])
    body_ps = table.token_ps[0, batch][:, None] + table.decode_ps[:, :1]
    if chosen.draft_share is None:
        drafts_ps = body_ps / layers + head_ps[:, None]
    else:
        drafts_ps = chosen.draft_share * (body_ps + head_ps[:, None])
    return np.asarray(np.rint(np.broadcast_to(drafts_ps, table.decode_ps.shape)).astype(np.int64))


def _beyond(row: Int64, places: Int64) -> Int64:
    """Return a row's entries, beyond its end along the line through its last two."""
    last = row.size - 1
    slope = row[last] - row[last - 1] if last else 0
    return np.asarray(row[np.minimum(places, last)] + slope * np.maximum(places - last, 0))
