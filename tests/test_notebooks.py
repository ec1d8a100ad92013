"""Notebooks run from top to bottom, and what they assert holds."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
LIMIT_S = 300


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, monkeypatch, tmp_path):
    pytest.importorskip("ipykernel")
    jupytext = pytest.importorskip("jupytext")
    preprocessors = pytest.importorskip("nbconvert.preprocessors")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("FLEETPLAN_SHARED", str(tmp_path))
    notebook = jupytext.read(path)
    preprocessors.ExecutePreprocessor(timeout=LIMIT_S, kernel_name="python3").preprocess(
        notebook, {"metadata": {"path": str(tmp_path)}}
    )
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]


def test_notebooks_are_kept_without_their_outputs():
    assert not list((ROOT / "notebooks").glob("*.ipynb"))
    assert all("%% [markdown]" in path.read_text(encoding="utf-8") for path in NOTEBOOKS)
