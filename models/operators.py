"""What one operator of a transformer costs on one rank: matrices, elementwise passes and collectives.

Kernels take floats and return seconds. `fit` holds the fitted parameters of one (device, engine, operator, dtype,
kernel) in the order of the operator's *_PARAMETERS; entries whose name ends in _code choose a discrete form.
A *_traits kernel returns its seconds, then traits: the dimensionless numbers that explain its residual.
Attention is in models/attention.py, experts in models/experts.py. Forms: roofline with discrete kernel choice,
calibrated on measurements.
"""

from typing import NamedTuple

import numpy as np

from models.compiled import kernel


class Machine(NamedTuple):
    """What a kernel needs to know of a device: dense peak of the dtype it multiplies in, memory, processors, cache."""

    flops_per_s: float
    bandwidth_bytes_per_s: float
    processors: float
    cache_bytes: float


class Formats(NamedTuple):
    """Bytes of one value as it is multiplied, stored as weight, written out, and kept in the KV cache."""

    activation_bytes: float
    weight_bytes: float
    output_bytes: float
    kv_bytes: float


GEMM_PARAMETERS = (
    *("fixed_s", "compute_efficiency", "tile_exponent", "prologue_k", "memory_efficiency", "processor_share"),
    *("cache_speedup", "cache_copies", "split_s", "split_traffic", "sharpness", "quantise_traffic", "quantise_s"),
    *("wave_s", "power_efficiency", "reread_share", "quantise_row_s", "host_s", "half_bytes", "menu_code"),
)
ROOFLINE_PARAMETERS = (
    *("fixed_s", "compute_efficiency", "memory_efficiency", "half_flops", "half_bytes", "row_s", "cache_speedup"),
    "sharpness",
)
COLLECTIVE_PARAMETERS = (
    *("fixed_s", "hop_s", "bandwidth_bytes_per_s"),
    *("eager_s", "eager_hop_s", "eager_bytes_per_s"),
    *("middle_s", "middle_hop_s", "middle_bytes_per_s", "crowding"),
    *("node_hop_s", "node_bytes_per_s", "rails", "sharpness", "shots_code"),
)

EXCHANGE_PARAMETERS = (
    *("fixed_s", "hop_s", "token_s", "bandwidth_bytes_per_s", "processor_bytes_per_s"),
    *("node_hop_s", "node_bytes_per_s", "sharpness"),
)

LOOKUP_PARAMETERS = ("fixed_s", "lookups_per_s", "memory_efficiency")
LOOKUP_GROUP = 4.0  # weights that one lookup serves (Wei et al., T-MAC)

# Tile heights and widths that matrix kernels are written for; a menu is a range of this list and the split allowed.
TILES = (
    *((128.0, 256.0), (256.0, 128.0), (128.0, 128.0), (64.0, 256.0), (128.0, 64.0), (64.0, 128.0)),
    *((64.0, 64.0), (32.0, 128.0), (16.0, 128.0), (32.0, 64.0), (16.0, 64.0)),
)
FULL_MENU, UNSPLIT_MENU, LARGE_MENU = 0, 1, 2
MENU_TILES = (11, 11, 6)
MENU_SPLIT = (64, 1, 64)
FLOPS_PER_MAC = 2.0
RINGS_ONLY, SHOTS_BY_TIME, SHOTS_BY_SIZE, SHOTS_BY_TOKENS = 0, 1, 2, 3
MOST_SHOT_BYTES = 8.0 * 1024**2  # larger messages go to the collectives library
BOUND_SHARPNESS = 6.0  # of the bounds that power and the host set: they overlap with nothing
SPLIT_BYTES = 8.0  # an fp32 partial sum, written once and read once


@kernel
def smooth_max(first, second, sharpness):
    """Return (first^s + second^s)^(1/s): their maximum for sharpness s to infinity, their sum for s = 1."""
    larger = max(first, second)
    if larger <= 0.0:
        return 0.0
    return larger * (1.0 + (min(first, second) / larger) ** sharpness) ** (1.0 / sharpness)


@kernel
def pieces(length, piece):
    """Return how many pieces cover a length: its quotient, rounded up."""
    return np.ceil(length / piece)


@kernel
def residency(footprint_bytes, cache_bytes):
    """Return the share of a repeatedly read footprint that stays in the last-level cache, between 0 and 1."""
    if cache_bytes <= 0.0:
        return 0.0
    ratio = footprint_bytes / cache_bytes
    return 1.0 / (1.0 + ratio * ratio * ratio * ratio)


