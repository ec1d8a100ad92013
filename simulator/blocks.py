"""KV: what a lane's decodes hold, how many blocks a request takes, and when it takes the next."""

from models.compiled import inner_kernel


@inner_kernel
def blocks(tokens, here):
    """Return the KV blocks that so many tokens take."""
    return (tokens + (1 << here.block_shift) - 1) >> here.block_shift


@inner_kernel
def modulo(steps, shift):
    """Return what is left of steps after whole periods of 2**shift."""
    return steps & ((1 << shift) - 1)


@inner_kernel
def own_blocks(row, here):
    """Return the blocks that a request shares with none."""
    return max(0, blocks(row.computed_tokens, here) - row.held_blocks)


@inner_kernel
def most_blocks(row, here):
    """Return the blocks that a request will hold at its end, at most: a last draft may run beyond it."""
    return blocks(row.input_tokens + row.output_tokens + here.verified_tokens - 1, here)


@inner_kernel
def steps_to(tokens, here):
    """Return the decode steps in which a sequence emits so many tokens; division is slow, so only drafts pay it."""
    if here.growth_parts == 1:
        return tokens << here.part_shift
    return ((tokens << here.part_shift) + here.growth_parts - 1) // here.growth_parts


@inner_kernel
def mark_crossings(words, row, here, sign):
    """Add to the lane's crossings, or take from them, the steps in which this decoding request needs a new block."""
    computed = row.input_tokens + row.generated_tokens - 1
    tokens = (blocks(computed, here) << here.block_shift) - computed + 1
    for _ in range(here.growth_parts):
        step = modulo(row.joined_step + steps_to(tokens, here), here.period_shift)
        words[here.crossings_at + step] += sign
        tokens += 1 << here.block_shift


@inner_kernel
def context(here):
    """Return the KV that the lane's decodes hold, in parts of a token."""
    return (here.context_tokens << here.part_shift) + here.context_parts


@inner_kernel
def grow_context(here, parts):
    """Let the KV of the lane's decodes grow, or shrink, by parts of a token."""
    grown = context(here) + parts
    here.context_tokens = grown >> here.part_shift
    here.context_parts = grown - (here.context_tokens << here.part_shift)
