"""Sampling parameters as programs for `boson_multimodal` give them."""

from fractions import Fraction

import pytest

from higgs_native.compat.boson.sampling import sampling_params
from higgs_native.errors import ParameterError


DEFAULTS = {
    "temperature": 0.7,
    "top_k": None,
    "top_p": 0.95,
    "ras_win_len": 7,
    "ras_win_max_num_repeat": 2,
    "seed": None,
    "max_new_tokens": 20,
    "stop_strings": ["<|eot_id|>"],
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"seed": -1}, {"seed": -1}),
        ({"seed": 2**64 - 1}, {"seed": 2**64 - 1}),
        ({"top_p": 0.0}, {"top_k": 1, "top_p": None}),
        ({"top_p": 0, "top_k": 50}, {"top_k": 1, "top_p": None}),
        ({"top_p": 1e-9}, {"top_k": 1, "top_p": None}),
        ({"top_p": 1}, {"top_p": 1}),
        ({"top_p": 1.5}, {"top_p": None}),
        ({"top_p": None}, {"top_p": None}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"temperature": 1e-5}, {"temperature": 1e-3}),
        ({"temperature": 1e5}, {"temperature": 1e3}),
        ({"max_new_tokens": 20.0}, {"max_new_tokens": 20}),
        ({"max_new_tokens": 20.2}, {"max_new_tokens": 21}),
        ({"stop_strings": "stop"}, {"stop_strings": ("stop",)}),
        ({"ras_win_len": 0}, {"ras_win_len": 0}),
    ],
)
def test_what_is_taken(given, expected):
    params = sampling_params(**{**DEFAULTS, **given})
    assert {name: getattr(params, name) for name in DEFAULTS} == {**DEFAULTS, **expected}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"top_p": -0.5}, "top_p must be between 1e-6 and 1, or None, got -0.5"),
        ({"top_p": float("nan")}, "top_p must be"),
        ({"temperature": -1}, "temperature must be"),
        ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
        ({"max_new_tokens": 0.0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": 10**5000}, "temperature must be at most 1.8e308, got"),
        ({"max_new_tokens": Fraction(10**5000)}, "max_new_tokens must be an integer, got"),
        ({"max_new_tokens": float("inf")}, "max_new_tokens must be an integer, got inf"),
        ({"stop_strings": 5}, "stop_strings must be a list of strings, got 5"),
        ({"seed": 1.5}, "seed must be an integer or None, got 1.5"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ParameterError, match=message):
        sampling_params(**{**DEFAULTS, **given})
