import numpy as np
import pytest

from higgs_native.audio.loudness import (
    block_powers,
    check_loudness,
    integrated_loudness,
    k_weighted,
    normalized_to,
    output_gain,
)
from higgs_native.errors import ParameterError


def sine(seconds: float, rate: int, amplitude: float = 1.0) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * 997 * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [16000, 24000, 44100, 48000])
def test_a_sine_has_the_loudness_of_the_standard(rate):
    assert integrated_loudness(sine(3, rate), rate) == pytest.approx(-3.01, abs=0.05)
    assert integrated_loudness(sine(3, rate, 0.1), rate) == pytest.approx(-23.01, abs=0.05)


def test_the_filters_at_48_khz_are_those_of_the_standard():
    """Compare the impulse response with the standard's tables of coefficients."""
    impulse = np.zeros(48000)
    impulse[0] = 1
    response = np.fft.rfft(k_weighted(impulse, 48000))
    z = np.exp(-2j * np.pi * np.arange(24001) / 48000)
    shelf = np.polyval([1.19839281085285, -2.69169618940638, 1.53512485958697], z)
    shelf /= np.polyval([0.73248077421585, -1.69065929318241, 1], z)
    high_pass = (1 - 2 * z + z**2) / np.polyval([0.99007225036621, -1.99004745483398, 1], z)
    np.testing.assert_allclose(abs(response[5:]), abs(shelf * high_pass)[5:], rtol=1e-4, atol=1e-6)


def test_silence_and_quiet_parts_are_gated():
    loud, silent, quiet = sine(4, 24000), np.zeros(10 * 24000), sine(4, 24000, 0.01)
    whole = integrated_loudness(loud, 24000)
    assert integrated_loudness(np.concatenate([loud, silent]), 24000) == pytest.approx(whole, abs=0.3)
    assert integrated_loudness(np.concatenate([loud, quiet]), 24000) == pytest.approx(whole, abs=0.3)
    assert integrated_loudness(silent, 24000) == float("-inf")


def test_short_audio_is_one_block():
    assert integrated_loudness(sine(0.1, 24000), 24000) == pytest.approx(-3.0, abs=0.3)


def test_normalizing():
    audio = sine(2, 24000, 0.02).astype(np.float32)
    result = normalized_to(audio, 24000, -23.0)
    assert result.dtype == np.float32
    assert integrated_loudness(result, 24000) == pytest.approx(-23.0, abs=1e-3)
    silence = np.zeros(24000, dtype=np.float32)
    assert np.array_equal(normalized_to(silence, 24000, -23.0), silence)


@pytest.mark.parametrize("rate", [1000, 2000, 3360, 3370, 4000, 8000])
def test_low_rates(rate):
    """A sine has the same loudness at low and high sampling rates."""
    low, high = (0.1 * np.sin(2 * np.pi * 200 * np.arange(3 * each) / each) for each in (rate, 48000))
    assert integrated_loudness(low, rate) == pytest.approx(integrated_loudness(high, 48000), abs=0.3)


def test_the_gain_of_an_output_brings_it_to_the_loudness():
    audio = 0.01 * np.sin(2 * np.pi * 440 * np.arange(48000) / 24000)
    scaled = audio * output_gain(block_powers(audio, 24000), 0.01, -16)
    assert integrated_loudness(scaled, 24000) == pytest.approx(-16, abs=0.01)


def test_the_gain_of_an_output_never_clips():
    audio = 0.01 * np.sin(2 * np.pi * 440 * np.arange(48000) / 24000)
    audio[24000] = 0.5  # a click
    gain = output_gain(block_powers(audio, 24000), 0.5, -16)
    assert gain == 2
    assert output_gain(block_powers(np.zeros(48000), 24000), 0.0, -16) == 1


@pytest.mark.parametrize("loudness", [1, -71, float("nan"), "loud"])
def test_wrong_loudness(loudness):
    with pytest.raises(ParameterError, match=r"loudness must be (between -70 and 0 LUFS|a number or None), got"):
        check_loudness(loudness)
