"""Estimators: what a policy may believe of answers and step times, with an error that is stated and seeded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

import numpy as np
import numpy.typing as npt

EstimatePs = Callable[[int, int], float]  # (request, tokens) -> picoseconds


def factors(count: int, spread: float, seed: int) -> npt.NDArray[np.float64]:
    """Return multiplicative errors, lognormal with median 1; `spread` is the standard deviation of their logarithm.

    >>> factors(3, 0.0, seed=1).tolist()
    [1.0, 1.0, 1.0]
    """
    if spread < 0:
        raise ValueError(f"spread {spread:g} of an estimator; expected 0 (exact) or more")
    normal = np.random.default_rng([seed, count]).standard_normal(count)
    return np.asarray(np.exp(spread * normal))


class OutputLengths:
    """Predicted answer lengths [tokens] by request; the true ones are not kept."""

    __slots__ = ("_predicted",)

    def __init__(self, output_tokens: Sequence[int] | npt.NDArray[np.int64], spread: float, seed: int) -> None:
        truth = np.asarray(output_tokens, np.float64)
        self._predicted = np.maximum(1, np.rint(truth * factors(truth.size, spread, seed))).astype(np.int64)

    def tokens(self, number: int) -> int:
        """Return the predicted answer length of a request."""
        return int(self._predicted[number])


@dataclass(frozen=True, slots=True)
class Polynomial:
    """A step time as a polynomial in tokens [ps], lowest power first."""

    coefficients: tuple[float, ...]

    def __call__(self, tokens: float) -> float:
        """Return the time of a step of so many tokens; never below 0."""
        value = 0.0
        for coefficient in reversed(self.coefficients):
            value = value * tokens + coefficient
        return max(0.0, value)


def fit(price_ps: Callable[[int], int], tokens: Sequence[int], degree: int = 3) -> Polynomial:
    """Fit a polynomial to step times measured at these tokens, every relative error weighing the same.

    >>> fit(lambda tokens: 5 + 2 * tokens, [1, 2, 4, 8, 16], degree=1).coefficients
    (5.0, 2.0)
    """
    times_ps = np.array([price_ps(each) for each in tokens], np.float64)
    scale = float(max(tokens))
    powers = np.vander(np.asarray(tokens, np.float64) / scale, degree + 1, increasing=True)
    solved = np.linalg.lstsq(powers / times_ps[:, None], np.ones(len(tokens)), rcond=None)[0]
    return Polynomial(tuple(round(float(each) / scale**power, 9) for power, each in enumerate(solved)))


def with_error(estimate_ps: Callable[[float], float], spread: float, seed: int) -> EstimatePs:
    """Return an estimate of step times that is off by a factor of its own for each request, the same whenever asked."""
    known: dict[int, float] = {}

    def predict(number: int, tokens: int) -> float:
        if spread == 0.0:
            return estimate_ps(tokens)
        if number not in known:
            known[number] = exp(spread * float(np.random.default_rng([seed, number]).standard_normal()))
        return estimate_ps(tokens) * known[number]

    return predict


class RunningMean:
    """A length that is learnt from what was seen, class by class; the prior counts as one observation."""

    def __init__(self, prior: float) -> None:
        self._prior = prior
        self._sums: dict[str, tuple[float, int]] = {}

    def observe(self, label: str, value: float) -> None:
        """Take one observation of a class in."""
        total, count = self._sums.get(label, (self._prior, 1))
        self._sums[label] = total + value, count + 1

    def predict(self, label: str) -> float:
        """Return the mean of a class so far."""
        total, count = self._sums.get(label, (self._prior, 1))
        return total / count
