"""Compare estimates with measured serving results, row by row: which Engine and load a row of the table describes."""

from collections.abc import Callable, Mapping
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from models import device as devices
from models import framework
from models.calibration import launches, serving
from models.calibration.launches import Asked, Launch
from models.calibration.validation import Predictions, by_group, none_yet, summary
from models.closed_loop import Answered, Load
from models.engine import Engine, Settings
from models.estimate import StepCosts, answer, check_fits, scheduler_of
from models.framework import Framework
from models.llm import Llm

Floats = npt.NDArray[np.float64]
Row = Mapping[str, Any]
Found = TypeVar("Found")

METRICS = ("ttft", "tpot", "e2e", "throughput", "power", "energy")
GROUPS = {"device": "device", "engine": "engine", "mode": "op", "weight_dtype": "dtype"}
LOOP = "agg"  # the mode of closed loops of one engine, which are replayed; serving.py describes the others
INFERENCEX_SHORTEST = 0.8
INFERENCEX_LENGTHS = ((1024, 1024), (1024, 8192), (8192, 1024))
COLD_WAVES = 10  # its benchmark sends ten requests a client, the first of all at once
ROUND_LENGTH = 1000  # prompts of whole thousands of tokens are of the vendor's other series, whose lengths spread
BUDGET_TOKENS = 8192
MISLABELLED = "mislabelled"
UNSTATED = ("", "nan", "<NA>", "gemm:nan/moe:nan")
NARROW_KV = ("fp8", "fp4", "nvfp4")
PUBLISHED_AS = {"mxfp4": ("fp4", "mxfp4", "fp8"), "int4": ("int4",)}  # what tables call a published expert format


def engine_of(row: Row) -> Engine:
    """Return the Engine that a row describes; ValueError says why there is none."""
    if str(row.get("quality", "")).startswith(MISLABELLED):
        raise ValueError(f"row marked {row['quality']}")
    if row["engine"] not in ("vllm", "sglang", "trtllm"):
        raise ValueError(f"no calibration for engine {row['engine']!r}")
    device = serving.device_of(row["device"])
    llm = serving.model_of(row["model"])
    dtype = dtype_of(llm, str(row["weight_dtype"]), device)
    tp, ep = _count(row["tp"]), _count(row["ep"])
    dp = _count(row["attn_dp"])
    ep = max(ep, tp * dp) if dp > 1 else ep  # ranks that split attention's tokens alone share every expert
    launch = launch_of(row, llm, dtype)
    if not launch.splits_attention:
        tp, dp = tp * dp, 1
    if launch.drafts_tokens:
        raise ValueError(f"its launch drafts {launch.drafts_tokens} tokens a step; how many were accepted is not told")
    narrow = str(row["weight_dtype"]) in NARROW_KV and "fp8" in device.flops_per_s
    kv_dtype = launch.kv_dtype or ("fp8" if narrow else "bf16")
    version = row["engine_version"] if isinstance(row["engine_version"], str) else None
    return _engine(llm, device, tp, ep, dp, dtype, kv_dtype, row["engine"], version, launch)


def launch_of(row: Row, llm: Llm, dtype: str) -> Launch:
    """Return how a row's server was launched, which is known of one benchmark and of a vendor's first series."""
    engine = str(row["engine"])
    if _is_generated(row):
        return launches.generated(engine)
    if not _is_inferencex(row):
        return Launch()
    cut, lengths = (_count(row["tp"]), _count(row["ep"])), (row["isl"], row["osl"])
    version = row["engine_version"] if isinstance(row["engine_version"], str) else ""
    return launches.find(Asked(engine, llm.name, str(row["device"]), dtype, cut, version, lengths))


def _count(value: Any) -> int:
    return max(1, int(value)) if value == value and value is not None else 1


@cache
def _engine(
    llm: Llm,
    device: devices.Device,
    tp: int,
    ep: int,
    dp: int,
    dtype: str,
    kv_dtype: str,
    framework: str,
    version: str | None,
    launch: Launch,
) -> Engine:
    budget_tokens = launch.budget_tokens or BUDGET_TOKENS
    settings = Settings(
        max_num_seqs=1024,
        max_num_batched_tokens=budget_tokens,
        memory_fraction=launch.memory_fraction,
        fuse_allreduce_rms=launch.fuse_allreduce_rms,
        max_cudagraph_capture_size=launch.graph_tokens,
        moe_backend=launch.moe_backend if dp == 1 else "",
    )
    framework = {"trtllm": "tensorrt-llm"}.get(framework, framework)
    return Engine(llm, device, tp, 1, ep if llm.experts else 1, dp, dtype, kv_dtype, framework, settings, version)


def dtype_of(llm: Llm, stated: str, device: devices.Device) -> str:
    """Return the engine dtype of a row: what is stated, in the way that the model's checkpoints are quantised."""
    if stated in UNSTATED or stated == "bf16":
        return "bf16"
    if llm.native_expert_dtype and stated in PUBLISHED_AS.get(llm.native_expert_dtype, ()):
        return "native"
    if stated == "fp8":
        return llm.fp8_dtype
    return {"fp4": "nvfp4", "int4": "int4"}.get(stated, stated)


