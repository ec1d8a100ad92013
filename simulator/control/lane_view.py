"""What a Scheduler written in Python is shown of its lane, and what it may answer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

GRANULARITIES = ("step", "layer", "op")
NO_DEADLINE_PS = 1 << 62
UNBOUNDED_TOKENS = 1 << 40


@dataclass(frozen=True, slots=True)
class Request:
    """What a lane is told of a request; how many tokens it will answer with is known to the lane alone.

    limit_tokens is the most that the client asked for; a lower priority goes first, where a scheduler looks at it.
    An adapter takes adapter_tokens slots of the KV pool while requests that use it run.
    """

    number: int
    arrival_ps: int
    input_tokens: int
    limit_tokens: int = UNBOUNDED_TOKENS
    deadline_ps: int = NO_DEADLINE_PS
    priority: int = 0
    adapter: int | None = None
    adapter_tokens: int = 0
    label: str = ""


class Cursor(NamedTuple):
    """How far a request has come on its lane, as its scheduler sees it."""

    request: Request
    computed_tokens: int
    generated_tokens: int
    is_decoding: bool

    @property
    def number(self) -> int:
        """Return the request's number."""
        return self.request.number

    @property
    def prefill_left(self) -> int:
        """Return the tokens to compute before the next can be sampled; after an eviction its own output counts too."""
        return self.request.input_tokens + self.generated_tokens - self.computed_tokens


class Slice(NamedTuple):
    """A part of a step: so many tokens of a request; one where it decodes."""

    number: int
    tokens: int


class Paused(NamedTuple):
    """A step that stopped at a boundary, or the one under way: its slices, and how long it has worked on them."""

    slices: tuple[Slice, ...]
    done_ps: int


@dataclass(frozen=True, slots=True)
class Step:
    """What a lane does next.

    preempt says where the scheduler is asked again when a request arrives meanwhile: at the step's end, or at the next
    layer or operator, at least quantum_ps after the step or the last boundary of that spacing began. Slices equal to
    those of a paused step resume it. A step of decodes alone may be repeated until a request arrives or finishes.
    Requests in `evict` lose their KV first and wait at the head of the queue; adapters of those in `prefetch` start
    to load beside the step.
    """

    slices: tuple[Slice, ...]
    preempt: str = "step"
    quantum_ps: int = 0
    repeat: int = 1
    evict: tuple[int, ...] = ()
    prefetch: tuple[int, ...] = ()


class LaneView(NamedTuple):
    """What a scheduler sees: its queue in order of arrival, what runs in order of admission, and the pool.

    paused are the steps that stopped at a boundary, under_way the one that stands at a boundary now, or None.
    decode_steps counts those done since the lane began.
    """

    now_ps: int
    waiting: tuple[Cursor, ...]
    running: tuple[Cursor, ...]
    paused: tuple[Paused, ...]
    under_way: Paused | None
    free_tokens: int
    capacity_tokens: int
    decode_steps: int


class Wait(NamedTuple):
    """A scheduler's answer: ask again when something comes, or else at this time."""

    until_ps: int


Scheduler = Callable[[LaneView], Step | Wait | None]


class IllegalStep(ValueError):
    """A step that a lane cannot take, with the reason."""


class Served(NamedTuple):
    """What became of a request."""

    request: Request
    scheduled_ps: int
    first_token_ps: int
    finish_ps: int
    evictions: int
