"""Shared fixtures: the folder of real traces and measurements, where a test needs it."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("FLEETPLAN_FACTS", "off")  # what earlier runs found out is tested where it is meant
SHARED = Path(os.environ.get("FLEETPLAN_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real traces and measurements, or skip where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs the folder of real traces and measurements at {SHARED} (set FLEETPLAN_SHARED)")
    return SHARED
