"""What a layer of experts costs on one rank: two products for the experts that tokens reach, and moving their copies.

Kernels, fitted parameters and traits as in models/operators.py.
"""

import numpy as np

from models.compiled import inner_kernel, kernel
from models.operators import FLOPS_PER_MAC, pieces, residency, smooth_max

MOE_PARAMETERS = (
    *("fixed_s", "compute_efficiency", "tile_exponent", "memory_efficiency", "processor_share", "cache_speedup"),
    *("local_traffic", "routed_traffic", "expert_s", "prologue_k", "sharpness", "skew_balanced", "skew_uneven"),
    *("distinct_uneven", "unaligned_slowdown", "remote_block_s", "block_s", "reread_traffic", "cache_copies"),
    *("width_exponent", "flight_exponent", "width_traffic", "cache_footprint", "tile_code"),
)
QUANTILES = 12.0  # of the power law of tokens over experts
HEIGHTS = (8.0, 16.0, 32.0, 64.0, 128.0)  # tokens of a tile
WIDTH = 128.0  # columns of a tile, where none is told
DEPTH = 64.0  # of the inner dimension that a tile takes at a time, where none is told
MOST_BLOCKS, VALUES_HELD = 8.0, 65_536.0  # of a processor at once, and the values of their tiles together
ALIGNMENT = 16.0  # values; rows that are no multiple of it are not read in vectors
# How a kernel chooses the height of its tiles: the best, one height (its place in HEIGHTS), or by the tokens of the
# step, of an expert, or of one of the rank's experts if all tokens came to it, up to the last height or the one before.
BEST, BY_TOKENS, BY_LOAD, BY_RANK, BY_RANK_LOW = -1, 5, 6, 7, 8
TOKENS_OF_HEIGHT = (0.0, 32.0, 96.0, 512.0)  # up to which a kernel that goes by tokens takes a height


@kernel
def hottest_share(local, ranks, ratio, exponent):
    """Return the load of the busiest of `ranks` ranks over the mean, `local` experts each, under a power law.

    An expert's load follows a density w^-exponent between 1 and `ratio`; the largest of some sums of such loads lies
    z standard deviations above their mean, z that of normal draws and more for few experts, whose sums are skewed.
    """
    power = 1.0 - exponent
    if abs(power) < 1e-6:
        power = 1e-6
    scale = power / (ratio**power - 1.0)
    mean = scale * (ratio ** (power + 1.0) - 1.0) / (power + 1.0)
    square = scale * (ratio ** (power + 2.0) - 1.0) / (power + 2.0)
    spread = np.sqrt(max(0.0, square / (mean * mean) - 1.0) / local)
    return 1.0 + spread * max(0.0, np.sqrt(2.0 * np.log(ranks)) - 0.6) * (1.0 + 0.5 / np.sqrt(local))


@inner_kernel
def spread_over_tiles(copies, local, ratio, exponent):
    """Return how many of a rank's `local` experts are reached, then their tiles of each height, by a law's quantiles.

    An expert's load follows a density w^-exponent between 1 and `ratio`, an exponent of 0 the balanced router.
    """
    kinds, power, stretch, total = 1.0, 1.0, 0.0, 1.0
    if exponent > 0.0:
        kinds = np.floor(min(local, QUANTILES))
        power = 1.0 - exponent if abs(1.0 - exponent) > 1e-6 else 1e-6
        stretch, total = ratio**power - 1.0, 0.0
        for kind in range(int(kinds)):
            total += (stretch * (kind + 0.5) / kinds + 1.0) ** (1.0 / power)
    reached, low, small, middle, tall, tallest = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for kind in range(int(kinds)):
        load = copies / local
        if exponent > 0.0:
            load *= (stretch * (kind + 0.5) / kinds + 1.0) ** (1.0 / power) * kinds / total
        share, filled = local / kinds * min(1.0, load), max(load, 1.0)
        reached += share
        low += share * pieces(filled, HEIGHTS[0])
        small += share * pieces(filled, HEIGHTS[1])
        middle += share * pieces(filled, HEIGHTS[2])
        tall += share * pieces(filled, HEIGHTS[3])
        tallest += share * pieces(filled, HEIGHTS[4])
    return reached, low, small, middle, tall, tallest


