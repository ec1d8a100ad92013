"""Read the tables that llama-bench writes beside its JSON: CSV, Markdown and SQL."""

import csv
import re
from collections.abc import Iterator, Mapping

INSERTED = re.compile(r"INSERT INTO \w+ \(([^)]*)\) VALUES \(([^)]*)\)")
TEST = re.compile(r"(pp|tg)(\d+)(?:\s*@\s*d(\d+))?$")
NUMBERS = ("n_prompt", "n_gen", "n_depth", "avg_ts")


def is_table(text: str) -> bool:
    """Return whether a text begins as Markdown or SQL does."""
    return text.lstrip().startswith(("|", "CREATE TABLE", "INSERT INTO"))


def rows(place: str, text: str) -> Iterator[dict[str, float]]:
    """Yield n_prompt, n_gen, n_depth and avg_ts of every test; ValueError where the columns are others."""
    found = [row for row in csv.DictReader(_lines(text)) if set("".join(filter(None, row.values()))) - set("-: ")]
    known = set(found[0]) if found else set()
    if not ({"n_prompt", "n_gen", "avg_ts"} <= known or {"test", "t/s"} <= known):
        raise ValueError(f"{place}: no table of llama-bench: needs the columns n_prompt, n_gen, avg_ts, or test, t/s")
    for number, row in enumerate(found, 1):
        yield _numbers(f"{place}#{number}", row)


def _lines(text: str) -> list[str]:
    """Return a table as lines of CSV."""
    if "INSERT INTO" in text:
        pairs = INSERTED.findall(text)
        return [
            re.sub(r"\s*'?\s*(,|$)\s*'?", r"\1", cells.strip(" '")) for cells in (pairs[0][0], *(v for _, v in pairs))
        ]
    if text.lstrip().startswith("|"):
        rows_ = (line.strip().strip("|").split("|") for line in text.splitlines() if line.strip().startswith("|"))
        return [",".join(cell.strip() for cell in cells) for cells in rows_]
    return text.splitlines()


def _numbers(place: str, row: Mapping[str, str]) -> dict[str, float]:
    """Return a row's numbers; Markdown tells a test as pp512, or tg128 @ d4096, and its rate as mean ± deviation."""
    if "test" not in row:
        return {name: float(row[name]) for name in NUMBERS if row.get(name)}
    told = TEST.match(row["test"])
    if told is None:
        raise ValueError(f"{place}: test {row['test']!r} is neither of prompts (pp512) nor of generation (tg128)")
    kind, tokens, depth = told.groups()
    prompt, generated = (float(tokens) if kind == one else 0.0 for one in ("pp", "tg"))
    rate = float(row["t/s"].split()[0])
    return {"n_prompt": prompt, "n_gen": generated, "n_depth": float(depth or 0.0), "avg_ts": rate}
