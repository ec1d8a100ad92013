"""Predict serving results other than closed loops of one engine: static batches, offered rates, split pools.

Closed forms over the same step costs. What a table leaves unsaid (the cut, lengths of a data set) is taken from
serving.toml, or as the narrowest cut that fits.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, exp, isfinite
from pathlib import Path
from typing import Any

from models import device as devices
from models import llm as llms
from models import toml_file
from models.closed_loop import Load
from models.engine import Engine, Settings
from models.estimate import StepCosts, check_fits
from models.llm import Llm
from models.power import device_w, multiplying

QUANTISED = re.compile(r"-(FP8|NVFP4|FP4|MXFP4|INT4|W4A16|AWQ)$")  # what a checkpoint's name adds to its model's
THREADS = re.compile(r"threads=([0-9]+)")
FACTS = Path(__file__).with_name("serving.toml")
Row = Mapping[str, Any]

CUTS = (1, 2, 4, 8)
BUDGET_TOKENS, MOST_SEQUENCES, MOST_OF_ALL = 8192, 512, 4096
LINK_BYTES_PER_S = 50e9  # of KV between pools: one 400 Gb/s adapter, as simulator.fleet.Link assumes
BUSIEST = 0.95  # of a prefill pool; beyond, its queue holds what the clients have open
STEPS_TO_JOIN = 1.5  # the rest of the step under way, and one scheduled already


@dataclass(frozen=True, slots=True)
class Asked:
    """One row read: the engine, how many of it, mean lengths in tokens, and what is offered to all of them."""

    engine: Engine
    replicas: float
    input_tokens: float
    output_tokens: float
    batch: float | None
    per_s: float | None


def answer(row: Row, costs: dict[Engine, StepCosts]) -> dict[str, float]:
    """Return what is predicted of a row by metric: s, tokens/s of all devices, W of one, J a token.

    ValueError says why there is nothing to predict.
    """
    mode = str(row["mode"])
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is not described; known: {', '.join(MODES)}")
    return MODES[mode](row, costs)


def _static(row: Row, costs: dict[Engine, StepCosts]) -> dict[str, float]:
    """Return the times of one batch: its prompts in as few steps as their tokens need, then a step a token."""
    asked = read(row)
    cost, batch = _costs(asked, costs), max(1, round(asked.batch or 1.0))
    ttft_s = prefill_s(cost, asked.input_tokens * batch, asked.input_tokens)
    tpot_s = decode_s(cost, batch, asked.input_tokens + 0.5 * asked.output_tokens)
    return _told(asked, cost, ttft_s, tpot_s, batch)


def _steady(row: Row, costs: dict[Engine, StepCosts]) -> dict[str, float]:
    """Return the time per token between prompts, as medians tell it, at the batch that was running."""
    asked = read(row)
    cost, batch = _costs(asked, costs), max(1, round((asked.batch or 1.0) / asked.replicas))
    tpot_s = decode_s(cost, batch, asked.input_tokens + 0.5 * asked.output_tokens)
    prompt_s = prefill_s(cost, asked.input_tokens, asked.input_tokens)
    prompts_a_step = batch / asked.output_tokens
    if exp(-prompts_a_step) < 0.5:  # most steps hold a prompt
        tpot_s += prompts_a_step * cost.host.prefill_factor * cost.prefill(batch, round(asked.input_tokens), 0.0)
    return _told(asked, cost, prompt_s, tpot_s, batch)


def _offered(row: Row, costs: dict[Engine, StepCosts]) -> dict[str, float]:
    """Return the times under a rate of requests: the batch is the one that the rate itself keeps running."""
    asked = read(row)
    cost = _costs(asked, costs)
    if asked.per_s is None and asked.batch is None:
        raise ValueError("neither a rate nor a concurrency is given")
    most = min(MOST_SEQUENCES, cost.engine.kv_tokens / (asked.input_tokens + asked.output_tokens))
    one_s = prefill_s(cost, asked.input_tokens, asked.input_tokens)
    batch = min(most, (asked.batch or 1.0) / asked.replicas)
    tpot_s = _shared_tpot_s(cost, asked, batch, one_s)
    if asked.per_s is not None:
        for _ in range(12):  # halves the distance to the batch that the rate keeps
            kept = asked.per_s / asked.replicas * (one_s + asked.output_tokens * tpot_s)
            batch = min(most, 0.5 * (batch + max(1.0, kept)))
            tpot_s = _shared_tpot_s(cost, asked, batch, one_s)
    ttft_s = one_s + STEPS_TO_JOIN * tpot_s + cost.host.first_token_s
    return _told(asked, cost, ttft_s, tpot_s, batch)


def _offline(row: Row, costs: dict[Engine, StepCosts]) -> dict[str, float]:
    """Return the throughput of as many sequences as fit; all requests are there from the start."""
    asked = read(row)
    cost = _costs(asked, costs)
    most = min(MOST_SEQUENCES, cost.engine.kv_tokens / (asked.input_tokens + asked.output_tokens))
    tpot_s = _shared_tpot_s(cost, asked, most, prefill_s(cost, asked.input_tokens, asked.input_tokens))
    found = _told(asked, cost, 0.0, tpot_s, most)
    return {name: found[name] for name in ("throughput", "power", "energy") if name in found}


def _split(row: Row, costs: dict[Engine, StepCosts]) -> dict[str, float]:
    """Return the times of prompts and answers on pools of their own, each as if its GPUs were cut as far as it says."""
    before, after = (_pool(row, side) for side in ("p", "d"))
    asked = read({**row, **after})
    first = read({**row, **before})
    decode, prefill = _costs(asked, costs), _costs(first, costs)
    clients = _number(row["concurrency"])
    if clients is None:
        raise ValueError("concurrency is not given")
    batch = max(1.0, clients / asked.replicas)
    one_s = prefill_s(prefill, asked.input_tokens, asked.input_tokens)
    moved_s = asked.engine.llm.kv_bytes_per_token(asked.engine.kv_dtype) * asked.input_tokens / LINK_BYTES_PER_S
    tpot_s = decode_s(decode, min(batch, MOST_SEQUENCES), asked.input_tokens + 0.5 * asked.output_tokens)
    answer_s = asked.output_tokens * tpot_s
    busy = clients * one_s / first.replicas / (one_s + moved_s + answer_s)
    waiting_s = 0.5 * one_s * busy / (1.0 - busy) if busy < BUSIEST else clients * one_s / first.replicas - answer_s
    ttft_s = one_s + max(0.0, waiting_s) + moved_s + decode.host.first_token_s
    return _told(asked, decode, ttft_s, tpot_s, batch)


MODES: dict[str, Callable[[Row, dict[Engine, StepCosts]], dict[str, float]]] = {
    "disagg": _split,
    "offline_static": _static,
    "single_stream": _static,
    "closed_loop_saturated": _steady,
    "closed_loop": _offered,
    "online": _offered,
    "online_open_loop": _offered,
    "Server": _offered,
    "server": _offered,
    "Interactive": _offered,
    "SingleStream": _static,
    "Offline": _offline,
    "offline": _offline,
    "offline_saturated": _offline,
}


def _costs(asked: Asked, costs: dict[Engine, StepCosts]) -> StepCosts:
    check_fits(asked.engine, Load(ceil(asked.input_tokens), ceil(asked.output_tokens), 1))
    if asked.engine not in costs:
        costs[asked.engine] = StepCosts(asked.engine)
    return costs[asked.engine]


def prefill_s(costs: StepCosts, tokens: float, longest: float) -> float:
    """Return the seconds of so many prompt tokens, of prompts of this length, in steps of the budget."""
    budget = costs.engine.settings.max_num_batched_tokens
    steps = max(1, ceil(tokens / budget))
    chunk = max(1, min(budget, round(tokens / steps)))
    past = max(0.0, 0.5 * (longest - chunk))
    device_s = costs.prefill(0, chunk, past)
    return steps * (costs.host.step_s(costs.engine.llm.layers) + costs.host.prefill_factor * device_s)


def decode_s(costs: StepCosts, batch: float, context_tokens: float) -> float:
    """Return the seconds of a step of a whole number of decodes at this mean context."""
    host, running = costs.host, min(max(1, round(batch)), costs.engine.settings.max_num_seqs)
    device_s = costs.decode(running, running * context_tokens)
    return host.step_s(costs.engine.llm.layers) + host.host_sequence_s * running + host.decode_factor * device_s


def _shared_tpot_s(costs: StepCosts, asked: Asked, batch: float, prompt_s: float) -> float:
    """Return the time per token where every answer's steps also hold the prompts that keep the batch full."""
    alone_s = decode_s(costs, batch, asked.input_tokens + 0.5 * asked.output_tokens)
    return alone_s + max(1.0, batch) / asked.output_tokens * prompt_s


