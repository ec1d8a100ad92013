"""The house itself: which room may import which, where the packages come from, and what every file says first."""

import ast
import importlib
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "planners", "simulator", "traces")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
HEAVY = {"pandas", "numba", "ortools", "matplotlib", "scipy", "numpy", "pyarrow", "rich", "pydantic", "yaml"}


def test_the_four_packages_come_from_one_parent():
    parents = {Path(importlib.import_module(name).__file__).resolve().parent.parent for name in PACKAGES}
    assert parents == {ROOT}


def test_imports_go_one_way_down():
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("needs import-linter in this environment")
    done = subprocess.run([str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_opens_with_a_sentence_that_says_what_it_is(path):
    sentence = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    assert len(sentence) > 20
    assert sentence.endswith((".", "?"))


def test_the_command_line_imports_nothing_heavy_at_its_start():
    from planners.cli import COMMANDS

    for module in ("planners.cli", *(place.split(":")[0] for place, _ in COMMANDS.values())):
        path = ROOT / f"{module.replace('.', '/')}.py"
        if path.exists():
            heavy = HEAVY & {each.split(".")[0] for each in imported_at_start(path)}
            assert not heavy, f"{module} imports {', '.join(heavy)} when it is loaded"


def test_every_data_file_of_the_packages_is_shipped_with_them():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                inside = path.relative_to(ROOT / package).as_posix()
                patterns = [*settings["*"], *settings.get(package, ())]
                assert any(fnmatch(path.name, pattern) or fnmatch(inside, pattern) for pattern in patterns), path


def test_what_a_package_offers_is_there():
    for name in PACKAGES:
        package = importlib.import_module(name)
        for offered in getattr(package, "__all__", ()):
            assert hasattr(package, offered), f"{name}.{offered}"


def test_the_flags_of_plan_fleet_are_the_keywords_of_find_plan():
    import inspect

    from planners.commands.fleet import fleet
    from planners.search.search import find_plan

    keywords = set(inspect.signature(find_plan).parameters) - {"progress", "offers", "notes", "facts"}
    renamed = {"llm": "model", "slos": "slo", "tariff": "kinds"}
    of_the_command = {"folder", "as_json", "file", "settings", "scale", "is_explained"}
    flags = {parameter.name for parameter in fleet.params} - of_the_command
    assert flags == {renamed.get(name, name) for name in keywords}


def imported_at_start(path: Path) -> set[str]:
    """Return the modules that a file imports outside functions and type checking."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found
