"""`plan traces`: look at request traces, bring them into one form, change, make, fit and fetch them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any, TypeVar

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import json_flag
from planners.commands.tables import quantity, table

if TYPE_CHECKING:
    from traces import Trace

Function = TypeVar("Function", bound=Callable[..., Any])
UNITS = ("s", "ms", "us", "ns")


@click.group()
def traces() -> None:
    """Describe, convert, transform, generate, fit and fetch request traces.

    FILE is a trace in any known format (`plan traces formats`), told by its content, compressed or not.
    """


def reading_options(function: Function) -> Function:
    """Add the flags that say how to read what a file leaves open; they arrive as one dict `reading`."""
    for option in reversed(READING):
        function = option(function)
    return function


READING = (
    click.option("--format", "form", metavar="NAME", help="Insist on a format instead of telling it by content."),
    click.option("--lenient", is_flag=True, help="Drop and count bad rows instead of stopping at the first."),
    click.option("--max-bad", "max_bad_fraction", type=float, default=0.001, help="Most bad rows, as a fraction."),
    click.option("--time-unit", type=click.Choice(UNITS), help="Unit of numeric times, where the format's is wrong."),
    click.option("--restarts", type=click.Choice(["error", "append", "sort"]), default="error",
                 help="What to do with files glued together."),
    click.option("--lengths-only", is_flag=True, help="Read token counts where times are absent."),
    click.option("--block-tokens", type=int, help="Tokens in a prefix block, where the format's number is wrong."),
    click.option("--context", type=click.Choice(["cumulative", "delta"]), help="Whether turns carry those before."),
    click.option("--rename", multiple=True, metavar="FROM=TO", help="Rename a column of the file; repeat for more."),
    click.option("--map", "map_file", type=click.Path(exists=True, dir_okay=False),
                 help="TOML that says which column (unit, constant) each of our fields is in."),
    click.option("--where", multiple=True, metavar="CONDITION",
                 help='Keep rows of which this holds, as "model=gpt-4" or "input_tokens<=4096"; repeat for more.'),
    click.option("--time-range", metavar="FROM,TO", help="Keep what arrives in these seconds after the first row."),
    click.option("--limit", type=int, help="Keep the first rows only."),
)  # fmt: skip


AS_THEY_ARE = ("max_bad_fraction", "time_unit", "restarts", "lengths_only", "block_tokens", "context", "limit")


def wishes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of `traces.read` that the reading flags stand for."""
    found = {name: options[name] for name in AS_THEY_ARE}
    pairs = [each.partition("=") for each in options["rename"]]
    if bad := [before for before, sign, _ in pairs if not sign]:
        raise click.UsageError(f"--rename {bad[0]!r}: expected FROM=TO")
    found["where"] = options["where"]
    if options["time_range"]:
        from traces.selection import time_range

        found["time_range"] = time_range(options["time_range"])
    found |= {"format": options["form"], "strict": not options["lenient"], "columns": None}
    found["rename"] = {before: after for before, _, after in pairs} or None
    if options["map_file"]:
        import tomllib

        found["columns"] = tomllib.loads(Path(options["map_file"]).read_text())
    return found