def _told(asked: Asked, costs: StepCosts, ttft_s: float, tpot_s: float, batch: float) -> dict[str, float]:
    answers = max(1.0, asked.output_tokens - 1.0)
    e2e_s = ttft_s + answers * tpot_s
    found = {"ttft": ttft_s, "tpot": tpot_s, "e2e": e2e_s, "throughput": asked.replicas * batch / tpot_s}
    busy = max(0.0, 1.0 - costs.host.host_step_s / tpot_s)  # but between steps
    watts = device_w(asked.engine.device, busy, multiplying(asked.engine, batch / tpot_s))
    if watts is None:
        return found
    return {**found, "power": watts, "energy": watts * asked.replicas * asked.engine.devices / found["throughput"]}


def read(row: Row) -> Asked:
    """Return what a row asks of which engine; ValueError names what is not known."""
    facts = _facts()
    device = _with_threads(device_of(str(row["device"])), str(row.get("parallel_note", "")))
    llm = model_of(str(row["model"]))
    dtype = _dtype(row, llm)
    framework = next(
        (name for start, name in facts["engines"].items() if str(row["engine"]).lower().startswith(start)), "vllm"
    )
    lengths = _lengths(row, facts["lengths"])
    count = _number(row["n_devices"]) or 1.0
    tp = _number(row["tp"])
    dp = _number(row.get("dp")) or 1.0
    cuts = [int(tp)] if tp and tp * dp >= count else [cut for cut in CUTS if cut <= max(1.0, count)]
    ep = int(_number(row.get("ep")) or 1.0) if llm.experts else 1
    batch = _number(row["batch"]) or _number(row["concurrency"])
    sequences = MOST_SEQUENCES
    while sequences < min(batch or 0.0, MOST_OF_ALL):
        sequences *= 2
    for cut in cuts:
        engine = _engine(llm, device, cut, ep, dtype, framework, sequences)
        if cut == cuts[-1] or engine.kv_tokens >= sum(lengths):
            break
    return Asked(engine, max(1.0, count / engine.tp), *lengths, batch, _number(row["request_rate"]))


