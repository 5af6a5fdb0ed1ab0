"""Checks of the types of parameters; numpy's integers and floats are such, too."""

import os
from numbers import Integral, Real

from higgs_native.errors import ParameterError


def check_integer(name: str, value: object, optional: bool = False) -> None:
    """Raise ParameterError where `value` is no integer, nor None where it is `optional`."""
    _check(name, value, Integral, "an integer", optional)


def check_number(name: str, value: object, optional: bool = False) -> None:
    """Raise ParameterError where `value` is no real number, nor None where it is `optional`."""
    _check(name, value, Real, "a number", optional)


def check_string(name: str, value: object, optional: bool = False) -> None:
    """Raise ParameterError where `value` is no str, nor None where it is `optional`."""
    _check(name, value, str, "a string", optional)


def expanded_path(name: str, value: str | os.PathLike) -> str:
    """Return a path as it is written, but for a `~` at its beginning. Raises ParameterError where `value` is none."""
    _check(name, value, (str, os.PathLike), "a string or a path", False)
    return os.path.expanduser(value)


def _check(name: str, value: object, kind: type | tuple[type, ...], expected: str, optional: bool) -> None:
    if not isinstance(value, kind) and not (optional and value is None):
        raise ParameterError(f"{name} must be {expected}{' or None' if optional else ''}, got {value!r}")
