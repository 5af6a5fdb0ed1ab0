"""Loudness of a recording, by ITU-R BS.1770-4."""

import numpy as np

from higgs_native.errors import ParameterError
from higgs_native.utils.checks import check_number


MIN_LOUDNESS = -70.0
"""In LUFS; quieter audio counts as silence."""

_BLOCK_SECONDS, _STEP_SECONDS = 0.4, 0.1
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0  # LUFS, LU
# The standard lists filter coefficients for 48 kHz. They follow from these frequencies (Hz), gain (dB) and qualities.
_SHELF_FREQUENCY, _SHELF_GAIN, _SHELF_Q = 1681.9744509555319, 3.99984385397, 0.7071752369554193
_HIGH_PASS_FREQUENCY, _HIGH_PASS_Q = 38.13547087613982, 0.5003270373253953
# The standard's high-pass filter has the numerator 1, -2, 1, and so this gain, which other rates keep.
_HIGH_PASS_GAIN = np.polyval([1, 1 / _HIGH_PASS_Q, 1], np.tan(np.pi * _HIGH_PASS_FREQUENCY / 48000))


def integrated_loudness(samples: np.ndarray, sampling_rate: int) -> float:
    """Return the loudness of mono audio in LUFS; minus infinity if no block of 0.4 s is above -70 LUFS.

    Args:
        samples: [samples], at least one, floating, full scale at 1. Less than 0.4 s count as one block.
        sampling_rate: in Hz, at least 1000. Below 3.4 kHz the shelf filter is left out, which raises frequencies above
            1.7 kHz.
    """
    return gated_loudness(block_powers(samples, sampling_rate))


def block_powers(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Return the power of each block of mono audio, [blocks], float64; parameters as for `integrated_loudness`."""
    power = np.square(k_weighted(samples.astype(np.float64), sampling_rate))
    length, step = round(_BLOCK_SECONDS * sampling_rate), round(_STEP_SECONDS * sampling_rate)
    starts = np.arange(0, max(len(power) - length, 0) + 1, step)
    sums = np.concatenate([[0.0], np.cumsum(power)])
    ends = np.minimum(starts + length, len(power))
    # Rounding can make a difference of sums negative.
    return np.maximum(sums[ends] - sums[starts], 0) / (ends - starts)


def gated_loudness(blocks: np.ndarray) -> float:
    """Return the loudness in LUFS of audio that has blocks of these powers; minus infinity as above."""
    blocks = blocks[_lufs(blocks) > _ABSOLUTE_GATE]
    if not len(blocks):
        return float("-inf")
    return float(_lufs(blocks[_lufs(blocks) > _lufs(blocks.mean()) + _RELATIVE_GATE].mean()))


def normalized_to(samples: np.ndarray, sampling_rate: int, loudness: float) -> np.ndarray:
    """Return mono audio [samples] scaled to `loudness`, in LUFS. Silence is returned as it is."""
    present = integrated_loudness(samples, sampling_rate)
    return samples if present == float("-inf") else samples * np.float32(10 ** ((loudness - present) / 20))


def check_loudness(loudness: float | None) -> None:
    """Raise ParameterError if a loudness is neither None nor a number of LUFS that speech may have."""
    check_number("loudness", loudness, optional=True)
    if loudness is not None and not MIN_LOUDNESS <= loudness <= 0:
        raise ParameterError(f"loudness must be between {MIN_LOUDNESS:g} and 0 LUFS, got {loudness}")


def output_gain(blocks: np.ndarray, peak: float, loudness: float) -> np.float32:
    """Return the factor that brings audio to a loudness, or less, if its peak would exceed full scale.

    Args:
        blocks: `block_powers` of the audio.
        peak: its largest magnitude.
        loudness: in LUFS.
    """
    present = gated_loudness(blocks)
    if present == float("-inf"):
        return np.float32(1)
    return np.float32(min(10 ** ((loudness - present) / 20), 1 / peak))


def k_weighted(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Apply the standard's shelf and high-pass filters to mono audio [samples], float64.

    The filters multiply the spectrum. A second of zeros is appended, in which their impulse responses die away.
    """
    count = len(samples) + sampling_rate
    z = np.exp(-2j * np.pi * np.arange(count // 2 + 1) / count)  # delay by one sample, per frequency

    shelf = np.ones_like(z)
    if sampling_rate / 2 > _SHELF_FREQUENCY:
        tangent = np.tan(np.pi * _SHELF_FREQUENCY / sampling_rate)
        high = 10 ** (_SHELF_GAIN / 20)
        band = high**0.4996667741545416
        b = [high + band * tangent / _SHELF_Q + tangent**2, 2 * (tangent**2 - high)]
        b.append(high - band * tangent / _SHELF_Q + tangent**2)
        shelf = (b[0] + b[1] * z + b[2] * z**2) / _denominator(tangent, _SHELF_Q, z)

    tangent = np.tan(np.pi * _HIGH_PASS_FREQUENCY / sampling_rate)
    high_pass = _HIGH_PASS_GAIN * (1 - 2 * z + z**2) / _denominator(tangent, _HIGH_PASS_Q, z)
    return np.fft.irfft(np.fft.rfft(samples, count) * shelf * high_pass, count)[: len(samples)]


def _denominator(tangent: float, quality: float, z: np.ndarray) -> np.ndarray:
    """Return the denominator of a second-order filter (bilinear transform, not normalized)."""
    edge = tangent / quality
    return (1 + edge + tangent**2) + 2 * (tangent**2 - 1) * z + (1 - edge + tangent**2) * z**2


def _lufs(power: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -0.691 + 10 * np.log10(power)
