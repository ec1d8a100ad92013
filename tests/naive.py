"""The operators' kernels again, as a student would write them from their docstrings: plain, one value at a time."""

from math import ceil, inf, log, log2, prod, sqrt

TILES = [
    *[(128, 256), (256, 128), (128, 128), (64, 256), (128, 64), (64, 128)],
    *[(64, 64), (32, 128), (16, 128), (32, 64), (16, 64)],
]
MENUS = {0: (11, 64), 1: (11, 1), 2: (6, 64)}


def smooth_max(first, second, sharpness):
    larger, smaller = max(first, second), min(first, second)
    return larger * (1 + (smaller / larger) ** sharpness) ** (1 / sharpness) if larger > 0 else 0.0


def residency(footprint, cache):
    return 1 / (1 + (footprint / cache) ** 4) if cache > 0 else 0.0


def gemm(m, n, k, formats, machine, fit):
    """Return the time of the tile and split of the menu that would be quickest."""
    (fixed, compute_eff, exponent, prologue, memory_eff, share, speedup, copies) = fit[:8]
    (split_s, split_traffic, sharpness, quantise_traffic, quantise_s) = fit[8:13]
    (wave_s, power_eff, reread_share, quantise_row_s, host_s, half_bytes, menu) = fit[13:]
    tiles, most_split = MENUS[int(menu)]
    a_bytes, w_bytes, cache = formats.activation_bytes, formats.weight_bytes, machine.cache_bytes
    footprint = copies * n * k * w_bytes + m * k * a_bytes
    moved = m * k * a_bytes + n * k * w_bytes + m * n * formats.output_bytes
    resident = 1 / (1 + (footprint / cache) ** 8)
    stream = moved / machine.bandwidth_bytes_per_s * (1 - resident + resident / speedup)
    stream *= 1 + sqrt(half_bytes / moved)
    candidates = []
    for tall, wide in TILES[:tiles]:
        blocks = ceil(m / tall) * ceil(n / wide)
        side = sqrt(min(blocks, machine.processors) * tall * wide)
        missed = 1 - residency((min(m, side) * a_bytes + min(n, side) * w_bytes) * k, cache)
        again = max(0, blocks * (tall * a_bytes + wide * w_bytes) * k - m * k * a_bytes - n * k * w_bytes)
        again_s = reread_share * missed * again / machine.bandwidth_bytes_per_s
        split = 1
        while split <= most_split:
            blocks = ceil(m / tall) * ceil(n / wide) * split
            rounds = ceil(blocks / machine.processors)
            rate = machine.flops_per_s / machine.processors * compute_eff * (tall * wide / 128**2) ** exponent
            busy = rounds * (2 * tall * wide * (k / split + prologue) / rate + wave_s)
            read = (stream + again_s) / min(memory_eff, share * min(1, blocks / machine.processors))
            merge = split_s + split_traffic * 8 * m * n * split / machine.bandwidth_bytes_per_s if split > 1 else 0
            candidates.append((max(busy, read) + 0.2 * min(busy, read) + merge, busy, read, merge))
            split *= 2
            if k / split < 128 or rounds > 1:
                break
    _, busy, read, merge = min(candidates, key=lambda candidate: candidate[0])
    busy = smooth_max(busy, 2 * m * n * k / (machine.flops_per_s * power_eff), 6)
    quantise = 0.0
    if a_bytes < 2:
        quantised = quantise_traffic * m * k * (2 + a_bytes) / machine.bandwidth_bytes_per_s
        quantise = quantise_s + max(quantised, quantise_row_s * m)
    return smooth_max(fixed + smooth_max(busy, read, sharpness) + merge + quantise, host_s, 6)


def power_law(share, ratio, exponent):
    power = 1 - exponent if abs(1 - exponent) >= 1e-6 else 1e-6
    return ((ratio**power - 1) * share + 1) ** (1 / power)


def hottest_share(local, ranks, ratio, exponent):
    power = 1 - exponent if abs(1 - exponent) >= 1e-6 else 1e-6
    scale = power / (ratio**power - 1)
    mean = scale * (ratio ** (power + 1) - 1) / (power + 1)
    square = scale * (ratio ** (power + 2) - 1) / (power + 2)
    spread = sqrt(max(0, square / mean**2 - 1) / local)
    return 1 + spread * max(0, sqrt(2 * log(ranks)) - 0.6) * (1 + 0.5 / sqrt(local))


