"""Checks of parameters, which may be integers and floats of numpy, and of the values of tensors."""

import os
from collections.abc import Callable, Sequence
from numbers import Integral, Real

import numpy as np
import torch

from higgs_native.errors import HiggsNativeError, ParameterError, short_repr


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
    """Raise ParameterError unless `value` is an integer of 64 bits, or None if `optional`."""
    _check(name, value, Integral, "an integer", optional)
    if value is not None and not -(2**63) <= value < 2**64:
        raise ParameterError(f"{name} must be between -2**63 and 2**64 - 1, got {short_repr(value)}")


def check_id(name: str, value: object, optional: bool = False) -> None:
    """Raise ParameterError unless `value` is an integer of 32 bits, or None if `optional`."""
    check_integer(name, value, optional)
    if value is not None and not -(2**31) <= value < 2**31:
        raise ParameterError(f"{name} must be between -2**31 and 2**31 - 1, got {value}")


def check_number(name: str, value: object, optional: bool = False) -> None:
    """Raise ParameterError unless `value` is a real number that a float can hold, or None if `optional`."""
    _check(name, value, Real, "a number", optional)
    try:
        float(value or 0)
    except OverflowError:
        raise ParameterError(f"{name} must be at most 1.8e308, got {short_repr(value)}") from None


def check_flag(name: str, value: object) -> None:
    """Raise ParameterError unless `value` is True or False."""
    _check(name, value, (bool, np.bool_), "True or False", False)


def check_callable(name: str, value: object, optional: bool = False) -> None:
    """Raise ParameterError unless `value` can be called, or is None if `optional`."""
    _check(name, value, Callable, "a function", optional)


def check_instance(name: str, value: object, kind: type) -> None:
    """Raise ParameterError unless `value` is of the class `kind`."""
    if not isinstance(value, kind):
        raise ParameterError(f"{name} must be of the class {kind.__name__}, got {type(value).__name__}")


def check_string(name: str, value: object, optional: bool = False) -> None:
    """Raise ParameterError unless `value` is a str, or None if `optional`."""
    _check(name, value, str, "a string", optional)


def check_strings(name: str, value: object) -> None:
    """Raise ParameterError unless `value` is a sequence of strings; a single string is refused."""
    if isinstance(value, str):
        raise ParameterError(f"{name} must be a list of strings, got the string {short_repr(value)}")
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise ParameterError(f"{name} must be a list of strings, got {short_repr(value)}")


def expanded_path(name: str, value: str | os.PathLike) -> str:
    """Return a path as a str, with a leading `~` expanded.

    Raises:
        ParameterError: `value` is no path.
    """
    _check(name, value, (str, os.PathLike), "a string or a path", False)
    path = os.fspath(value)
    _check(name, path, str, "a string or a path", False)  # a path object may be one of bytes
    if "\0" in path:
        raise ParameterError(f"{name} must be a path without zero bytes, got {short_repr(value)}")
    return os.path.expanduser(path)


def integer_tensor(
    name: str, value: torch.Tensor | np.ndarray, error: type[HiggsNativeError] = ParameterError
) -> torch.Tensor:
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


def _check(name: str, value: object, kind: type | tuple[type, ...], expected: str, optional: bool) -> None:
    if not isinstance(value, kind) and not (optional and value is None):
        raise ParameterError(f"{name} must be {expected}{' or None' if optional else ''}, got {short_repr(value)}")
