"""`plan doctor`: is everything here that a plan needs, and does it work together?"""

import sys
import textwrap
from collections.abc import Callable
from typing import Any

import click

from planners.answer import Answer
from planners.cli import FAILED
from planners.commands.envelope import give
from planners.commands.options import json_flag
from planners.commands.tables import screen_width, table

LIBRARIES = ("numpy", "scipy", "pandas", "pyarrow", "numba", "ortools", "simpy", "matplotlib", "bokeh", "click", "rich")


@click.command()
@click.option("--warm", is_flag=True, help="Compile the kernels now, as for an image or a CI cache.")
@json_flag
def doctor(warm: bool, as_json: bool) -> None:
    """Check versions, solver, kernel cache and known conflicts; exit code 1 where something is wrong."""
    from planners.facts import described

    checks: dict[str, Callable[[], str]] = {
        "python": _python,
        "libraries": _libraries,
        "one home": _one_home,
        "no highspy": _no_highspy,
        "solver": _solver,
        "kernel cache": _kernel_cache,
        "facts of earlier runs": described,
    }
    if warm:
        checks["kernels"] = _kernels
    found = [_tried(name, check) for name, check in checks.items()]
    give(Answer("doctor", {"warm": warm}, {"checks": found}), as_json, _told(found))
    if not all(each["ok"] for each in found):
        raise click.exceptions.Exit(FAILED)


def _told(found: list[dict[str, Any]]) -> str:
    """Return the table of what was found, and below it what is wrong, in full on any screen."""
    rows = [
        [each["check"], "ok", each["found"]] if each["ok"] else [each["check"], "WRONG", "see below"] for each in found
    ]
    wrong = [f"{each['check']}: {each['found']}" for each in found if not each["ok"]]
    lines = [textwrap.fill(text, screen_width() or max(map(len, wrong))) for text in wrong]
    return "\n\n".join([table([["Check", "", "Found"], *rows]), *lines])


def _tried(name: str, check: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"check": name, "ok": True, "found": check()}
    except Exception as error:  # whatever is wrong is what is looked for
        return {"check": name, "ok": False, "found": f"{type(error).__name__}: {error}"}


def _python() -> str:
    version = sys.version_info
    if version < (3, 11):
        raise RuntimeError(f"Python {version.major}.{version.minor}; 3.11 or newer is needed")
    return f"{version.major}.{version.minor}.{version.micro} at {sys.executable}"


def _libraries() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in LIBRARIES)


def _one_home() -> str:
    """The names of our packages are common: make sure that all four are ours."""
    from importlib import import_module
    from pathlib import Path

    names = ("models", "planners", "simulator", "traces")
    homes = {str(Path(str(import_module(name).__file__)).parent.parent) for name in names}
    if len(homes) > 1:
        raise RuntimeError(f"packages come from {' and '.join(sorted(homes))}; install in an environment of its own")
    return homes.pop()


def _no_highspy() -> str:
    from importlib.util import find_spec

    if find_spec("highspy") is not None:
        raise RuntimeError("highspy is installed; a process that imports it cannot load OR-Tools")
    return "not installed"


def _solver() -> str:
    from planners.solver import mathopt, solve

    model = mathopt().Model()
    three = model.add_integer_variable(lb=0)
    model.add_linear_constraint(2 * three >= 5)
    model.minimize(three)
    result: Any = solve(model)
    if round(result.objective_value()) != 3:
        raise RuntimeError(f"HiGHS says that the least x with 2 x >= 5 is {result.objective_value()}")
    return "HiGHS answers"


def _kernel_cache() -> str:
    from models.compiled import cache_directory

    folder = cache_directory()
    if folder is None:
        raise RuntimeError("no writable folder for compiled kernels; set FLEETPLAN_CACHE_DIR")
    return str(folder)


def _kernels() -> str:
    from time import process_time

    import traces
    from models import device, llm
    from models.engine import Engine
    from simulator.fleet import Fleet, Pool, priced
    from simulator.replay import replay
    from traces.transform import slice_time

    started_s = process_time()
    engine = priced(Engine(llm.load("llama-3.1-8b"), device.load("h100-sxm")))
    replay(slice_time(traces.sample(), 0.0, 10.0), Fleet((Pool(engine, 1),)))
    return f"compiled or loaded in {process_time() - started_s:.1f} CPU s"