def heights(code, tokens, load, rank_load):
    """Return the heights of tile that a kernel may take under its rule."""
    every = [8, 16, 32, 64, 128]
    if code == -1:
        return every
    if code < 5:
        return [every[int(code)]]
    if code == 5:
        return [16 if tokens <= 32 else 32 if tokens <= 96 else 64 if tokens <= 512 else 128]
    load, most = (load, 128) if code == 6 else (rank_load / 2, 128 if code == 7 else 64)
    return [min(max(8, 2 ** ceil(log2(max(load, 1)))), most)]


def tokens_of_rank(m, experts, topk, ep, uneven):
    """Return how many of m tokens have an expert on the busiest rank: 1 - the chance to miss each of its experts."""
    local = max(1, experts / ep)
    if not uneven:
        return min(m, max(1, ceil(m * local / ceil(experts / topk))))
    ratio = max(1.5, 0.8 * m) if m * topk > experts else 200
    copies = max(1, min(m * topk / ep * hottest_share(local, ep, ratio, uneven), m * min(local, topk)))
    if topk == 1:
        return min(copies, m)
    loads = power_law_loads(copies, local, ratio, uneven)
    missed = [max(0, 1 - load / m) ** (local / len(loads)) for load in loads]
    return max(1, m * (1 - prod(missed)))


def power_law_loads(copies, local, ratio, uneven):
    """Return the loads of a dozen of a rank's experts, evenly spaced in their law."""
    kinds = int(min(local, 12))
    shares = [power_law((i + 0.5) / kinds, ratio, uneven) for i in range(kinds)]
    return [copies / local * one * kinds / sum(shares) for one in shares]


def moe(m, hidden, inter, experts, topk, tp, ep, uneven, matrices, rows, wide, deep, strays, formats, machine, fit):
    """Return the time of one expert layer, its experts' loads written out as a list, its products one by one."""
    (fixed, compute_eff, exponent, memory_eff, share, speedup, local_traffic, routed_traffic) = fit[:8]
    (expert_s, prologue, sharpness, skew_balanced, skew_uneven, distinct_uneven, slowdown) = fit[8:15]
    (remote_block_s, block_s, reread, cache_copies, width_exponent, flight, width_traffic, footprint, code) = fit[15:]
    local, width = max(1, experts / ep), inter / tp
    columns = (matrices - 1) * width
    copies = m * topk / ep
    if uneven:
        ratio = max(1.5, 0.8 * m) if m * topk > experts else 200
        copies *= 1 + skew_uneven * (hottest_share(local, ep, ratio, uneven) - 1)
        copies = max(1, min(copies, m * min(local, topk)))
        loads = power_law_loads(copies, local, ratio, uneven)
        kinds = len(loads)
        reached = max(1, distinct_uneven * sum(local / kinds * min(1, load) for load in loads))
    else:
        reached = min(local, max(1, copies))
        copies = max(1, copies * (1 + skew_balanced * (1 - 1 / ep)))
        loads, kinds = [copies / local], 1
    seen = tokens_of_rank(m, experts, topk, ep, uneven) if strays and ep > 1 else m
    stray = max(0, seen * topk - copies) if strays else 0
    routed = seen * topk * (hidden + width_traffic * width) * formats.output_bytes
    held = reached * (columns + width) * hidden * formats.weight_bytes + routed
    cached = residency(footprint * held**2 / machine.cache_bytes, machine.cache_bytes)
    memory = 1 - cached + cached / speedup
    candidates = []
    for tall in [min(rows, 128)] if rows else heights(code, m, m * topk / experts, m * topk / local):
        tiles = sum(local / kinds * min(1, load) * ceil(max(load, 1) / tall) for load in loads) + stray / tall
        total = 0
        for n, k, slower in ((columns, hidden, 1), (hidden, width, 1 if width % 16 == 0 else slowdown)):
            expert = n * k * formats.weight_bytes
            passes = 1 + max(0, tiles / reached - 1) * reread * (
                1 - residency(cache_copies * expert, machine.cache_bytes)
            )
            moved = reached * expert * (passes - 1 + memory)
            copied = k * formats.activation_bytes + n * formats.output_bytes
            moved += local_traffic * (copies + stray) * copied * memory
            breadth, depth = wide or 128, deep or 64
            waves = tiles * ceil(n / breadth) / machine.processors
            active = min(1, waves)
            if rows:
                held_at_once = breadth * depth * formats.weight_bytes / 2 / 128 / 64
                active = min(8, 65536 / (tall + breadth) / depth, waves) * held_at_once**flight
            read = moved / machine.bandwidth_bytes_per_s / min(memory_eff, share * active)
            rate = machine.flops_per_s / machine.processors * compute_eff * (max(tall, rows) / 128) ** exponent
            rate *= (breadth / 128) ** width_exponent
            rounds = (waves + ceil(waves)) / 2
            busy = rounds * 2 * tall * breadth * (depth * ceil(k / depth) + prologue) / rate
            total += slower * smooth_max(busy, read, sharpness) + rounds * block_s
        candidates.append(total)
    remote = 0 if strays else min(m * topk * (1 - 1 / ep), experts - local)
    remote *= ceil(columns / (wide or 128)) + ceil(hidden / (wide or 128))
    routed_s = routed_traffic * routed * memory / machine.bandwidth_bytes_per_s
    return fixed + expert_s * reached + min(candidates) + remote_block_s * remote / machine.processors + routed_s


