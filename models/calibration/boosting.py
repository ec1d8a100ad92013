"""Grow boosted trees on coded features, leaf by leaf: what `residual.boost` packs. Needed to fit, never to predict.

Each tree fits what its forerunners left unexplained, clipped so that odd rows pull linearly. Leaf values are rounded to
a few whole steps before the next tree grows, so that later trees make good what rounding spoiled.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.compiled import inner_kernel, kernel

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]
Whole = npt.NDArray[np.int64]

LEAF = 255
BINS = 256
LEAF_STEPS = 7.0
CLIP_SIZES = 3.0
TYPICAL_PER_MEDIAN = 1.4826  # standard deviations in a median absolute deviation, for normal residuals
TREES_PER_CLIP = 10
LEARNING_RATE = 0.25
SHRINKAGE = 1.0  # rows of zero residual that every leaf is thought to hold besides its own


class Budget(NamedTuple):
    """How much a correction may learn: trees, leaves of each, and the fewest rows of a leaf."""

    trees: int
    leaves: int
    leaf_rows: float


class Forest(NamedTuple):
    """Grown trees, (trees, nodes) each, every root at node 0; a leaf's feature is 255, its value in whole steps."""

    feature: Codes
    threshold: Codes
    left: Whole
    right: Whole
    value: Floats
    step: Floats
    baseline: float


def grow(codes: Codes, residuals: Floats, budget: Budget) -> Forest:
    """Return trees grown on coded features (rows, features) for the residuals (rows,)."""
    nodes = 2 * budget.leaves - 1
    shape = (budget.trees, nodes)
    forest = Forest(
        *(np.full(shape, LEAF, np.uint8), np.zeros(shape, np.uint8)),
        *(np.zeros(shape, np.int64), np.zeros(shape, np.int64)),
        *(np.zeros(shape), np.zeros(budget.trees)),
        baseline=float(np.median(residuals)),
    )
    codes, left_over = np.ascontiguousarray(codes), residuals - forest.baseline
    histograms = np.zeros((budget.leaves, 2, codes.shape[1], BINS))
    order, scratch = np.zeros((2, len(codes)), np.int64)
    segments, best = np.zeros((budget.leaves, 3), np.int64), np.zeros((budget.leaves, 3))
    for start in range(0, budget.trees, TREES_PER_CLIP):
        typical = TYPICAL_PER_MEDIAN * float(np.median(np.abs(left_over)))
        clip = CLIP_SIZES * max(1e-4, typical)
        for tree in range(start, min(start + TREES_PER_CLIP, budget.trees)):
            grow_tree(
                *(codes, left_over, clip, budget.leaf_rows, tree, forest.feature, forest.threshold, forest.left),
                *(forest.right, forest.value, forest.step, histograms, order, scratch, segments, best),
            )
    return forest


@inner_kernel
def clipped(x, clip):
    """Return x within plus and minus clip."""
    return min(max(x, -clip), clip)


@inner_kernel
def fill(histogram, codes, residuals, clip, order, start, stop):
    """Sum residuals and rows of order[start:stop] by feature and code."""
    for kind in range(2):
        for f in range(codes.shape[1]):
            for code in range(BINS):
                histogram[kind, f, code] = 0.0
    for q in range(start, stop):
        row = order[q]
        value = clipped(residuals[row], clip)
        for f in range(codes.shape[1]):
            histogram[0, f, codes[row, f]] += value
            histogram[1, f, codes[row, f]] += 1.0


@inner_kernel
def find_split(histogram, leaf_rows, best):
    """Fill best with (gain, feature, threshold) of the split that explains most; gain 0 where none is allowed."""
    best[0] = 0.0
    total = rows = 0.0
    for code in range(BINS):
        total += histogram[0, 0, code]
        rows += histogram[1, 0, code]
    before = total * total / (rows + SHRINKAGE)
    for f in range(histogram.shape[1]):
        sum_left = rows_left = 0.0
        for code in range(BINS - 1):
            if histogram[1, f, code] == 0.0:
                continue
            sum_left += histogram[0, f, code]
            rows_left += histogram[1, f, code]
            if rows_left < leaf_rows:
                continue
            if rows - rows_left < leaf_rows:
                break
            sum_right, rows_right = total - sum_left, rows - rows_left
            gain = sum_left**2 / (rows_left + SHRINKAGE) + sum_right**2 / (rows_right + SHRINKAGE) - before
            if gain > best[0]:
                best[0], best[1], best[2] = gain, f, code


