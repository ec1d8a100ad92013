"""What is asked for of a named tuple and is not there is known before anything is compiled."""

from typing import NamedTuple

import numpy as np
import pytest
from numba import config, njit

from models.compiled import asking_for, inner_kernel
from models.linked import KernelCompiler
from models.reference import by_reference


@by_reference
class Whole(NamedTuple):
    """An array, and a part that may be empty."""

    values: np.ndarray
    extras: tuple[int, ...] = ()


@asking_for("extras")
def has_extras(whole, limit):
    """Say whether the part is there and a value large."""
    return whole.values[0] > limit


@inner_kernel
def seldom(whole):
    return 7 * whole.values[1]


@inner_kernel
def always(whole, limit):
    if limit >= 0 and has_extras(whole, limit):
        return seldom(whole)
    return whole.values[1]


@pytest.mark.skipif(config.DISABLE_JIT, reason="nothing is compiled")
def test_what_hangs_on_a_part_that_is_not_there_is_not_compiled():
    entry = njit(_nrt=False, pipeline_class=KernelCompiler)(lambda whole, limit: always(whole, limit))
    values = np.array([5, 2])
    assert entry(Whole(values), 1) == 2
    assert not seldom.signatures
    assert [entry(Whole(values, (1,)), limit) for limit in (1, 9)] == [14, 2]
    assert len(seldom.signatures) == 1
