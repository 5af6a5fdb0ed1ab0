"""Resampling keeps what lies below both Nyquist frequencies, and gives the length that it promises."""

import numpy as np
import pytest
import soxr
import torch

from higgs_native.audio.resample import resample_sinc, resample_soxr


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44100, 24000), (16000, 24000), (24000, 16000), (8000, 24000)])
def test_a_tone_stays_the_same(from_rate, to_rate):
    inner = slice(to_rate // 10, -to_rate // 10)  # filters ring at the ends
    expected = tone(to_rate)[inner]
    np.testing.assert_allclose(resample_soxr(tone(from_rate), from_rate, to_rate)[inner], expected, atol=1e-3)
    resampled = resample_sinc(torch.from_numpy(tone(from_rate))[None], from_rate, to_rate)[0].numpy()
    np.testing.assert_allclose(resampled[inner], expected, atol=1e-2)


@pytest.mark.parametrize("samples", [1, 99, 100, 101, 4411])
def test_lengths_are_rounded_up(samples):
    expected = -(-samples * 24000 // 44100)
    audio = tone(44100)[:samples]
    assert resample_soxr(audio, 44100, 24000).shape == (expected,)
    assert resample_sinc(torch.from_numpy(audio)[None], 44100, 24000).shape == (1, expected)


def test_soxr_s_samples_are_kept_and_padded_with_zeros():
    audio = tone(44100)[:100]
    resampled, expected = resample_soxr(audio, 44100, 24000), soxr.resample(audio, 44100, 24000, quality="HQ")
    kept = min(len(resampled), len(expected))
    assert resampled.dtype == np.float32
    np.testing.assert_array_equal(resampled[:kept], expected[:kept])
    assert not resampled[kept:].any()


def test_an_equal_rate_changes_nothing():
    audio = tone(24000)
    assert resample_soxr(audio, 24000, 24000) is audio
    samples = torch.from_numpy(audio)[None]
    assert resample_sinc(samples, 24000, 24000) is samples