@kernel
def gemm_traits(m, n, k, formats, machine, fit):
    """Return the seconds of C[m, n] = A[m, k] B[k, n], m tokens, with the activation's quantisation, then traits.

    Every tile of the menu times every split of k is tried, as a kernel heuristic would: waves over processors of
    tiles of 2 Tm Tn (k / split + prologue) FLOP, against the bytes at the bandwidth that the busy processors reach.
    Panels that the tiles in flight share are read again where they outgrow the cache; power bounds the rate of the
    whole device; a call takes at least what its host takes to launch it. The bandwidth that is reached grows slowly
    with the bytes, to half of all there is at `half_bytes`.
    """
    menu = int(fit[19])
    activation = m * k * formats.activation_bytes
    weights = n * k * formats.weight_bytes
    # What is read over and over, as benchmarks do with some copies of the weights, is all cached or not at all.
    resident = residency((fit[7] * weights + activation) ** 2 / machine.cache_bytes, machine.cache_bytes)
    traffic = activation + weights + m * n * formats.output_bytes
    stream_s = traffic / machine.bandwidth_bytes_per_s * (1.0 - resident + resident / fit[6])
    stream_s *= 1.0 + np.sqrt(fit[18] / traffic)
    rate = machine.flops_per_s / machine.processors * fit[1]
    best, compute_s, memory_s, split_s = 1e30, 0.0, 0.0, 0.0
    height, width, splits, waves = 0.0, 0.0, 1.0, 1.0
    for choice in range(MENU_TILES[menu]):
        tall, wide = TILES[choice]
        tiles = pieces(m, tall) * pieces(n, wide)
        tile_s = FLOPS_PER_MAC * tall * wide / (rate * (tall * wide / 16384.0) ** fit[2])
        side = np.sqrt(min(tiles, machine.processors) * tall * wide)
        panels = (min(m, side) * formats.activation_bytes + min(n, side) * formats.weight_bytes) * k
        missed = 1.0 - residency(panels, machine.cache_bytes)
        again = tiles * (tall * formats.activation_bytes + wide * formats.weight_bytes) * k - activation - weights
        again_s = fit[15] * missed * max(0.0, again) / machine.bandwidth_bytes_per_s
        split = 1
        while split <= MENU_SPLIT[menu]:
            blocks = tiles * split
            rounds = pieces(blocks, machine.processors)
            busy_s = rounds * (tile_s * (k / split + fit[3]) + fit[13])
            active = min(1.0, blocks / machine.processors)
            read_s = (stream_s + again_s) / min(fit[4], fit[5] * active)
            merge_s = 0.0
            if split > 1:
                merge_s = fit[8] + fit[9] * SPLIT_BYTES * m * n * split / machine.bandwidth_bytes_per_s
            total = max(busy_s, read_s) + 0.2 * min(busy_s, read_s) + merge_s
            if total < best:
                best, compute_s, memory_s, split_s = total, busy_s, read_s, merge_s
                height, width, splits, waves = tall, wide, float(split), blocks / machine.processors
            split *= 2
            if k / split < 128.0 or rounds > 1.0:
                break
    compute_s = smooth_max(compute_s, FLOPS_PER_MAC * m * n * k / (machine.flops_per_s * fit[14]), BOUND_SHARPNESS)
    quantise_s = 0.0
    if formats.activation_bytes < 2.0:
        moved_s = fit[11] * m * k * (2.0 + formats.activation_bytes) / machine.bandwidth_bytes_per_s
        quantise_s = fit[12] + max(moved_s, fit[16] * m)
    seconds = fit[0] + smooth_max(compute_s, memory_s, fit[10]) + split_s + quantise_s
    seconds = smooth_max(seconds, fit[17], BOUND_SHARPNESS)
    rounds = np.ceil(waves)
    return (
        seconds,
        compute_s / memory_s,
        waves / rounds,
        rounds,
        height,
        width,
        splits,
        weights / machine.cache_bytes,
        (m % height) / height,
        (n % width) / width,
        quantise_s / seconds,
    )


@kernel
def roofline_traits(flops, moved_bytes, rows, machine, fit):
    """Return the seconds of an operator known by its FLOP, bytes and independent rows of work, then traits.

    Efficiencies saturate with the work at hand.
    """
    resident = residency(moved_bytes, machine.cache_bytes)
    stream_bytes = moved_bytes * (1.0 - resident + resident / fit[6])
    compute_s = (flops + fit[3] * (flops / (flops + fit[3]) if flops > 0.0 else 0.0)) / (machine.flops_per_s * fit[1])
    memory_s = (stream_bytes + fit[4] * (moved_bytes / (moved_bytes + fit[4]))) / (
        machine.bandwidth_bytes_per_s * fit[2]
    )
    waves_s = fit[5] * pieces(rows, machine.processors)
    seconds = fit[0] + smooth_max(compute_s, memory_s, fit[7]) + waves_s
    return seconds, compute_s / max(memory_s, 1e-12), moved_bytes / max(machine.cache_bytes, 1.0), waves_s / seconds