def is_packed(code, window, group):
    small = group <= 32 and group == int(group)
    return {0: False, 1: True, 2: window <= 0, 3: small, 4: small and group > 1, 5: True, 6: True, 7: True}[int(code)]


def tile_rows(pack_code, split_code, group, head_dim):
    if split_code == 4:
        return 16
    if pack_code == 6:
        return 16 if group <= 32 else 64
    if pack_code == 7 or (pack_code == 5 and group >= 4):
        tall = 128 if head_dim < 256 else 64
        return next(rows for most, rows in ((16, 16), (64, 64), (inf, tall)) if group <= most)
    return group


def fullest_splits(blocks, steps, slots):
    """Return the fewest eligible splits whose waves are 85 % as full as the fullest, all candidates laid out."""
    filled = {
        splits: blocks * splits / slots / ceil(blocks * splits / slots)
        for splits in range(1, int(min(128, slots, steps)) + 1)
        if splits == 1 or ceil(steps / splits) < ceil(steps / (splits - 1))
    }
    if blocks >= 0.8 * slots:
        return 1
    return min(splits for splits, share in filled.items() if share >= 0.85 * max(filled.values()))


def context_splits(code, blocks, is_lone, held, kv_tokens, seen, head_dim, kv_value_bytes, window, processors):
    if code in (2, 3):
        if is_lone:
            return max(1, min(seen * head_dim // (16384 * kv_value_bytes), ceil(processors / blocks)))
        parts = kv_tokens // 128
        return 1 if code == 3 else max(1, min(parts, ceil(sqrt(8 * parts)), 8 * processors // blocks))
    if code == 4:
        return min(8, ceil(int(processors * max(1, log2(seen / 64))) / blocks))
    if code == 5 and not is_lone and window <= 0:
        step = {64: 256, 128: 128}.get(head_dim, 64)
        return fullest_splits(blocks, ceil(seen / step), held * processors)
    if code == 6:
        return max(1, min(held * processors // blocks, ceil(seen / 128)))
    if code == 7 and blocks <= 128:
        return min(16, ceil(kv_tokens / 32))
    if code == 1 and blocks < 0.8 * processors:
        return max(1, min(processors // blocks, ceil(seen / 256)))
    return 1


def attention_decode(batch, kv_tokens, heads, kv_heads, head_dim, window, formats, machine, fit):
    """Return the time of one query a sequence, from blocks, waves and the KV bytes that must be read."""
    (fixed, compute_eff, memory_eff, share, speedup, copies, combine, wave, block, dim_half, sharpness) = fit[:11]
    (lone_cost, dims, tail, occupancy, combine_traffic, append_traffic, host, copy, combine_split) = fit[11:20]
    (odd_dim, lone_wave, split_code, pack_code, chunk_code) = fit[20:]
    bounded = window > 0 and not (chunk_code and window >= 8192)
    seen = min(kv_tokens, window) if bounded else kv_tokens
    group = heads / kv_heads
    packed = is_packed(pack_code, window, group)
    if pack_code == 4 and 4 * batch * kv_heads * max(1, kv_tokens // 128) < machine.processors:
        packed = False
    rows, padded, blocks = 1, 16, batch * heads
    if packed:
        tile = tile_rows(pack_code, split_code, group, head_dim)
        rows, blocks = min(group, tile), batch * kv_heads * ceil(group / tile)
        padded = tile if pack_code in (5, 7) and tile > group else 16
    lone = (rows <= 1 and pack_code != 7) or (pack_code == 5 and group < 4)
    held = 2
    if pack_code == 5 and lone:
        held = 1 if group == 1 else 4
    elif split_code in (2, 3) and lone and blocks > 1.3 * machine.processors:
        held = 8
    told = (kv_tokens, seen, head_dim, formats.kv_bytes, window, machine.processors)
    splits = context_splits(split_code, blocks, lone, held, *told)
    each, used = seen / splits, splits
    if split_code == 7 or (split_code == 2 and not lone):
        each = min(seen, kv_tokens / splits)
        used = min(splits, ceil(seen / each))
    launched = {4: 8, 7: 16 if blocks <= 128 else 1}.get(int(split_code), splits)
    waves = blocks * used / machine.processors
    kv_bytes = 2 * batch * kv_heads * seen * head_dim * formats.kv_bytes
    query_bytes = 2 * batch * heads * head_dim * 2
    partial_bytes = 8 * splits * batch * heads * head_dim
    footprint = copies * (kv_bytes + query_bytes + (partial_bytes / 2 if splits > 1 else 0))
    resident = residency(footprint**2 / machine.cache_bytes, machine.cache_bytes)
    reread = 1 if packed else 1 + 0.15 * (group - 1) * (1 - resident)
    moved = (kv_bytes * reread + query_bytes) * (1 - resident + resident / speedup)
    memory = moved / machine.bandwidth_bytes_per_s / min(memory_eff, share * min(1, waves))
    rate = machine.flops_per_s / machine.processors * compute_eff * head_dim / (head_dim + dim_half)
    compute = max(waves, 1) * 4 * padded * ceil(rows / padded) * each * head_dim / rate
    room, step, step_s = occupancy * held / 2, 64, block * (lone_cost if lone else 1)
    if split_code == 5:
        step = {64: 256, 128: 128}.get(head_dim, 64)
    else:
        step_s, room = step_s * (head_dim / 128) ** dims, room * (128 / head_dim) ** (1 - dims)
    walked = wave * (lone_wave if lone else 1) * rounds(blocks * launched / machine.processors / room, tail)
    walked += step_s * ceil(each / step) * rounds(waves / room, tail)
    total = fixed + smooth_max(smooth_max(memory, compute, sharpness), walked, sharpness)
    if launched > 1:
        total += combine + combine_split * splits + combine_traffic * partial_bytes / machine.bandwidth_bytes_per_s
    total += append_traffic * batch * (heads + 2 * kv_heads) * head_dim * 2 / machine.bandwidth_bytes_per_s
    total += copy if pack_code == 2 and packed and min(batch, kv_heads, group) > 1 else 0
    total += odd_dim if head_dim not in (64, 128, 256, 512) else 0
    return smooth_max(total, host, 6)


def rounds(waves, tail):
    return max(1, waves + tail * (ceil(waves) - waves))


def causal_context(q_len, past, window):
    """Return the mean tokens seen by the queries of a chunk, counted query by query."""
    limit = window if window > 0 else inf
    return sum(min(past + query + 1, limit) for query in range(int(q_len))) / q_len


def attention_prefill(batch, q_len, past, heads, kv_heads, head_dim, window, causal, formats, machine, fit):
    """Return the time of a chunk, the best tile height taken."""
    (fixed, compute_eff, memory_eff, dim_half, exponent, prologue, wave, balance, speedup, sharpness) = fit[:10]
    height_code, pack_code = fit[10:]
    group = heads / kv_heads
    packed = is_packed(pack_code, window, group)
    longest = min(past + q_len, window) if window > 0 else past + q_len
    mean = causal_context(q_len, past, window) if causal else past + q_len
    rate = machine.flops_per_s / machine.processors * compute_eff * head_dim / (head_dim + dim_half)
    kv_bytes = 2 * batch * kv_heads * (past + q_len) * head_dim * formats.kv_bytes
    moved = kv_bytes + 2 * batch * heads * q_len * head_dim * 2
    resident = residency(moved, machine.cache_bytes)
    memory = moved * (1 - resident + resident / speedup) / (machine.bandwidth_bytes_per_s * memory_eff)
    best = inf
    for choice, tall in enumerate((16, 64, 128, 256)):
        if height_code >= 0 and choice != int(height_code):
            continue
        token_s = 4 * tall * head_dim / (rate * (tall / 128) ** exponent)
        blocks = batch * (kv_heads if packed else heads) * ceil((q_len * group if packed else q_len) / tall)
        fill = blocks / machine.processors
        half_tile = 0.5 * (tall / group if packed else tall)
        walk = min(mean, longest) + half_tile if causal else mean
        tail = max(0, longest - walk) + (ceil(fill) - fill) * (walk + prologue)
        total = max(fill, 1) * token_s * (walk + prologue) + balance * token_s * tail + wave * ceil(fill)
        best = min(best, total)
    return fixed + smooth_max(best, memory, sharpness)


def attention_mixed(q_len, past, decodes, decode_tokens, heads, kv_heads, head_dim, window, formats, machine, fit):
    """Return the time of one grid of tiles that holds a chunk and decodes, a tile for each decode."""
    (fixed, compute_eff, memory_eff, prologue, weight, balance, wave, speedup, sharpness, pack_code) = fit
    group = heads / kv_heads
    packed = int(pack_code) == 1
    lanes = kv_heads if packed else heads
    tiles = (
        []
        if q_len <= 0
        else [causal_context(q_len, past, window) + 64] * int(lanes * ceil((q_len * group if packed else q_len) / 128))
    )
    seen = min(decode_tokens, window) if window > 0 else decode_tokens
    walk = 64 * ceil(seen / 64) * weight
    tiles += [walk] * int(lanes * decodes)
    token_s = 4 * 128 * head_dim / (machine.flops_per_s / machine.processors * compute_eff)
    share = sum(tile + prologue for tile in tiles) / machine.processors
    fill = len(tiles) / machine.processors
    longest = max(past + q_len if q_len > 0 else 0, walk if decodes > 0 else 0) + prologue
    compute = token_s * smooth_max(share + balance * (1 - 1 / max(1, fill)) * longest, longest, 6)
    moved = 2 * kv_heads * head_dim * formats.kv_bytes * (past + q_len + decodes * seen)
    moved += 2 * heads * head_dim * 2 * (q_len + decodes)
    resident = residency(moved, machine.cache_bytes)
    memory = moved * (1 - resident + resident / speedup) / (machine.bandwidth_bytes_per_s * memory_eff)
    return fixed + wave * ceil(fill) + smooth_max(compute, memory, sharpness)


def roofline(flops, moved_bytes, rows, machine, fit):
    (fixed, compute_eff, memory_eff, half_flops, half_bytes, row_s, speedup, sharpness) = fit
    resident = residency(moved_bytes, machine.cache_bytes)
    stream = moved_bytes * (1 - resident + resident / speedup)
    compute = (flops + half_flops * flops / (flops + half_flops)) / (machine.flops_per_s * compute_eff)
    memory = (stream + half_bytes * moved_bytes / (moved_bytes + half_bytes)) / (
        machine.bandwidth_bytes_per_s * memory_eff
    )
    return fixed + smooth_max(compute, memory, sharpness) + row_s * ceil(rows / machine.processors)


def collective(moved_bytes, devices, nodes, all_pairs, rings, fit):
    """Return the fastest of three protocols, each latency + hops + bytes over bandwidth, and the link between nodes.

    With shots, the first sends everything to everyone; by rule, sizes and counts choose the protocol.
    """
    (crowding, node_hop, node_bandwidth, rails, sharpness, shots) = fit[9:]
    if devices <= 1:
        return 0.0
    share = (devices - 1) / devices * rings
    crowd = crowding ** log2(max(1, devices / nodes / 2))
    times = {}
    for at, part in ((3, 1 if all_pairs else share), (6, 1 if all_pairs else share), (0, share)):
        sent = moved_bytes * (devices - 1) if at == 3 and shots > 0 else part * moved_bytes * crowd
        times[at] = fit[at] + fit[at + 1] * (devices - 1) + sent / fit[at + 2]
    node_bytes_per_s = node_bandwidth * (devices / nodes) ** rails
    between = node_hop * (nodes - 1) + share * moved_bytes / node_bytes_per_s if nodes > 1 else 0
    kib = moved_bytes / 1024
    limits = {2: 8192.5, 4: 512, 8: 256}
    one_shot_below = limits[next(count for count in limits if devices <= count)] if shots == 2 else 1024.5
    if shots >= 2 and kib < one_shot_below:
        return times[3] + between
    if shots == 2:
        return times[6 if kib <= 8192 else 0] + between
    if shots == 3:
        return smooth_min(times[6], times[0], sharpness) + between
    return smooth_min(smooth_min(times[3], times[6], sharpness), times[0], sharpness) + between


def smooth_min(first, second, sharpness):
    slower, faster = max(first, second), min(first, second)
    return faster / (1 + (faster / slower) ** sharpness) ** (1 / sharpness)


def corrected(seconds, features, packed):
    """Return seconds times the trees' correction, walking nested tuples instead of flat arrays."""
    low, high = packed["low"].astype(float), packed["high"].astype(float)
    codes = [
        int(min(max((x - a) / max(b - a, 1e-9) * 255, 0), 255)) for x, a, b in zip(features, low, high, strict=True)
    ]
    total, leaves = packed["baseline"], iter(packed["leaf"])
    # Thresholds lie by feature; a stable sort of the inner nodes by feature tells whose they are.
    inner = [at for at, feature in enumerate(packed["feature"]) if feature != 255]
    owners = sorted(inner, key=lambda at: packed["feature"][at])
    thresholds = dict(zip(owners, packed["threshold"], strict=True))
    nodes = enumerate(packed["feature"])
    for scale in packed["scale"]:
        tree = nested(nodes, thresholds, leaves)
        while isinstance(tree, tuple):
            feature, threshold, left, right = tree
            tree = left if codes[feature] <= threshold else right
        total += float(scale) * tree
    shapes = [at for at, sized in enumerate(packed["sized"]) if sized]
    outside = max([0.0, *(low[j] - features[j] for j in shapes), *(features[j] - high[j] for j in shapes)])
    return seconds * 2.718281828459045 ** (total * 0.5 ** (outside / packed["fade"]))


def nested(nodes, thresholds, leaves):
    """Return the next tree of the preorder `nodes` (at, feature) as (feature, threshold, left, right), or a leaf."""
    at, feature = next(nodes)
    if feature == 255:
        return int(next(leaves))
    return int(feature), int(thresholds[at]), nested(nodes, thresholds, leaves), nested(nodes, thresholds, leaves)


def exchange(tokens, hidden, topk, devices, nodes, processors, value_bytes, fit):
    """Return the time of sending each token once to every rank, and every node, that holds any of its experts."""
    (fixed, hop, token_s, bandwidth, processor_bandwidth, node_hop, node_bandwidth, sharpness) = fit
    token_bytes = hidden * value_bytes
    sent = tokens * token_bytes * devices * (1 - (1 - 1 / devices) ** topk)
    copying = sent / (processors * processor_bandwidth) if processors > 0 else 0.0
    between = 0.0
    if nodes > 1:
        between = tokens * token_bytes * nodes * (1 - (1 - 1 / nodes) ** topk) / node_bandwidth + node_hop * (nodes - 1)
    moving = smooth_max(smooth_max(sent / bandwidth, copying, sharpness), between, sharpness)
    return fixed + hop * (devices - 1) + token_s * tokens * topk + moving


def grown(codes, residuals, leaves, leaf_rows, clip, rate=0.25, steps=7):
    """Return what one boosted tree tells of each row: best split first, until there are so many leaves."""
    clipped = [min(max(value, -clip), clip) for value in residuals]

    def score(rows):
        return sum(clipped[row] for row in rows) ** 2 / (len(rows) + 1)

    def best_split(rows):
        found = (0.0, None, None)
        for feature in range(len(codes[0])):
            for code in sorted({codes[row][feature] for row in rows}):
                below = [row for row in rows if codes[row][feature] <= code]
                above = [row for row in rows if codes[row][feature] > code]
                if min(len(below), len(above)) >= leaf_rows:
                    gain = score(below) + score(above) - score(rows)
                    if gain > found[0] + 1e-12:
                        found = (gain, below, above)
        return found

    groups = [list(range(len(residuals)))]
    while len(groups) < leaves:
        gain, at = max((best_split(rows)[0], -at) for at, rows in enumerate(groups))
        if gain <= 0:
            break
        _, groups[-at], above = best_split(groups[-at])
        groups.append(above)
    values = [rate * sum(clipped[row] for row in rows) / (len(rows) + 1) for rows in groups]
    step = max(abs(value) for value in values) / steps
    told = [0.0] * len(residuals)
    for rows, value in zip(groups, values, strict=True):
        for row in rows:
            told[row] = round(value / step) * step
    return told


def lookup_gemm(m, n, k, bits, group, lookups_per_s, bandwidth, fixed):
    """Return the time of looking up every bit of every group of weights, or of reading the weights if that is more."""
    tables = m * ceil(k / group)
    looking = (tables * n * bits + tables * 2 ** (group - 1)) / lookups_per_s
    return fixed + max(looking, n * k * bits / 8 / bandwidth)
