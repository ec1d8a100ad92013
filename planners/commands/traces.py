"""`plan traces`: look at request traces, bring them into one form, change, make, fit and fetch them."""

from collections.abc import Mapping
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import json_flag
from planners.commands.reading_options import changed, read_file, reading_options, wishes
from planners.commands.tables import quantity, table
from planners.commands.traces_make import fit, synth
from planners.commands.traces_written import facts, write_and_tell

if TYPE_CHECKING:
    pass


@click.group()
def traces() -> None:
    """Describe, convert, transform, generate, fit and fetch request traces.

    FILE is a trace in any known format (`plan traces formats`), told by its content, compressed or not.
    """


@traces.command("formats")
@json_flag
def list_formats(as_json: bool) -> None:
    """List the formats that are read."""
    from traces.formats import FORMATS

    rows = [["name", "shape", "about"], *([each.name, each.shape, each.about] for each in FORMATS.values())]
    result = [{"name": each.name, "shape": each.shape, "about": each.about, "time_unit": each.time_unit or "date",
               "block_tokens": each.block_tokens} for each in FORMATS.values()]  # fmt: skip
    pool = "servegen (a folder, archive or file of client pools) is read by `stats` and by `synth --pool`."
    give(Answer("traces formats", {}, result), as_json, f"{table(rows)}\n\n{pool}")


@traces.command("stats")
@click.argument("file")
@reading_options
@json_flag
def stats(file: str, as_json: bool, **options: Any) -> None:
    """Describe FILE: rate, burstiness, lengths, prefix reuse, sessions, and what to be wary of."""
    from traces.statistics import describe

    started_s = process_time()
    if _is_pool(file):
        pool = _pool_answer(file)
        give(pool, as_json, _pool_words(file, pool.result))
        return
    trace = read_file(file, options)
    result: dict[str, Any] = describe(trace).as_dict() | facts(trace)
    timings = {"cpu_s": process_time() - started_s}
    inputs = {"file": file, **changed(options)}
    warnings = tuple(result["warnings"])
    give(Answer("traces stats", inputs, result, warnings, timings), as_json, stats_words(trace.name, result))


def stats_words(name: str, result: Mapping[str, Any]) -> str:
    """Return the statistics for people."""
    lines = [f"{name}: {result['rows']} requests in {result['span_s']:,.6g} s, "
             f"{quantity(result['rate_per_s'])}/s, read as {result['format']}"]  # fmt: skip
    dispersion = ", ".join(f"{window} s: {quantity(value)}" for window, value in result["idc"].items())
    lines.append(f"gaps: CV {quantity(result['iat_cv'])}; dispersion of counts (Poisson has 1) {dispersion}")
    rows = [["tokens", "mean", "p50", "p90", "p99", "max"]]
    for kind in ("input", "output"):
        lengths = result[f"{kind}_tokens"]
        rows.append([kind, *(quantity(lengths[each], 4) for each in ("mean", "p50", "p90", "p99", "max"))])
    lines += [table(rows, right=[1, 2, 3, 4, 5])]
    lines.append(f"rank correlation of input and output: {quantity(result['rank_correlation'])}")
    if result["prefix"]:
        hit = result["prefix"]["token_hit_infinite"]
        lines.append(f"prefix: {hit:.1%} of input tokens were seen before, by an infinite cache")
    if result["sessions"]:
        sessions = result["sessions"]
        lines.append(f"sessions: {sessions['count']}, {quantity(sessions['turns_mean'])} turns each on average")
    lines.append(dropped_words(result["rows_read"], result["rows"], result["dropped"]))
    return "\n".join(lines)


def dropped_words(rows_read: int | None, rows_kept: int, dropped: Mapping[str, int]) -> str:
    """Return the account of rows."""
    reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.items())
    read = rows_kept + sum(dropped.values()) if rows_read is None else rows_read
    return f"rows: {read} read = {rows_kept} kept + {sum(dropped.values())} dropped" + (
        f" ({reasons})" if dropped else ""
    )