@kernel
def tokens_of_rank(m, experts, topk, ep, exponent):
    """Return how many of m tokens have an expert on the rank priced: the busiest under a power law."""
    local = max(1.0, experts / ep)
    if exponent <= 0.0:
        return min(m, max(1.0, np.ceil(m * local / np.ceil(experts / topk))))
    ratio = spread_of_loads(m, experts, topk)
    copies = max(1.0, min(m * topk / ep * hottest_share(local, ep, ratio, exponent), m * min(local, topk)))
    if topk <= 1.0:
        return min(copies, m)
    kinds = np.floor(min(local, QUANTILES))
    power = 1.0 - exponent if abs(1.0 - exponent) > 1e-6 else 1e-6
    stretch, total, missed = ratio**power - 1.0, 0.0, 1.0
    for kind in range(int(kinds)):
        total += (stretch * (kind + 0.5) / kinds + 1.0) ** (1.0 / power)
    for kind in range(int(kinds)):
        load = copies / local * (stretch * (kind + 0.5) / kinds + 1.0) ** (1.0 / power) * kinds / total
        missed *= max(0.0, 1.0 - load / m) ** (local / kinds)
    return max(1.0, m * (1.0 - missed))


@kernel
def spread_of_loads(m, experts, topk):
    """Return the largest load of an expert over the least that a power law allows."""
    return max(1.5, 0.8 * m) if m * topk > experts else 200.0


@inner_kernel
def is_height_of(code, told, choice, tokens, expert_load, rank_load):
    """Return whether a kernel that is told a height, or else chooses by `code`, may take that at place `choice`."""
    if told > 0.0:
        return HEIGHTS[choice] == min(told, HEIGHTS[4])
    if code == BEST:
        return True
    if code == BY_TOKENS:
        least = TOKENS_OF_HEIGHT[choice - 1] if choice > 0 else np.inf
        return tokens > least and (choice == 4 or tokens <= TOKENS_OF_HEIGHT[choice])
    if code >= BY_LOAD:
        load = expert_load if code == BY_LOAD else 0.5 * rank_load
        wanted = min(max(load, HEIGHTS[0]), HEIGHTS[3] if code == BY_RANK_LOW else HEIGHTS[4])
        return wanted <= HEIGHTS[choice] and HEIGHTS[choice] < 2.0 * wanted
    return choice == code


@inner_kernel
def grouped_product(told, tiles, height, breadth, depth, reached, copies, near, n, k, formats, machine, fit):
    """Return the seconds in which processors multiply, and read, a product [k, n] of each expert, and its rounds.

    Each tile of an expert reads the weights again, from memory where they are larger than the cache. Where the tile is
    told, what blocks read at a time, some on a processor, bounds the bandwidth. `near` is the time of memory that is
    left where all is in the cache.
    """
    blocks = tiles * pieces(n, breadth)
    rounds = 0.5 * (pieces(blocks, machine.processors) + blocks / machine.processors)
    rate = machine.flops_per_s / machine.processors * fit[1] * (max(height, told) / 128.0) ** fit[2]
    rate *= (breadth / WIDTH) ** fit[19]
    busy_s = rounds * FLOPS_PER_MAC * height * breadth * (pieces(k, depth) * depth + fit[9]) / rate
    expert_bytes = n * k * formats.weight_bytes
    again = (tiles / reached - 1.0) * fit[17] * (1.0 - residency(fit[18] * expert_bytes, machine.cache_bytes))
    weights = reached * expert_bytes * (near + max(again, 0.0))
    moved = fit[6] * copies * (k * formats.activation_bytes + n * formats.output_bytes) * near
    together = min(MOST_BLOCKS, VALUES_HELD / ((height + breadth) * depth)) if told > 0.0 else 1.0
    active = min(together, blocks / machine.processors)
    if told > 0.0:
        active *= (breadth * depth * formats.weight_bytes / (2.0 * WIDTH * DEPTH)) ** fit[20]
    read_s = (weights + moved) / machine.bandwidth_bytes_per_s / min(fit[3], fit[4] * active)
    return busy_s, read_s, rounds


