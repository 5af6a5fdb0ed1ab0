"""Checks of parameters."""

import numpy as np
import pytest

from higgs_native.errors import ParameterError
from higgs_native.utils.checks import check_flag, check_strings, expanded_path


@pytest.mark.parametrize("value", [True, False, np.True_, np.False_])
def test_flags_of_python_and_numpy_are_flags(value):
    check_flag("strict", value)


@pytest.mark.parametrize("value", [0, 1, None, "True", np.int64(1), np.array(True)])
def test_what_only_looks_like_a_flag_is_none(value):
    with pytest.raises(ParameterError, match=r"^strict must be True or False, got "):
        check_flag("strict", value)


class BytesPath:
    def __fspath__(self):
        return b"folder"


@pytest.mark.parametrize("value", [3, None, b"folder", BytesPath()])
def test_a_path_of_bytes_is_none(value):
    with pytest.raises(ParameterError, match=r"^model must be a string or a path, got "):
        expanded_path("model", value)


@pytest.mark.parametrize("value", ["a", b"", bytearray(b"a"), memoryview(b""), {"a"}, ["a", 1]])
def test_what_is_no_list_of_strings_is_refused(value):
    with pytest.raises(ParameterError, match=r"^trained must be a list of strings, got "):
        check_strings("trained", value)
