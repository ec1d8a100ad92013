"""What a fleet was used for in a run: arithmetic, memory traffic, KV, energy, and the money that idle lanes cost.

All is counted from the requests' own columns and the lanes' step counts, so a run pays nothing for it. Work computed
again after a preemption is not counted as useful. Everything is `modelled`: no meter was read.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.engine import Engine
from models.llm import Llm
from models.power import device_w
from models.step import PICOSECONDS_PER_SECOND
from simulator.run import SECONDS_PER_HOUR, Run

Floats = npt.NDArray[np.float64]

FLOPS_PER_WEIGHT = 2  # a multiplication and an addition
FLOPS_PER_PAIR_AND_WIDTH = 2  # of a query with a key, and again of its weight with a value


@dataclass(frozen=True, slots=True)
class Usage:
    """What one pool did from the trace's start to the last token.

    busy is the fraction of lane time spent in steps; compute, bandwidth and kv are fractions of what the devices
    could do or hold all that time; None where the engine's shapes are not known. idle_usd is what the idle lanes
    cost; energy_j that of all devices, None where their power limit is not known.
    """

    busy: float
    compute: float | None
    bandwidth: float | None
    kv: float
    idle_usd: float
    energy_j: float | None


def usage(run: Run) -> list[Usage]:
    """Return what every pool of a run's fleet was used for."""
    return [_of_pool(run, pool, busy) for pool, busy in enumerate(run.busy_fraction())]


def energy_j(run: Run) -> float | None:
    """Return the joules of the whole fleet, None where a pool's are not known."""
    pools = [each.energy_j for each in usage(run)]
    known = [joules for joules in pools if joules is not None]
    return sum(known) if len(known) == len(pools) else None


def _of_pool(run: Run, pool: int, busy: float) -> Usage:
    chosen = run.fleet.pools[pool]
    engine, span_s = chosen.engine.engine, run.span_s
    idle_usd = (1.0 - busy) * chosen.replicas * chosen.usd_per_hour * span_s / SECONDS_PER_HOUR
    compute = bandwidth = energy = None
    if engine is not None and span_s > 0:
        devices = chosen.replicas * engine.devices
        device_span_s = devices * span_s
        work = _work(run, pool, engine.llm)
        compute = work.flops / (device_span_s * engine.device.peak_flops_per_s(engine.dtype))
        moved_bytes = _weight_traffic_bytes(run, pool, engine, work.tokens)
        moved_bytes += work.context_tokens * engine.kv_bytes_per_token_per_device * engine.tp * engine.pp
        bandwidth = moved_bytes / (device_span_s * engine.device.bandwidth_bytes_per_s)
        watts = device_w(engine.device, busy, compute)
        energy = None if watts is None else watts * device_span_s
    return Usage(busy, compute, bandwidth, _kv_fraction(run, pool), idle_usd, energy)


@dataclass(frozen=True, slots=True)
class _Work:
    """Useful work of a pool: flops, tokens put through the layers, and context tokens read by decodes."""

    flops: float
    tokens: float
    context_tokens: float


def _prefill_share(run: Run, pool: int) -> Floats:
    """Return the share of each request's prefill that a pool did.

    What a decode pool ends was prefilled by the prefill pools, each by its share of the requests it was given.
    """
    roles = [each.role for each in run.fleet.pools]
    mine = _finished_in(run, pool).astype(np.float64)
    if roles[pool] == "decode":
        return np.where(run.trace.output_tokens <= 1, mine, 0.0)
    if roles[pool] == "prefill":
        given = np.bincount(run.lanes["pool"], run.lanes["assigned"], len(roles))
        share = given[pool] / sum(given[other] for other, role in enumerate(roles) if role == "prefill")
        handed = np.any([_finished_in(run, other) for other, role in enumerate(roles) if role == "decode"], axis=0)
        return np.asarray(mine + share * handed)
    return mine


def _finished_in(run: Run, pool: int) -> npt.NDArray[np.bool_]:
    """Return which requests ended on a lane of a pool."""
    found: npt.NDArray[np.bool_] = run.is_finished & (run.lanes["pool"][np.maximum(run.outcome.lane, 0)] == pool)
    return found


def _work(run: Run, pool: int, llm: Llm) -> _Work:
    prefills, decodes = _prefill_share(run, pool), _finished_in(run, pool).astype(np.float64)
    cached = run.outcome.cached_tokens.astype(np.float64)
    new = run.trace.input_tokens - cached
    steps = np.maximum(run.trace.output_tokens - 1.0, 0.0)
    context = steps * run.trace.input_tokens + steps * (steps + 1) / 2
    pairs = prefills * new * (cached + (new + 1) / 2) + decodes * context
    prompt_tokens, answer_tokens = float((prefills * new).sum()), float((decodes * steps).sum())
    head = llm.vocabulary * llm.hidden
    body = llm.active_parameters - head * (1 if llm.tied_embeddings else 2)
    tokens = prompt_tokens + answer_tokens
    flops = FLOPS_PER_WEIGHT * (body * tokens + head * (prefills.sum() + answer_tokens))
    flops += FLOPS_PER_PAIR_AND_WIDTH * _pair_width(llm) * float(pairs.sum())
    return _Work(float(flops), tokens, float((decodes * context).sum()))


def _pair_width(llm: Llm) -> float:
    """Return the widths of keys and values summed over heads and full-attention layers."""
    width = (llm.nope_dim + llm.rope_dim if llm.kv_lora else llm.head_dim) + (llm.v_head_dim or llm.head_dim)
    return float(llm.full_attention_layers * llm.heads * width)


def _weight_traffic_bytes(run: Run, pool: int, engine: Engine, tokens: float) -> float:
    """Return the weights that a pool's steps read: of routed experts, those that a mean step's tokens come to."""
    steps = float(run.lanes["scheduled_steps"][run.lanes["pool"] == pool].sum())
    if steps == 0:
        return 0.0
    rank_bytes = engine.weight_bytes_per_device * engine.tp * engine.pp
    if engine.llm.experts:
        expert_bytes = engine.llm.expert_bytes(engine.dtype) * engine.tp / max(engine.tp, engine.ep)
        missed = (1.0 - engine.llm.experts_per_token / engine.llm.experts) ** (tokens / steps)
        rank_bytes -= missed * expert_bytes
    return steps * rank_bytes


def _kv_fraction(run: Run, pool: int) -> float:
    """Return the mean fraction of a pool's KV tokens held: the whole prompt from its first step on, then the answer."""
    lanes = run.lanes[run.lanes["pool"] == pool]
    capacity_tokens = float((lanes["total_blocks"] << lanes["block_shift"]).sum())
    if capacity_tokens == 0 or run.span_s == 0:
        return 0.0
    prefill_s, decode_s = _spans_s(run, "scheduled_ps", "first_token_ps"), _spans_s(run, "first_token_ps", "finish_ps")
    inputs, outputs = run.trace.input_tokens.astype(np.float64), run.trace.output_tokens.astype(np.float64)
    held = _prefill_share(run, pool) * inputs * prefill_s
    held += _finished_in(run, pool) * (inputs + outputs / 2) * decode_s
    return float(held.sum()) / (capacity_tokens * run.span_s)


def _spans_s(run: Run, start: str, end: str) -> Floats:
    span_s = (getattr(run.outcome, end) - getattr(run.outcome, start)) / PICOSECONDS_PER_SECOND
    return np.where(run.is_finished, span_s, 0.0)
