"""Adapters in the KV pool: what they take, when they are there, which are let go, and what they add to a step."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.engine import PICOSECONDS_PER_SECOND, Engine
from simulator.control.lane_view import Request

SLOTS_PER_RANK = 4  # q, k, v and o: rank rows each of A beside B, as wide as a token's keys beside its values
KERNELS_PER_LAYER = 8  # for each of the four, one that shrinks to the rank and one that expands from it
FLOPS_PER_MAC = 2


def adapter_tokens(rank: int) -> int:
    """Return the KV slots that an adapter of a rank takes.

    >>> adapter_tokens(64)
    256
    """
    return SLOTS_PER_RANK * rank


@dataclass(frozen=True, slots=True)
class HostLink:
    """The way of adapters from host memory, one after another: operations each, then bytes."""

    bytes_per_token: float
    bytes_per_s: float
    operations: int = 1
    operation_s: float = 0.0

    def load_ps(self, tokens: int) -> int:
        """Return the time to load an adapter of so many slots."""
        seconds = self.operations * self.operation_s + tokens * self.bytes_per_token / self.bytes_per_s
        return round(seconds * PICOSECONDS_PER_SECOND)


def host_link(engine: Engine, operation_s: float) -> HostLink:
    """Return the host link of an Engine's devices: A and B of every layer are copied by themselves."""
    per_device = engine.kv_bytes_per_token_per_device
    return HostLink(per_device, engine.device.host_link_bytes_per_s, 2 * engine.llm.layers, operation_s)


class AdapterPool:
    """A pool of KV and adapters; together, or apart where adapters have a room of their own.

    An adapter that no running request uses is dropped at once, or kept until its slots are needed, the one longest
    unused first. What may be dropped counts as free.
    """

    def __init__(
        self,
        capacity_tokens: int,
        link: HostLink,
        adapter_room_tokens: int | None = None,
        keeps_unused: bool = False,
    ) -> None:
        self.capacity_tokens, self.adapter_room_tokens = capacity_tokens, adapter_room_tokens
        self.link, self.keeps_unused = link, keeps_unused
        self.kv_tokens = 0
        self.loads = self.loaded_tokens = 0
        self._tokens: dict[int, int] = {}  # of resident adapters, the longest unused first
        self._ready_ps: dict[int, int] = {}
        self._in_use: set[int] = set()
        self._ahead: set[int] = set()
        self._link_free_ps = 0

    @property
    def resident(self) -> tuple[int, ...]:
        """Return the adapters on the device, the longest unused first."""
        return tuple(self._tokens)

    def free_tokens(self) -> int:
        """Return the KV that may be taken now, adapters that nobody uses counted as free."""
        shared = 0 if self.adapter_room_tokens is not None else self._used_by_adapters()
        return self.capacity_tokens - self.kv_tokens - shared

    def take(self, tokens: int) -> None:
        """Take KV, dropping unused adapters where they are in the way."""
        self.kv_tokens += tokens
        self._make_room(0)
        assert self.kv_tokens <= self.capacity_tokens

    def give(self, tokens: int) -> None:
        """Give KV back."""
        self.kv_tokens -= tokens
        assert self.kv_tokens >= 0

    def can_load(self, requests: Sequence[Request], kv_tokens: int) -> bool:
        """Say whether a step's adapters and so many KV tokens more fit at once."""
        more = sum(
            {each.adapter: each.adapter_tokens for each in requests if each.adapter not in self._in_use}.values()
        )
        if self.adapter_room_tokens is None:
            return kv_tokens + more <= self.free_tokens()
        return kv_tokens <= self.free_tokens() and self._used_by_adapters() + more <= self.adapter_room_tokens

    def ready_ps(self, requests: Sequence[Request], now_ps: int) -> int:
        """Return when all adapters of these requests are there, loading what is not; they are in use from now on."""
        needed = {each.adapter: each.adapter_tokens for each in requests if each.adapter is not None}
        self._in_use |= needed.keys()
        self._ahead -= needed.keys()
        latest_ps = now_ps
        for adapter, tokens in needed.items():
            if adapter not in self._tokens:
                self._make_room(tokens)
                self._load(adapter, tokens, now_ps)
            self._tokens[adapter] = self._tokens.pop(adapter)
            latest_ps = max(latest_ps, self._ready_ps[adapter])
        return latest_ps

    def prefetch(self, requests: Sequence[Request], now_ps: int) -> None:
        """Start loading adapters into slots that are empty; they may be dropped again before they are used."""
        for each in requests:
            if each.adapter is None or each.adapter in self._tokens:
                continue
            if each.adapter_tokens > self._empty_tokens():
                return
            self._load(each.adapter, each.adapter_tokens, now_ps)
            self._ahead.add(each.adapter)

    def keep(self, requests: Sequence[Request]) -> None:
        """Let go of adapters that none of these requests uses, now or when their slots are needed."""
        self._in_use = {each.adapter for each in requests if each.adapter is not None}
        if not self.keeps_unused:
            for adapter in [each for each in self._tokens if each not in self._in_use | self._ahead]:
                self._drop(adapter)

    def _used_by_adapters(self) -> int:
        return sum(tokens for adapter, tokens in self._tokens.items() if adapter in self._in_use)

    def _empty_tokens(self) -> int:
        """Return the slots with nothing in them."""
        resident = sum(self._tokens.values())
        if self.adapter_room_tokens is not None:
            return self.adapter_room_tokens - resident
        return self.capacity_tokens - self.kv_tokens - resident

    def _make_room(self, tokens: int) -> None:
        """Drop unused adapters, the longest unused first, until so many slots are empty."""
        for adapter in [each for each in self._tokens if each not in self._in_use]:
            if self._empty_tokens() >= tokens:
                return
            self._drop(adapter)
        assert self._empty_tokens() >= tokens

    def _load(self, adapter: int, tokens: int, now_ps: int) -> None:
        self._link_free_ps = max(now_ps, self._link_free_ps) + self.link.load_ps(tokens)
        self._tokens[adapter], self._ready_ps[adapter] = tokens, self._link_free_ps
        self.loads += 1
        self.loaded_tokens += tokens

    def _drop(self, adapter: int) -> None:
        del self._tokens[adapter], self._ready_ps[adapter]
        self._ahead.discard(adapter)


