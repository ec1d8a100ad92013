"""Power: what a device draws while it waits, while it works, and while it multiplies."""

from models.device import Device
from models.engine import Engine

IDLE_OF_TDP = 0.1  # of the limit, where the idle draw is not known: assumed
FLOPS_PER_WEIGHT = 2.0
# Shares of the span from idle to the limit: drawn by a device that is never waited for, and, for each share of its peak
# that it multiplies at, on top. Least squares on 333 steady states of H100 and B200 under vLLM (ML.ENERGY); of models
# left out, watts were told within 12 % (median) and 27 % (p90), within 16 % and 35 % where only the first is known.
BUSY_SHARE, MULTIPLYING_SHARE, BUSY_ALONE_SHARE = 0.60, 1.25, 0.72


def device_w(device: Device, busy: float, multiplying: float | None = None) -> float | None:
    """Return the watts of one device that works a fraction `busy` of the time; None where its limit is not known.

    multiplying is the fraction of its peak FLOP/s that it reaches on average, where that is known.

    >>> from models import device
    >>> device_w(device.load("h100-sxm"), 0.0)
    71.8
    """
    if device.tdp_w is None:
        return None
    idle_w = device.idle_w if device.idle_w is not None else IDLE_OF_TDP * device.tdp_w
    share = BUSY_ALONE_SHARE * busy
    if multiplying is not None:
        share = BUSY_SHARE * busy + MULTIPLYING_SHARE * multiplying
    return idle_w + min(1.0, share) * (device.tdp_w - idle_w)


def multiplying(engine: Engine, tokens_per_s: float) -> float:
    """Return the fraction of their peak at which a rank's devices multiply, at so many new tokens a second."""
    dtype = next(name for name in ("fp8", "fp4", "int8", "int4", "bf16") if name in (*_narrow(engine.dtype), "bf16"))
    flops_per_s = FLOPS_PER_WEIGHT * engine.llm.active_parameters * tokens_per_s / (engine.tp * engine.pp)
    return min(1.0, flops_per_s / engine.device.peak_flops_per_s(dtype))


def _narrow(dtype: str) -> tuple[str, ...]:
    return tuple(name for name in ("fp8", "fp4", "int8") if dtype.startswith(name) or dtype.endswith(name))
