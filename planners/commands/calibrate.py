"""`plan calibrate`: fits the cost model to the user's own benchmark files or request log, or to this machine."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.commands.envelope import give, note
from planners.commands.options import Name, engine_options, json_flag
from planners.commands.tables import seconds, table

if TYPE_CHECKING:
    from models.calibration.remeasured import Remeasured
    from models.device import Device

SPLITS = ((128, 0), (64, 512), (1, 256), (1, 1536))


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--this-machine", is_flag=True, help="Measure this CPU, or this CUDA --device.")
@click.option("--model", type=Name("model"), metavar="NAME", help="Model that the files' engine served.")
@click.option("--device", type=Name("device"), metavar="NAME", help="Device that it ran on.")
@engine_options
@click.option(
    "--share",
    type=click.FloatRange(0.0, 1.0, min_open=True, max_open=True),
    default=1 / 3,
    show_default="a third",
    help="Of a request log, the first requests to fit; the others judge the fit.",
)
@click.option(
    "-o", "--out", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Write the fit here."
)
@json_flag
def calibrate(
    files: tuple[Path, ...],
    this_machine: bool,
    model: str | None,
    device: str | None,
    engine: str,
    share: float,
    out: Path | None,
    as_json: bool,
    **cut: Any,
) -> None:
    """Fit an engine's scalars to benchmark result FILES, or this machine's CPU to its own kernels.

    FILES are what vllm bench serve, SGLang's bench_serving, GuideLLM, AIPerf, inference-perf, llm-d and llama-bench
    write, a query_range of Prometheus, or scrapes of an engine's metrics: of two, what was between them. One FILE may
    be a request log instead, Parquet or CSV, a row a request, which names its model and engine; or a table of kernels'
    times, a row a call with op, dtype, shape and time_us: some thirty of an operator do. The errors before and after
    the fit are told, of a log or a table those of rows that were not fitted, too. With --this-machine, --device is its
    CUDA device, whose matrix products torch is asked to time. FILE of -o is a device file: name it wherever a device
    is named, as --device FILE, --devices FILE,l4 or in fleet.yaml, and it stands for the catalogue's device, price
    included.
    """
    if this_machine and device is not None:
        result, lines, words = _this_device(device, engine)
    elif this_machine:
        result, lines, words = _this_machine()
    elif len(files) == 1 and _is_table(files[0]):
        if device is None:
            raise ValueError("rows of operators need --device, the one that they were measured on")
        result, lines, words = _operators(files[0], device, engine)
    elif len(files) == 1 and _is_log(files[0]):
        result, lines, words = _log(files[0], device, share)
    elif not files or model is None or device is None:
        raise ValueError("give benchmark files with --model and --device, or --this-machine")
    else:
        result, lines, words = _files(files, model, device, engine, cut)
    if out is not None:
        out.write_text(lines)
        note(f"wrote {out}")
    inputs = {"files": [str(file) for file in files], "this_machine": this_machine, "model": model, "device": device}
    give(Answer("calibrate", {**inputs, "engine": engine, "share": share, **cut}, result), as_json, words)


def _files(
    files: tuple[Path, ...], model: str, device: str, engine: str, cut: dict[str, Any]
) -> tuple[dict[str, Any], str, str]:
    from models import device as devices
    from models import llm as llms
    from models.calibration import benchmarks, device_file, observed
    from models.engine import Engine

    runs = benchmarks.read_all(files)
    measured = devices.load(device)
    llm = llms.load(model)
    cut["dtype"] = llm.format_of(cut["dtype"])
    fitted = observed.fit(Engine(llm, measured, framework=engine, **cut), runs)
    rows = [["run", "TTFT", "predicted", "after", "time per token", "predicted", "after"]]
    for run in fitted["runs"]:
        names = ("ttft_s", "ttft_before_s", "ttft_after_s", "tpot_s", "tpot_before_s", "tpot_after_s")
        rows.append([run["place"], *(seconds(run[name]) for name in names)])
    lines = [f"{name} = {value:.4g}" for name, value in fitted["scalars"].items()]
    words = "\n\n".join([table(rows, right=[1, 2, 3, 4, 5, 6]), "\n".join(lines)])
    source = f"plan calibrate: {len(runs)} run{'s' if len(runs) > 1 else ''} of {model}"
    return (
        fitted,
        device_file.with_scalars(measured, engine, cut["framework_version"] or "", fitted["scalars"], source),
        words,
    )


def _is_table(file: Path) -> bool:
    from models.calibration.remeasured import is_table

    return is_table(file)


def _operators(file: Path, device: str, engine: str) -> tuple[dict[str, Any], str, str]:
    from models import device as devices
    from models.calibration import remeasured

    on = devices.load(device)
    return _remeasured(on, remeasured.fit(on, engine, remeasured.read(file)), file.name)


def _this_device(device: str, engine: str) -> tuple[dict[str, Any], str, str]:
    import pandas

    from models import device as devices
    from models.calibration import remeasured, this_device

    torch = this_device.loaded()
    note("measuring matrix products of this CUDA device ...")
    on = devices.load(device)
    return _remeasured(on, remeasured.fit(on, engine, pandas.DataFrame(this_device.measure(torch))), "this machine")


def _remeasured(device: "Device", found: "list[Remeasured]", source: str) -> tuple[dict[str, Any], str, str]:
    from models.calibration import device_file

    rows = [["operator", "format", "fitted", "judged", "error before", "after", "refused"]]
    for one in found:
        errors = ["" if error is None else f"{error:.1%}" for error in (one.error_before, one.error_after)]
        format_ = " ".join(filter(None, (one.dtype, one.kv_dtype)))
        rows.append([one.op, format_, str(one.fitted), str(one.judged), *errors, str(one.refused)])
    text = device_file.with_operators(device, [one.table(f"plan calibrate: {source}") for one in found])
    return {"operators": [asdict(one) for one in found]}, text, table(rows, right=[2, 3, 4, 5, 6])


def _is_log(file: Path) -> bool:
    from simulator.log_fit import is_log

    return is_log(file)


def _log(file: Path, device: str | None, share: float) -> tuple[dict[str, Any], str, str]:
    from models import device as devices
    from models.calibration import device_file
    from simulator import log_fit
    from simulator.request_log import METRICS

    fitted = log_fit.fit(log_fit.read(file), devices.load(device) if device else None, share)
    rows = [["requests", "count", "scalars", *(name.upper() for name in METRICS)]]
    for part, count in fitted.requests.items():
        for when, errors in fitted.errors[part].items():
            told = [f"{errors[name]:.1%}" if name in errors else "" for name in METRICS]
            rows.append([part.replace("_", " "), str(count), f"{when} the fit", *told])
    lines = [f"{name} = {value:.4g}" for name, value in fitted.scalars.items()]
    words = "\n\n".join(["median errors", table(rows, right=[1, 3, 4, 5]), "\n".join(lines)])
    source = f"plan calibrate: {fitted.requests['fitted']} requests of {' and '.join(fitted.models)}"
    result = {
        "device": fitted.device.name,
        "engine": fitted.framework,
        "framework_version": fitted.version,
        "models": list(fitted.models),
        "requests": dict(fitted.requests),
        "scalars": dict(fitted.scalars),
        "errors": {part: {when: dict(by) for when, by in errors.items()} for part, errors in fitted.errors.items()},
    }
    text = device_file.with_scalars(fitted.device, fitted.framework, fitted.version, fitted.scalars, source)
    return result, text, words


def _this_machine() -> tuple[dict[str, Any], str, str]:
    from models.calibration.this_machine import Block, device_lines, measure

    note("measuring matrix products, attention and copies of this CPU ...")
    cpu, block = measure(), Block()
    rows = [["block outside the fit", "measured", "predicted", "error"]]
    tests = []
    for tokens, past in SPLITS:
        measured_s, predicted_s = block.measured_s(tokens, past), block.predicted_s(cpu, tokens, past)
        error = predicted_s / measured_s - 1.0
        name = f"{'prefill of ' + str(tokens) if tokens > 1 else 'decode'} after {past}"
        rows.append([name, seconds(measured_s), seconds(predicted_s), f"{error:+.1%}"])
        tests.append({"tokens": tokens, "past": past, "measured_s": measured_s, "predicted_s": predicted_s})
    result = {
        "flops_per_s": cpu.machine.flops_per_s,
        "bandwidth_bytes_per_s": cpu.machine.bandwidth_bytes_per_s,
        "processors": cpu.processors,
        "block": tests,
        "median_error": sorted(abs(t["predicted_s"] / t["measured_s"] - 1.0) for t in tests)[len(tests) // 2],
    }
    reached = (
        f"{cpu.machine.flops_per_s / 1e9:.0f} GFLOP/s in single precision, "
        f"{cpu.machine.bandwidth_bytes_per_s / 1e9:.1f} GB/s copying, {cpu.processors} processors"
    )
    return result, device_lines(cpu), "\n\n".join([reached, table(rows, right=[1, 2, 3])])