def changed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reading flags that were given, for the record."""
    default = {"max_bad_fraction": 0.001, "restarts": "error", "lenient": False, "lengths_only": False}
    default |= {"rename": (), "where": ()}
    return {name: value for name, value in options.items() if value not in (None, default.get(name))}


def read_file(file: str, options: Mapping[str, Any]) -> "Trace":
    """Return the trace in a file, read as the flags say; `sample` is the bundled one unless a file has that name."""
    from traces import reading

    if file == "sample" and not Path(file).exists():
        return reading.sample()
    return reading.read(file, **wishes(options))


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


def facts(trace: "Trace") -> dict[str, Any]:
    """Return where a trace comes from: format, rows read, identity, chain of operations."""
    about = trace.metadata
    names = ("format", "rows_read", "time_unit", "t0_ns", "tz", "inversions", "block_tokens", "block_scope", "sha256")
    chain = {"identity": trace.identity, "chain": list(trace.chain)}
    return {name: about.get(name) for name in names} | {"dropped_examples": about.get("dropped_examples", {})} | chain


def stats_words(name: str, result: Mapping[str, Any]) -> str:
    """Return the statistics for people."""
    lines = [f"{name}: {result['rows']} requests in {quantity(result['span_s'], 6)} s, "
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
    _written("traces convert", {"file": file, **changed(options)}, trace, out, as_json)


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
    _written("traces slice", inputs, trace, out, as_json)


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
    _written("traces scale", inputs, made, out, as_json)


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
    _written("traces mix", inputs, made, out, as_json)


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
    _written("traces anonymise", {"keep": list(keep), "token_step": token_step}, made, out, as_json)


@traces.command("synth")
@click.option("--law", metavar="NAME", help="An arrival law, its parameters by --set.")
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A parameter: a number, or several by commas."
)
@click.option("--like", metavar="FILE", help="Fit this trace and make another like it.")
@click.option("--pool", metavar="PATH", help="A ServeGen pool of clients.")
@click.option("--spec", metavar="FILE.toml", help="Conversations, agents or a closed loop, with prefixes and adapters.")
@click.option("--profile", metavar="FILE.csv", help="Requests per minute, hour or day.")
@click.option("--service", metavar="NAME", help="Which service of the profile.")
@click.option("--lengths-from", metavar="FILE", help="Draw pairs of lengths from this trace.")
@click.option("--input-tokens", type=int, default=512, show_default=True, help="Where nothing else says.")
@click.option("--output-tokens", type=int, default=128, show_default=True, help="Where nothing else says.")
@click.option("--start-s", type=float, default=0.0, show_default=True, help="Where in a pool to begin.")
@click.option("--duration-s", type=float, default=3600.0, show_default=True)
@click.option("--factor", type=float, default=1.0, show_default=True, help="Multiply the rates of a pool or profile.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("-o", "--out", required=True, metavar="FILE", help="Where the trace goes.")
@json_flag
def synth(out: str, as_json: bool, **options: Any) -> None:
    """Make a trace: by a law, like another, from a pool of clients, along a profile, or as a specification says."""
    ways = [name for name in SYNTHS if options[name]]
    if len(ways) != 1:
        raise click.UsageError(f"name one of {', '.join(f'--{name}' for name in SYNTHS)}")
    made = SYNTHS[ways[0]](options)
    inputs = {name: value for name, value in options.items() if value not in (None, ())}
    _written("traces synth", inputs, made, out, as_json)


def _lengths(options: Mapping[str, Any]) -> Any:
    from traces import reading
    from traces.length_laws import fixed_lengths

    if options["lengths_from"]:
        return reading.read(options["lengths_from"])
    return fixed_lengths(options["input_tokens"], options["output_tokens"])


def _by_law(options: Mapping[str, Any]) -> "Trace":
    from traces.generate import generate

    parameters = dict(_setting(each) for each in options["settings"])
    return generate(options["law"], parameters, _lengths(options), options["duration_s"], options["seed"])


def _by_pool(options: Mapping[str, Any]) -> "Trace":
    from traces.generate import from_pool
    from traces.servegen import read_pool

    return from_pool(
        read_pool(options["pool"]), options["duration_s"], options["seed"], start_s=options["start_s"],
        factor=options["factor"], lengths=_lengths(options),
    )  # fmt: skip


def _by_profile(options: Mapping[str, Any]) -> "Trace":
    from traces.generate import generate, read_profile

    times_s, rates_per_s = read_profile(options["profile"], options["service"])
    shifted = [time_s - options["start_s"] for time_s in times_s]
    parameters = {"times_s": shifted, "rates_per_s": [rate * options["factor"] for rate in rates_per_s]}
    return generate("nhpp", parameters, _lengths(options), options["duration_s"], options["seed"])


def _by_likeness(options: Mapping[str, Any]) -> "Trace":
    from traces import reading
    from traces.likeness import fit_trace

    source = reading.read(options["like"])
    found: Trace = fit_trace(source, options["seed"]).generate(options["duration_s"], options["seed"], source)
    return found


def _by_spec(options: Mapping[str, Any]) -> "Trace":
    import tomllib

    from traces.sessions import from_spec

    return from_spec(tomllib.loads(Path(options["spec"]).read_text()), options["seed"])


SYNTHS: dict[str, Callable[[Mapping[str, Any]], "Trace"]] = {
    "law": _by_law,
    "like": _by_likeness,
    "pool": _by_pool,
    "profile": _by_profile,
    "spec": _by_spec,
}


def _setting(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    parts = value.split(",")
    try:
        numbers = tuple(float(part) for part in parts)
    except ValueError:
        if len(parts) == 1 and sign:
            return name, value
        raise click.UsageError(f"--set {text!r}: expected NAME=NUMBER or NAME=NUMBER,NUMBER") from None
    return name, numbers[0] if len(numbers) == 1 else numbers


@traces.command("fit")
@click.argument("file")
@click.option(
    "--fleet", "fleet", metavar="FILE", help="plan.json or fleet.yaml: compare p99 TTFT of real and made on it."
)
@click.option("--seed", type=int, default=0, show_default=True)
@reading_options
@json_flag
def fit(file: str, fleet: str | None, seed: int, as_json: bool, **options: Any) -> None:
    """Find the arrival law that FILE follows, and judge it on time it was not fitted to."""
    from traces.likeness import fit_trace

    started_s = process_time()
    trace = read_file(file, options)
    found = fit_trace(trace, seed)
    result, words = found.as_dict(), found.words()
    if fleet is not None:
        result["ttft"] = _ttft(trace, [found.generate(trace.span_s, seed + each, trace) for each in range(24)], fleet)
        words += "".join(f"\np99 TTFT at {each['load']:.0%} load: real {quantity(each['real_ttft_p99_s'])} s, "
                         f"made {quantity(each['made_ttft_p99_s'])} s ({each['error']:+.0%}, give or take "
                         f"{2 * each['standard_error']:.0%})" for each in result["ttft"])  # fmt: skip
    timings = {"cpu_s": process_time() - started_s}
    inputs = {"file": file, "fleet": fleet, "seed": seed, **changed(options)}
    give(Answer("traces fit", inputs, result, (), timings), as_json, words)


def _ttft(trace: "Trace", made: "list[Trace]", fleet: str) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from planners import fleet_file
    from planners.resemblance import resemblances

    return [asdict(each) for each in resemblances(trace, made, fleet_file.read(fleet).fleet)]


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


def _written(command: str, inputs: Mapping[str, Any], trace: "Trace", out: str, as_json: bool) -> None:
    from traces.statistics import describe
    from traces.writing import write

    write(trace, out)
    result: dict[str, Any] = {"out": out} | describe(trace).as_dict() | facts(trace)
    answer = Answer(command, inputs, result, tuple(result["warnings"]))
    give(answer, as_json, f"{out}: {len(trace)} requests in {trace.span_s:.6g} s, {quantity(result['rate_per_s'])}/s")


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
