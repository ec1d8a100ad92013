"""What a user's file may say: a class whose reading refuses a key that it does not know."""

from typing import TypeVar

Described = TypeVar("Described")


def strict(described: type[Described]) -> type[Described]:
    """Let the reading of a dataclass refuse any key that is not a field of it."""
    described.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return described