@inner_kernel
def divide(codes, order, scratch, start, stop, feature, threshold):
    """Order rows start:stop with those up to the threshold first; return where the others begin."""
    middle, waiting = start, 0
    for q in range(start, stop):
        row = order[q]
        if codes[row, feature] <= threshold:
            order[middle] = row
            middle += 1
        else:
            scratch[waiting] = row
            waiting += 1
    for q in range(waiting):
        order[middle + q] = scratch[q]
    return middle


@inner_kernel
def subtract(parent, part, swap):
    """Leave in `parent` what is not in `part`; swap the two where asked."""
    for kind in range(parent.shape[0]):
        for f in range(parent.shape[1]):
            for code in range(BINS):
                rest = parent[kind, f, code] - part[kind, f, code]
                if swap:
                    parent[kind, f, code], part[kind, f, code] = part[kind, f, code], rest
                else:
                    parent[kind, f, code] = rest


@kernel
def grow_tree(
    codes,
    residuals,
    clip,
    leaf_rows,
    tree,
    feature,
    threshold,
    left,
    right,
    value,
    step,
    histograms,
    order,
    scratch,
    segments,
    best,
):
    """Grow one tree, best leaf first, and take what it explains off the residuals.

    segments[leaf] holds where the leaf's rows start and stop in `order`, and its node; histograms, order, scratch,
    segments and best are scratch.
    """
    for row in range(codes.shape[0]):
        order[row] = row
    segments[0, 0], segments[0, 1], segments[0, 2] = 0, codes.shape[0], 0
    feature[tree, 0] = LEAF
    fill(histograms[0], codes, residuals, clip, order, 0, codes.shape[0])
    find_split(histograms[0], leaf_rows, best[0])
    leaves, nodes = 1, 1
    while leaves < segments.shape[0]:
        leaf = 0
        for other in range(1, leaves):
            if best[other, 0] > best[leaf, 0]:
                leaf = other
        if best[leaf, 0] <= 0.0:
            break
        start, stop, node = segments[leaf, 0], segments[leaf, 1], segments[leaf, 2]
        chosen, cut = int(best[leaf, 1]), int(best[leaf, 2])
        middle = divide(codes, order, scratch, start, stop, chosen, cut)
        feature[tree, node], threshold[tree, node] = chosen, cut
        left[tree, node], right[tree, node] = nodes, nodes + 1
        feature[tree, nodes] = feature[tree, nodes + 1] = LEAF
        segments[leaf, 1], segments[leaf, 2] = middle, nodes
        segments[leaves, 0], segments[leaves, 1], segments[leaves, 2] = middle, stop, nodes + 1
        smaller = leaf if middle - start < stop - middle else leaves
        fill(histograms[leaves], codes, residuals, clip, order, segments[smaller, 0], segments[smaller, 1])
        subtract(histograms[leaf], histograms[leaves], smaller == leaf)
        find_split(histograms[leaf], leaf_rows, best[leaf])
        find_split(histograms[leaves], leaf_rows, best[leaves])
        leaves += 1
        nodes += 2
    settle(residuals, clip, leaves, value[tree], order, segments)
    largest = 0.0
    for leaf in range(leaves):
        largest = max(largest, abs(value[tree, segments[leaf, 2]]))
    step[tree] = max(largest / LEAF_STEPS, 1e-9)
    for leaf in range(leaves):
        node = segments[leaf, 2]
        value[tree, node] = np.rint(value[tree, node] / step[tree])
        for q in range(segments[leaf, 0], segments[leaf, 1]):
            residuals[order[q]] -= value[tree, node] * step[tree]


@inner_kernel
def settle(residuals, clip, leaves, value, order, segments):
    """Fill the value of each leaf's node: its rows' mean residual, shrunk, times the learning rate."""
    for leaf in range(leaves):
        total = 0.0
        for q in range(segments[leaf, 0], segments[leaf, 1]):
            total += clipped(residuals[order[q]], clip)
        rows = segments[leaf, 1] - segments[leaf, 0]
        value[segments[leaf, 2]] = LEARNING_RATE * total / (rows + SHRINKAGE)