def load_of(row: Row) -> Load:
    """Return the closed loop that a row describes."""
    values = [row["isl"], row["osl"], row["concurrency"]]
    if not all(isinstance(value, int | float) and isfinite(value) and value >= 1 for value in values):
        raise ValueError("input length, output length or concurrency is not given")
    shortest = 1.0 if _is_generated(row) else INFERENCEX_SHORTEST
    return Load(int(values[0]), int(values[1]), int(values[2]), shortest, COLD_WAVES)


def _is_inferencex(row: Row) -> bool:
    """Return whether a row is of that benchmark, or of a vendor's repetition of it, which keeps its three lengths."""
    return "InferenceX" in str(row.get("len_note", "")) or (row["isl"], row["osl"]) in INFERENCEX_LENGTHS


def _is_generated(row: Row) -> bool:
    """Return whether a row is of a vendor's series under settings from its configurator, whose lengths are equal."""
    return not _is_inferencex(row) and bool(row["isl"] % ROUND_LENGTH)


def answers(frame: Any) -> list[tuple[Engine, Answered] | str]:
    """Return what each row's clients would see, or why that is not known; equal rows are worked out once."""
    costs: dict[Engine, StepCosts] = {}
    return _each(frame, READ, lambda row: _answer(row, costs))


def _each(frame: Any, columns: tuple[str, ...], work: Callable[[Row], Found]) -> list[Found | str]:
    """Return the result of some work on each row, or why there is none; rows equal in these columns share it."""
    known: dict[Any, Found | str] = {}
    found = []
    for row in frame.reindex(columns=list(columns)).astype(object).to_dict("records"):
        key = tuple(str(row[name]) for name in columns)
        if key not in known:
            try:
                known[key] = work(row)
            except ValueError as error:
                known[key] = str(error)
        found.append(known[key])
    return found


# All that a prediction may know of a row: of a closed loop, and of others.
READ = (
    *("device", "engine", "engine_version", "model", "mode", "quality", "weight_dtype", "tp", "ep", "attn_dp"),
    *("isl", "osl", "concurrency", "len_note"),
)
READ_OTHERS = (
    *("source", "device", "n_devices", "engine", "model", "mode", "weight_dtype", "tp", "dp", "workload"),
    *("isl", "osl", "concurrency", "batch", "request_rate", "parallel_note"),
    *(f"{pool}_{name}" for pool in "pd" for name in ("workers", "tp", "attn_dp")),
)


def _answer(row: Row, costs: dict[Engine, StepCosts]) -> tuple[Engine, Answered]:
    engine, load = engine_of(row), load_of(row)
    check_fits(engine, load)
    if engine not in costs:
        costs[engine] = StepCosts(engine)
    launch = launch_of(row, engine.llm, engine.dtype)
    return engine, answer(costs[engine], load, launch.schedule(scheduler_of(costs[engine]), load))


def predict(frame: Any) -> Predictions:
    """Return the predictions of every row of an end-to-end table; measured times are not read."""
    found = none_yet(len(frame), METRICS)
    is_loop = frame["mode"].fillna("").to_numpy(str) == LOOP
    for i, one in zip(np.flatnonzero(is_loop), answers(frame[is_loop]), strict=True):
        if isinstance(one, str):
            found.reason[i] = one
            continue
        engine, seen = one
        _fill(found, int(i), {"ttft": seen.ttft_s, "tpot": seen.tpot_s, "e2e": seen.e2e_s}, framework.of_engine(engine))
    costs: dict[Engine, StepCosts] = {}
    others = _each(frame[~is_loop], READ_OTHERS, lambda row: serving.answer(row, costs))
    for i, told in zip(np.flatnonzero(~is_loop), others, strict=True):
        if isinstance(told, str):
            found.reason[i] = told
        else:
            _fill(found, int(i), told, None)
    return found


def _fill(found: Predictions, row: int, told: Mapping[str, float], host: Framework | None) -> None:
    """Put what is predicted of a row in its place; rows of closed forms, host None, are modelled and wide."""
    found.provenance[row] = host.provenance if host else "modelled"
    for metric, value in told.items():
        low, high = (host.ttft_interval if metric == "ttft" else host.interval) if host else WIDE
        found.value[metric][row] = value
        found.low[metric][row], found.high[metric][row] = value * low, value * high


WIDE = (0.4, 1.8)  # of rows that say little of the engine: about what nine in ten of them lay between


def validate_end_to_end(path: Path) -> tuple[Any, Predictions, dict[str, Any]]:
    """Return an end-to-end table's rows, their predictions, and the summary, by (model, device) pairs as well."""
    import pandas

    frame = pandas.read_parquet(path)
    found = predict(frame)
    truth = {metric: frame[f"{metric}_ms"].to_numpy(np.float64, na_value=np.nan) * 1e-3 for metric in METRICS[:3]}
    whole = frame["tokens_kind"].fillna("").to_numpy(str) == "output"
    truth["throughput"] = np.where(whole, frame["tokens_per_s"].to_numpy(np.float64, na_value=np.nan), np.nan)
    for metric, column in (("power", "power_w_per_device"), ("energy", "energy_j_per_token")):
        truth[metric] = frame[column].to_numpy(np.float64, na_value=np.nan)
    keys = frame[list(GROUPS)].rename(columns=GROUPS).fillna("").astype(str)
    pairs = by_group(frame[["model", "device"]].fillna("").astype(str), truth, found)
    return frame, found, {**summary(keys, truth, found), "pairs": pairs}
