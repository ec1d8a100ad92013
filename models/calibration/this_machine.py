"""Measure this machine's CPU with numpy, fit it like any other device, and test the fit on a block it never saw."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import numpy.typing as npt

from models.calibration.fitting import fit_physics
from models.calibration.forms import FORMS
from models.operators import Formats, Machine

Floats = npt.NDArray[np.float64]
Single = npt.NDArray[np.float32]

BYTES_PER_VALUE = 4.0  # numpy multiplies single precision
SEED = 11
REPEATS, FEWEST_S, FEWEST_RUNS = 3, 0.03, 5
GEMM_TOKENS = (2, 16, 64, 256)
GEMM_SHAPES = (
    (512, 512),
    (1536, 512),
    (512, 2048),
    (1024, 1024),
    (4096, 1024),
    (1024, 4096),
    (2048, 2048),
    (3072, 3072),
)
ATTENTION = (
    (1, 64),
    (1, 200),
    (1, 512),
    (1, 1024),
    (1, 2048),
    (1, 6144),
    (32, 64),
    (32, 512),
    (64, 64),
    (64, 1024),
    (256, 256),
    (256, 1024),
    (512, 512),
)
COLD_BYTES = 48e6
MOST_CACHES = 64
COPIES = (1 << 16, 1 << 19, 1 << 21, 1 << 23, 1 << 25)
HEADS, HEAD_DIM = 8, 64
ELEMENTWISE_CALLS = 40  # numpy calls of the block below that only shape or scale


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of one kind of operator, and what each needed: columns (FLOP, bytes, rows)."""

    columns: Floats
    seconds: Floats


@dataclass(frozen=True, slots=True)
class Cpu:
    """This machine as measured: single-precision FLOP/s and bandwidth reached, each operator's fit, one call's cost."""

    title: str
    processors: int
    machine: Machine
    fits: dict[str, Floats]
    call_s: float

    def seconds(self, op: str, flops: float, moved_bytes: float, rows: float) -> float:
        """Return the seconds of one operator of these needs."""
        columns = np.array([[flops, moved_bytes, rows]])
        formats = Formats(*[BYTES_PER_VALUE] * 4)
        return float(FORMS["roofline"].evaluate(columns, formats, self.machine, self.fits[op])[0, 0])


def measure() -> Cpu:
    """Measure matrix products, attention and copies for about a minute, and fit the roofline of each."""
    rng = np.random.default_rng(SEED)
    found = {
        "gemm": _gemms(rng, GEMM_TOKENS),
        "gemv": _gemms(rng, (1,)),  # libraries take another way where there is one token
        "attention": _attentions(rng, [shape for shape in ATTENTION if shape[0] > 1]),
        "attention of one": _attentions(rng, [shape for shape in ATTENTION if shape[0] == 1]),
        "pass": _passes(rng, np.copy),
        "exponential": _passes(rng, np.exp),
    }
    peak = float(max(found["gemm"].columns[:, 0] / found["gemm"].seconds))
    bandwidth = float((found["pass"].columns[:, 1] / found["pass"].seconds)[-1])
    machine = Machine(peak, bandwidth, float(processors()), 32 * 1024.0**2)
    formats = Formats(*[BYTES_PER_VALUE] * 4)
    fits = {
        op: fit_physics(FORMS["roofline"], rows.columns, rows.seconds, formats, machine, np.random.default_rng(SEED))
        for op, rows in found.items()
    }
    tiny = np.ones(4, np.float32)
    call_s = typical_s(lambda: tiny + tiny)
    return Cpu(platform.processor() or platform.machine(), processors(), machine, fits, call_s)


def typical_s(work: Callable[[], object]) -> float:
    """Return the least of several medians of the time of some work, each over long enough for the clock.

    Where one thread does the work, only the time that it had a processor counts.
    """
    clock = time.process_time if _threads() == 1 else time.perf_counter
    work()
    medians = []
    for _ in range(REPEATS):
        times: list[float] = []
        while len(times) < FEWEST_RUNS or sum(times) < FEWEST_S:
            started = clock()
            work()
            times.append(clock() - started)
        medians.append(float(np.median(times)))
    return min(medians)