@traces.command("import")
@click.argument("file")
@click.option("-o", "--out", required=True, metavar="FILE.parquet", help="Where the trace goes.")
@reading_options
@json_flag
def import_file(file: str, out: str, as_json: bool, **options: Any) -> None:
    """Bring FILE, of whatever size, into our Parquet in bounded memory, and report every row."""
    from traces.streaming import import_to_parquet

    started_s = process_time()
    keywords = wishes(options)
    report = import_to_parquet(file, out, keywords.pop("format"), keywords.pop("strict"), **keywords)
    about: Mapping[str, Any] = report.metadata
    names = ("format", "time_unit", "time_quantum_ns", "t0_ns", "tz", "inversions", "restarts", "block_tokens")
    result = {
        "out": out,
        "rows": report.rows_kept,
        "rows_read": report.rows_read,
        "rows_kept": report.rows_kept,
        "dropped": report.dropped,
        "span_s": report.span_s,
        "rate_per_s": report.rate_per_s,
        **{name: about.get(name) for name in names},
        "sha256": about.get("sha256"),
        "warnings": list(report.warnings),
    }
    rate = quantity(report.rate_per_s)
    words = [f"{out}: {report.rows_kept} requests in {report.span_s:.6g} s, {rate}/s, read as {about.get('format')}",
             f"times in {about.get('time_unit')}, in steps of {int(about.get('time_quantum_ns') or 0)} ns",
             dropped_words(report.rows_read, report.rows_kept, report.dropped)]  # fmt: skip
    timings = {"cpu_s": process_time() - started_s}
    answer = Answer("traces import", {"file": file, **changed(options)}, result, report.warnings, timings)
    give(answer, as_json, "\n".join(words))


@traces.command("convert")
@click.argument("file")
@click.argument("out")
@reading_options
@json_flag
def convert(file: str, out: str, as_json: bool, **options: Any) -> None:
    """Write FILE as OUT: .parquet, or .csv, .csv.gz, .csv.xz with the metadata beside it."""
    trace = read_file(file, options)
    write_and_tell("traces convert", {"file": file, **changed(options)}, trace, out, as_json)


@traces.command("slice")
@click.argument("file")
@click.option("--start-s", type=float, default=0.0, help="Seconds after the trace's start.")
@click.option("--end-s", type=float, help="Seconds after the trace's start; its end where absent.")
@click.option("-o", "--out", required=True, metavar="FILE", help="Where the slice goes.")
@reading_options
@json_flag
def slice_file(file: str, start_s: float, end_s: float | None, out: str, as_json: bool, **options: Any) -> None:
    """Cut a stretch of time out of FILE; of our Parquet only what is concerned is read."""
    from traces.parquet import is_ours, read_window
    from traces.transform import slice_time

    ours = is_ours(file)
    trace = read_window(file, start_s, end_s) if ours else slice_time(read_file(file, options), start_s, end_s)
    inputs = {"file": file, "start_s": start_s, "end_s": end_s, **changed(options)}
    write_and_tell("traces slice", inputs, trace, out, as_json)


@traces.command("scale")
@click.argument("file")
@click.argument("factor", type=float)
@click.option(
    "--how",
    type=click.Choice(["rate", "time", "copies"]),
    default="rate",
    show_default=True,
    help="rate: as many users, the same bursts; time: the same requests faster; copies: independent ones.",
)
@click.option(
    "--by",
    default="auto",
    show_default=True,
    metavar="GROUP",
    help="What is kept or copied together: auto, request, session, prefix or a column of labels.",
)
@click.option("--jitter-s", type=float, help="How far copies are moved; 5 s or two steps of the clock where absent.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--out", required=True, metavar="FILE", help="Where the trace goes.")
@reading_options
@json_flag
def scale(
    file: str, factor: float, how: str, by: str, jitter_s: float | None, seed: int, out: str, as_json: bool,
    **options: Any,
) -> None:  # fmt: skip
    """Scale FILE by FACTOR under a stated law of its burstiness."""
    from traces import transform

    trace = read_file(file, options)
    if how == "time":
        made = transform.time_scale(trace, factor)
    elif how == "copies":
        if factor != int(factor) or factor < 1:
            raise click.UsageError(f"--how copies takes a whole number of copies, not {factor:g}")
        made = transform.superpose(trace, int(factor), seed)
    else:
        made = transform.scale_rate(trace, factor, seed, jitter_s, None if by == "request" else by)
    inputs = {"file": file, "factor": factor, "how": how, "by": by, "seed": seed, **changed(options)}
    write_and_tell("traces scale", inputs, made, out, as_json)


