"""Where the KV of a lane scheduled in Python lives: what a pool must do, and a pool of KV alone."""

from collections.abc import Sequence
from typing import Protocol

from simulator.control.lane_view import Request


class Pool(Protocol):
    """Where KV lives, and adapters with it."""

    capacity_tokens: int

    def free_tokens(self) -> int:
        """Return the tokens that may be taken now."""
        ...

    def take(self, tokens: int) -> None:
        """Take KV; what is not free was refused before."""
        ...

    def give(self, tokens: int) -> None:
        """Give KV back."""
        ...

    def ready_ps(self, requests: Sequence[Request], now_ps: int) -> int:
        """Return when the adapters of a step's requests are there, loading what is not."""
        ...

    def can_load(self, requests: Sequence[Request], kv_tokens: int) -> bool:
        """Say whether a step's adapters and so many KV tokens more fit at once."""
        ...

    def prefetch(self, requests: Sequence[Request], now_ps: int) -> None:
        """Start loading adapters that will be needed, where there is room."""
        ...

    def keep(self, requests: Sequence[Request]) -> None:
        """Let go of adapters that none of these requests uses."""
        ...


class KvPool:
    """A pool of KV alone."""

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens, self.used_tokens = capacity_tokens, 0

    def free_tokens(self) -> int:
        """Return the tokens that may be taken now."""
        return self.capacity_tokens - self.used_tokens

    def take(self, tokens: int) -> None:
        """Take KV."""
        self.used_tokens += tokens
        assert self.used_tokens <= self.capacity_tokens

    def give(self, tokens: int) -> None:
        """Give KV back."""
        self.used_tokens -= tokens
        assert self.used_tokens >= 0

    def ready_ps(self, requests: Sequence[Request], now_ps: int) -> int:
        """Return now: there is nothing to load."""
        return now_ps

    def can_load(self, requests: Sequence[Request], kv_tokens: int) -> bool:
        """Say whether so many KV tokens more fit."""
        return kv_tokens <= self.free_tokens()

    def prefetch(self, requests: Sequence[Request], now_ps: int) -> None:
        """Do nothing."""

    def keep(self, requests: Sequence[Request]) -> None:
        """Do nothing."""
