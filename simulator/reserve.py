"""SGLang's admission: room is kept for a part of what running requests may still answer; retraction wins back the rest.

The part begins at the lane's `reserve_start`, falls with every decode step to `reserve_least`, and is set anew when a
request had to be retracted, to what the others have answered so far and would in RETRACTED_STEPS more, of their most.
Parts are in 1 / 2**20.
"""

from models.compiled import inner_kernel
from simulator.layout import DECODING, NONE

PART_BITS = 20
MOST_ANSWER_TOKENS = 4096  # beyond which no answer is reserved for
RETRACTED_STEPS = 20


@inner_kernel
def generated(row, here):
    """Return the tokens that a running request has answered by now."""
    if row.status != DECODING:
        return row.generated_tokens
    return row.generated_tokens + ((here.steps - row.joined_step) * here.growth_parts >> here.part_shift)


@inner_kernel
def has_room(requests, here, row, prompt_tokens, free_tokens):
    """Say whether a prompt and its whole answer fit beside what is kept for those that run.

    Those that decode count with the lane's part of their answers to come, those in prefill with all of them.
    """
    decoding, prefilling = 0, 0
    slot = here.last_running
    while slot != NONE:
        other = requests[slot]
        left = min(max(0, other.output_tokens - generated(other, here)), MOST_ANSWER_TOKENS)
        if other.status == DECODING:
            decoding += left
        else:
            prefilling += left
        slot = other.previous_running
    kept_tokens = (decoding * here.reserve >> PART_BITS) + prefilling
    answer_tokens = min(row.output_tokens - row.generated_tokens, MOST_ANSWER_TOKENS)
    return prompt_tokens + answer_tokens <= free_tokens - kept_tokens or here.running == 0


@inner_kernel
def least_answered(requests, here):
    """Return the decoding request to retract: the one with the fewest tokens answered, of those the longest prompt."""
    victim = here.last_running
    fewest, longest = 1 << 60, 0
    slot = here.last_running
    while slot != NONE:
        row = requests[slot]
        answered = generated(row, here)
        is_less = answered < fewest or (answered == fewest and row.input_tokens > longest)
        if row.status == DECODING and is_less:
            victim, fewest, longest = slot, answered, row.input_tokens
        slot = row.previous_running
    return victim


@inner_kernel
def reserve_more(requests, here):
    """Set the part anew after a retraction."""
    answered, most, decodes = 0, 0, 0
    slot = here.last_running
    while slot != NONE:
        row = requests[slot]
        if row.status == DECODING:
            answered += generated(row, here)
            most += row.output_tokens
            decodes += 1
        slot = row.previous_running
    if most > 0:
        here.reserve = min(1 << PART_BITS, ((answered + RETRACTED_STEPS * decodes) << PART_BITS) // most)
