"""What a study claims before it runs (a Card), what it found (a Finding), and the one rule that compares them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, sqrt
from typing import Any, Literal

REPRODUCED, RATIO, DIRECTION, MISSED, UNTESTABLE = VERDICTS = (
    "reproduced",
    "ratio holds",
    "direction holds",
    "not reproduced",
    "not testable",
)
NEUTRAL = "neutral"
NEAR = 0.10  # of the claimed number counts as the number itself
CONFIDENCE = 0.95

Grade = Literal["Q", "R", "D"]
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Claim:
    """One published number and the band in which ours must fall for the claim to hold.

    grade is Q where all inputs are published, R where only the factor is expected, D where only the direction is.
    low and high are the pass band, in the claim's unit. neutral is the value that would mean no effect; None where the
    claim is not of an effect (a bound, a level), so that there is no direction to hold.
    """

    figure: str
    claimed: float
    unit: str
    grade: Grade
    low: float = -inf
    high: float = inf
    neutral: float | None = 1.0

    @property
    def band(self) -> str:
        """Return the pass band in words.

        >>> Claim("goodput ratio", 5.6, "x", "R", low=2.5).band, Claim("knee", 1.8, "1/s", "Q", 1.62, 1.98).band
        ('>= 2.5', '1.62 to 1.98')
        """
        if self.low == -inf:
            return f"<= {self.high:g}"
        return f">= {self.low:g}" if self.high == inf else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Card:
    """What is claimed and what would count as holding, written before the first run and never tuned after it.

    study_pass is the pass rule as our survey of the systems words it; claims are its numbers, the headline first.
    control says where the mechanism must not help; its ratios must lie within control_margin of 1. hidden_knob names
    what the paper leaves open and the study sweeps.
    """

    name: str
    paper: str
    sentence: str
    claims: tuple[Claim, ...]
    study_pass: str
    control: str
    control_margin: float
    hidden_knob: str
    group: str = "datacenter"

    @property
    def headline(self) -> Claim:
        """Return the claim that the study is known for."""
        return self.claims[0]


@dataclass(frozen=True, slots=True)
class Measured:
    """A value and its interval over seeds; of one value where nothing was drawn."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What a run of a study found: figures by the names of the card's claims, and the rows behind them.

    A claim without a figure is not testable. control holds the ratio (mechanism on / off) of each control. curve,
    ablation and sweep are rows of plain values; note gives likely reasons for what was missed.
    """

    figures: Mapping[str, Measured]
    control: Mapping[str, Measured]
    curve: Sequence[Row] = ()
    ablation: Sequence[Row] = ()
    sweep: Sequence[Row] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict of one claim, and whether its pass band holds."""

    claim: Claim
    measured: Measured | None
    verdict: str
    in_band: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """A study that was run: its card, its finding, the verdicts, and the CPU seconds it took."""

    card: Card
    finding: Finding
    judgements: tuple[Judgement, ...]
    verdict: str
    control: str
    seconds: float = field(compare=False, default=0.0)


def over_seeds(values: Sequence[float]) -> Measured:
    """Return the mean of one value per seed and its 95 % interval by Student's t.

    >>> found = over_seeds([9.0, 10.0, 11.0])
    >>> round(found.low, 2), found.value, round(found.high, 2)
    (7.52, 10.0, 12.48)
    """
    count = len(values)
    mean = sum(values) / count
    if count == 1 or not isfinite(mean):
        return Measured(mean, mean, mean)
    from scipy.special import stdtrit

    deviation = sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, 0.5 + 0.5 * CONFIDENCE)) * deviation / sqrt(count)
    return Measured(mean, mean - half, mean + half)


def verdict(claim: Claim, measured: Measured | None) -> str:
    """Return what a measured figure says of a claim.

    Nothing above "direction holds" is given outside the pass band, and nothing above "not reproduced" where the
    interval touches neutral: such an interval would hold any claim.
    """
    if measured is None or not isfinite(measured.value):
        return UNTESTABLE
    if claim.neutral is not None and not _is_beyond(claim, measured):
        return MISSED
    if claim.grade == "D" or not is_in_band(claim, measured):
        return MISSED if claim.neutral is None else DIRECTION
    return REPRODUCED if claim.grade == "Q" or _is_the_number(claim, measured) else RATIO


def is_in_band(claim: Claim, measured: Measured | None) -> bool:
    """Say whether the measured value lies in the pass band."""
    return measured is not None and claim.low <= measured.value <= claim.high


def judge(card: Card, finding: Finding, seconds: float = 0.0) -> Outcome:
    """Return the outcome of a finding: every claim judged, and the study as a whole.

    The study's verdict is its headline's where every other band that could be tested holds too, else the weakest.
    """
    if strangers := set(finding.figures) - {claim.figure for claim in card.claims}:
        raise ValueError(f"study {card.name}: figure {min(strangers)!r} is not one of its card's claims")
    judgements = tuple(_judgement(claim, finding.figures.get(claim.figure)) for claim in card.claims)
    tested = [each for each in judgements if each.verdict != UNTESTABLE]
    whole = judgements[0].verdict
    if tested and not all(each.in_band for each in tested):
        whole = max((each.verdict for each in tested), key=VERDICTS.index)
    return Outcome(card, finding, judgements, whole, control_verdict(card, finding.control), seconds)


def control_verdict(card: Card, control: Mapping[str, Measured]) -> str:
    """Return "neutral" where every control ratio is within the card's margin of 1, else a sentence on those beyond."""
    if not control:
        return "no control was run"
    beyond = {name: found for name, found in control.items() if not abs(found.value - 1) <= card.control_margin}
    if not beyond:
        return NEUTRAL
    words = ", ".join(f"{name} is {found.value:.3g}" for name, found in beyond.items())
    return f"{words}, not within 1 +- {card.control_margin:g}"


def _judgement(claim: Claim, measured: Measured | None) -> Judgement:
    return Judgement(claim, measured, verdict(claim, measured), is_in_band(claim, measured))


def _is_beyond(claim: Claim, measured: Measured) -> bool:
    """Say whether the whole interval lies on the claimed side of neutral."""
    assert claim.neutral is not None
    return measured.low > claim.neutral if claim.claimed > claim.neutral else measured.high < claim.neutral


def _is_the_number(claim: Claim, measured: Measured) -> bool:
    is_near = abs(measured.value - claim.claimed) <= NEAR * abs(claim.claimed)
    return is_near or measured.low <= claim.claimed <= measured.high