@traces.command("mix")
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--weight", "weights", type=float, multiple=True, help="Rate of a file by this factor; one each, or none."
)
@click.option("--align", type=click.Choice(["start", "date", "week"]), default="start", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--out", required=True, metavar="FILE", help="Where the trace goes.")
@reading_options
@json_flag
def mix(
    files: tuple[str, ...], weights: tuple[float, ...], align: str, seed: int, out: str, as_json: bool, **options: Any
) -> None:
    """Lay FILES over each other, aligned at their starts, dates or hours of the week, their ids kept apart."""
    from traces import transform

    made = transform.mix([read_file(file, options) for file in files], seed, weights or None, align)
    inputs = {"files": list(files), "weights": list(weights), "align": align, "seed": seed, **changed(options)}
    write_and_tell("traces mix", inputs, made, out, as_json)


@traces.command("anonymise")
@click.argument("file")
@click.option("--keep", multiple=True, metavar="COLUMN", help="A column of labels that stays, say model.")
@click.option("--token-step", type=int, default=1, show_default=True, help="Round lengths up to whole steps.")
@click.option("-o", "--out", required=True, metavar="FILE", help="Where the trace goes.")
@reading_options
@json_flag
def anonymise_file(file: str, keep: tuple[str, ...], token_step: int, out: str, as_json: bool, **options: Any) -> None:
    """Take names, dates, ids and lines out of FILE; every statistic stays."""
    from traces.anonymise import anonymise

    made = anonymise(read_file(file, options), keep, token_step)
    write_and_tell("traces anonymise", {"keep": list(keep), "token_step": token_step}, made, out, as_json)


@traces.command("fetch")
@click.argument("names", nargs=-1)
@click.option("-o", "--out", "folder", default=".", metavar="DIR", help="Where the files go.")
@click.option("--yes", is_flag=True, help="Licence and size are agreed to.")
@click.option("--mirror", metavar="DIR|URL", help="Where else the files are.")
@click.option("--offline", is_flag=True, help="Fetch nothing: list what to copy where.")
@json_flag
def fetch_files(
    names: tuple[str, ...], folder: str, yes: bool, mirror: str | None, offline: bool, as_json: bool
) -> None:
    """Fetch public traces by NAME into a folder, checked; list them where no NAME is given."""
    from datetime import UTC, datetime

    from traces.fetch import consent_text, fetch, offline_list, public, public_traces

    inputs = {"names": list(names), "folder": folder, "mirror": mirror, "offline": offline}
    if not names:
        known = public_traces().values()
        rows = [["name", "MB", "rows", "licence"]]
        rows += [[each.name, quantity(each.bytes and each.bytes / 1e6), quantity(each.rows), each.licence]
                 for each in known]  # fmt: skip
        give(Answer("traces fetch", inputs, [each.as_dict() for each in known]), as_json, table(rows, right=[1, 2]))
        return
    if offline:
        wanted = offline_list(list(names), folder)
        words = "\n".join(f"{each['url']} -> {each['target']}" for each in wanted)
        give(Answer("traces fetch", inputs, wanted), as_json, words)
        return
    result = []
    for each in [public(name) for name in names]:
        click.echo(consent_text(each), err=True)
        path = fetch(each, folder, datetime.now(UTC), accept=yes, mirror=mirror)
        result.append({"name": each.name, "path": str(path), "licence": each.licence})
    give(Answer("traces fetch", inputs, result), as_json, "\n".join(each["path"] for each in result))


def _is_pool(file: str) -> bool:
    from traces.servegen import is_pool

    return Path(file).exists() and is_pool(file)


def _pool_answer(file: str) -> Answer:
    from traces.servegen import describe_pool, read_pool

    found: dict[str, Any] = describe_pool(read_pool(file))
    return Answer("traces stats", {"file": file}, found, tuple(found["warnings"]))


def _pool_words(file: str, found: Mapping[str, Any]) -> str:
    return (
        f"{file}: a ServeGen pool of {found['clients']} clients over {found['span_s'] / 86_400:.3g} days, "
        f"{quantity(found['rate_per_s'])}/s, {found['rows']} windows; gap CV p50 {quantity(found['iat_cv'])} by rate"
    )


traces.add_command(synth)
traces.add_command(fit)
