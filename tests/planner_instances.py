"""A generated planning instance: ten devices, up to twenty engines each, 200 size buckets, roofline capacities.

Stated laws: prompts and answers are log-normal, each bucket a quantile cell of them; an engine's rate for a bucket is
1 / (prefill seconds + answer tokens * step seconds / batch), the batch filling the memory that weights leave, its step
within a limit; what a cut reaches of the peaks in prefill and in decode differs by up to 12 % either way. "Balanced"
prices make the best engine of every device as good as any other on the mean bucket, but for another 12 %.
"""

import itertools
from statistics import NormalDist

import numpy as np

DEVICES = (  # dense bf16 TFLOP/s, GB/s, GB: round numbers of ten kinds
    (990, 3350, 80),
    (990, 4800, 141),
    (2250, 8000, 180),
    (312, 2040, 80),
    (362, 864, 48),
    (125, 600, 24),
    (121, 300, 24),
    (1307, 5300, 192),
    (165, 1008, 24),
    (1835, 3700, 128),
)
CUTS = (1, 2, 4, 8)
BYTES = (2.0, 1.0)
STAGES = (1, 2)
STEP_LIMITS_S = (0.03, 0.06)
NOISE = 0.12
MODELS = {"70b": (70.6e9, 327_680), "8b": (8.0e9, 131_072)}  # parameters, KV bytes a token in bf16


def instance(model: str, rate_per_s: float, buckets: int = 200, seed: int = 0):
    """Return prices [engine] and load [engine, bucket] of a fleet for so many requests per second."""
    rng = np.random.default_rng(seed)
    inputs, outputs = _bucket_sizes(buckets)
    rates, devices, sizes = [], [], []
    for number, device in enumerate(DEVICES):
        for cut, width, stages, limit_s in itertools.product(CUTS, BYTES, STAGES, STEP_LIMITS_S):
            reached = rng.uniform(1 - NOISE, 1 + NOISE, 2)
            rate = _rate(model, device, cut, width, stages, limit_s, reached, inputs, outputs)
            if rate.max() > 0 and cut * stages <= max(CUTS):
                rates.append(rate)
                devices.append(number)
                sizes.append(cut * stages)
    mu = np.array(rates)
    share = np.full(buckets, 1 / buckets)
    with np.errstate(divide="ignore"):
        load = rate_per_s * share / mu
    per_device = np.array([_best_rate(mu, devices, sizes, number) for number in range(len(DEVICES))])
    price = 4.0 * per_device / per_device.max() * rng.uniform(1 - NOISE, 1 + NOISE, len(DEVICES))
    usd = np.array([price[device] * cut for device, cut in zip(devices, sizes, strict=True)])
    return usd, load


def _bucket_sizes(buckets: int):
    side = int(np.sqrt(buckets / 2))
    columns = buckets // side
    normal = NormalDist()
    inputs = np.array([np.exp(7.3 + 1.2 * normal.inv_cdf((row + 0.5) / columns)) for row in range(columns)])
    outputs = np.array([np.exp(5.6 + 0.9 * normal.inv_cdf((row + 0.5) / side)) for row in range(side)])
    grid = np.array([(prompt, answer) for prompt in inputs for answer in outputs])[:buckets]
    return grid[:, 0], grid[:, 1]


def _rate(model, device, cut, width, stages, limit_s, reached, inputs, outputs):
    """Return requests per second of one replica by bucket; 0 where it does not fit or cannot keep the step limit."""
    parameters, kv_bytes = MODELS[model]
    tflops, gb_per_s, gigabytes = device
    flops = tflops * 1e12 * cut * (0.92 ** np.log2(cut)) * 0.6 * (2.0 / width) ** 0.8 * reached[0]
    bandwidth = gb_per_s * 1e9 * cut * 0.8 * reached[1]
    free = gigabytes * 1e9 * cut * stages * 0.9 - parameters * width - 2e9
    context = inputs + outputs / 2
    batch = np.floor(free / (kv_bytes * context)) / stages if free > 0 else np.zeros_like(inputs)
    per_sequence_s = np.maximum(kv_bytes * context / bandwidth, 2 * parameters / flops)
    fixed_s = parameters * width / bandwidth + 0.001 * np.log2(2 * cut)
    batch = np.minimum(np.minimum(batch, 256), np.floor((limit_s - fixed_s) / per_sequence_s))
    step_s = fixed_s + batch * per_sequence_s
    prefill_s = 2 * parameters * inputs / flops
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = stages / (prefill_s + outputs * step_s / batch)
    return np.where(batch >= 1, rate, 0.0)


def _best_rate(mu, devices, sizes, number):
    """Return the best mean rate per device of any of its engines."""
    own = [mu[place].mean() / sizes[place] for place, device in enumerate(devices) if device == number]
    return max(own, default=0.05)
