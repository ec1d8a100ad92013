"""What of a prompt the lanes have in their caches, and in the tiers below them."""

from models.compiled import kernel
from simulator.cache import look_up
from simulator.tiers import has_tiers, known_tokens


@kernel
def matched_tokens(state, slot, found, below):
    """Write, lane by lane, how many tokens of a request's prompt are in the lane's cache now; `below`, in tiers too."""
    row = state.requests[slot]
    for lane in range(state.lanes.size):
        here = state.lanes[lane]
        if here.caching:
            nodes, whole, part, _, _ = look_up(state, row, here)
            found[lane] = min((whole + part) << here.block_shift, row.input_tokens)
            if below and has_tiers(state, here):
                found[lane] = max(found[lane], known_tokens(state, row, here, nodes))
