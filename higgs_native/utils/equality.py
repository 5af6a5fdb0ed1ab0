"""Equality of dataclasses whose fields are arrays or tensors, which `==` compares element by element."""

from dataclasses import fields
from typing import Any

import numpy as np
import torch


def equal_fields(first: Any, second: Any) -> bool:
    """Return whether two objects of one dataclass have equal fields. NaN equals nothing."""
    return all(_equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        is_comparable = (first.dtype, first.device) == (second.dtype, second.device)
        return is_comparable and torch.equal(first, second)
    return type(first) is type(second) and first == second
