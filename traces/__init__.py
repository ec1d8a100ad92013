"""What was asked, and when: request traces, their statistics and transformations."""

from traces.errors import BadTrace
from traces.formats import FORMATS
from traces.reading import read, sample
from traces.trace import Labels, Ragged, Status, Trace
from traces.writing import write

__all__ = ["FORMATS", "BadTrace", "Labels", "Ragged", "Status", "Trace", "read", "sample", "write"]
