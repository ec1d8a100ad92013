"""What drafting and verifying make of an engine's step table."""

import numpy as np

from models.speculation import PART_SHIFT, PARTS, Speculation
from models.step import Int64, StepTable


def with_speculation(table: StepTable, chosen: Speculation, layers: int) -> StepTable:
    """Return the step table of an engine of so many layers that drafts and verifies.

    Its cells count parts of tokens; to each batch's attention are added the longer head and the drafts.
    """
    sequences = np.arange(table.sequence_ps.shape[1])
    head_ps = _beyond(table.sequence_ps[0], sequences * chosen.verified_tokens) - table.sequence_ps[0]
    drafts_ps = chosen.draft_tokens * _draft_ps(table, chosen, layers)
    return table._replace(
        decode_ps=table.decode_ps + head_ps[:, None] + drafts_ps,
        decode_slope_ps=np.rint(table.decode_slope_ps / PARTS).astype(np.int64),
        cell_shift=table.cell_shift + PART_SHIFT,
    )


def _draft_ps(table: StepTable, chosen: Speculation, layers: int) -> Int64:
    """Return the time to draft one token of every sequence of a batch [engine, alone or beside, sequences, cell]."""
    batch = np.arange(table.sequence_ps.shape[1])
    body_ps = table.token_ps[0, batch][:, None] + table.decode_ps[:, :1]
    if chosen.draft_share is None:
        drafts_ps = body_ps / layers + table.sequence_ps[0][:, None]
    else:
        drafts_ps = chosen.draft_share * (body_ps + table.sequence_ps[0][:, None])
    return np.asarray(np.rint(np.broadcast_to(drafts_ps, table.decode_ps.shape)).astype(np.int64))


def _beyond(row: Int64, places: Int64) -> Int64:
    """Return a row's entries, beyond its end along the line through its last two."""
    last = row.size - 1
    slope = row[last] - row[last - 1] if last else 0
    return np.asarray(row[np.minimum(places, last)] + slope * np.maximum(places - last, 0))
