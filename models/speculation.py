"""Speculative decoding: a draft of d tokens a step, checked by the model in one go (Leviathan et al., 2023).

Each drafted token is accepted with one chance a, given that those before it were, so a step emits
E = (1 - a^(d+1)) / (1 - a) tokens a sequence on average. Every step here emits that average, rounded to 1/64 of a
token: throughput and mean times are those of the law, the spread of single answers around them is left out. A step puts
d + 1 tokens a sequence through the layers, the head and the sampler, reads each sequence's KV once, and drafts before.
Blocks are taken for what is accepted; the rejected end of a draft is written where the next step's tokens go.
"""

from dataclasses import dataclass

PART_SHIFT = 6
PARTS = 1 << PART_SHIFT
FORM = "DRAFT_TOKENS:ACCEPTANCE[:DRAFT_SHARE]"


@dataclass(frozen=True, slots=True)
class Speculation:
    """How many tokens are drafted a step, and the chance that one is accepted, given those before it were.

    draft_share is the time to draft one token as a fraction of the model's own decode step of the same batch; None
    means one layer of the model and its head, as EAGLE and multi-token-prediction heads have: assumed.
    """

    draft_tokens: int
    acceptance: float
    draft_share: float | None = None

    def __post_init__(self) -> None:
        if self.draft_tokens < 1:
            raise ValueError(f"speculation drafts at least one token a step, not {self.draft_tokens}")
        if not 0.0 <= self.acceptance <= 1.0:
            raise ValueError(f"the acceptance of a drafted token is a chance from 0 to 1, not {self.acceptance:g}")
        if self.draft_share is not None and self.draft_share < 0.0:
            raise ValueError(f"the share of drafting must not be negative, got {self.draft_share:g}")

    @property
    def verified_tokens(self) -> int:
        """Return the tokens that a sequence puts into a step: the draft, and the one after it."""
        return self.draft_tokens + 1

    @property
    def expected_tokens(self) -> float:
        """Return the mean of tokens that a step emits a sequence.

        >>> Speculation(2, 0.5).expected_tokens
        1.75
        """
        return sum(self.acceptance**place for place in range(self.verified_tokens))

    @property
    def growth_parts(self) -> int:
        """Return the same in whole parts of a token."""
        return round(self.expected_tokens * PARTS)


def parse(text: str) -> Speculation:
    """Return the speculation that a text like "3:0.7" tells; ValueError says what would do.

    >>> parse("3:0.7:0.05")
    Speculation(draft_tokens=3, acceptance=0.7, draft_share=0.05)
    """
    parts = text.split(":")
    try:
        if not 2 <= len(parts) <= 3:
            raise ValueError
        tokens, *chances = int(parts[0]), *map(float, parts[1:])
    except ValueError:
        raise ValueError(f"cannot read the speculation {text!r}; expected {FORM}, as in '3:0.7'") from None
    return Speculation(tokens, *chances)


def check(max_num_seqs: int, max_num_batched_tokens: int, chosen: Speculation) -> None:
    """Raise ValueError where a full batch of drafts does not fit into one step."""
    if max_num_seqs * chosen.verified_tokens > max_num_batched_tokens:
        raise ValueError(
            f"{max_num_seqs} sequences of {chosen.verified_tokens} tokens do not fit into steps of "
            f"{max_num_batched_tokens}: use fewer max_num_seqs or draft tokens, or a larger max_num_batched_tokens"
        )
