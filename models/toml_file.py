"""Read one TOML file of facts and refuse what it should not hold, naming the file, the key and the choices."""

import tomllib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any


def read(path: Path, required: Collection[str], optional: Collection[str] = ()) -> dict[str, Any]:
    """Return the file's table; ValueError names the file and each key that is missing or unknown."""
    with path.open("rb") as file:
        try:
            table = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: not TOML: {error}") from None
    check_keys(str(path), table, required, optional)
    return table


def check_keys(place: str, table: dict[str, Any], required: Collection[str], optional: Collection[str] = ()) -> None:
    """Raise ValueError where a table lacks a required key or holds one that nobody reads."""
    missing = [key for key in required if key not in table]
    if missing:
        raise ValueError(f"{place}: missing {', '.join(missing)}")
    unknown = [key for key in table if key not in required and key not in optional]
    if unknown:
        choices = ", ".join(sorted((*required, *optional)))
        raise ValueError(f"{place}: unknown key {', '.join(map(repr, unknown))}; known: {choices}")


def names_in(folder: Path) -> tuple[str, ...]:
    """Return the names of the TOML files in a folder, in alphabetical order, without reading them."""
    return tuple(sorted(path.stem for path in folder.glob("*.toml")))


def squeezed(name: str) -> str:
    """Return what is left of a name without its owner, capitals and punctuation, by which other files call it.

    >>> squeezed("meta-llama/Llama-3.1-8B")
    'llama318b'
    """
    return "".join(letter for letter in name.rsplit("/", 1)[-1].lower() if letter.isalnum())


def unknown_name(what: str, name: str, known: Iterable[str]) -> ValueError:
    """Return the error for a name that no file has: the nearest names first, then all of them."""
    import difflib

    known = tuple(known)
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ";"
    return ValueError(f"unknown {what} {name!r}{hint} known: {', '.join(known)}")
