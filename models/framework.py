"""A serving framework: what its host, its fusions and its CUDA graphs make of the operators' times."""

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.device import SERVING_SCALARS
from models.engine import Engine
from models.llm import Llm
from models.versions import distance

SCALARS = SERVING_SCALARS
FOLDER = Path(__file__).parent / "catalogue" / "frameworks"
ALIASES = {"trtllm": "tensorrt-llm", "trt-llm": "tensorrt-llm", "llama-cpp": "llama.cpp", "llamacpp": "llama.cpp"}


@dataclass(frozen=True, slots=True)
class Framework:
    """Host time that the device waits for, per step and per scheduled sequence, and the sizes graphs are captured for.

    layer_s is the time a layer's smallest kernels and the gaps between kernels add to a step. decode_factor and
    prefill_factor multiply the operators' time on the device: below one where the framework fuses or overlaps operators
    that were measured alone. prefill_first means that prompts and decodes never share a step. A request takes
    front_request_s and front_token_s a prompt token in the front end, one request at a time, joins steps_ahead steps
    after it is noticed, and its first token takes first_token_s to its client.
    Batches up to `graph_max_tokens` are padded to 1, 2, 4, then multiples of `graph_fine_tokens` below
    `graph_coarse_from_tokens` and of twice that above. Larger steps have no graph: the host launches their kernels one
    by one, and takes eager_layer_s for those of a layer and eager_experts_s for those that choose and run its experts,
    which the device waits for where it is done sooner.
    fuses_norms means that the kernel of an all-reduce also adds the residual and normalises, fuses_quantise that norms,
    activations and attention write numbers quantised by the checkpoint's scales for the matrix that reads them.
    interval holds the factors on a step's time between which 90 % of the measurements lay that the scalars were not
    fitted to, ttft_interval those on a time to a first token.
    """

    name: str
    host_step_s: float
    host_sequence_s: float
    graph_max_tokens: int
    graph_fine_tokens: int
    graph_coarse_from_tokens: int
    provenance: str
    source: str
    decode_factor: float = 1.0
    prefill_factor: float = 1.0
    layer_s: float = 0.0
    first_token_s: float = 0.0
    front_request_s: float = 0.0
    front_token_s: float = 0.0
    steps_ahead: int = 0
    prefill_first: bool = False
    eager_layer_s: float = 0.0
    eager_experts_s: float = 0.0
    fuses_norms: bool = False
    fuses_quantise: bool = False
    interval: tuple[float, float] = (0.75, 1.35)
    ttft_interval: tuple[float, float] = (0.5, 2.0)

    def step_s(self, layers: float) -> float:
        """Return the seconds that a step of so many layers takes beside its operators."""
        return self.host_step_s + self.layer_s * layers

    def eager_s(self, llm: Llm) -> float:
        """Return the seconds in which the host launches the kernels of a step one by one."""
        return self.eager_layer_s * llm.layers + self.eager_experts_s * llm.moe_layers

    def padded_tokens(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the tokens a step computes for each number of tokens it was given."""
        fine, coarse = self.graph_fine_tokens, 2 * self.graph_fine_tokens
        padded = np.where(
            tokens <= self.graph_coarse_from_tokens, -(-tokens // fine) * fine, -(-tokens // coarse) * coarse
        )
        small = np.select([tokens <= 2, tokens <= 4], [tokens, 4], padded)
        return np.where(tokens > self.graph_max_tokens, tokens, np.minimum(small, self.graph_max_tokens))


def of_engine(engine: Engine) -> Framework:
    """Return an Engine's serving framework as fitted on its device in its version, or the nearest that was.

    What its user's own device file says of the framework stands before what the catalogue does.
    """
    label, version = engine.device.calibration or engine.device.name, engine.framework_version or ""
    found = load(engine.framework, label, version)
    own = [row for row in engine.device.serving if ALIASES.get(row["framework"], row["framework"]) == found.name]
    if own:
        chosen = min(own, key=lambda row: distance(version, row.get("versions", "")))
        found = replace(found, **{name: chosen[name] for name in SCALARS}, provenance="calibrated")
    captured = engine.settings.max_cudagraph_capture_size
    return found if captured is None else replace(found, graph_max_tokens=captured)


@cache
def load(name: str, device: str | None = None, version: str = "") -> Framework:
    """Return a framework of the catalogue, as fitted on a device (as measurement tables call it) in a version.

    Where that device was not measured, the scalars are the framework's on all that were; without a device they are
    those too, assumed. ValueError names the known frameworks.
    """
    canonical = ALIASES.get(name, name)
    path = FOLDER / f"{canonical}.toml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise ValueError(f"unknown serving framework {name!r}; known: {known}")
    table: dict[str, Any] = tomllib.loads(path.read_text())
    fitted = table.pop("fitted", [])
    plain = Framework(name=canonical, **{key: _frozen(value) for key, value in table.items()})
    if device is None or not fitted:
        return plain
    own = [row for row in fitted if row["device"] == device]
    if not own:
        return replace(plain, **_widest(fitted), provenance="modelled")
    chosen = min(own, key=lambda row: distance(version, row["versions"]))
    return replace(plain, **{key: _frozen(value) for key, value in chosen.items() if key in Framework.__slots__})


def _widest(fitted: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the widest of the intervals of scalars fitted to all versions."""
    widest = {}
    for name in ("interval", "ttft_interval"):
        lows, highs = zip(*(row[name] for row in fitted if not row["versions"]), strict=True)
        widest[name] = (min(lows), max(highs))
    return widest


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
