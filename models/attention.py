"""What attention costs on one rank: prefill, decode, both in one call, and latent (MLA) attention.

Kernels take floats and return seconds; `fit` is as in models/operators.py. Shapes are per rank.
"""

import numpy as np

from models.compiled import inner_kernel, kernel
from models.operators import BOUND_SHARPNESS, FLOPS_PER_MAC, SPLIT_BYTES, pieces, residency, smooth_max

DECODE_PARAMETERS = (
    *("fixed_s", "compute_efficiency", "memory_efficiency", "processor_share", "cache_speedup", "cache_copies"),
    *("combine_s", "wave_s", "block_s", "head_dim_half", "sharpness", "lone_cost", "wave_dims", "wave_tail"),
    *("occupancy", "combine_traffic", "append_traffic", "host_s", "copy_s", "combine_split_s", "odd_dim_s"),
    *("lone_wave", "split_code", "packing_code", "chunk_code"),
)
PREFILL_PARAMETERS = (
    *("fixed_s", "compute_efficiency", "memory_efficiency", "head_dim_half", "tile_exponent", "prologue_tokens"),
    *("wave_s", "balance", "cache_speedup", "sharpness"),
    *("height_code", "packing_code"),
)
MIXED_PARAMETERS = (
    *("fixed_s", "compute_efficiency", "memory_efficiency", "prologue_tokens", "decode_weight", "balance"),
    *("wave_s", "cache_speedup", "sharpness"),
    "packing_code",
)
# How libraries cut a context into splits: TensorRT-LLM's XQA by waves, its masked attention for lone heads only,
# SGLang's Triton kernel, FlashAttention-2, FlashInfer's plan, vLLM's Triton kernel.
SPLIT_NEVER, SPLIT_ALWAYS, SPLIT_WAVES, SPLIT_LONE = 0, 1, 2, 3
SPLIT_FEW, SPLIT_FULLEST, SPLIT_PLANNED, SPLIT_SEGMENTS = 4, 5, 6, 7
# When query heads of one KV head share a tile, and how tall tiles are.
PACK_NEVER, PACK_ALWAYS, PACK_UNWINDOWED, PACK_SMALL, PACK_BUSY = 0, 1, 2, 3, 4
PACK_TENSOR, PACK_TILED, PACK_PLANNED = 5, 6, 7
CHUNK = 8192.0  # tokens of chunked attention, which a kernel with chunk_code 1 reads as the whole context
LARGEST_PACKED = 32.0  # query heads of one KV head that kernels of PACK_SMALL put in one tile
BUSY_SHARE = 0.25  # of the processors that packed blocks must reach, else heads go one by one (TensorRT-LLM, XQA)
PART_TOKENS = 128.0  # of KV that a split gets at least, by waves or by plan
LONE_SPLIT_BYTES = 16384.0  # of one value a token of a lone head's split at least, squared with the cache's format
SMALL_BLOCKS = 4.0  # of lone heads, that a processor holds instead of one once 1.3 of the large are to run on each
MANY_BLOCKS = 1.3
SPLIT_TOKENS = 256.0  # of SPLIT_ALWAYS
MOST_WAVES = 8.0  # of blocks that SPLIT_WAVES aims at
MOST_SPLITS, TILE_ROWS, FEWEST_TOKENS = 8.0, 16.0, 64.0  # of SPLIT_FEW
FULL_SHARE, MOST_FULL_SPLITS = 0.85, 128.0  # of SPLIT_FULLEST: of the best filled waves, and splits
BUSY_FROM = 0.8  # of what the device holds, from where contexts are not split
SEGMENTS, MOST_SEGMENTED, SEGMENT_TOKENS = 16.0, 128.0, 32.0  # of SPLIT_SEGMENTS: splits, blocks, tokens at least
LARGE_TILE_ROWS, LARGEST_TILE_ROWS = 64.0, 128.0
TENSOR_GROUP = 4.0  # query heads of one KV head from which kernels of PACK_TENSOR multiply on tensor cores
HELD = 2.0  # blocks that a processor is taken to hold
TILE_HEIGHTS = (16.0, 64.0, 128.0, 256.0)
MATMULS = 2.0  # scores = Q K^T, then scores V
KV_TENSORS = 2.0
BYTES_PER_QUERY = 2.0
MIXED_TILE = 128.0
MIXED_BLOCK = 64.0


