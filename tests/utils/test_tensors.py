"""Tensors' values: NaN and infinity are found in every dtype, at any place, and arrays are equal as a whole."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from higgs_native.utils.tensors import equal_fields, is_finite


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_is_found_anywhere(dtype, value):
    tensor = torch.randn(37, 1001, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert is_finite(tensor)
    for index in (0, 18 * 1001 + 500, 37 * 1001 - 1):
        changed = tensor.clone()
        changed.view(-1)[index] = value
        assert not is_finite(changed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_values_are_finite(dtype):
    """Though their sum is not."""
    largest = torch.finfo(dtype).max
    for sign in (1, -1):
        assert is_finite(torch.full((3, 1000), sign * largest, dtype=dtype))
    assert not is_finite(torch.tensor([math.inf, -math.inf], dtype=dtype))


def test_float8_is_finite_but_for_its_two_nans():
    every = torch.arange(256).to(torch.uint8)
    for byte in range(256):
        tensor = torch.zeros(300_001, dtype=torch.uint8)
        tensor[byte * 1000] = every[byte]
        tensor = tensor.view(torch.float8_e4m3fn)
        assert is_finite(tensor) == tensor.float().isfinite().all().item() == (byte & 127 != 127)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_integers_and_nothing_are_finite(dtype):
    assert is_finite(torch.empty(0, 3, dtype=dtype))
    assert is_finite(torch.zeros((), dtype=dtype))
    if not dtype.is_floating_point:
        assert is_finite(torch.full((9,), torch.iinfo(dtype).max, dtype=dtype))


@dataclass
class Pair:
    first: Any
    second: Any


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (np.arange(3), np.arange(3), True),
        (np.arange(3), np.arange(4), False),
        (np.arange(3), [0, 1, 2], False),
        (torch.arange(3), torch.arange(3), True),
        (torch.arange(3), torch.arange(3).float(), False),
        (torch.arange(3), torch.tensor([0, 1, 3]), False),
        (torch.arange(3), np.arange(3), False),
        ("a", "a", True),
        (None, np.arange(3), False),
    ],
)
def test_arrays_and_tensors_are_equal_as_a_whole(first, second, expected):
    assert equal_fields(Pair(1, first), Pair(1, second)) is expected
    assert not equal_fields(Pair(1, first), Pair(2, second))
