"""The ledger of a control plane: what it did, what was refused, and what it paid for."""

from dataclasses import dataclass, field

from simulator.control.actions import Action, Refusal

MOST_REFUSALS = 1000  # that are kept; all are counted


@dataclass(slots=True)
class Ledger:
    """What the control plane did: actions by name, the first refusals, and lanes paid for over time [(s, lanes)]."""

    actions: dict[str, int] = field(default_factory=dict)
    refusals: list[Refusal] = field(default_factory=list)
    refused: int = 0
    paid: list[tuple[float, int]] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)

    def count(self, name: str) -> None:
        """Count one action, or another thing worth counting."""
        self.actions[name] = self.actions.get(name, 0) + 1

    def paid_lane_s(self, until_s: float) -> float:
        """Return the lanes paid for, integrated over time until the end."""
        times_s = [*(time_s for time_s, _ in self.paid), until_s]
        return sum(
            lanes * (end - begin) for (_, lanes), begin, end in zip(self.paid, times_s, times_s[1:], strict=False)
        )

    def refuse(self, action: Action, why: str) -> Refusal:
        """Write down, and return, why an action was not done."""
        refusal = Refusal(action, why)
        self.refused += 1
        if len(self.refusals) < MOST_REFUSALS:
            self.refusals.append(refusal)
        return refusal
