"""S-LoRA: KV and adapters in one pool, prompts admitted only where all can finish, adapters loaded on demand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import simpy

from models.engine import PICOSECONDS_PER_SECOND, Engine
from simulator.control.adapters import AdapterPool, adapter_tokens, host_link, lora_cost
from simulator.control.lane_view import Request
from simulator.control.scheduled_lane import ScheduledLane
from simulator.control.schedulers import no_preempt
from simulator.control.step_prices import StepPrices

LONGEST_REQUEST_TOKENS = 1024


class Setting(NamedTuple):
    """How a server is run; the pool holds KV and adapters unless adapters have a room of their own.

    step_host_s is what each step takes on the host while the device waits; a load copies an adapter so many times.
    """

    pool_tokens: int
    batch_tokens: int
    most_sequences: int = 1000
    wait_steps: int = 10
    adapter_copy_s: float = 0.0
    kernel_launch_s: float = 0.0
    adapter_room_tokens: int | None = None
    keeps_unused: bool = False
    prefetches: bool = False
    computes_adapters: bool = True
    step_host_s: float = 0.0
    copies: int = 1


class Asked(NamedTuple):
    """A request for an adapter of a rank; rank 0 is the base model."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    adapter: int
    rank: int


class Outcome(NamedTuple):
    """Requests per second until the last has ended, mean times to the first token and the last [s], adapters loaded."""

    requests_per_s: float
    first_token_s: float
    in_time: float
    loads: int
    busy: float
    latency_s: float


def serve(
    engine: Engine, prices: StepPrices, setting: Setting, asked: Sequence[Asked], promise_s: float = 6.0
) -> Outcome:
    """Serve requests, in order of arrival, until the last token."""
    environment = simpy.Environment(initial_time=0)
    lane = server(environment, engine, prices, setting)

    def arrive() -> "simpy.events.ProcessGenerator":
        for number, each in enumerate(asked):
            request = _request(number, each)
            yield environment.timeout(request.arrival_ps - environment.now)
            lane.submit(request, each.output_tokens)

    environment.process(arrive())
    environment.run()
    waits_s = [(each.first_token_ps - each.request.arrival_ps) / PICOSECONDS_PER_SECOND for each in lane.served]
    latencies_s = [(each.finish_ps - each.request.arrival_ps) / PICOSECONDS_PER_SECOND for each in lane.served]
    span_s = max(each.finish_ps for each in lane.served) / PICOSECONDS_PER_SECOND
    assert isinstance(lane.pool, AdapterPool)
    return Outcome(
        len(lane.served) / span_s,
        sum(waits_s) / len(waits_s),
        sum(wait_s <= promise_s for wait_s in waits_s) / len(asked),
        lane.pool.loads,
        lane.busy_ps / PICOSECONDS_PER_SECOND / span_s,
        sum(latencies_s) / len(latencies_s),
    )


def server(environment: simpy.Environment, engine: Engine, prices: StepPrices, setting: Setting) -> ScheduledLane:
    """Compose the server: a pool of KV and adapters, admission without preemption, and what adapters cost a step."""
    room_tokens = setting.adapter_room_tokens
    once = host_link(engine, setting.adapter_copy_s)
    link = replace(once, bytes_per_token=setting.copies * once.bytes_per_token)
    pool = AdapterPool(setting.pool_tokens, link, room_tokens, setting.keeps_unused)
    scheduler = no_preempt(
        setting.batch_tokens,
        setting.most_sequences,
        setting.wait_steps,
        room_tokens is None,
        room_tokens or setting.pool_tokens,
        setting.prefetches,
    )
    cost = lora_cost(engine, setting.kernel_launch_s) if setting.computes_adapters else lambda parts: 0
    host_ps = round(setting.step_host_s * PICOSECONDS_PER_SECOND)
    return ScheduledLane(environment, prices, scheduler, pool, extra_ps=lambda parts: host_ps + cost(parts))


def _request(number: int, asked: Asked) -> Request:
    """Return what the server is told: the client asks for as many tokens as it will get."""
    return Request(
        number,
        round(asked.arrival_s * PICOSECONDS_PER_SECOND),
        asked.input_tokens,
        limit_tokens=asked.output_tokens,
        adapter=asked.adapter if asked.rank else None,
        adapter_tokens=adapter_tokens(asked.rank),
    )


def merged_models(engine: Engine, memory_fraction: float = 0.95) -> int:
    """Return how many merged copies of a model, each in a server of its own, fit one device beside one request each."""
    copies = 0
    while True:
        settings = replace(engine.settings, memory_fraction=memory_fraction / (copies + 1))
        if replace(engine, settings=settings).kv_tokens < LONGEST_REQUEST_TOKENS:
            return copies
        copies += 1
