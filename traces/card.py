"""A trace as a notebook shows it: a few figures and a small picture of its rate, without any library."""

from collections.abc import Iterable
from html import escape

import numpy as np

from traces.statistics import describe
from traces.trace import Array, Trace

WIDTH, HEIGHT, BARS = 360, 48, 120


def html_card(trace: Trace) -> str:
    """Return HTML with name, size, rate, burstiness, lengths, warnings and the rate over time as SVG."""
    if not len(trace):
        return f"<p><b>{escape(trace.name)}</b>: no requests</p>"
    found = describe(trace)
    dispersion = ", ".join(f"{window} s: {_short(value)}" for window, value in found.idc.items() if value is not None)
    rows = [
        ("requests", f"{found.rows:,} in {_short(found.span_s)} s, {_short(found.rate_per_s)} per second"),
        ("gap CV", _short(found.iat_cv)),
        ("dispersion of counts", dispersion or "-"),
        ("input tokens", _lengths(found.input_tokens)),
        ("output tokens", _lengths(found.output_tokens)),
    ]
    if found.prefix:
        rows.append(("prefix reuse", f"{found.prefix['token_hit_infinite']:.1%} of input tokens"))
    if found.sessions:
        rows.append(("sessions", f"{found.sessions['count']:,.0f}, {_short(found.sessions['turns_mean'])} turns each"))
    rows += [("beware", warning) for warning in found.warnings]
    return html_rows(trace.name, rows) + html_bars(np.histogram(trace.arrival_ns, BARS)[0], "requests over time")


def html_rows(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """Return a title over a table of names and values, all of it escaped."""
    style = "text-align:left"
    lines = [f'<tr><th style="{style}">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows]
    return f"<b>{escape(title)}</b><table>{''.join(lines)}</table>"


def html_bars(counts: Array, words: str, colour: str = "steelblue") -> str:
    """Return bars as SVG, one a count >= 0; words say what they are to whoever points at them or cannot see them."""
    heights = counts / max(counts.max(), 1) * HEIGHT
    step = WIDTH / len(counts)
    bars = "".join(
        f'<rect x="{place * step:.1f}" y="{HEIGHT - height:.1f}" width="{step:.1f}" height="{height:.1f}"/>'
        for place, height in enumerate(heights.tolist())
    )
    title = f"<title>{escape(words)}</title>"
    return f'<svg width="{WIDTH}" height="{HEIGHT}" fill="{colour}" role="img">{title}{bars}</svg>'


def _lengths(lengths: object) -> str:
    names = ("mean", "p50", "p99", "max")
    return ", ".join(f"{name} {_short(getattr(lengths, name))}" for name in names)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"