def _threads() -> int:
    """Return the threads that matrix products may use, as their library is told by the environment."""
    told = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    return int(told) if told.isdigit() else processors()


def processors() -> int:
    """Return the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gemms(rng: np.random.Generator, every_m: Sequence[int]) -> Measured:
    columns, seconds = [], []
    for n, k in GEMM_SHAPES:
        count = max(2, int(COLD_BYTES / (BYTES_PER_VALUE * n * k)))  # a model's other layers push weights out of cache
        layers = cycle([rng.standard_normal((k, n), np.float32) for _ in range(count)])
        for m in every_m:
            tokens = rng.standard_normal((m, k), np.float32)
            columns.append(gemm_needs(m, n, k))
            seconds.append(typical_s(lambda tokens=tokens, layers=layers: tokens @ next(layers)))  # type: ignore[misc]
    return Measured(np.array(columns), np.array(seconds))


def gemm_needs(m: int, n: int, k: int) -> tuple[float, float, float]:
    """Return FLOP, bytes and rows of a matrix product."""
    return 2.0 * m * n * k, BYTES_PER_VALUE * (m * k + k * n + m * n), float(m)


def _attentions(rng: np.random.Generator, shapes: Sequence[tuple[int, int]]) -> Measured:
    columns, seconds = [], []
    for q_len, context in shapes:
        q = rng.standard_normal((HEADS, q_len, HEAD_DIM), np.float32)
        count = max(2, int(COLD_BYTES / (BYTES_PER_VALUE * 2 * HEADS * context * HEAD_DIM)))
        layers = cycle(rng.standard_normal((min(count, MOST_CACHES), 2, HEADS, context, HEAD_DIM), np.float32))
        columns.append(attention_needs(q_len, context, HEADS, HEAD_DIM))
        seconds.append(typical_s(lambda q=q, layers=layers: attention(q, *next(layers))))  # type: ignore[misc]
    return Measured(np.array(columns), np.array(seconds))


def attention_needs(q_len: int, context: int, heads: int, head_dim: int) -> tuple[float, float, float]:
    """Return FLOP, bytes and rows of attention: two products, and four passes over the scores."""
    scores = heads * q_len * context
    moved = BYTES_PER_VALUE * (2 * heads * context * head_dim + 2 * heads * q_len * head_dim + 4 * scores)
    return 4.0 * scores * head_dim, moved, float(heads * q_len)


def attention(q: Single, k: Single, v: Single) -> Single:
    """Return attention of (heads, queries, width) over (heads, context, width)."""
    scores: Single = np.asarray(q @ k.transpose(0, 2, 1) * np.float32(q.shape[-1] ** -0.5), np.float32)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return np.asarray(scores @ v, np.float32)


def _passes(rng: np.random.Generator, work: Callable[[Single], object]) -> Measured:
    """Measure work that reads an array once and writes another of its size, into new memory, as results are."""
    columns, seconds = [], []
    for values in COPIES:
        source = rng.standard_normal(values, np.float32)
        columns.append((0.0, 2 * BYTES_PER_VALUE * values, 1.0))
        seconds.append(typical_s(lambda source=source: work(source)))  # type: ignore[misc]
    return Measured(np.array(columns), np.array(seconds))


@dataclass(frozen=True, slots=True)
class Block:
    """A transformer block of random weights: grouped-query attention and a gated feed-forward part."""

    hidden: int = 768
    heads: int = 12
    kv_heads: int = 4
    ffn: int = 2560

    @property
    def head_dim(self) -> int:
        """Return the width of a head."""
        return self.hidden // self.heads

    @property
    def matrices(self) -> tuple[tuple[int, int], ...]:
        """Return (inputs, outputs) of each matrix: qkv, out, gate and up, down."""
        kv = 2 * self.kv_heads * self.head_dim
        return (
            (self.hidden, self.hidden + kv),
            (self.hidden, self.hidden),
            (self.hidden, 2 * self.ffn),
            (self.ffn, self.hidden),
        )

    def predicted_s(self, cpu: Cpu, tokens: int, past: int) -> float:
        """Return the predicted seconds of `tokens` new tokens after `past` cached ones."""
        multiply, attend = ("gemm", "attention") if tokens > 1 else ("gemv", "attention of one")
        total = sum(cpu.seconds(multiply, *gemm_needs(tokens, n, k)) for k, n in self.matrices)
        total += cpu.seconds(attend, *attention_needs(tokens, past + tokens, self.heads, self.head_dim))
        grouped = 2 * (past + tokens) * self.kv_heads * self.head_dim
        kv_values = grouped + 2 * (past + tokens) * self.hidden  # joined to the cache, then laid out for each head
        passes = [6 * tokens * self.hidden, 6 * tokens * self.hidden, 4 * tokens * self.ffn, kv_values]
        total += ELEMENTWISE_CALLS * cpu.call_s
        total += cpu.seconds("exponential", 0.0, BYTES_PER_VALUE * 2 * tokens * self.ffn, 1.0)
        return total + sum(cpu.seconds("pass", 0.0, BYTES_PER_VALUE * 2 * values, 1.0) for values in passes)

    def measured_s(self, tokens: int, past: int) -> float:
        """Return the measured seconds of the same on this machine."""
        rng = np.random.default_rng(SEED + 1)
        weights = [0.02 * rng.standard_normal(shape, np.float32) for shape in self.matrices]
        cache = rng.standard_normal((2, self.kv_heads, past, self.head_dim), np.float32)
        x = rng.standard_normal((tokens, self.hidden), np.float32)
        return typical_s(lambda: self._run(x, cache, weights))

    def _run(self, x: Single, cache: Single, weights: list[Single]) -> Single:
        qkv, out, up, down = weights
        tokens, width = x.shape[0], self.head_dim
        q, k, v = np.split(_norm(x) @ qkv, [self.hidden, self.hidden + self.kv_heads * width], axis=1)
        heads = q.reshape(tokens, self.heads, width).transpose(1, 0, 2)
        new = np.stack([k, v]).reshape(2, tokens, self.kv_heads, width).transpose(0, 2, 1, 3)
        keys, values = np.repeat(np.concatenate([cache, new], axis=2), self.heads // self.kv_heads, axis=1)
        mixed = attention(np.ascontiguousarray(heads), keys, values).transpose(1, 0, 2).reshape(tokens, self.hidden)
        x = x + mixed @ out
        gate, value = np.split(_norm(x) @ up, 2, axis=1)
        result: Single = x + (gate / (1 + np.exp(-gate)) * value) @ down
        return result


def _norm(x: Single) -> Single:
    result: Single = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + np.float32(1e-6))
    return result


def device_lines(cpu: Cpu) -> str:
    """Return this machine as a device file of the catalogue's form."""
    return "\n".join(
        [
            f'title = "This machine: {cpu.title}"',
            'vendor = "measured"',
            'kind = "cpu"',
            "memory_gb = " + f"{_memory_gb():.3g}",
            f"bandwidth_gb_per_s = {cpu.machine.bandwidth_bytes_per_s / 1e9:.4g}",
            "host_link_gb_per_s = 16",
            "node_size = 1",
            f"processors = {cpu.processors}",
            'assumed = ["host_link_gb_per_s"]',
            'source = "measured by plan calibrate --this-machine"',
            "",
            "[dense_tflops]",
            f"fp32 = {cpu.machine.flops_per_s / 1e12:.4g}",
            "",
        ]
    )


def _memory_gb() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (ValueError, AttributeError, OSError):
        return 8.0
