"""What a report needs to know of all rows, gathered block by block."""

from dataclasses import dataclass, field
from typing import cast

import numpy as np

from traces.arrivals import quantum_ns
from traces.trace import NS_PER_S, Array, Column


@dataclass(slots=True)
class Tally:
    """What the report needs to know of all rows, gathered block by block."""

    rows: int = 0
    inversions: int = 0
    no_output: int = 0
    no_input: int = 0
    duplicates: int = 0
    zero_gaps: int = 0
    gap_divisor_ns: int = 0
    sample_ns: list[Array] = field(default_factory=list)
    histograms: dict[str, Array] = field(default_factory=dict)
    last: tuple[int, int, int] | None = None

    def add(self, arrival_ns: Array, columns: dict[str, Column]) -> None:
        """Take in the next rows, in their order of arrival."""
        lengths = [cast(Array, columns[name]) for name in ("input_tokens", "output_tokens")]
        before = np.array([] if self.last is None else [self.last], np.int64).reshape(-1, 3)
        rows = [np.concatenate([before[:, place], each]) for place, each in enumerate((arrival_ns, *lengths))]
        gaps = np.diff(rows[0])
        same = gaps == 0
        self.zero_gaps += int(np.count_nonzero(same))
        self.duplicates += int(np.count_nonzero(same & (np.diff(rows[1]) == 0) & (np.diff(rows[2]) == 0)))
        self.gap_divisor_ns = int(np.gcd.reduce(gaps, initial=self.gap_divisor_ns))
        if self.rows < SAMPLE_ROWS:
            self.sample_ns.append(arrival_ns[: SAMPLE_ROWS - self.rows].copy())
        self.no_input += int(np.count_nonzero(lengths[0] == 0))
        self.no_output += int(np.count_nonzero(lengths[1] == 0))
        for name, values in zip(("input_tokens", "output_tokens"), lengths, strict=True):
            self._count(name, values)
        self.rows += len(arrival_ns)
        self.last = (int(arrival_ns[-1]), int(lengths[0][-1]), int(lengths[1][-1]))

    @property
    def quantum_ns(self) -> int:
        """Return the step of the clock: that of the first rows, or what divides all gaps where it divides theirs."""
        sample = np.concatenate(self.sample_ns)
        step = quantum_ns(sample)
        exact = self.rows <= SAMPLE_ROWS or (len(sample) > 1 and step != int(np.gcd.reduce(np.diff(sample))))
        return step if exact else self.gap_divisor_ns

    def warnings(self) -> list[str]:
        """Return the warnings of `doubts`, from counts."""
        found = []
        if self.no_input == self.rows:
            found.append("all input lengths are 0: the source did not record them")
        zero, step_ns = self.zero_gaps / max(self.rows - 1, 1), self.quantum_ns
        if step_ns >= NS_PER_S // 100 and self.rows > 100 and zero >= 0.05:
            step = f"{step_ns / NS_PER_S:g} s ({zero:.0%} of gaps are zero)"
            found.append(f"time moves in steps of {step}: dequantise before fitting gaps")
        if self.inversions:
            found.append(f"{self.inversions} rows came before the row above them: sorted by time")
        if self.no_output:
            found.append(f"{self.no_output} requests have no output tokens ({self.no_output / self.rows:.1%})")
        found.append("; ".join(filter(None, map(self._clip, self.histograms))))
        if self.duplicates:
            found.append(f"{self.duplicates} rows equal the row above them: kept")
        return [each for each in found if each]

    def _count(self, name: str, values: Array) -> None:
        counts = np.bincount(np.minimum(values, MOST_COUNTED))
        known = self.histograms.get(name, np.zeros(0, np.int64))
        longer, shorter = (counts, known) if len(counts) > len(known) else (known, counts)
        longer = longer.copy()
        longer[: len(shorter)] += shorter
        self.histograms[name] = longer

    def _clip(self, name: str) -> str:
        counts = self.histograms[name]
        most = len(counts) - 1
        near_top = float(counts[int(np.ceil(0.999 * most)) :].sum() / self.rows)
        if self.rows < 1000 or most == 0 or most == MOST_COUNTED or near_top <= 0.005:
            return ""
        return f"{name} stops at {most} ({near_top:.1%} of requests): clipped by the source"


MOST_COUNTED = 1 << 20
SAMPLE_ROWS = 200_000
