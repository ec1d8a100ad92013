"""Workloads that studies make from published statistics: lengths by their quantiles, arrivals by their variation."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def lengths(rng: np.random.Generator, fractions: Sequence[float], tokens: Sequence[int], count: int) -> Integers:
    """Draw lengths whose quantiles are these tokens at these fractions, log-linear between them.

    >>> lengths(np.random.default_rng(0), [0.0, 1.0], [100, 100], 3).tolist()
    [100, 100, 100]
    """
    drawn = np.interp(rng.random(count), fractions, np.log(tokens))
    return np.maximum(1, np.rint(np.exp(drawn))).astype(np.int64)


def gaps(rng: np.random.Generator, variation: float, count: int) -> Floats:
    """Draw gaps between arrivals with mean 1 from a gamma law; variation is their coefficient, 1 being Poisson."""
    shape = variation**-2
    return np.asarray(rng.gamma(shape, 1.0 / shape, count))
