"""KV blocks: how many a request takes, and when it takes the next."""

from models.compiled import inner_kernel


@inner_kernel
def blocks(tokens, here):
    """Return the KV blocks that so many tokens take."""
    return (tokens + (1 << here.block_shift) - 1) >> here.block_shift


@inner_kernel
def in_block(tokens, block_shift):
    """Return how far into its block a token lies."""
    return tokens & ((1 << block_shift) - 1)


@inner_kernel
def own_blocks(row, here):
    """Return the blocks that a request shares with none."""
    return max(0, blocks(row.computed_tokens, here) - row.held_blocks)


@inner_kernel
def most_blocks(row, here):
    """Return the blocks that a request will hold at its end."""
    return blocks(row.input_tokens + row.output_tokens, here)


@inner_kernel
def phase(row, block_shift):
    """Return the lane's step count, modulo the block, at which this decoding request needs a new block."""
    computed = row.input_tokens + row.generated_tokens - 1
    return in_block(row.joined_step + 1 - computed, block_shift)
