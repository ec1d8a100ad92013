"""A kernel that is handed a named tuple by reference reads and writes the very arrays it holds."""

from typing import NamedTuple

import numba
import numpy as np
import pytest

from models.compiled import kernel
from models.reference import by_reference

ROW = np.dtype([("length", "i8"), ("share", "f8")], align=True)


@by_reference
class Store(NamedTuple):
    """Arrays of several kinds."""

    rows: np.ndarray
    grid: np.ndarray
    words: np.ndarray


def a_store() -> Store:
    return Store(np.zeros(3, ROW), np.arange(6.0).reshape(2, 3), np.arange(4))


@kernel
def fill(store, row):
    store.rows[row].length = store.words[-1] + store.grid.shape[1]
    store.rows[row].share = store.grid[1, 2]
    return store.words.size


@kernel
def read_more(store):
    return store.more


def test_fields_are_the_arrays_themselves() -> None:
    store = a_store()
    assert fill(store, 1) == 4
    assert store.rows["length"].tolist() == [0, 6, 0]
    assert store.rows["share"].tolist() == [0.0, 5.0, 0.0]


def test_another_instance_is_another_place() -> None:
    first, second = a_store(), a_store()._replace(words=np.array([7]))
    fill(first, 0)
    assert fill(second, 2) == 1
    assert first.rows["length"].tolist() == [6, 0, 0]
    assert second.rows["length"].tolist() == [0, 0, 10]


def test_a_field_that_is_not_there_is_named() -> None:
    with pytest.raises(numba.TypingError, match="'more'"):
        read_more(a_store())
