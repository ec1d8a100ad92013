"""The residual correction: small boosted trees on the log error of a physical form, over its features.

Features are logs of a kernel's seconds, shape, traits and products of shapes, each coded in one byte, so that a tree is
about a byte a node in its file. Outside the range of the fit the correction fades, and what remains is the physical
form.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.calibration.boosting import LEAF, Budget, Forest, grow
from models.calibration.shapes import MESSAGE
from models.compiled import kernel

Floats = npt.NDArray[np.float64]

CODES = 255.0
LARGEST = 4.0  # natural logs; beyond, a residual is taken for this much
OFFSET = 1.0 / 64.0  # keeps the log of a fraction that may be zero
MICROSECONDS_PER_SECOND = 1e6
OF_A_MEMBER = 2  # features that tell a member of a pool from its siblings
FADES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # octaves outside the fitted range that halve a correction, as a trial tells


class Trees(NamedTuple):
    """Boosted trees in preorder: a node's left child follows it, `right` holds the other's index.

    low and high (features,) bound each feature in the fit; the excess of those that are `sized` fades the correction,
    which halves every `fade` octaves. value is a leaf's share of the log correction.
    """

    low: Floats
    high: Floats
    sized: npt.NDArray[np.bool_]
    fade: float
    feature: npt.NDArray[np.int64]
    threshold: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    value: Floats
    roots: npt.NDArray[np.int64]
    baseline: float


def features_of(
    outputs: Floats, shape: Mapping[str, Floats], names: tuple[str, ...], member: tuple[float, float]
) -> Floats:
    """Return (rows, features): logs of the physical seconds, of shape columns, of the traits, of products of columns.

    names are columns, or products as `batch*heads`. Last come the two features of a member of those that share trees:
    which of its siblings a device is, and the bytes of a value in the KV cache. Of messages the seconds are left out:
    between two counts of devices they would pass for what they are at neither.
    """
    seconds = outputs[:, 0] * (0.0 if MESSAGE in names else MICROSECONDS_PER_SECOND)
    parts = {name: [np.broadcast_to(shape[part], seconds.shape) for part in name.split("*")] for name in names}
    plain = [factors[0] for factors in parts.values() if len(factors) == 1]
    products = [np.prod(factors, axis=0) for factors in parts.values() if len(factors) > 1]
    told = [np.full_like(seconds, value) for value in member]
    columns = [seconds, *plain, *outputs.T[1:], *products, *told]
    return np.asarray(np.log2(np.maximum(np.stack(columns, axis=-1), 0.0) + OFFSET))


def sized_features(names: tuple[str, ...], count: int) -> npt.NDArray[np.bool_]:
    """Return which of `count` features are columns of a shape or products of them."""
    products = sum("*" in name for name in names)
    sized = np.zeros(count, bool)
    sized[1 : 1 + len(names) - products] = True
    sized[count - OF_A_MEMBER - products : count - OF_A_MEMBER] = True
    return sized


def coded(features: Floats, low: Floats, high: Floats) -> npt.NDArray[np.uint8]:
    """Return features as whole numbers 0 to 255 over their fitted range."""
    width = np.maximum(high - low, 1e-9)
    return np.clip(np.floor((features - low) / width * CODES), 0.0, CODES).astype(np.uint8)


@kernel
def corrections(features, trees, codes, out):
    """Fill out[i] with the log correction of row i: the trees' sum, faded by the octaves outside the fitted range.

    codes (features,) is scratch.
    """
    count = features.shape[1]
    for i in range(features.shape[0]):
        outside = 0.0
        for j in range(count):
            x = features[i, j]
            width = max(trees.high[j] - trees.low[j], 1e-9)
            codes[j] = int(min(max(np.floor((x - trees.low[j]) / width * CODES), 0.0), CODES))
            if trees.sized[j]:
                outside = max(outside, trees.low[j] - x, x - trees.high[j])
        total = trees.baseline
        for t in range(trees.roots.shape[0]):
            node = trees.roots[t]
            while trees.feature[node] != LEAF:
                if codes[trees.feature[node]] <= trees.threshold[node]:
                    node += 1
                else:
                    node = trees.right[node]
            total += trees.value[node]
        out[i] = total * 0.5 ** (outside / trees.fade)


def corrected(seconds: Floats, features: Floats, trees: Trees | None) -> Floats:
    """Return physical seconds times the correction, where there is one."""
    if trees is None:
        return seconds
    out = np.empty(len(seconds))
    corrections(features, trees, np.empty(features.shape[1], np.int64), out)
    return seconds * np.exp(out)


def first_trees(trees: Trees, count: int) -> Trees:
    """Return a forest as it was when so many of its trees had been grown."""
    return trees._replace(roots=trees.roots[:count])


def boost(features: Floats, residuals: Floats, sized: npt.NDArray[np.bool_], budget: Budget) -> dict[str, Any]:
    """Grow trees for log residuals within a budget and return them packed, as `unpack` reads them."""
    low = features.min(axis=0).astype(np.float16)
    high = features.max(axis=0).astype(np.float16)
    codes = coded(features, low.astype(float), high.astype(float))
    forest = grow(codes, np.clip(residuals, -LARGEST, LARGEST), budget)
    return pack(forest) | {"low": low, "high": high, "sized": sized, "fade": FADES[-1]}


def pack(forest: Forest) -> dict[str, Any]:
    """Return a forest in preorder, in three streams: features (255 for a leaf), thresholds by feature, leaf steps."""
    order = [(tree, node) for tree in range(len(forest.step)) for node in _preorder(forest, tree)]
    at = tuple(np.array(order).T)
    feature, threshold = forest.feature[at], forest.threshold[at]
    inner = feature != LEAF
    return {
        "feature": feature,
        "threshold": threshold[inner][np.argsort(feature[inner], kind="stable")],
        "leaf": forest.value[at][~inner].astype(np.int8),
        "scale": forest.step.astype(np.float32),
        "baseline": forest.baseline,
    }


def _preorder(forest: Forest, tree: int) -> list[int]:
    nodes, waiting = [], [0]
    while waiting:
        node = waiting.pop()
        nodes.append(node)
        if forest.feature[tree, node] != LEAF:
            waiting += [int(forest.right[tree, node]), int(forest.left[tree, node])]
    return nodes


def unpack(packed: Mapping[str, Any]) -> Trees:
    """Return trees ready to evaluate from their packed form."""
    feature = packed["feature"].astype(np.int64)
    is_leaf = feature == LEAF
    inner, by_feature = np.flatnonzero(~is_leaf), np.argsort(feature[~is_leaf], kind="stable")
    threshold = np.zeros(len(feature), np.int64)
    threshold[inner[by_feature]] = packed["threshold"]
    right, roots, tree_of = np.zeros(len(feature), np.int64), np.zeros(len(packed["scale"]), np.int64), feature * 0
    link_preorder(feature, right, roots, tree_of, np.empty(256, np.int64))
    leaf = np.zeros(len(feature))
    leaf[is_leaf] = packed["leaf"] * packed["scale"].astype(np.float64)[tree_of[is_leaf]]
    return Trees(
        packed["low"].astype(np.float64),
        packed["high"].astype(np.float64),
        packed["sized"],
        float(packed["fade"]),
        feature,
        threshold,
        right,
        leaf,
        roots,
        float(packed["baseline"]),
    )


@kernel
def link_preorder(feature, right, roots, tree_of, waiting):
    """Find each inner node's right child, each tree's root and each node's tree from the preorder alone.

    waiting is scratch, as long as a tree is deep.
    """
    depth, tree = 0, -1
    for node in range(feature.shape[0]):
        if depth == 0:
            tree += 1
            roots[tree] = node
        elif feature[node - 1] == LEAF:
            depth -= 1
            right[waiting[depth]] = node
        tree_of[node] = tree
        if feature[node] != LEAF:
            waiting[depth] = node
            depth += 1
