"""Values of a JSON object, checked as they are read: a file may hold anything in their places."""

import sys
from typing import Any

from higgs_native.errors import ConfigError, short_repr


MAX_INTEGER = 2**31 - 1
"""The largest integer of a configuration, of either sign. Products and quotients of a few fit 64 bits and a float."""
_REQUIRED = object()
_KINDS = bool | int | float | str | list | tuple | dict


class Fields:
    """The values of a JSON object by name.

    A field that is absent or null has the default of the method that reads it, and is an error without one.

    Args:
        raw: the object.
        source: what holds it, for error messages.

    Raises:
        ConfigError: `raw` is no object. Every method raises it for a value of another kind.
    """

    def __init__(self, raw: object, source: str) -> None:
        if not isinstance(raw, dict):
            raise ConfigError(f"{source} must be a JSON object, got {short_repr(raw)}")
        self._raw = raw
        self._source = source

    def __contains__(self, name: str) -> bool:
        return name in self._raw

    def value(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return a value of any kind that JSON has."""
        value = self._raw.get(name)
        if value is None and default is _REQUIRED:
            raise ConfigError(f"{self._source} has no {name!r}")
        self.require(name, value is None or isinstance(value, _KINDS), "a value of JSON", value)
        return default if value is None else value

    def integer(self, name: str, default: Any = _REQUIRED, maximum: int = MAX_INTEGER) -> Any:
        """Return an integer of at most `maximum`; it may be written as 8.0."""
        value = self.value(name, default)
        return None if value is None else self._integer(name, value, maximum)

    def number(self, name: str, default: Any = _REQUIRED) -> Any:
        """Return a finite number as a float."""
        value = self.value(name, default)
        return None if value is None else self._number(name, value)

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        """Return a string."""
        value = self.value(name, default)
        self.require(name, isinstance(value, str), "a string", value)
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self.value(name, default)
        self.require(name, isinstance(value, bool), "true or false", value)
        return value

    def integers(self, name: str, default: Any = _REQUIRED) -> tuple[int, ...]:
        """Return a list of integers."""
        return tuple(self._integer(name, value, MAX_INTEGER) for value in self._list(name, default))

    def numbers(self, name: str, default: Any = _REQUIRED) -> tuple[float, ...]:
        """Return a list of finite numbers."""
        values = self._list(name, default)
        for value in values:
            self._number(name, value)
        return tuple(values)

    def nested(self, name: str) -> "Fields":
        """Return the fields of an object; none if it is absent or null."""
        return Fields(self.value(name, {}), f"{self._source}: {name}")

    def require(self, name: str, holds: bool, expected: str, value: object) -> None:
        """Raise ConfigError, with the field's name and value, unless `holds`."""
        if not holds:
            raise ConfigError(f"{self._source}: {name} must be {expected}, got {short_repr(value)}")

    def _list(self, name: str, default: Any) -> list | tuple:
        value = self.value(name, default)
        self.require(name, isinstance(value, list | tuple), "a list", value)
        return value

    def _integer(self, name: str, value: Any, maximum: int) -> int:
        # A bool is an int in Python.
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        is_integer = is_integer or (isinstance(value, float) and value.is_integer())
        self.require(name, is_integer, "an integer", value)
        self.require(name, value <= maximum, f"at most {maximum}", value)
        self.require(name, value >= -MAX_INTEGER, f"at least {-MAX_INTEGER}", value)
        return int(value)

    def _number(self, name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_number = is_number and abs(value) <= sys.float_info.max  # NaN isn't
        self.require(name, is_number, "a finite number", value)
        return float(value)
