"""Another speed keeps the pitch."""

import sys

import numpy as np
import pytest

from higgs_native.audio.samples import pcm_samples
from higgs_native.audio.tempo import Tempo, at_speed, float_samples, steady_at_speed
from higgs_native.errors import ParameterError


RATE = 24000


def tone(seconds: float, hertz: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz / RATE * np.arange(round(seconds * RATE)))).astype(np.float32)


@pytest.mark.parametrize("speed", [0.25, 0.7, 1.3, 4])
def test_the_length_changes_and_the_pitch_stays(speed):
    pytest.importorskip("av")
    changed = at_speed(tone(2, 330), RATE, speed)
    assert changed.dtype == np.float32
    assert len(changed) / RATE == pytest.approx(2 / speed, rel=0.05)
    spectrum = np.abs(np.fft.rfft(changed))
    assert np.argmax(spectrum) * RATE / len(changed) == pytest.approx(330, abs=5)


def test_speed_1_changes_nothing():
    samples = tone(0.1, 330)
    assert at_speed(samples, RATE, 1) is samples


@pytest.mark.parametrize("speed", [0.2, 4.1, float("nan"), "fast", None])
def test_wrong_speeds(speed):
    with pytest.raises(ParameterError, match=r"speed must be (between 0\.25 and 4|a number), got"):
        at_speed(tone(0.1, 330), RATE, speed)


def test_without_pyav_other_speeds_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(at_speed(tone(0.1, 330), RATE, 1)) == 2400
    with pytest.raises(ParameterError, match="speed must be 1 without PyAV, got 2; pip install av changes speeds"):
        at_speed(tone(0.1, 330), RATE, 2)


@pytest.mark.parametrize("speed", [0.25, 0.7, 1.3, 4])
def test_pieces_make_no_difference_to_steady_changes(speed):
    pytest.importorskip("av")
    samples = pcm_samples(np.concatenate([tone(0.3, 330), np.zeros(5000, dtype=np.float32), tone(0.3, 220)]))
    whole = steady_at_speed(samples, RATE, speed)
    for length in (1, 7, 960, 4096):
        tempo = Tempo(RATE, speed, is_steady=True)
        pieces = [tempo.change(samples[begin : begin + length]) for begin in range(0, len(samples), length)]
        np.testing.assert_array_equal(np.concatenate([*pieces, tempo.finish()]), whole)


@pytest.mark.parametrize("speed", [0.25, 1.3, 4])
def test_the_shortest_audio_changes_too(speed):
    """FFmpeg's filter fails on a piece that makes less than half a sample."""
    pytest.importorskip("av")
    for length in range(6):
        samples = np.ones(length, dtype=np.int16)
        for is_steady in (False, True):
            tempo = Tempo(RATE, speed, is_steady)
            assert len(tempo.change(samples)) + len(tempo.finish()) <= 4 * length
        assert len(steady_at_speed(samples, RATE, speed)) <= 4 * length


def test_floating_samples_are_those_of_pcm():
    samples = np.arange(-32767, 32768, dtype=np.int16)
    np.testing.assert_array_equal(pcm_samples(float_samples(samples)), samples)