@kernel
def collective(moved_bytes, devices, nodes, all_pairs, rings, fit):
    """Return the seconds of one collective over `devices` devices on `nodes` nodes, message of `moved_bytes`.

    `rings` is how many times a ring passes the message (all-reduce 2, else 1); `all_pairs` is 1 where every device
    sends to every other at once. The fastest of three protocols is taken, smoothly: from low latency and little
    bandwidth to full bandwidth. With every doubling of a node's devices beyond two, bytes take `crowding` times as
    long: more where they share what joins them, less where a switch adds up. Across nodes every protocol adds its hops
    and the slower link, of which a node with more devices has more rails.

    Where `shots_code` is not RINGS_ONLY an all-reduce has kernels of its own: in one shot each device reads the whole
    message of every other, in two it reduces its share and gathers the others'. SHOTS_BY_TIME takes what is quickest,
    SHOTS_BY_SIZE what vLLM and SGLang do, and the library beyond a size; SHOTS_BY_TOKENS one shot as TensorRT-LLM does,
    then what is quicker (`is_one_shot`).
    """
    if devices <= 1.0:
        return 0.0
    hops = devices - 1.0
    crowd = fit[9] ** np.log2(max(1.0, 0.5 * devices / nodes))
    ring_bytes = hops / devices * rings * moved_bytes * crowd
    pair_bytes = ring_bytes if all_pairs <= 0.0 else moved_bytes * crowd
    shots = int(fit[14])
    bulk_s = fit[0] + fit[1] * hops + ring_bytes / fit[2]
    eager_s = fit[3] + fit[4] * hops + (pair_bytes if shots == RINGS_ONLY else hops * moved_bytes) / fit[5]
    middle_s = fit[6] + fit[7] * hops + pair_bytes / fit[8]
    between_s = 0.0
    if nodes > 1.0:
        node_bytes_per_s = fit[11] * (devices / nodes) ** fit[12]
        between_s = (nodes - 1.0) * fit[10] + hops / devices * rings * moved_bytes / node_bytes_per_s
    if shots >= SHOTS_BY_SIZE and is_one_shot(shots, moved_bytes, devices):
        return eager_s + between_s
    if shots == SHOTS_BY_SIZE:
        return (middle_s if moved_bytes <= MOST_SHOT_BYTES else bulk_s) + between_s
    if shots == SHOTS_BY_TOKENS:
        return smooth_min(middle_s, bulk_s, fit[13]) + between_s
    return smooth_min(smooth_min(eager_s, middle_s, fit[13]), bulk_s, fit[13]) + between_s


@kernel
def is_one_shot(shots, moved_bytes, devices):
    """Return whether an all-reduce reads all at once.

    vLLM and SGLang do so for two devices up to 8 MiB, for four below 512 KiB, for eight below 256 KiB (vLLM,
    csrc/custom_all_reduce.cuh); TensorRT-LLM up to 128 tokens, whatever the devices (allReduceFusionKernels.h), which
    is 1 MiB of the 4,096 values a token that tables of it are thought to hold.
    """
    if shots == SHOTS_BY_TOKENS:
        return moved_bytes <= 1048576.0
    if devices <= 2.0:
        return moved_bytes <= MOST_SHOT_BYTES
    return moved_bytes < (524288.0 if devices <= 4.0 else 262144.0)


@kernel
def smooth_min(first, second, sharpness):
    """Return the smaller of two times, or less where they are about equal, as if two paths shared the work."""
    slower, faster = max(first, second), min(first, second)
    return faster * (1.0 + (faster / slower) ** sharpness) ** (-1.0 / sharpness)


@kernel
def distinct(draws, kinds):
    """Return how many of `kinds` equally likely kinds turn up in so many draws."""
    return kinds * (1.0 - (1.0 - 1.0 / kinds) ** draws)


@kernel
def exchange_traits(tokens, hidden, topk, devices, nodes, processors, value_bytes, fit):
    """Return the seconds in which each rank sends its tokens to their experts' ranks, or gets them back, then traits.

    A token goes once to every rank that holds any of its `topk` experts, and once over the slower link to every node
    that does. `processors` are those set aside to copy, which bound the rate; 0 where the library chooses.
    """
    ranks = distinct(topk, devices)
    sent_bytes = tokens * hidden * value_bytes * ranks
    link_s = sent_bytes / fit[3]
    copy_s = sent_bytes / (processors * fit[4]) if processors > 0.0 else 0.0
    between_s = 0.0
    if nodes > 1.0:
        between_s = (nodes - 1.0) * fit[5] + tokens * hidden * value_bytes * distinct(topk, nodes) / fit[6]
    moving_s = smooth_max(smooth_max(link_s, copy_s, fit[7]), between_s, fit[7])
    seconds = fit[0] + fit[1] * (devices - 1.0) + fit[2] * tokens * topk + moving_s
    return seconds, copy_s / link_s, ranks, sent_bytes


@kernel
def lookup_gemm(m, n, k, bits, group, lookups_per_s, bandwidth_bytes_per_s, fixed_s):
    """Return the seconds of a low-bit matrix product by lookup: C[m, n] = A[m, k] B[k, n], weights of `bits` bits.

    Each bit of `group` weights is one lookup in a table of the sums of `group` activations, which all n columns share;
    half of its 2^group entries are worked out, the others are their negatives. Time is linear in bits, and weights are
    read once (Wei et al., T-MAC, EuroSys 2025).
    """
    groups = pieces(k, group)
    lookups = m * groups * n * bits
    entries = m * groups * 2.0 ** (group - 1.0)
    weight_bytes = n * k * bits / 8.0
    return fixed_s + max((lookups + entries) / lookups_per_s, weight_bytes / bandwidth_bytes_per_s)
