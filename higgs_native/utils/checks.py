"""Checks of parameters, which may be integers and floats of numpy. Commands import this module before torch."""

import os
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from higgs_native.errors import ParameterError, short_repr


def check_integer(name: str, value: Any, optional: bool = False) -> None:
    """Raise ParameterError unless `value` is an integer of 64 bits, or None if `optional`."""
    _check(name, value, Integral, "an integer", optional)
    if value is not None and not -(2**63) <= value < 2**64:
        raise ParameterError(f"{name} must be between -2**63 and 2**64 - 1, got {short_repr(value)}")


def check_id(name: str, value: Any, optional: bool = False) -> None:
    """Raise ParameterError unless `value` is an integer of 32 bits, or None if `optional`."""
    check_integer(name, value, optional)
    if value is not None and not -(2**31) <= value < 2**31:
        raise ParameterError(f"{name} must be between -2**31 and 2**31 - 1, got {value}")


def check_number(name: str, value: Any, optional: bool = False) -> None:
    """Raise ParameterError unless `value` is a real number that a float can hold, or None if `optional`."""
    _check(name, value, Real, "a number", optional)
    try:
        float(value or 0)
    except OverflowError:
        raise ParameterError(f"{name} must be at most 1.8e308, got {short_repr(value)}") from None


def check_flag(name: str, value: object) -> None:
    """Raise ParameterError unless `value` is True or False."""
    if not isinstance(value, bool):
        from numpy import bool_

        _check(name, value, bool_, "True or False", False)


def check_callable(name: str, value: object, optional: bool = False) -> None:
    """Raise ParameterError unless `value` can be called, or is None if `optional`."""
    if not callable(value) and not (optional and value is None):
        raise ParameterError(f"{name} must be a function{' or None' if optional else ''}, got {short_repr(value)}")


def check_instance(name: str, value: object, kind: type) -> None:
    """Raise ParameterError unless `value` is of the class `kind`."""
    if not isinstance(value, kind):
        raise ParameterError(f"{name} must be of the class {kind.__name__}, got {type(value).__name__}")


def check_string(name: str, value: object, optional: bool = False) -> None:
    """Raise ParameterError unless `value` is a str, or None if `optional`."""
    _check(name, value, str, "a string", optional)


def check_strings(name: str, value: Any) -> None:
    """Raise ParameterError unless `value` is a sequence of strings; a single string is refused."""
    if isinstance(value, str):
        raise ParameterError(f"{name} must be a list of strings, got the string {short_repr(value)}")
    is_list = isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview)
    if not is_list or not all(isinstance(item, str) for item in value):
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


def _check(name: str, value: object, kind: type | tuple[type, ...], expected: str, optional: bool) -> None:
    if not isinstance(value, kind) and not (optional and value is None):
        raise ParameterError(f"{name} must be {expected}{' or None' if optional else ''}, got {short_repr(value)}")
