"""Fields of a JSON object: each kind of value, its default, and the one line that refuses others."""

import math

import numpy as np
import pytest

from higgs_native.errors import ConfigError
from higgs_native.utils.fields import Fields


def fields(value: object) -> Fields:
    return Fields({"name": value}, "file")


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("integer", 8, 8),
        ("integer", 8.0, 8),
        ("integer", -(2**31) + 1, -(2**31) + 1),
        ("number", 8, 8.0),
        ("number", 0.5, 0.5),
        ("text", "", ""),
        ("integers", [], ()),
        ("integers", [1, 2.0], (1, 2)),
        ("numbers", (1, 0.5), (1, 0.5)),
        ("value", {"any": [1]}, {"any": [1]}),
    ],
    ids=range(10),
)
def test_a_value_is_read(kind, value, expected):
    found = getattr(fields(value), kind)("name")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("integer", (True, "8", 8.5, math.nan, math.inf, [8], {}), "an integer"),
        ("integer", (2**31, 1e300, 10**5000), "at most 2147483647"),
        ("integer", (-(2**31), -1e300, -(10**5000)), "at least -2147483647"),
        ("number", (True, "8", math.nan, -math.inf, 10**400, [8]), "a finite number"),
        ("text", (8, ["a"]), "a string"),
        ("integers", (8, "8", {"8": 8}), "a list"),
        ("integers", ([8, "8"],), "an integer"),
        ("numbers", ([0.5, math.nan],), "a finite number"),
    ],
)
def test_a_value_of_another_kind_is_refused(kind, values, expected):
    for value in values:
        with pytest.raises(ConfigError, match=f"^file: name must be {expected}, got ") as error:
            getattr(fields(value), kind)("name")
        assert len(str(error.value)) < 120


def test_flags():
    assert fields(True).flag("name", False) is True
    for value in (0, 1, "true"):
        with pytest.raises(ConfigError, match=r"^file: name must be true or false, got "):
            fields(value).flag("name", False)


@pytest.mark.parametrize("raw", [{}, {"name": None}])
def test_a_missing_value_has_the_default_or_is_refused(raw):
    found = Fields(raw, "file")
    for kind, default in (("integer", 3), ("number", 0.5), ("text", "a"), ("integers", (1,)), ("numbers", ())):
        assert getattr(found, kind)("name", default) == default
        with pytest.raises(ConfigError, match=r"^file has no 'name'$"):
            getattr(found, kind)("name")
    assert found.integer("name", None) is None
    assert found.number("name", None) is None
    assert "other" not in found.nested("name")


def test_a_nested_object_names_its_place():
    nested = fields({"inner": "x"}).nested("name")
    assert "inner" in nested
    with pytest.raises(ConfigError, match=r"^file: name: inner must be an integer, got 'x'$"):
        nested.integer("inner")
    with pytest.raises(ConfigError, match=r"^file: name must be a JSON object, got \[1\]$"):
        fields([1]).nested("name")


def test_a_value_that_json_lacks_is_refused():
    """An array has no truth value, so no comparison with it would do."""
    with pytest.raises(ConfigError, match=r"a\.json: a must be a value of JSON, got array\(\[0, 1\]\)"):
        Fields({"a": np.arange(2)}, "a.json").value("a")
