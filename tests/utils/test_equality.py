from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from higgs_native.utils.equality import equal_fields


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
