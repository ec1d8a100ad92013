"""The studies there are, by name, and how they are run: in order, or several at once in processes of their own."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from time import process_time
from typing import Protocol, cast

from simulator.studies.card import Card, Finding, Outcome, judge

STUDIES = {
    "aibrix": "simulator.studies.aibrix",
    "dualmap": "simulator.studies.dualmap",
    "flow_prefill": "simulator.studies.flow_prefill",
    "llumnix": "simulator.studies.llumnix",
    "pd_serve": "simulator.studies.pd_serve",
    "prfaas": "simulator.studies.prfaas",
    "s_lora": "simulator.studies.s_lora",
    "semi_pd": "simulator.studies.semi_pd",
}
ALL = "all"


class Study(Protocol):
    """A module of one study: its card, and the run that fills a finding."""

    CARD: Card

    def run(self, seeds: Sequence[int], quick: bool) -> Finding:
        """Return what the study finds over these seeds; `quick` cuts its length to some 30 CPU seconds."""
        ...


def find(name: str) -> Study:
    """Return the module of a study, imported on demand; ValueError names the nearest where there is none."""
    return cast(Study, importlib.import_module(STUDIES[_known(name)]))


def names(which: str = ALL, group: str | None = None) -> list[str]:
    """Return the studies that a name or "all" stands for, those of a group where one is given."""
    found = list(STUDIES) if which == ALL else [_known(which)]
    if group is None:
        return found
    groups = {name: find(name).CARD.group for name in found}
    if group not in groups.values():
        raise ValueError(f"no study of group {group!r}; known: {', '.join(sorted(set(groups.values())))}")
    return [name for name in found if groups[name] == group]


def run_study(name: str, seeds: Sequence[int], quick: bool = False) -> Outcome:
    """Run one study and judge what it found."""
    return _run(STUDIES[_known(name)], seeds, quick)


def run_studies(
    chosen: Sequence[str],
    seeds: Sequence[int],
    quick: bool = False,
    processes: int = 1,
    progress: Callable[[str], None] = lambda words: None,
) -> list[Outcome]:
    """Run studies in order, or in so many processes; the outcomes are the same and in the same order."""
    found = []
    for name, outcome in zip(chosen, _outcomes(chosen, seeds, quick, processes), strict=True):
        progress(f"{name}: {outcome.verdict}, control {outcome.control} ({outcome.seconds:.0f} CPU s)")
        found.append(outcome)
    return found


def _outcomes(chosen: Sequence[str], seeds: Sequence[int], quick: bool, processes: int) -> Iterator[Outcome]:
    if processes <= 1 or len(chosen) <= 1:
        yield from (run_study(name, seeds, quick) for name in chosen)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(processes, len(chosen)), get_context("spawn")) as pool:
        tasks = [pool.submit(_run, STUDIES[name], tuple(seeds), quick) for name in chosen]
        yield from (task.result() for task in tasks)


def _run(module: str, seeds: Sequence[int], quick: bool) -> Outcome:
    study = cast(Study, importlib.import_module(module))
    started_s = process_time()
    finding = study.run(seeds, quick)
    return judge(study.CARD, finding, process_time() - started_s)


def _known(name: str) -> str:
    plain = name.lower().replace("-", "_")
    if plain in STUDIES:
        return plain
    near = get_close_matches(plain, STUDIES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(STUDIES)}"
    raise ValueError(f"unknown study {name!r}; {hint}")
