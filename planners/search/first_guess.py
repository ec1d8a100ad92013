"""A first guess within a second: what the data sheets alone say, before anything is compiled, solved or replayed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models import price
from models.device import Device
from models.dtype import OFFERED, bytes_per_value, multiplied_in
from models.llm import Llm
from traces import Trace

SPEED_FRACTION = 0.5  # of the data sheet: an assumption, told with every guess
MEMORY_FRACTION = 0.9


@dataclass(frozen=True, slots=True)
class Guess:
    """The cheapest single-device fleet at half the speed of its data sheet, and what no fleet can undercut [USD/h].

    The floor lets every device run at its full data-sheet speed without a pause, and counts fractions of devices.
    """

    device: str
    dtype: str
    replicas: int
    devices_per_replica: int
    usd_per_hour: float
    usd_per_hour_floor: float

    def describe(self) -> str:
        """Return the guess in words."""
        fleet = f"{self.replicas} x {self.device} tp{self.devices_per_replica} {self.dtype}"
        floor = f"at full speed none can cost less than {self.usd_per_hour_floor:.2f} USD/h"
        return f"at {SPEED_FRACTION:.0%} of the data sheets' speed {fleet} for {self.usd_per_hour:.2f} USD/h; {floor}"


def first_guess(trace: Trace, llm: Llm, devices: Sequence[Device]) -> Guess | None:
    """Return the guess for a trace, or None where the model fits on a node of none of the devices."""
    guesses = [
        guess
        for device in devices
        for dtype in dict.fromkeys(map(llm.format_of, OFFERED))
        if multiplied_in(dtype) in ("bf16", *device.flops_per_s)
        if (guess := _guess(trace, llm, device, dtype)) is not None
    ]
    if not guesses:
        return None
    best = min(guesses, key=lambda guess: guess.usd_per_hour)
    floor = min(guess.usd_per_hour_floor for guess in guesses)
    return Guess(best.device, best.dtype, best.replicas, best.devices_per_replica, best.usd_per_hour, floor)


def device_seconds(trace: Trace, llm: Llm, device: Device, dtype: str) -> float:
    """Return the device time that the trace takes at full data-sheet speed: the longer of arithmetic and KV reads."""
    inputs, outputs = trace.input_tokens.astype(np.float64), trace.output_tokens.astype(np.float64)
    flops = 2.0 * llm.active_parameters * float((inputs + outputs).sum())
    kv_bytes = llm.kv_bytes_per_token() * float((outputs * (inputs + outputs / 2)).sum())
    return max(flops / device.peak_flops_per_s(multiplied_in(dtype)), kv_bytes / device.bandwidth_bytes_per_s)


def _guess(trace: Trace, llm: Llm, device: Device, dtype: str) -> Guess | None:
    offer = price.load(device.name)
    needed = llm.parameters * bytes_per_value(dtype) / (MEMORY_FRACTION * device.memory_bytes)
    together = 1 << max(0, math.ceil(math.log2(needed)))
    if offer is None or together > device.node_size:
        return None
    mean_devices = device_seconds(trace, llm, device, dtype) / max(trace.span_s, 1.0)
    replicas = max(1, math.ceil(mean_devices / SPEED_FRACTION / together))
    usd_per_hour = replicas * together * offer.usd_per_hour
    return Guess(device.name, dtype, replicas, together, usd_per_hour, mean_devices * offer.usd_per_hour)
