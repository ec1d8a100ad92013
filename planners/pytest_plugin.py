"""A pytest plugin: `plan_check` fails a test where a locked decision drifted; `--plan-update` locks it anew."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from planners.gate.drift import Finding
    from planners.plan import Plan

PlanCheck = Callable[..., "list[Finding]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --plan-update."""
    group = parser.getgroup("fleetplan")
    group.addoption("--plan-update", action="store_true", help="lock the decisions of today instead of checking them")


@pytest.fixture
def plan_check(request: pytest.FixtureRequest) -> PlanCheck:
    """Return a function (study, lock=..., fail_on=...) that holds a plan.yaml or lock file against today.

    With a study (plan.yaml) whose scenario is not in the lock file, or with --plan-update, the decision is locked.
    """
    update: bool = request.config.getoption("--plan-update")

    def check(
        study: str | Path | None = None,
        lock: str | Path = "plan.lock.json",
        name: str | None = None,
        fail_on: tuple[str, ...] | None = None,
    ) -> "list[Finding]":
        from planners.gate import drift
        from planners.gate import lock as locks

        path = Path(lock)
        scenarios = locks.read(path) if path.exists() else {}
        if study is not None:
            chosen = name or Path(study).stem
            if update or chosen not in scenarios:
                scenarios[chosen] = locks.scenario_of_study(study)
                path.write_text(locks.text_of(scenarios), encoding="utf-8")
                return []
            scenarios = {chosen: scenarios[chosen]}
        elif not scenarios:
            raise FileNotFoundError(f"{path}: no lock file; `plan lock` writes one")
        found = [each for scenario in scenarios.values() for each in drift.check(scenario, path)[1]]
        failing = [each for each in found if each.kind in (fail_on or drift.FAILING)]
        if failing:
            lines = "\n".join(f"{each.kind} {each.what}: {each.words}" for each in found)
            pytest.fail(f"{path} drifted\n{lines}", pytrace=False)
        return found

    return check


def assert_meets(plan: "Plan", *promises: str) -> None:
    """Raise AssertionError, with every percentile beside its limit, unless a rehearsed plan keeps the promises.

    Percentiles that plans carry are p50, p90 and p99.
    """
    from planners.slo import parse_all

    __tracebackhide__ = True
    lines = []
    is_kept = True
    for slo in parse_all(promises):
        label = f"p{slo.percent:g}"
        values: dict[str, Any] = dict(plan.latency_s.get(slo.metric, {}))
        if label not in values:
            raise ValueError(f"a plan does not carry {slo.metric}:{label}; it has: {', '.join(values) or 'nothing'}")
        late = values[label] > slo.limit_s
        is_kept = is_kept and not late
        lines.append(f"{slo}: {values[label]:.4g} s{' is late' if late else ''}")
    assert is_kept, "\n".join(lines)
