"""Samples from arrays and files: their values, and what is refused."""

import io

import numpy as np
import pytest
import soundfile
import torch

from higgs_native.audio.io import check_duration, checked_rate, mono_samples, part_range, read_audio
from higgs_native.errors import AudioError


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        (np.array([0.5, -1.0, 2.0]), [0.5, -1.0, 2.0]),
        (np.array([16384, -32768], dtype=np.int16), [0.5, -1.0]),
        (np.array([2**30, -(2**31)], dtype=np.int32), [0.5, -1.0]),
        (np.array([[1.0, 0.0, 0.5], [0.0, 0.0, -0.5]]), [0.5, 0.0, 0.0]),  # [channels, samples]
        (np.array([[1.0, 0.0], [0.0, 0.0], [0.5, -0.5]]), [0.5, 0.0, 0.0]),  # [samples, channels]
        (torch.tensor([0.5, -0.25], dtype=torch.bfloat16), [0.5, -0.25]),
        (torch.tensor([16384, -32768], dtype=torch.int16), [0.5, -1.0]),
        (np.arange(6, dtype=np.float32)[::2], [0.0, 2.0, 4.0]),
    ],
)
def test_mono_samples(audio, expected):
    samples = mono_samples(audio)
    assert samples.dtype == np.float32
    assert samples.flags.c_contiguous
    assert samples.tolist() == expected


def test_mono_samples_are_not_copied_without_need():
    samples = np.zeros(10, dtype=np.float32)
    assert mono_samples(samples) is samples


@pytest.mark.parametrize(
    ("offset", "duration", "expected"),
    [
        (0, None, (0, 1000)),
        (0.25, None, (250, 750)),
        (0.25, 0.5, (250, 500)),
        (0.75, 0.5, (750, 250)),
        (0, 9, (0, 1000)),
    ],
)
def test_the_range_of_a_part(offset, duration, expected):
    assert part_range(1000, 1000, offset, duration) == expected


def test_an_empty_part_is_refused():
    with pytest.raises(AudioError, match=r"offset must be less than 1 s, the length of a\.wav, got 2 s"):
        part_range(1000, 1000, 2, None, "a.wav")
    with pytest.raises(AudioError, match=r"duration must be at least 0\.1 s of a.wav, got 0 s"):
        part_range(1000, 1000, 0, 0, "a.wav")


@pytest.mark.parametrize("rate", [1000, 24000.0, np.int32(44100), 768_000])
def test_sampling_rates(rate):
    assert checked_rate(rate) == rate
    assert isinstance(checked_rate(rate), int)


@pytest.mark.parametrize("rate", [999, 768_001, 24000.5, "24000", None, float("nan"), np.zeros(2)])
def test_what_is_no_sampling_rate(rate):
    with pytest.raises(AudioError, match="sampling_rate must be an integer from 1000 to 768000 Hz, got "):
        checked_rate(rate)


def test_durations_at_the_limits():
    for num_samples in (100, 120_000):
        check_duration(num_samples, 1000)
    for num_samples, error in ((0, "at least 0.1 s, got 0 s"), (99, "got 0.099 s"), (120_001, "at most 120 s")):
        with pytest.raises(AudioError, match=f"a.wav must last .*{error}"):
            check_duration(num_samples, 1000, "a.wav")


def test_a_part_of_a_file_is_read_and_its_channels_averaged(tmp_path):
    ramp = np.arange(2000, dtype=np.float32) / 4096
    soundfile.write(tmp_path / "a.wav", np.stack([ramp, 0 * ramp], axis=1), 1000, subtype="FLOAT")
    contents = (tmp_path / "a.wav").read_bytes()
    for file in (tmp_path / "a.wav", str(tmp_path / "a.wav"), io.BytesIO(contents)):
        samples, rate = read_audio(file, 0.5, 1.0)
        assert rate == 1000
        np.testing.assert_array_equal(samples, ramp[500:1500] / 2)