@dataclass(frozen=True, slots=True)
class LoraCost:
    """What adapters add to a step: the greater of their arithmetic and of reading each once, and their launches.

    flops_per_slot is of one token through one slot of one adapter, all layers together.
    """

    flops_per_slot: float
    bytes_per_slot: float
    flops_per_s: float
    bytes_per_s: float
    launches: int
    launch_s: float

    def __call__(self, parts: Sequence[tuple[Request, int]]) -> int:
        """Return the time [ps] that a step takes longer for the adapters of (request, tokens)."""
        read = {each.adapter: each.adapter_tokens for each, _ in parts if each.adapter is not None}
        if not read:
            return 0
        flops = self.flops_per_slot * sum(each.adapter_tokens * tokens for each, tokens in parts)
        moved_bytes = self.bytes_per_slot * sum(read.values())
        seconds = max(flops / self.flops_per_s, moved_bytes / self.bytes_per_s) + self.launches * self.launch_s
        return round(seconds * PICOSECONDS_PER_SECOND)


def lora_cost(engine: Engine, launch_s: float) -> LoraCost:
    """Return what adapters on q, k, v and o cost on one device of an Engine, at the peaks of its data sheet.

    A slot is a row of A and one of B in every layer: a token multiplies with both.
    """
    llm, device = engine.llm, engine.device
    return LoraCost(
        flops_per_slot=FLOPS_PER_MAC * 2.0 * llm.hidden * llm.layers,
        bytes_per_slot=engine.kv_bytes_per_token_per_device,
        flops_per_s=device.peak_flops_per_s(engine.dtype),
        bytes_per_s=device.bandwidth_bytes_per_s,
        launches=KERNELS_PER_LAYER * llm.layers,
        launch_s=launch_s,
    )
