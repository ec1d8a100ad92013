"""Replays request logs of real engines: the same arrivals, lengths and limits, and what the replay makes of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models import device, forward, llm
from models.calibration.validation import Predictions, none_yet, summary
from models.device import Device
from models.engine import Engine, Settings
from models.estimate import StepCosts, trust
from models.step import PICOSECONDS_PER_SECOND
from simulator.fleet import Fleet, Pool, PricedEngine, priced
from simulator.replay import replay
from simulator.run import Run
from traces.trace import NS_PER_S, Trace

Floats = npt.NDArray[np.float64]

CONTEXT_TOKENS = 1000.0  # of a sequence, at which a step is asked how sure it is
METRICS = ("ttft", "tpot", "e2e")
FIGURES: dict[str, Callable[[Floats], Any]] = {
    "mean": np.mean,
    "p50": np.median,
    "p90": lambda x: np.quantile(x, 0.9),
    "p99": lambda x: np.quantile(x, 0.99),
}
NEEDED = (
    *("run", "device", "model", "input_toks", "output_toks", "arrival_s"),
    *("tensor_parallel_size", "max_num_seqs", "max_num_batched_tokens"),
)


@dataclass(frozen=True, slots=True)
class Replayed:
    """One run of a log, replayed: rows are its places in the log, in order of arrival."""

    name: str
    rows: npt.NDArray[np.int64]
    engine: Engine
    run: Run

    def seconds(self) -> dict[str, Floats]:
        """Return TTFT, TPOT and E2E of every request, counted from when the scheduler took notice of it, as logs do."""
        queued_s = (self.run.outcome.queued_ps - self.run.arrival_ps) / PICOSECONDS_PER_SECOND
        return {"ttft": self.run.ttft_s - queued_s, "tpot": self.run.tpot_s, "e2e": self.run.e2e_s - queued_s}


def replay_log(frame: Any, *, sample_s: float | None = None) -> tuple[list[Replayed], dict[str, str]]:
    """Return every run of a log replayed, and why some were not.

    frame has the columns of NEEDED, one row a request; num_gpu_blocks and block_size where the engine reported them.
    Measured times are not read. Raises KeyError for a missing column.
    """
    replayed, reasons = [], {}
    for name, ordered in runs_of(frame):
        try:
            replayed.append(replay_run(name, ordered, sample_s=sample_s))
        except ValueError as error:
            reasons[name] = str(error)
    return replayed, reasons


def runs_of(frame: Any) -> list[tuple[str, Any]]:
    """Return every run of a log: its name, its rows in order of arrival with their places in the log as `_row`.

    Raises KeyError for a missing column.
    """
    missing = [name for name in NEEDED if name not in frame]
    if missing:
        raise KeyError(missing[0])
    parts = frame.assign(_row=np.arange(len(frame))).groupby("run", sort=False)
    return [(name, part.sort_values("arrival_s", kind="stable")) for name, part in parts]


def replay_run(name: str, ordered: Any, on: Device | None = None, *, sample_s: float | None = None) -> Replayed:
    """Return one run replayed, on the device that its log names or on one that stands for it.

    ValueError says what of the engine is not known, or does not fit.
    """
    engine, priced_engine = _engine_of(ordered, on)
    run = replay(_trace_of(ordered), Fleet((Pool(priced_engine, 1),)), sample_s=sample_s)
    return Replayed(name, ordered["_row"].to_numpy(), engine, run)


def validate_requests(path: Path) -> tuple[Any, Predictions, dict[str, Any]]:
    """Return a request log's rows, their predictions, and errors by run, metric and overall, as fractions."""
    import pandas

    frame = pandas.read_parquet(path)
    found = none_yet(len(frame), METRICS)
    replayed, reasons = replay_log(frame)
    for name, reason in reasons.items():
        found.reason[(frame["run"] == name).to_numpy()] = reason
    for one in replayed:
        found.provenance[one.rows], interval = _trust(one.engine)
        for metric, seconds in one.seconds().items():
            found.value[metric][one.rows] = seconds
            found.low[metric][one.rows], found.high[metric][one.rows] = (seconds * factor for factor in interval)
    truth = {metric: frame[f"{metric}_ms"].to_numpy(np.float64) * 1e-3 for metric in METRICS}
    keys = frame[["device", "model"]].assign(engine="vllm", op="", dtype="bf16")
    result = summary(keys, truth, found)
    result["figures"] = {one.name: _figures(one, truth) for one in replayed}
    return frame, found, result


def _trust(engine: Engine) -> tuple[str, tuple[float, float]]:
    """Return the provenance and the 90 % factors of a full decode step: what all times of a log hang on."""
    batch = np.full(1, float(engine.settings.max_num_seqs))
    calls = [*forward.token_calls(engine, batch), *forward.decode_calls(engine, batch, np.full(1, CONTEXT_TOKENS))]
    return trust(engine, StepCosts(engine), calls)


def _figures(one: Replayed, truth: dict[str, Floats]) -> dict[str, dict[str, float]]:
    """Return the relative error of the mean and of percentiles over a run's requests."""
    return {
        metric: {
            name: float(figure(seconds[known]) / figure(truth[metric][one.rows][known]) - 1.0)
            for name, figure in FIGURES.items()
        }
        for metric, seconds in one.seconds().items()
        for known in [np.isfinite(seconds) & np.isfinite(truth[metric][one.rows])]
    }


def _engine_of(rows: Any, on: Device | None) -> tuple[Engine, PricedEngine]:
    """Return the engine that a run's rows describe, priced, its KV blocks as the engine reported them if it did."""
    first = rows.iloc[0]
    experts = bool(first.get("enable_expert_parallel", False))
    tp = int(first["tensor_parallel_size"])
    engine = Engine(
        llm.find(first["model"]),
        on or device.find(first["device"]),
        tp=tp,
        dp=int(first.get("data_parallel_size", 1)),
        ep=tp if experts else 1,
        settings=Settings(int(first["max_num_seqs"]), int(first["max_num_batched_tokens"])),
        framework_version=_text(first.get("vllm_version")),
    )
    found = priced(engine)
    blocks = first.get("num_gpu_blocks", np.nan)
    if np.isfinite(blocks):
        context_tokens = min(engine.llm.context_tokens, int(blocks * first["block_size"]))
        limits = replace(found.limits, total_blocks=int(blocks), max_context_tokens=context_tokens)
        found = replace(found, limits=limits)
    if not found.limits.total_blocks:
        raise ValueError(f"{engine.name} does not fit in memory")
    return engine, found


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _trace_of(rows: Any) -> Trace:
    arrival_ns = np.rint((rows["arrival_s"] - rows["arrival_s"].min()).to_numpy(np.float64) * NS_PER_S).astype(np.int64)
    inputs, outputs = (rows[name].to_numpy(np.int32) for name in ("input_toks", "output_toks"))
    return Trace(str(rows["run"].iloc[0]), arrival_ns, inputs, outputs, np.zeros(len(rows), np.int8))
