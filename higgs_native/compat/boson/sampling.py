"""Sampling parameters in the ranges that `boson_multimodal` takes."""

import math
from collections.abc import Sequence
from numbers import Real

from higgs_native.generation.sampling_params import SamplingParams


# The limits of SamplingParams.
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-3, 1e3
_MIN_TOP_P = 1e-6


def sampling_params(
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    ras_win_len: int | None,
    ras_win_max_num_repeat: int,
    seed: int | None,
    max_new_tokens: int,
    stop_strings: Sequence[str] | str | None,
) -> SamplingParams:
    """Return the parameters that draw as `boson_multimodal` does with these.

    Args:
        temperature: 0 takes the most likely; others count as at least 0.001 and at most 1000, where all draws agree.
        top_p: 1 and more turn it off; 0 takes the most likely.
        max_new_tokens: rounded up.
        stop_strings: several, or one.
        top_k, ras_win_len, ras_win_max_num_repeat, seed: as for `SamplingParams`.

    Raises:
        ParameterError: a parameter is of a wrong type, or outside its range.
    """
    if _is_number(temperature) and temperature > 0:
        temperature = min(max(temperature, _MIN_TEMPERATURE), _MAX_TEMPERATURE)
    if top_p is not None and _is_number(top_p):
        if 0 <= top_p < _MIN_TOP_P:  # less than any of the most likely can have
            top_k, top_p = 1, None
        elif top_p > 1:
            top_p = None
    if _is_number(max_new_tokens):
        max_new_tokens = math.ceil(max_new_tokens)
    if isinstance(stop_strings, str):
        stop_strings = (stop_strings,)
    return SamplingParams(
        temperature, top_k, top_p, ras_win_len, ras_win_max_num_repeat, seed, max_new_tokens, stop_strings
    )


def _is_number(value: object) -> bool:
    """Whether a float can hold this number; others `SamplingParams` refuses."""
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:
        return False