@kernel
def moe_traits(
    m, hidden, inter, experts, topk, tp, ep, uneven, matrices, tall, wide, deep, strays, formats, machine, fit
):
    """Return the seconds of one fused expert layer for m tokens entering the rank, then traits.

    `inter` and `experts` are global; the rank holds experts / ep of them and inter / tp of each. `uneven` is 0 for a
    balanced router, else the exponent of the power law of tokens over experts. `matrices` is 3 for a gated
    activation, 2 for a plain one. `tall` x `wide` x `deep` is the tile, zeros where the kernel does not tell. Where it
    `strays`, its rank is sent the tokens with an expert there only, and takes their copies for other ranks as its
    first expert's.

    Distinct experts read their weights once; tokens of an expert are padded to the tile height; activations move for
    the local copies and, in kernels that permute globally, for all m topk routed copies, whose remote tiles start only
    to end at once. Weights and copies share the cache: benchmarks read them over and over. Where inter / tp is not
    aligned, the second product is slower. Under a power law the rank priced is the busiest, and its experts' loads are
    taken at evenly spaced quantiles of the law.
    """
    local = max(1.0, experts / ep)
    width = inter / tp
    columns = (matrices - 1.0) * width
    copies = m * topk / ep
    ratio = 1.0
    if uneven > 0.0:
        ratio = spread_of_loads(m, experts, topk)
        hottest = 1.0 + fit[12] * (hottest_share(local, ep, ratio, uneven) - 1.0)
        copies = max(1.0, min(copies * hottest, m * min(local, topk)))
    tiles = spread_over_tiles(copies, local, ratio, uneven)
    if uneven > 0.0:
        reached = max(1.0, tiles[0] * fit[13])
    else:
        reached = min(local, max(1.0, copies))
        copies = max(1.0, copies * (1.0 + fit[11] * (1.0 - 1.0 / ep)))
        tiles = spread_over_tiles(copies, local, ratio, uneven)
    seen = m
    if strays > 0.0 and ep > 1.0:
        seen = tokens_of_rank(m, experts, topk, ep, uneven)
    stray = max(0.0, seen * topk - copies) if strays > 0.0 else 0.0
    breadth, depth = wide if wide > 0.0 else WIDTH, deep if deep > 0.0 else DEPTH
    routed = seen * topk * (hidden + fit[21] * width) * formats.output_bytes
    held = reached * (columns + width) * hidden * formats.weight_bytes + routed
    near = residency(fit[22] * held * held / machine.cache_bytes, machine.cache_bytes)
    near = 1.0 - near + near / fit[5]
    slowdown = fit[14] if width % ALIGNMENT > 0.0 else 1.0
    best, compute_s, memory_s, height, tall_tiles, rounds, second_rounds = 1e30, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0
    for choice in range(len(HEIGHTS)):
        if not is_height_of(int(fit[23]), tall, choice, m, m * topk / experts, m * topk / local):
            continue
        stacked = tiles[choice + 1] + stray / HEIGHTS[choice]
        of_rank = (tall, stacked, HEIGHTS[choice], breadth, depth, reached, copies + stray, near)
        up = grouped_product(*of_rank, columns, hidden, formats, machine, fit)
        down = grouped_product(*of_rank, hidden, width, formats, machine, fit)
        total = smooth_max(up[0], up[1], fit[10]) + slowdown * smooth_max(down[0], down[1], fit[10])
        total += (up[2] + down[2]) * fit[16]
        if total < best:
            best, height, tall_tiles, rounds, second_rounds = total, HEIGHTS[choice], stacked, up[2], down[2]
            compute_s, memory_s = up[0] + down[0], up[1] + down[1]
    remote = 0.0 if strays > 0.0 else min(m * topk * (1.0 - 1.0 / ep), experts - local)
    remote_s = fit[15] * remote * (pieces(columns, breadth) + pieces(hidden, breadth)) / machine.processors
    routed_s = fit[7] * routed * near / machine.bandwidth_bytes_per_s
    seconds = fit[0] + fit[8] * reached + best + remote_s + routed_s
    per_expert = copies / reached
    return (
        seconds,
        compute_s / memory_s,
        rounds / np.ceil(rounds),
        rounds,
        height,
        per_expert,
        per_expert % height / height,
        reached,
        reached / local,
        reached * (columns + width) * hidden * formats.weight_bytes / machine.cache_bytes,
        routed_s / seconds,
        second_rounds,
        columns / (breadth * pieces(columns, breadth)),
        width,
        remote_s / seconds,
        tall_tiles / reached,
        breadth,
        depth,
        seen * topk / local,
    )