@cache
def _engine(llm: Llm, device: devices.Device, tp: int, ep: int, dtype: str, framework: str, sequences: int) -> Engine:
    settings = Settings(max_num_seqs=sequences, max_num_batched_tokens=BUDGET_TOKENS, memory_fraction=0.95)
    return Engine(llm, device, tp, ep=ep, dtype=dtype, framework=framework, settings=settings)


@cache
def device_of(label: str) -> devices.Device:
    """Return the device that tables call so, or that stands for it."""
    return devices.find(_facts()["devices"].get(label, label))


def _with_threads(device: devices.Device, note: str) -> devices.Device:
    """Return a CPU with the cores that a row's threads kept busy, and their share of the peak."""
    told = THREADS.search(note)
    if told is None or not device.processors or device.kind != "cpu":
        return device
    threads = min(int(told[1]), device.processors)
    share = threads / device.processors
    return replace(
        device, processors=threads, flops_per_s={name: share * of for name, of in device.flops_per_s.items()}
    )


@cache
def model_of(label: str) -> Llm:
    """Return the model of a checkpoint's name, or of one that has its shapes."""
    bare = QUANTISED.sub("", label)
    alias = _facts()["models"].get(toml_file.squeezed(bare.rpartition("/")[2]))
    return llms.load(alias) if alias else llms.find(bare)


def _dtype(row: Row, llm: Llm) -> str:
    stated = str(row["weight_dtype"])
    lowered = stated.lower() if stated not in ("nan", "<NA>", "None") else _usual_dtype(row)
    dtype = str(_facts()["dtypes"].get(lowered, lowered))
    return "bf16" if dtype == "native" and not llm.native_expert_dtype else dtype


def _usual_dtype(row: Row) -> str:
    """Return what is usual where a row says nothing: benchmarks of MLPerf are run as narrow as their accuracy lets."""
    return "fp8" if str(row.get("source", "")).startswith("mlperf") and str(row["engine"]) != "PyTorch" else "bf16"


def _lengths(row: Row, known: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    stated = [_number(row["isl"]), _number(row["osl"])]
    usual = known["mlperf"] if "mlperf" in str(row.get("source", "")) else known["other"]
    for name in (str(row["workload"]).split(" ")[0].lower(), str(row["model"])):
        usual = known.get(name, usual)
    prompt, reply = (float(a) if a is not None and a >= 0 else float(b) for a, b in zip(stated, usual, strict=True))
    return max(1.0, prompt), max(2.0, reply)


def _pool(row: Row, side: str) -> dict[str, float]:
    """Return the cut and the GPUs of one pool; a tp above a node's is that of several workers together."""
    tp, ranks = (_number(row[f"{side}_{name}"]) or 1.0 for name in ("tp", "attn_dp"))
    workers = _number(row[f"{side}_workers"]) or 1.0
    total = tp * ranks * workers
    cut = max(c for c in CUTS if c <= max(1.0, tp))
    return {"tp": float(cut), "dp": total / cut, "ep": tp * ranks if ranks > 1.0 else 1.0, "n_devices": total}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if isfinite(number) else None


@cache
def _facts() -> dict[str, Any]:
    return tomllib.loads(FACTS.read_text())
