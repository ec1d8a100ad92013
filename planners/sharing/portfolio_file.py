"""portfolio.yaml: several studies by name, each as plan.yaml has one, and the limits that they share."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from planners import marked_yaml, study
from planners.offers.limits import Limits
from planners.strict import strict
from planners.study import Study

FILE = "portfolio.yaml"


@strict
@dataclass(frozen=True, slots=True)
class Studies:
    """What is planned together: a study for each model, and limits on all their fleets, as a study has them on one."""

    plans: Mapping[str, Study]
    limits: Mapping[str, float] = field(default_factory=dict)

    @property
    def shared(self) -> Limits:
        """Return the shared limits; ValueError for what belongs to each plan: spares, zones."""
        limits = study.limits_of(self.limits)
        if limits.spare or limits.spot_spare or limits.zones > 1:
            raise ValueError("spares and zones are not shared: they are limits of each plan")
        return limits

    def allotted(self, uses: Mapping[str, Mapping[str, float]], name: str) -> dict[str, float]:
        """Return the limits of one plan by itself: its own, and of what is counted what the others leave."""
        left = dict(self.plans[name].limits)
        for key, most in self.limits.items():
            if key.startswith(("devices.", "usd_per_hour", "power_w")):
                rest = most - sum(used[key] for other, used in uses.items() if other != name)
                left[key] = min(left.get(key, rest), rest)
        return left


def read(path: str | Path) -> Studies:
    """Return the studies in a file; relative paths are seen from its folder, every mistake is listed with its place."""
    text = Path(path).read_text(encoding="utf-8")
    written = marked_yaml.parse(str(path), text, Studies)
    mistakes = []
    for name, each in written.plans.items():
        mistakes += study.mistakes(each, str(path), text, ("plans", name))
    try:
        _ = written.shared
    except ValueError as error:
        mistakes.append(f"{marked_yaml.place_of(str(path), text, ('limits',))}: limits: {error}")
    if not written.plans:
        mistakes.append(f"{marked_yaml.place_of(str(path), text, ('plans',))}: plans: expected at least one")
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return Studies({name: study.seen_from(path, each) for name, each in written.plans.items()}, written.limits)
