"""YAML or JSON files of settings: all their mistakes told at once, each with its place and the nearest right name."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

Value = TypeVar("Value")
Place = tuple[str | int, ...]

_FLOAT = re.compile(r"[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+")


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e9 as the number it is."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def read(path: str | Path, kind: type[Value]) -> Value:
    """Return the content of a file as a dataclass of this kind.

    ValueError lists every mistake as FILE:LINE:COLUMN: key: what is wrong; OSError where the file cannot be read.
    """
    return parse(str(path), Path(path).read_text(encoding="utf-8"), kind)


def parse(file: str, text: str, kind: type[Value]) -> Value:
    """Return a text as a dataclass of this kind; `file` stands in messages."""
    from pydantic import TypeAdapter, ValidationError

    root = _composed(file, text)
    content = _Loader("").construct_document(root)
    try:
        return TypeAdapter(kind).validate_json(json.dumps(content, default=str), strict=True)
    except ValidationError as error:
        marks = dict(_marks(root))
        known = TypeAdapter(kind).json_schema()
        mistakes = [_mistake(file, marks, known, dict(each)) for each in error.errors(include_url=False)]
        raise ValueError("\n".join(sorted(set(mistakes), key=_line_of))) from None


def place_of(file: str, text: str, place: Place) -> str:
    """Return FILE:LINE:COLUMN of a value of a YAML text, or of the nearest value around it."""
    return _where(file, dict(_marks(_composed(file, text))), place)


def _composed(file: str, text: str) -> yaml.Node:
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else f"{file}:1:1"
        raise ValueError(f"{place}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file}:1:1: not YAML: {error}") from None
    if root is None:
        raise ValueError(f"{file}:1:1: empty file")
    return root


def _marks(node: yaml.Node, place: Place = ()) -> Iterator[tuple[Place, tuple[int, int]]]:
    """Yield the line and column of every value, counted from 1; a key's own place is under (key, "key")."""
    yield place, (node.start_mark.line + 1, node.start_mark.column + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*place, key.value, "key"), (key.start_mark.line + 1, key.start_mark.column + 1)
            yield from _marks(value, (*place, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _marks(value, (*place, index))


def _mistake(file: str, marks: Mapping[Place, tuple[int, int]], known: Any, error: dict[str, Any]) -> str:
    place: Place = tuple(error["loc"])
    dotted = ".".join(map(str, place)) or "file"
    if error["type"] == "missing":
        return f"{_where(file, marks, place[:-1])}: {dotted}: missing"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        names = sorted(_names(known))
        near = difflib.get_close_matches(str(place[-1]), names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(names)}"
        return f"{_where(file, marks, (*place, 'key'))}: {dotted}: unknown key{hint}"
    words = error["msg"].removeprefix("Value error, ")
    got = "" if error["type"] == "value_error" else f"; got {error['input']!r}"
    return f"{_where(file, marks, place)}: {dotted}: {words[:1].lower() + words[1:]}{got}"


def _where(file: str, marks: Mapping[Place, tuple[int, int]], place: Place) -> str:
    while place not in marks:
        place = place[:-1]
    line, column = marks[place]
    return f"{file}:{line}:{column}"


def _names(schema: Any) -> Iterator[str]:
    """Yield the keys that a JSON schema knows, at any depth."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for value in schema.values():
            yield from _names(value)


def _line_of(mistake: str) -> tuple[int, int, str]:
    numbers = re.search(r":(\d+):(\d+): ", mistake)
    return (int(numbers[1]), int(numbers[2]), mistake) if numbers else (0, 0, mistake)
