"""The demand of a week, hour by hour: read from a CSV of requests an hour, one or several services in it."""

import csv
from pathlib import Path

REQUESTS = ("requests", "requests_est")
SERVICE = "service"


def read(path: str | Path, service: str | None = None) -> tuple[float, ...]:
    """Return the requests of every hour in a CSV with a column `requests` or `requests_est`.

    Where a column `service` tells several apart, one has to be named. ValueError says what is wrong and where.
    """
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        column = next((name for name in REQUESTS if name in (rows.fieldnames or ())), None)
        if column is None:
            raise ValueError(f"{path}:1: no column {' or '.join(REQUESTS)}; found: {', '.join(rows.fieldnames or ())}")
        hours: dict[str, list[float]] = {}
        for row in rows:
            hours.setdefault(row.get(SERVICE) or "", []).append(_requests(path, rows.line_num, row[column]))
    if not hours:
        raise ValueError(f"{path}: no hours")
    if service is None and len(hours) == 1:
        return tuple(*hours.values())
    if service not in hours:
        raise ValueError(f"{path}: name the service, one of {', '.join(sorted(hours))}, not {service!r}")
    return tuple(hours[service])


def _requests(path: str | Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{path}:{line}: {text!r} is no count of requests")
    return value
