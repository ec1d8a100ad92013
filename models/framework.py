"""A serving framework: what its host and its CUDA graphs add to a step."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent / "catalogue" / "frameworks"


@dataclass(frozen=True, slots=True)
class Framework:
    """Host time that the device waits for, per step and per scheduled sequence, and the sizes graphs are captured for.

    Batches up to `graph_max_tokens` are padded to 1, 2, 4, then multiples of `graph_fine_tokens` below
    `graph_coarse_from_tokens` and of twice that above.
    """

    name: str
    host_step_s: float
    host_sequence_s: float
    graph_max_tokens: int
    graph_fine_tokens: int
    graph_coarse_from_tokens: int
    provenance: str
    source: str

    def padded_tokens(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the tokens a step computes for each number of tokens it was given."""
        fine, coarse = self.graph_fine_tokens, 2 * self.graph_fine_tokens
        padded = np.where(
            tokens <= self.graph_coarse_from_tokens, -(-tokens // fine) * fine, -(-tokens // coarse) * coarse
        )
        small = np.select([tokens <= 2, tokens <= 4], [tokens, 4], padded)
        return np.where(tokens > self.graph_max_tokens, tokens, np.minimum(small, self.graph_max_tokens))


@cache
def load(name: str) -> Framework:
    """Return a framework of the catalogue; ValueError names the known ones."""
    path = FOLDER / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise ValueError(f"unknown serving framework {name!r}; known: {known}")
    return Framework(name=name, **tomllib.loads(path.read_text()))
