"""The kernel forms that calibration can fit: their parameters, where a fit starts, and their discrete choices."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from models import attention, experts, operators
from models.calibration import batch
from models.operators import Formats, Machine

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Form:
    """One kernel form.

    guesses are the positive parameters where a fit starts, in the order of the kernel; codes lists the discrete
    choices to try, one tuple each, appended to the parameters; outputs counts the seconds and the traits; between are
    the parameters that only rows of several nodes tell, column NODES.
    """

    name: str
    guesses: dict[str, float]
    codes: tuple[tuple[float, ...], ...]
    code_names: tuple[str, ...]
    outputs: int
    rows: Callable[..., None]
    between: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the names of all parameters, codes last."""
        return (*self.guesses, *self.code_names)

    def evaluate(self, columns: Floats, formats: Formats, machine: Machine, fit: Floats) -> Floats:
        """Return (rows, outputs): seconds of each row of columns, then its traits."""
        out = np.empty((len(columns), self.outputs))
        self.rows(columns, formats, machine, fit, out)
        return out


FORMS: dict[str, Form] = {}
DEVICES, NODES = 1, 2  # columns of collectives
OF_ENGINES = "custom"  # how measurement tables begin the names of all-reduce kernels that engines bring themselves

# Choices that a kernel's name tells, by form, engine and kernel.
TOLD_CODES = {
    ("decode", "sglang", "triton"): (attention.SPLIT_FEW, attention.PACK_ALWAYS, 1),
    ("decode", "vllm", "vllm_triton_attn"): (attention.SPLIT_SEGMENTS, attention.PACK_ALWAYS, 0),
    ("decode", "vllm", "vllm_flash_attn_fa2"): (attention.SPLIT_FULLEST, attention.PACK_UNWINDOWED, 0),
    ("decode", "vllm", "vllm_flashinfer_trtllmdecode"): (attention.SPLIT_ALWAYS, attention.PACK_TILED, 0),
}


def form_told(name: str, engine: str, kernel: str) -> Form:
    """Return a form, with the one choice of a kernel whose name tells its library's rule, or else with all."""
    told = TOLD_CODES.get((name, engine, kernel))
    return replace(FORMS[name], codes=(tuple(map(float, told)),)) if told else FORMS[name]


def _add(
    name: str,
    names: tuple[str, ...],
    guesses: tuple[float, ...],
    codes: Any,
    outputs: int,
    rows: Any,
    between: tuple[str, ...] = (),
) -> None:
    positive = dict(zip(names[: len(guesses)], guesses, strict=True))
    FORMS[name] = Form(name, positive, codes, names[len(guesses) :], outputs, rows, between)


_add(
    "gemm",
    operators.GEMM_PARAMETERS,
    (3e-6, 0.8, 0.4, 250.0, 0.88, 2.0, 3.0, 4.0, 2e-6, 0.5, 3.0, 1.0, 2e-6, 3e-7, 0.8, 0.05, 1e-9, 1e-6, 1e6),
    ((float(operators.FULL_MENU),), (float(operators.UNSPLIT_MENU),), (float(operators.LARGE_MENU),)),
    11,
    batch.gemm_rows,
)
_add(
    "moe",
    experts.MOE_PARAMETERS,
    (
        *(1.5e-5, 0.6, 0.4, 0.85, 2.0, 2.5, 1.0, 1.0, 5e-8, 200.0, 3.0, 0.1, 1.5, 1.0, 1.5, 4e-8, 1e-8, 0.3, 1.1),
        *(0.3, 0.7, 2.0, 2.0),
    ),
    tuple((float(code),) for code in range(experts.BEST, experts.BY_RANK_LOW + 1) if code != 0),
    19,
    batch.moe_rows,
)
_add(
    "decode",
    attention.DECODE_PARAMETERS,
    (
        *(6e-6, 0.3, 0.8, 1.5, 2.0, 1.0, 3e-6, 1e-6, 3e-7, 30.0, 3.0, 0.5, 0.3, 0.7),
        *(1.5, 0.5, 0.5, 1e-6, 3e-6, 5e-8, 1e-6, 1.0),
    ),
    (
        *((1.0, 1.0, 0.0), (1.0, 2.0, 0.0), (1.0, 3.0, 0.0), (1.0, 6.0, 0.0), (1.0, 6.0, 1.0), (0.0, 1.0, 0.0)),
        *((2.0, 3.0, 0.0), (2.0, 4.0, 0.0), (3.0, 3.0, 0.0), (3.0, 4.0, 0.0), (4.0, 1.0, 1.0), (5.0, 2.0, 0.0)),
        *((6.0, 5.0, 1.0), (6.0, 7.0, 0.0), (6.0, 7.0, 1.0), (7.0, 1.0, 0.0)),
    ),
    13,
    batch.decode_rows,
)
_add(
    "prefill",
    attention.PREFILL_PARAMETERS,
    (8e-6, 0.6, 0.7, 40.0, 0.2, 100.0, 5e-7, 0.5, 2.0, 3.0),
    tuple((float(height), float(pack)) for height in (-1, 2, 1, 3) for pack in (0, 1)),
    10,
    batch.prefill_rows,
)
_add(
    "mixed",
    attention.MIXED_PARAMETERS,
    (6e-6, 0.6, 0.7, 100.0, 0.5, 0.3, 5e-7, 2.0, 3.0),
    ((0.0,), (1.0,)),
    8,
    batch.mixed_rows,
)
_add(
    "roofline",
    operators.ROOFLINE_PARAMETERS,
    (3e-6, 0.4, 0.6, 1e8, 1e5, 1e-8, 1.5, 2.0),
    ((),),
    4,
    batch.roofline_rows,
)
_add(
    "lookup",
    operators.LOOKUP_PARAMETERS,
    (3e-6, 1e11, 0.6),
    ((),),
    1,
    batch.lookup_rows,
)
_add(
    "collective",
    operators.COLLECTIVE_PARAMETERS,
    (2e-5, 1e-6, 2e11, 8e-6, 1e-6, 2e10, 1.2e-5, 1e-6, 7e10, 1.0, 1e-5, 1e10, 0.5, 3.0),
    tuple((float(shots),) for shots in range(operators.RINGS_ONLY, operators.SHOTS_BY_TOKENS + 1)),
    1,
    batch.collective_rows,
    ("node_hop_s", "node_bytes_per_s", "rails"),
)
_add(
    "exchange",
    operators.EXCHANGE_PARAMETERS,
    (2e-5, 5e-7, 1e-10, 2e11, 2e10, 1e-5, 4e10, 3.0),
    ((),),
    4,
    batch.exchange_rows,
)
