"""Checks of parameters, which may be integers and floats of numpy, and of the values of tensors."""

import os
from numbers import Integral, Real

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


def check_integer(name: str, value: object, optional: bool = False) -> None:
    """Raise ParameterError unless `value` is an integer, or None if `optional`."""
    _check(name, value, Integral, "an integer", optional)


def check_number(name: str, value: object, optional: bool = False) -> None:
    """Raise ParameterError unless `value` is a real number, or None if `optional`."""
    _check(name, value, Real, "a number", optional)


def check_string(name: str, value: object, optional: bool = False) -> None:
    """Raise ParameterError unless `value` is a str, or None if `optional`."""
    _check(name, value, str, "a string", optional)


def expanded_path(name: str, value: str | os.PathLike) -> str:
    """Return a path as a str, with a leading `~` expanded.

    Raises:
        ParameterError: `value` is no path.
    """
    _check(name, value, (str, os.PathLike), "a string or a path", False)
    if "\0" in os.fspath(value):
        raise ParameterError(f"{name} must be a path without zero bytes, got {value!r}")
    return os.path.expanduser(value)


def integer_tensor(
    name: str, value: torch.Tensor | np.ndarray, error: type[HiggsNativeError] = ParameterError
) -> torch.Tensor:
    """Return a tensor or an array of integers as an int64 tensor; raise `error` for anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        value = torch.from_numpy(value.astype(np.int64))  # torch lacks some of numpy's dtypes and strides
    if not isinstance(value, torch.Tensor) or value.dtype not in _INTEGERS:
        got = getattr(value, "dtype", type(value).__name__)
        raise error(f"{name} must be integers in a tensor or an array, got {got}")
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


def _check(name: str, value: object, kind: type | tuple[type, ...], expected: str, optional: bool) -> None:
    if not isinstance(value, kind) and not (optional and value is None):
        raise ParameterError(f"{name} must be {expected}{' or None' if optional else ''}, got {value!r}")
