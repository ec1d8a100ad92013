"""What of a prompt the lanes have in their caches."""

from models.compiled import kernel
from simulator.cache import look_up


@kernel
def matched_tokens(state, slot, found):
    """Write, lane by lane, how many tokens of a request's prompt are in the lane's cache now."""
    row = state.requests[slot]
    for lane in range(state.lanes.size):
        here = state.lanes[lane]
        if here.caching:
            _, whole, part, _, _ = look_up(state, row, here)
            found[lane] = min((whole + part) << here.block_shift, row.input_tokens)
