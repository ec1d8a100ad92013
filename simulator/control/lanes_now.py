"""What lanes have done and hold at this very time, between two of their events."""

from models.compiled import kernel
from simulator.lane import begun_steps, blocks_crossed


@kernel
def lanes_now(state, now_ps, begun, free_blocks):
    """Write, lane by lane, the decode steps begun since its last event, and the blocks that are free with them."""
    for lane in range(state.lanes.size):
        here = state.lanes[lane]
        begun[lane] = begun_steps(state, here, now_ps)
        free_blocks[lane] = here.free_blocks - blocks_crossed(state.words, here, begun[lane])
