"""Power: what a device draws while it waits and while it works."""

from models.device import Device

IDLE_OF_TDP = 0.1  # of the limit, where the idle draw is not known: assumed
POWER_OF_BUSY = 0.85  # of the span from idle to the limit, drawn by a device that is never waited for: assumed


def device_w(device: Device, busy: float) -> float | None:
    """Return the watts of one device that works a fraction `busy` of the time; None where its limit is not known.

    >>> from models import device
    >>> device_w(device.load("h100-sxm"), 0.0)
    71.8
    """
    if device.tdp_w is None:
        return None
    idle_w = device.idle_w if device.idle_w is not None else IDLE_OF_TDP * device.tdp_w
    return idle_w + POWER_OF_BUSY * busy * (device.tdp_w - idle_w)
