"""Values of tensors: their checks, equality and fingerprints."""

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from higgs_native.errors import HiggsNativeError, ParameterError


_INTEGERS = (
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)
_PIECE = 1 << 18
"""Bytes of float8 that are checked at a time: they and their copy stay in the L2 cache."""
_SAMPLED = 1000
"""About this many elements of each tensor are read for a fingerprint."""


def integer_tensor(name: str, value: object, error: type[HiggsNativeError] = ParameterError) -> torch.Tensor:
    """Return a dense tensor or an array of integers as an int64 tensor; raise `error` for anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        value = torch.from_numpy(value.astype(np.int64))  # torch lacks some of numpy's dtypes and strides
    if not isinstance(value, torch.Tensor) or value.dtype not in _INTEGERS:
        got = getattr(value, "dtype", type(value).__name__)
        raise error(f"{name} must be integers in a tensor or an array, got {got}")
    if value.is_meta or value.layout != torch.strided:
        got = "one of the device meta" if value.is_meta else value.layout
        raise error(f"{name} must be a dense tensor with memory, got {got}")
    return value.to(torch.int64)


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity: one pass, without a mask of the tensor's size.

    Args:
        tensor: of integers, float8_e4m3fn, or a dtype that torch can add up; on any device.
    """
    if not tensor.is_floating_point():
        return True
    if tensor.dtype == torch.float8_e4m3fn:
        # Its only value that is not finite is NaN: all bits are set beside the sign.
        pieces = tensor.view(torch.int8).flatten().split(_PIECE)
        return all(int(piece.bitwise_or(-128).max()) != -1 for piece in pieces if len(piece))
    # A sum is finite only if its terms are, and is faster than the extremes. But it may overflow.
    return bool(tensor.sum().isfinite()) or all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


def equal_fields(first: Any, second: Any) -> bool:
    """Return whether two objects of one dataclass have equal fields; arrays and tensors as a whole. NaN is unequal."""
    return all(_equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        is_comparable = (first.dtype, first.device) == (second.dtype, second.device)
        return is_comparable and torch.equal(first, second)
    return type(first) is type(second) and first == second


def fingerprint(settings: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 of settings and of the names, dtypes, shapes and some elements of tensors.

    It tells weights from others without reading all of them.
    """
    digest = hashlib.sha256(settings.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.detach().flatten()
        sampled = flat[:: max(1, len(flat) // _SAMPLED)].cpu().contiguous()
        digest.update(sampled.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
