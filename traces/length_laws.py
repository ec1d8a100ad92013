"""How long requests are: input and output drawn together, so that long questions keep the answers they had."""

from dataclasses import dataclass
from math import erf, pi, sin, sqrt

import numpy as np
from numpy.random import Generator

from traces.statistics import rank_correlation
from traces.trace import Array, Trace

PROBABILITIES = (
    *(0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85),
    *(0.9, 0.925, 0.95, 0.965, 0.975, 0.985, 0.99, 0.995, 0.998, 0.999, 1.0),
)


@dataclass(frozen=True, slots=True)
class LengthLaw:
    """Tokens at given probabilities, straight lines between them, and the rank correlation of input and output."""

    probabilities: tuple[float, ...]
    input_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]
    rank_correlation: float = 0.0

    def sample(self, count: int, rng: Generator) -> tuple[Array, Array]:
        """Return input and output tokens, int32[count] each, joined by a Gaussian copula."""
        correlation = 2 * sin(pi * self.rank_correlation / 6)
        first = rng.standard_normal(count)
        second = correlation * first + sqrt(1 - correlation**2) * rng.standard_normal(count)
        return self._quantile(first, self.input_tokens), self._quantile(second, self.output_tokens)

    def _quantile(self, normals: Array, tokens: tuple[float, ...]) -> Array:
        uniforms = np.fromiter(((1 + erf(each / sqrt(2))) / 2 for each in normals.tolist()), np.float64, len(normals))
        return np.round(np.interp(uniforms, self.probabilities, tokens)).astype(np.int32)


def fixed_lengths(input_tokens: int, output_tokens: int) -> LengthLaw:
    """Return the law under which all requests are equal."""
    return LengthLaw((0.0, 1.0), (input_tokens, input_tokens), (output_tokens, output_tokens))


def fit_lengths(trace: Trace, probabilities: tuple[float, ...] = PROBABILITIES) -> LengthLaw:
    """Return the quantile table and rank correlation of a trace's lengths."""
    tables = [np.quantile(tokens, probabilities) for tokens in (trace.input_tokens, trace.output_tokens)]
    correlation = rank_correlation(trace.input_tokens, trace.output_tokens) or 0.0
    return LengthLaw(tuple(probabilities), tuple(tables[0].tolist()), tuple(tables[1].tolist()), correlation)


def sample_lengths(law: LengthLaw | Trace, count: int, rng: Generator) -> tuple[Array, Array]:
    """Return input and output tokens, int32[count] each, drawn from a law or, in pairs, from the rows of a trace."""
    if isinstance(law, LengthLaw):
        return law.sample(count, rng)
    rows = rng.integers(len(law), size=count)
    return law.input_tokens[rows], law.output_tokens[rows]