@inner_kernel
def is_packed(code, window, group):
    """Return whether the queries of one KV head share a tile: never, always, without a window, or in small groups."""
    small = group <= LARGEST_PACKED and group == np.floor(group)
    return (
        code in (PACK_ALWAYS, PACK_TENSOR, PACK_TILED, PACK_PLANNED)
        or (code == PACK_UNWINDOWED and window <= 0.0)
        or (code == PACK_SMALL and small)
        or (code == PACK_BUSY and small and group > 1.0)
    )


@inner_kernel
def is_busy(blocks, kv_tokens, processors):
    """Return whether the blocks of packed heads, one a part of the context, keep enough processors busy."""
    return blocks * max(1.0, kv_tokens // PART_TOKENS) >= BUSY_SHARE * processors


@inner_kernel
def tile_rows(packing, split, group, head_dim):
    """Return how many query rows of one KV head a tile takes."""
    if split == SPLIT_FEW:
        return TILE_ROWS
    if packing == PACK_TILED:
        return TILE_ROWS if group <= LARGEST_PACKED else LARGE_TILE_ROWS
    if packing == PACK_PLANNED or (packing == PACK_TENSOR and group >= TENSOR_GROUP):
        if group <= TILE_ROWS:
            return TILE_ROWS
        return LARGEST_TILE_ROWS if group > LARGE_TILE_ROWS and head_dim < 256.0 else LARGE_TILE_ROWS
    return group


@inner_kernel
def step_tokens(split, head_dim):
    """Return how many tokens of its context a block walks at once."""
    if split != SPLIT_FULLEST:
        return 64.0
    if head_dim > 128.0:
        return 64.0
    return 128.0 if head_dim > 64.0 else 256.0


@inner_kernel
def fullest_splits(blocks, steps, slots):
    """Return the fewest splits of `steps` steps that fill waves of `slots` blocks to 85 % of the best (Dao et al.)."""
    if blocks >= BUSY_FROM * slots:
        return 1.0
    most = int(min(MOST_FULL_SPLITS, slots, steps))
    best = 0.0
    for goal in range(2):
        for splits in range(1, most + 1):
            waves = blocks * splits / slots
            filled = waves / np.ceil(waves)
            if splits > 1 and np.ceil(steps / splits) == np.ceil(steps / (splits - 1)):
                continue
            if goal == 0:
                best = max(best, filled)
            elif filled >= FULL_SHARE * best:
                return float(splits)
    return 1.0


@inner_kernel
def context_splits(code, blocks, is_lone, held, kv_tokens, seen, head_dim, kv_value_bytes, window, processors):
    """Return into how many splits a kernel cuts the context of each block: one, or by its library's rule.

    SPLIT_WAVES cuts the whole context, windowed or not, into at most sqrt(8 parts) and so many splits as make eight
    waves, but lone heads' only to occupy the device; SPLIT_FEW makes at most eight, more for long contexts;
    SPLIT_FULLEST fills its waves, without a window; SPLIT_PLANNED fills the blocks that are `held`; SPLIT_SEGMENTS
    makes sixteen where blocks are few.
    """
    if code in (SPLIT_WAVES, SPLIT_LONE) and is_lone:
        fewest = LONE_SPLIT_BYTES * kv_value_bytes / head_dim
        return max(1.0, min(seen // fewest, np.ceil(processors / blocks)))
    if code == SPLIT_WAVES:
        parts = kv_tokens // PART_TOKENS
        return max(1.0, min(parts, np.ceil(np.sqrt(MOST_WAVES * parts)), MOST_WAVES * processors // blocks))
    if code == SPLIT_FEW:
        reach = np.floor(processors * max(1.0, np.log2(seen / FEWEST_TOKENS)))
        return min(MOST_SPLITS, np.ceil(reach / blocks))
    if code == SPLIT_FULLEST and not is_lone and window <= 0.0:
        return fullest_splits(blocks, pieces(seen, step_tokens(code, head_dim)), held * processors)
    if code == SPLIT_PLANNED:
        return max(1.0, min(held * processors // blocks, pieces(seen, PART_TOKENS)))
    if code == SPLIT_SEGMENTS and blocks <= MOST_SEGMENTED:
        return min(SEGMENTS, pieces(kv_tokens, SEGMENT_TOKENS))
    if code == SPLIT_ALWAYS and blocks < BUSY_FROM * processors:
        return max(1.0, min(processors // blocks, pieces(seen, SPLIT_TOKENS)))
    return 1.0


@inner_kernel
def launched_splits(code, splits, blocks):
    """Return how many splits a kernel launches: Triton's grids are fixed, and splits without tokens leave at once."""
    if code == SPLIT_FEW:
        return MOST_SPLITS
    if code == SPLIT_SEGMENTS and blocks <= MOST_SEGMENTED:
        return SEGMENTS
    return splits


@inner_kernel
def blocks_held(split, packing, is_lone, group, blocks, processors):
    """Return how many blocks a processor is taken to hold at once: those of lone heads are limited by their memory."""
    if packing == PACK_TENSOR and is_lone:
        return 1.0 if group <= 1.0 else 4.0
    if split in (SPLIT_WAVES, SPLIT_LONE) and is_lone and blocks > MANY_BLOCKS * processors:
        return HELD * SMALL_BLOCKS
    return HELD


@kernel
def attention_decode_traits(batch, kv_tokens, heads, kv_heads, head_dim, window, formats, machine, fit):
    """Return the seconds of one query a sequence over `kv_tokens` cached tokens each, `batch` sequences, then traits.

    KV is read at the bandwidth that the busy blocks reach, or from cache; each block costs the padded query rows; a
    long context is split over idle processors and combined, which takes a pass over the splits' results. Blocks run in
    waves, in which those whose split lies before the window or beyond the context leave at once; a block of one query
    row is another kernel. New tokens are appended first; FlashAttention-2 moves queries and results of packed heads
    once more (copy_s); heads of an odd size take another pass (odd_dim_s); a call takes at least what its host takes.
    """
    split, packing = int(fit[22]), int(fit[23])
    seen = kv_tokens if window <= 0.0 or (fit[24] > 0.0 and window >= CHUNK) else min(kv_tokens, window)
    group = heads / kv_heads
    packed = is_packed(packing, window, group)
    if packing == PACK_BUSY:
        packed = packed and is_busy(batch * kv_heads, kv_tokens, machine.processors)
    rows, padded, blocks = 1.0, TILE_ROWS, batch * heads
    if packed:
        tile = tile_rows(packing, split, group, head_dim)
        rows, blocks = min(group, tile), batch * kv_heads * pieces(group, tile)
        padded = tile if packing in (PACK_TENSOR, PACK_PLANNED) and tile > group else TILE_ROWS
    is_lone = (rows <= 1.0 and packing != PACK_PLANNED) or (packing == PACK_TENSOR and group < TENSOR_GROUP)
    held = blocks_held(split, packing, is_lone, group, blocks, machine.processors)
    splits = context_splits(
        *(split, blocks, is_lone, held, kv_tokens, seen, head_dim, formats.kv_bytes, window, machine.processors)
    )
    each, used = seen / splits, splits
    if split == SPLIT_SEGMENTS or (split == SPLIT_WAVES and not is_lone):
        each = min(seen, kv_tokens / splits)
        used = min(splits, pieces(seen, each))
    launched = launched_splits(split, splits, blocks)
    waves, all_waves = blocks * used / machine.processors, blocks * launched / machine.processors
    kv_bytes = KV_TENSORS * batch * kv_heads * seen * head_dim * formats.kv_bytes
    query_bytes = 2.0 * batch * heads * head_dim * BYTES_PER_QUERY
    partial_bytes = SPLIT_BYTES * splits * batch * heads * head_dim
    footprint = fit[5] * (kv_bytes + query_bytes + (0.5 * partial_bytes if splits > 1.0 else 0.0))
    resident = residency(footprint * footprint / machine.cache_bytes, machine.cache_bytes)
    reread = 1.0 if packed else 1.0 + 0.15 * (group - 1.0) * (1.0 - resident)
    io_bytes = (kv_bytes * reread + query_bytes) * (1.0 - resident + resident / fit[4])
    memory_s = io_bytes / machine.bandwidth_bytes_per_s / min(fit[2], fit[3] * min(1.0, waves))
    efficiency = fit[1] * head_dim / (head_dim + fit[9])
    per_block = MATMULS * FLOPS_PER_MAC * padded * pieces(rows, padded) * each * head_dim
    compute_s = max(waves, 1.0) * per_block * machine.processors / (machine.flops_per_s * efficiency)
    step_s, room = fit[8] * (fit[11] if is_lone else 1.0), fit[14] * held / HELD
    if split != SPLIT_FULLEST:  # whose steps are as many bytes whatever the head size
        step_s *= (head_dim / 128.0) ** fit[12]
        room *= (128.0 / head_dim) ** (1.0 - fit[12])
    wave_s = fit[7] * (fit[21] if is_lone else 1.0) * rounds_of(all_waves / room, fit[13])
    wave_s += step_s * pieces(each, step_tokens(split, head_dim)) * rounds_of(waves / room, fit[13])
    seconds = fit[0] + smooth_max(smooth_max(memory_s, compute_s, fit[10]), wave_s, fit[10])
    if launched > 1.0:
        seconds += fit[6] + fit[19] * splits + fit[15] * partial_bytes / machine.bandwidth_bytes_per_s
    new_bytes = batch * (heads + 2.0 * kv_heads) * head_dim * BYTES_PER_QUERY
    seconds += fit[16] * new_bytes / machine.bandwidth_bytes_per_s
    if packing == PACK_UNWINDOWED and packed and batch > 1.0 and kv_heads > 1.0 and group > 1.0:
        seconds += fit[18]
    if head_dim != 64.0 and head_dim % 128.0 != 0.0:
        seconds += fit[20]
    seconds = smooth_max(seconds, fit[17], BOUND_SHARPNESS)
    return (
        seconds,
        compute_s / memory_s,
        waves / np.ceil(waves),
        np.ceil(waves),
        splits,
        rows,
        kv_bytes / machine.cache_bytes,
        wave_s / memory_s,
        seen,
        group,
        each,
        all_waves / np.ceil(all_waves),
        resident,
    )


@inner_kernel
def rounds_of(waves, tail):
    """Return how many rounds of blocks are waited for: one at least, the last counted in full for a tail of 1."""
    return max(1.0, waves + tail * (np.ceil(waves) - waves))


@kernel
def causal_context(q_len, past, window):
    """Return the mean number of tokens that a query of a chunk sees: past and half the chunk, or the window."""
    mean = past + 0.5 * (q_len + 1.0)
    if window <= 0.0 or past + q_len <= window:
        return mean
    growing = max(0.0, window - past)
    return (growing * (past + 0.5 * (growing + 1.0)) + (q_len - growing) * window) / q_len


@kernel
def attention_prefill_traits(batch, q_len, past, heads, kv_heads, head_dim, window, causal, formats, machine, fit):
    """Return the seconds of `batch` chunks of q_len new tokens after `past` cached ones, then traits.

    Query rows are cut into tiles, each of which walks its context; the tallest tile in the last wave is waited for.
    """
    group = heads / kv_heads
    packed = is_packed(int(fit[11]), window, group)
    rows = q_len * group if packed else q_len
    lanes = batch * (kv_heads if packed else heads)
    mean = causal_context(q_len, past, window) if causal > 0.0 else past + q_len
    longest = past + q_len
    if window > 0.0:
        longest = min(longest, window)
    efficiency = fit[1] * head_dim / (head_dim + fit[3])
    per_processor = machine.flops_per_s * efficiency / machine.processors
    seen = longest
    kv_bytes = KV_TENSORS * batch * kv_heads * (past + q_len) * head_dim * formats.kv_bytes
    query_bytes = 2.0 * batch * heads * q_len * head_dim * BYTES_PER_QUERY
    resident = residency(kv_bytes + query_bytes, machine.cache_bytes)
    traffic = (kv_bytes + query_bytes) * (1.0 - resident + resident / fit[8])
    memory_s = traffic / (machine.bandwidth_bytes_per_s * fit[2])
    code = int(fit[10])
    best, height, waves, wave_s = 1e30, 0.0, 1.0, 0.0
    for choice in range(4):
        if code >= 0 and choice != code:
            continue
        tall = TILE_HEIGHTS[choice]
        cost = MATMULS * FLOPS_PER_MAC * tall * head_dim / (per_processor * (tall / 128.0) ** fit[4])
        blocks = lanes * pieces(rows, tall)
        reach = tall / group if packed else tall
        walk = min(mean + 0.5 * reach, longest + 0.5 * reach) if causal > 0.0 else mean
        fill = blocks / machine.processors
        mean_s = max(fill, 1.0) * cost * (walk + fit[5])
        tail_s = fit[7] * cost * max(0.0, seen - walk) + fit[7] * (np.ceil(fill) - fill) * cost * (walk + fit[5])
        steps_s = fit[6] * np.ceil(fill)
        total = mean_s + tail_s + steps_s
        if total < best:
            best, height, waves, wave_s = total, tall, fill, tail_s
    seconds = fit[0] + smooth_max(best, memory_s, fit[9])
    rounds = np.ceil(waves)
    return (
        seconds,
        best / memory_s,
        waves / rounds,
        rounds,
        height,
        rows % height / height,
        mean,
        kv_bytes / machine.cache_bytes,
        wave_s / best,
        group,
    )


@kernel
def attention_mixed_traits(
    q_len, past, decodes, decode_tokens, heads, kv_heads, head_dim, window, formats, machine, fit
):
    """Return the seconds of one call with a prefill chunk and `decodes` sequences of `decode_tokens` KV, then traits.

    One grid serves both: a decode takes a whole tile of queries for itself and walks its context unsplit, so the call
    costs more than its parts (Dao, FlashAttention-2, varlen grid). Work is counted in KV blocks walked by a tile.
    """
    group = heads / kv_heads
    packed = int(fit[9]) == PACK_ALWAYS
    rows = q_len * group if packed else q_len
    lanes = kv_heads if packed else heads
    chunk_blocks = lanes * pieces(rows, MIXED_TILE) if q_len > 0.0 else 0.0
    chunk_walk = causal_context(q_len, past, window) + 0.5 * MIXED_TILE if q_len > 0.0 else 0.0
    decode_seen = decode_tokens if window <= 0.0 else min(decode_tokens, window)
    decode_blocks = lanes * decodes
    decode_walk = MIXED_BLOCK * pieces(decode_seen, MIXED_BLOCK) * fit[4]
    per_token_s = MATMULS * FLOPS_PER_MAC * MIXED_TILE * head_dim * machine.processors / (machine.flops_per_s * fit[1])
    work = chunk_blocks * (chunk_walk + fit[3]) + decode_blocks * (decode_walk + fit[3])
    blocks = chunk_blocks + decode_blocks
    longest = max((past + q_len) if q_len > 0.0 else 0.0, decode_walk if decodes > 0.0 else 0.0) + fit[3]
    share = work / machine.processors
    fill = blocks / machine.processors
    compute_s = per_token_s * smooth_max(share + fit[5] * (1.0 - 1.0 / max(1.0, fill)) * longest, longest, 6.0)
    kv_bytes = KV_TENSORS * kv_heads * head_dim * formats.kv_bytes * ((past + q_len) + decodes * decode_seen)
    query_bytes = 2.0 * heads * head_dim * BYTES_PER_QUERY * (q_len + decodes)
    resident = residency(kv_bytes + query_bytes, machine.cache_bytes)
    memory_s = (
        (kv_bytes + query_bytes) * (1.0 - resident + resident / fit[7]) / (machine.bandwidth_bytes_per_s * fit[2])
    )
    rounds = np.ceil(fill)
    seconds = fit[0] + fit[6] * rounds + smooth_max(compute_s, memory_s, fit[8])
    return (
        seconds,
        compute_s / memory_s,
        fill / max(rounds, 1.0),
        rounds,
        decode_blocks * decode_walk / max(work, 1.0),
        longest / max(share, 1e-9),
        kv_bytes / machine.cache_bytes,
        rows % MIXED_TILE / MIXED_TILE,
    )
