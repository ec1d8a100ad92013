"""The door to compiled code: one decorator, one cache directory of our choosing."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

from models.linked import InnerCompiler, KernelCompiler

Function = TypeVar("Function", bound=Callable[..., Any])

ROOT = Path(__file__).resolve().parent.parent
KERNEL_FILES = (
    *("models/linked.py", "models/reference.py"),
    *("models/operators.py", "models/attention.py", "models/experts.py", "models/step.py"),
    *("models/calibration/batch.py", "models/calibration/boosting.py", "models/calibration/residual.py"),
    *("simulator/actions.py", "simulator/advance.py", "simulator/batch.py", "simulator/blocks.py"),
    *("simulator/cache.py", "simulator/control/lanes_now.py", "simulator/control/matching.py"),
    *(
        "simulator/ending.py",
        "simulator/fetching.py",
        "simulator/forming.py",
        "simulator/lane.py",
        "simulator/layout.py",
        "simulator/nodes.py",
    ),
    *("simulator/queues.py", "simulator/reserve.py", "simulator/routing.py", "simulator/series.py"),
    *(
        "simulator/shelves.py",
        "simulator/tiers.py",
        "simulator/timers.py",
        "simulator/tournament.py",
        "simulator/turnover.py",
    ),
)


def source_fingerprint() -> str:
    """Return a hash of every kernel's source, so that a kernel is rebuilt when one that it calls has changed."""
    digest = hashlib.sha256()
    for name in KERNEL_FILES:
        path = ROOT / name
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()[:16]


def cache_directory() -> Path | None:
    """Return a writable folder for compiled kernels, or None where the machine has none at all."""
    import platformdirs

    chosen = os.environ.get("FLEETPLAN_CACHE_DIR")
    candidates = [Path(chosen)] if chosen else [Path(platformdirs.user_cache_dir("fleetplan"))]
    candidates.append(Path(tempfile.gettempdir()) / f"fleetplan-{os.getuid() if hasattr(os, 'getuid') else 0}")
    for candidate in candidates:
        folder = candidate / "kernels" / source_fingerprint()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


def _choose_cache() -> bool:
    """Point numba's cache at our folder; say whether one can be kept."""
    folder = cache_directory()
    if folder is not None:
        os.environ["NUMBA_CACHE_DIR"] = numba.config.CACHE_DIR = str(folder)
    return folder is not None


_CAN_CACHE = _choose_cache()


def kernel(function: Function) -> Function:
    """Compile a function for the data plane, once per machine and source version.

    It may use the arrays that it is given but make none: so it need not count references, which would take longer
    than its sums.
    """
    compiled: Function = numba.njit(cache=_CAN_CACHE, error_model="numpy", _nrt=False, pipeline_class=KernelCompiler)(
        function
    )
    return compiled


def bound(compiled: Function, *arguments: Any) -> Function:
    """Return a kernel as compiled for arguments of these types, to be called again and again with such.

    Each call then costs a tenth: numba does not look at the types. A function that is not compiled is returned as is.
    """
    if not hasattr(compiled, "get_overload"):
        return compiled
    signature = tuple(numba.typeof(argument) for argument in arguments)
    compiled.compile(signature)  # type: ignore[attr-defined]
    entry: Function = compiled.get_overload(signature)
    return entry


def asking_for(part: str) -> Callable[[Function], Function]:
    """Return what compiles an inner kernel that says no where a part of its first argument, a named tuple, is empty.

    Kernels for such arguments are then compiled without all that depends on the answer.
    """

    def ask(function: Function) -> Function:
        compiled = inner_kernel(function)
        compiled.asks_for = part  # type: ignore[attr-defined]
        return compiled

    return ask


def inner_kernel(function: Function) -> Function:
    """Compile a function that only other kernels call: it has no Python entry, which would take long to compile.

    Nor is it cached: those that call it are, with it inside.
    """
    compiled: Function = numba.njit(
        error_model="numpy", _nrt=False, no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=InnerCompiler
    )(function)
    return compiled
