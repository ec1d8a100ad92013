"""The residual correction: small boosted trees on the log error of a physical form, over its features.

Features are logs of a kernel's seconds, shape and traits, each coded in one byte, so that a tree is two bytes a node.
Outside the range of the fit the correction fades, and what remains is the physical form.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from models.compiled import kernel

Floats = npt.NDArray[np.float64]

LEAF = 255
CODES = 255.0
LEAF_STEPS = 127.0
LARGEST = 4.0  # natural logs; beyond, a residual is taken for this much
STAGES, CLIP_SIZES, LEARNING_RATE = 3, 3.0, 0.25
TYPICAL_PER_MEDIAN = 1.4826  # standard deviations in a median absolute deviation, for normal residuals
OFFSET = 1.0 / 64.0  # keeps the log of a fraction that may be zero
MICROSECONDS_PER_SECOND = 1e6
FADE_OCTAVES = 3.0  # outside the fitted range the correction halves every so many doublings


class Trees(NamedTuple):
    """Boosted trees in preorder: a node's left child follows it, `right` holds the other's index.

    low and high (features,) bound each feature in the fit; the first `shape_features` after the seconds are shape
    columns, whose excess fades the correction. value is a leaf's share of the log correction.
    """

    low: Floats
    high: Floats
    shape_features: int
    feature: npt.NDArray[np.int64]
    threshold: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    value: Floats
    roots: npt.NDArray[np.int64]
    baseline: float


def features_of(outputs: Floats, shape: Mapping[str, Floats], names: tuple[str, ...]) -> Floats:
    """Return (rows, features): logs of the physical seconds, of the named shape columns and of the traits."""
    seconds = outputs[:, 0] * MICROSECONDS_PER_SECOND
    columns = [seconds, *(np.broadcast_to(shape[name], seconds.shape) for name in names), *outputs.T[1:]]
    return np.asarray(np.log2(np.maximum(np.stack(columns, axis=-1), 0.0) + OFFSET))


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
            if 1 <= j <= trees.shape_features:
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
        out[i] = total * 0.5 ** (outside / FADE_OCTAVES)


def corrected(seconds: Floats, features: Floats, trees: Trees | None) -> Floats:
    """Return physical seconds times the correction, where there is one."""
    if trees is None:
        return seconds
    out = np.empty(len(seconds))
    corrections(features, trees, np.empty(features.shape[1], np.int64), out)
    return seconds * np.exp(out)


def boost(features: Floats, residuals: Floats, shape_features: int, trees: int, leaves: int) -> dict[str, Any]:
    """Fit trees to log residuals (needs scikit-learn) and return them packed, as `unpack` reads them.

    Trees are grown in stages; before each, what is still unexplained is clipped to a few of its own typical sizes, so
    that odd rows pull linearly.
    """
    low, high = features.min(axis=0), features.max(axis=0)
    low, high = low.astype(np.float32), np.nextafter(high.astype(np.float32), np.float32(np.inf))
    codes = coded(features, low.astype(float), high.astype(float))
    left = np.clip(residuals, -LARGEST, LARGEST)
    packed: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], float]] = []
    baseline = 0.0
    for _ in range(STAGES):
        model = _grown(codes, _clipped(left), trees // STAGES, leaves)
        left = left - model.predict(codes)
        packed += [_packed_tree(predictors[0].nodes) for predictors in model._predictors]
        baseline += float(np.ravel(model._baseline_prediction)[0])
    return {
        "low": low,
        "high": high,
        "feature": np.concatenate([tree[0] for tree in packed]),
        "value": np.concatenate([tree[1] for tree in packed]),
        "scale": np.array([tree[2] for tree in packed], np.float32),
        "baseline": baseline,
        "shape_features": shape_features,
    }


def _grown(codes: npt.NDArray[np.uint8], residuals: Floats, trees: int, leaves: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from threadpoolctl import threadpool_limits

    model = HistGradientBoostingRegressor(
        max_iter=trees,
        max_leaf_nodes=leaves,
        learning_rate=LEARNING_RATE,
        min_samples_leaf=8,
        l2_regularization=1.0,
        early_stopping=False,
    )
    with threadpool_limits(1):
        return model.fit(codes, residuals)


def _clipped(residuals: Floats) -> Floats:
    centre = np.median(residuals)
    typical = max(1e-4, TYPICAL_PER_MEDIAN * float(np.median(np.abs(residuals - centre))))
    return np.asarray(np.clip(residuals, centre - CLIP_SIZES * typical, centre + CLIP_SIZES * typical))


def budget(op: str, rows: int) -> tuple[int, int]:
    """Return (trees, leaves a tree) for a group: larger groups earn more; whole modules, less regular, earn half."""
    trees = np.clip(rows / 40, 15, 60) + np.clip((rows - 4000) / 120, 0, 45)
    return int(trees * (0.5 if "module" in op else 1.0)), int(np.clip(rows / 30, 6, 31))


def _packed_tree(nodes: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], float]:
    """Return a fitted tree in preorder: features (255 for a leaf), thresholds or leaf steps, and a leaf step's size."""
    leaf_values = nodes["value"][nodes["is_leaf"].astype(bool)]
    scale = max(float(np.abs(leaf_values).max()) / LEAF_STEPS, 1e-12)
    features, values, stack = [], [], [0]
    while stack:
        node = nodes[stack.pop()]
        if node["is_leaf"]:
            features.append(LEAF)
            values.append(round(float(node["value"]) / scale) % 256)
        else:
            features.append(int(node["feature_idx"]))
            values.append(int(np.floor(node["num_threshold"])))
            stack += [int(node["right"]), int(node["left"])]
    return np.array(features, np.uint8), np.array(values, np.uint8), scale


def unpack(packed: Mapping[str, Any]) -> Trees:
    """Return trees ready to evaluate from their packed form."""
    feature = packed["feature"].astype(np.int64)
    value = packed["value"].astype(np.int64)
    right, roots, tree_of = np.zeros(len(feature), np.int64), np.zeros(len(packed["scale"]), np.int64), feature * 0
    link_preorder(feature, right, roots, tree_of, np.empty(256, np.int64))
    is_leaf = feature == LEAF
    steps = np.where(value < 128, value, value - 256)
    leaf = np.where(is_leaf, steps * packed["scale"].astype(np.float64)[tree_of], 0.0)
    return Trees(
        packed["low"].astype(np.float64),
        packed["high"].astype(np.float64),
        int(packed["shape_features"]),
        feature,
        value,
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
