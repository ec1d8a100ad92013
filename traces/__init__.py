"""What was asked, and when: request traces, their statistics and transformations."""

from importlib import import_module
from types import ModuleType

from traces.errors import BadTrace
from traces.formats import FORMATS
from traces.reading import read, sample
from traces.trace import Labels, Ragged, Status, Trace
from traces.writing import write

__all__ = ["FORMATS", "BadTrace", "Labels", "Ragged", "Status", "Trace", "read", "sample", "write"]

ROOMS = (
    *(
        "anonymise",
        "arrival_laws",
        "fetch",
        "fit",
        "generate",
        "length_laws",
        "likeness",
        "parquet",
        "plots",
        "servegen",
    ),
    *("sessions", "statistics", "streaming", "transform"),
)


def __getattr__(name: str) -> ModuleType:
    """Import a room of this package when it is first asked for, as in `traces.transform.thin`."""
    if name not in ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
